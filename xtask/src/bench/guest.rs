//! The guests of the benchmark: what is built, how QEMU is told, what comes back.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::figures::{self, COUNTED, Figure, Usable};
use super::hot;
use super::rows::{self, Row};
use crate::guest::accel::{self, Choice};
use crate::guest::image::{Contents, Image};
use crate::guest::{Guest, Machine};
use crate::kernel::Kernel;
use crate::manifest::Manifest;
use crate::{build, cmd, paths, vm};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Where the server's text is, apart from everything else in the guest.
const TEXT: (u64, u64) = (0x1000_0000, 0x1400_0000);
/// Every leak of chance into the guest is closed: clock, random numbers, addresses. Copies of the
/// kernel do not use `rep movsb`, which the emulator counts by the byte.
const CPU: &str = "max,-rdrand,-rdseed,-erms,-fsrm";
const CLOCK: [&str; 4] = [
    "-icount",
    "shift=0,sleep=off",
    "-rtc",
    "base=2025-01-01T00:00:00,clock=vm",
];
const CMDLINE: [&str; 5] = [
    "quiet",
    "mitigations=off",
    "panic=-1",
    "nokaslr",
    "norandmaps",
];
const DEADLINE: Duration = Duration::from_secs(1800);
/// How often the time to the first read is measured.
const TIMES: usize = 5;

/// A place where benchmarks run.
#[derive(Debug)]
pub struct Bench<'a> {
    manifest: &'a Manifest,
    kernel: &'a Kernel,
    image: Image,
    server: PathBuf,
    plugin: PathBuf,
}

/// What came of a count.
#[derive(Debug)]
pub struct Counted {
    /// Figures by row, as far as rows could be measured.
    pub figures: Vec<Figure>,
    /// Rows that could not be measured, and why.
    pub errors: Vec<String>,
    /// The server's hot places by row, when they were asked for.
    pub hot: Vec<(String, String)>,
    /// The QEMU command.
    pub command: String,
}

impl<'a> Bench<'a> {
    /// Builds server, plugin and guest programs, and writes the image.
    ///
    /// # Errors
    /// A build fails; the server's text is not where it was told to be.
    pub fn new(manifest: &'a Manifest, kernel: &'a Kernel) -> Result<Self> {
        let programs = [
            ("icount-marker", "bench-guest"),
            ("icount-marker", "marker"),
        ];
        let mut built = build::guest(&vm::with_init(&programs))?;
        let server = server()?;
        let init = built.remove(0);
        built.push(server.clone());
        let contents = Contents {
            init,
            programs: built,
            tools: vec!["fio".to_owned(), "busybox".to_owned()],
            tree: None,
        };
        let image = Image::build(&contents, &paths::vm().join("images/bench.cpio"))?;
        Ok(Self {
            manifest,
            kernel,
            image,
            server,
            plugin: plugin()?,
        })
    }

    /// Counts the instructions of rows in one guest.
    ///
    /// # Errors
    /// The guest could not be run to its end, or said what nobody understands.
    pub fn count(&self, rows: &[Row], hot: bool) -> Result<Counted> {
        let (directory, _lock) = vm::run_directory("icount")?;
        let (out, blocks) = (directory.join("counts"), directory.join("blocks"));
        // Whatever an earlier run left is not this run's.
        let _ = fs::remove_file(&out);
        let mut plugin = format!(
            "{},lo={:x},hi={:x},out={}",
            self.plugin.display(),
            TEXT.0,
            TEXT.1,
            out.display()
        );
        if hot {
            plugin += &format!(",hot={}", blocks.display());
        }
        let mut machine = counting(1);
        machine.extra.extend(["-plugin".to_owned(), plugin]);
        println!(
            "counting {} rows on Linux {}",
            rows.len(),
            self.kernel.release
        );
        let (lines, command) = self.run(machine, &directory, &rows::plan(rows), true)?;
        let text = fs::read_to_string(&out).with_context(|| out.display().to_string())?;
        let snapshots = figures::snapshots(&text)?;
        let (mut figures, mut errors) = (Vec::new(), Vec::new());
        for row in rows {
            let start = format!("@row {} ", row.name);
            match lines.iter().find(|line| line.starts_with(&start)) {
                Some(line) => match figures::figure(line, &snapshots) {
                    Ok(figure) => figures.push(figure),
                    Err(error) => errors.push(format!("{}: {error:#}", row.name)),
                },
                None => errors.push(format!("{}: {}", row.name, reason(&lines, &row.name))),
            }
        }
        let mut places = Vec::new();
        if hot {
            let blocks = fs::read_to_string(&blocks).context("the plugin's file of blocks")?;
            for figure in figures.iter().filter(|figure| figure.own > 0.0) {
                places.push((
                    figure.name.clone(),
                    hot::places(&self.server, &blocks, figure.mark)?,
                ));
            }
        }
        Ok(Counted {
            figures,
            errors,
            hot: places,
            command,
        })
    }

