//! The demonstration: the complete life of a block device served from Rust.
//!
//! `ublk-demo UBLKCTL TREE WORK`: starts a memory device with the tool `UBLKCTL`, puts an ext4 file system on it,
//! copies `TREE` there through the mount point `WORK`, and compares checksums after a second mount. Runs as root, on a
//! host with the ublk driver or in the guest. Every step prints what it did; the first failed check ends the program
//! with status 1.

mod tree;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use tree::Tree;

const SIZE: u64 = 512 << 20;
const QUEUES: usize = 4;

fn main() {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [tool, source, work] = arguments.as_slice() else {
        eprintln!("usage: ublk-demo UBLKCTL TREE WORK");
        std::process::exit(2);
    };
    let mut demo = Demo {
        tool,
        work,
        step: 0,
        device: None,
        mounted: false,
    };
    let result = demo.run(source);
    let cleaned = demo.clean();
    match result.and(cleaned) {
        Ok(()) => {
            println!("\nThat was the whole life of a block device served from Rust.");
        }
        Err(error) => {
            println!("\nThe demonstration failed: {error:#}");
            std::process::exit(1);
        }
    }
}

struct Demo<'a> {
    tool: &'a Path,
    work: &'a Path,
    step: usize,
    device: Option<String>,
    mounted: bool,
}

impl Demo<'_> {
    fn run(&mut self, source: &Path) -> Result<()> {
        let device = self.add()?;
        self.say("An ext4 file system is written to it, as to any disk.");
        run("mkfs.ext4", &["-q", "-F", &device])?;

        self.mount(&device)?;
        let target = self.work.join("tree");
        tree::copy(source, &target)?;
        let before = Tree::of(source)?;
        if before.files.is_empty() {
            bail!("there is nothing to copy in {}", source.display());
        }
        self.say(&format!(
            "{} files ({} KiB), the sources of this very project, were copied onto it.",
            before.files.len(),
            before.bytes / 1024
        ));

        self.unmount()?;
        self.say(
            "The file system was unmounted: the kernel has written everything to our server and \
             forgot it.",
        );
        run("blockdev", &["--flushbufs", &device])?;
        self.mount(&device)?;
        let after = Tree::of(&target)?;
        let differences = before.differences(&after);
        if !differences.is_empty() {
            bail!(
                "{} files differ, first {:?}",
                differences.len(),
                differences[0]
            );
        }
        self.say(&format!(
            "Mounted again, every file was read back from our server: all {} SHA-256 checksums \
             agree.",
            after.files.len()
        ));
        self.unmount()?;
        run("e2fsck", &["-f", "-n", &device])?;
        self.say("e2fsck looked at the whole file system and found no fault.");
        self.fio(&device)?;
        self.delete()
    }

    fn say(&mut self, what: &str) {
        self.step += 1;
        println!("\n{}. {what}", self.step);
    }

    fn add(&mut self) -> Result<String> {
        let start = Instant::now();
        let size = format!("{}M", SIZE >> 20);
        let queues = QUEUES.to_string();
        let output = self.ublkctl(&["add", "mem", "--size", &size, "--queues", &queues])?;
        let elapsed = start.elapsed();
        let device = output.trim();
        if !device.starts_with("/dev/ublkb") {
            bail!("add printed {output:?}, not the path of a device");
        }
        self.device = Some(device.to_owned());
        self.say(&format!(
            "A new disk, {device}: {} MiB of memory of a program of ours, a \"ublk server\".\n   \
             The kernel hands every read and write for it to that program, here through {QUEUES} \
             queues.\n   It was usable {:.1} ms after `ublkctl add mem --size {size} --queues \
             {queues}` was started.",
            SIZE >> 20,
            elapsed.as_secs_f64() * 1e3,
        ));
        let bytes = run("blockdev", &["--getsize64", device])?;
        if bytes.trim() != SIZE.to_string() {
            bail!("the disk has {} bytes, asked were {SIZE}", bytes.trim());
        }
        let name = device.trim_start_matches("/dev/");
        let given = fs::read_dir(format!("/sys/block/{name}/mq"))?.count();
        if given != QUEUES.min(std::thread::available_parallelism()?.get()) {
            bail!("the disk has {given} queues, asked were {QUEUES}");
        }
        Ok(device.to_owned())
    }

    fn mount(&mut self, device: &str) -> Result<()> {
        fs::create_dir_all(self.work).with_context(|| self.work.display().to_string())?;
        let work = self.work.display().to_string();
        run("mount", &["-t", "ext4", device, &work])?;
        self.mounted = true;
        self.say(&format!("Mounted it on {work}."));
        Ok(())
    }

    fn unmount(&mut self) -> Result<()> {
        run("umount", &[&self.work.display().to_string()])?;
        self.mounted = false;
        Ok(())
    }

    fn fio(&mut self, device: &str) -> Result<()> {
        let name = format!("--filename={device}");
        let output = run(
            "fio",
            &[
                "--name=demo",
                &name,
                "--rw=randrw",
                "--bs=4k",
                "--size=64m",
                "--io_size=16m",
                "--ioengine=io_uring",
                "--direct=1",
                "--iodepth=32",
                "--numjobs=4",
                "--offset_increment=64m",
                "--thread",
                "--group_reporting",
            ],
        )?;
        self.say("A short load of random 4 KiB reads and writes on all queues, by fio:");
        let mut lines = 0;
        for line in output.lines().map(str::trim) {
            if line.starts_with("read:") || line.starts_with("write:") {
                println!("   {line}");
                lines += 1;
            }
        }
        if lines != 2 {
            bail!("fio reported no figures: {output}");
        }
        Ok(())
    }

    fn delete(&mut self) -> Result<()> {
        let Some(device) = self.device.take() else {
            return Ok(());
        };
        let id = device.trim_start_matches("/dev/ublkb").to_owned();
        self.ublkctl(&["delete", &id])?;
        if Path::new(&device).exists() {
            bail!("{device} is still there after the delete");
        }
        self.say(&format!(
            "Deleted: {device} is gone, and its server with it."
        ));
        Ok(())
    }

    /// Leaves nothing behind, even after a failure half-way.
    fn clean(&mut self) -> Result<()> {
        if self.mounted {
            self.unmount()?;
        }
        self.delete()
    }

    fn ublkctl(&self, arguments: &[&str]) -> Result<String> {
        run(&self.tool.display().to_string(), arguments)
    }
}

/// Runs a program to its end and returns its output; a failure shows the whole command.
fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let line = format!("{program} {}", arguments.join(" "));
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| line.clone())?;
    let text = String::from_utf8_lossy(&stdout).into_owned();
    if !status.success() {
        let errors = String::from_utf8_lossy(&stderr);
        bail!("`{line}` failed, {status}\n{text}{errors}");
    }
    Ok(text)
}