    /// Measures the time from `add` to the first read in a guest with four CPUs: by a clock that
    /// runs with the host's, or, `counted`, by one that advances a nanosecond per instruction.
    ///
    /// # Errors
    /// The guest could not be run to its end.
    pub fn usable(&self, counted: bool) -> Result<Usable> {
        let (directory, _lock) = vm::run_directory("usable")?;
        let accel = accel::choose(Choice::Auto, self.kernel, &self.image)?;
        let (machine, accelerator) = if counted {
            (counting(4), COUNTED.to_owned())
        } else {
            (accel.machine(), accel.to_string())
        };
        let plan = rows::usable_plan(TIMES);
        let (lines, _) = self.run(machine, &directory, &plan, false)?;
        let mut usable = Usable {
            accelerator,
            command: rows::usable_server().to_owned(),
            ..Usable::default()
        };
        for line in &lines {
            if line.starts_with("@usable ") {
                usable.take(line)?;
            }
        }
        if usable.usable.len() != TIMES {
            usable.errors.push(reason(&lines, rows::USABLE));
        }
        Ok(usable)
    }

    fn run(
        &self,
        machine: Machine,
        directory: &Path,
        plan: &str,
        targets: bool,
    ) -> Result<(Vec<String>, String)> {
        let file = directory.join("plan");
        fs::write(&file, plan).with_context(|| file.display().to_string())?;
        let mut modules = vec![("ublk_drv".to_owned(), String::new())];
        if targets {
            modules.push((
                "null_blk".to_owned(),
                "nr_devices=1 submit_queues=1".to_owned(),
            ));
            modules.push(("brd".to_owned(), "rd_nr=1 rd_size=262144".to_owned()));
        }
        let guest = Guest {
            kernel: self.kernel,
            image: &self.image,
            machine,
            cmdline: CMDLINE.map(str::to_owned).to_vec(),
            modules,
            sets: Vec::new(),
            files: vec![("/bench.plan".to_owned(), file)],
            program: ["/usr/bin/bench-guest", "/bench.plan"]
                .map(str::to_owned)
                .to_vec(),
            env: Vec::new(),
            deadline: DEADLINE,
            directory: directory.to_owned(),
            harmless: self
                .manifest
                .harmless
                .iter()
                .map(|h| h.line.clone())
                .collect(),
        };
        let outcome = guest.run(&mut |line| {
            if !line.is_empty() {
                println!("  {line}");
            }
        })?;
        ensure!(outcome.verdict.is_good(), "{}", outcome.report());
        Ok((outcome.lines, outcome.command))
    }
}

/// A machine whose clock is the number of its instructions.
fn counting(cpus: usize) -> Machine {
    Machine {
        qemu: "qemu-system-x86_64".to_owned(),
        accel: "tcg,thread=single".to_owned(),
        cpu: CPU.to_owned(),
        cpus,
        memory: 3072,
        extra: CLOCK.map(str::to_owned).to_vec(),
    }
}

/// Why the guest has no figure for a row.
fn reason(lines: &[String], name: &str) -> String {
    let start = format!("@error {name} ");
    let said = lines.iter().find_map(|line| line.strip_prefix(&start));
    said.map_or_else(
        || "not measured, and the guest does not say why".to_owned(),
        str::to_owned,
    )
}

/// The server as it is measured: a release build, static, at addresses of its own.
fn server() -> Result<PathBuf> {
    let directory = paths::target().join("bench");
    let mut command = cmd::cargo();
    command
        .args([
            "build",
            "--quiet",
            "--release",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&directory)
        .args(["--package", "ublkctl", "--bin", "ublkctl"])
        .env(
            "RUSTFLAGS",
            format!(
                "-C relocation-model=static -C target-feature=+crt-static \
                 -C link-arg=-Wl,--image-base=0x{:x}",
                TEXT.0
            ),
        );
    println!("building for the benchmark: ublkctl");
    cmd::run(&mut command)?;
    let server = directory.join(TARGET).join("release/ublkctl");
    let bytes = fs::read(&server).with_context(|| server.display().to_string())?;
    let entry = bytes.get(24..32).and_then(|bytes| bytes.try_into().ok());
    let entry = u64::from_le_bytes(entry.context("an ELF file has an entry address")?);
    ensure!(
        (TEXT.0..TEXT.1).contains(&entry),
        "ublkctl starts at {entry:x}, outside the addresses that are counted as its own"
    );
    Ok(server)
}

fn plugin() -> Result<PathBuf> {
    let directory = paths::target().join("bench");
    let mut command = cmd::cargo();
    command
        .args(["build", "--quiet", "--release", "--target-dir"])
        .arg(&directory)
        .args(["--package", "icount-plugin"]);
    println!("building for the benchmark: icount-plugin");
    cmd::run(&mut command)?;
    Ok(directory.join("release/libicount_plugin.so"))
}
