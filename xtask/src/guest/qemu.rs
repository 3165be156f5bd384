//! Boots QEMU with the console on its standard output and the channel on a socket.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::follow::{Event, Follow};
use super::{Guest, Outcome, Verdict};
use crate::newc::Newc;
use crate::{cmd, host};

/// How often a boot is retried after a fault of the emulator.
const EMULATOR_FAULTS: u32 = 4;

impl Guest<'_> {
    /// Boots the guest and waits for its end; `each` gets every line of the channel as it comes.
    ///
    /// # Errors
    /// QEMU cannot be started: a file cannot be written, or there is no such program. After the start, all failures are
    /// verdicts of the outcome.
    pub fn run(&self, each: &mut dyn FnMut(&str)) -> Result<Outcome> {
        for _ in 0..EMULATOR_FAULTS {
            let outcome = self.once(each)?;
            if !self.is_emulators(&outcome) {
                return Ok(outcome);
            }
            println!("the emulator lost an int3 while the kernel patched itself: booting again");
        }
        self.once(each)
    }

    /// True for a bug of QEMU's software emulation with several CPUs: one of them hits the breakpoint of a kernel code
    /// patch that is already complete. It happens while the kernel boots, before any program of ours runs.
    fn is_emulators(&self, outcome: &Outcome) -> bool {
        let int3 = matches!(&outcome.verdict, Verdict::KernelFault(line) if line.contains("int3"));
        self.machine.accel.starts_with("tcg") && int3 && outcome.lines.is_empty()
    }

    fn once(&self, each: &mut dyn FnMut(&str)) -> Result<Outcome> {
        fs::create_dir_all(&self.directory)
            .with_context(|| self.directory.display().to_string())?;
        let nonce = nonce();
        let initramfs = self.initramfs(&nonce, false)?;
        let sockets = tempfile::tempdir()?;
        let socket = sockets.path().join("channel");
        let listener = UnixListener::bind(&socket).with_context(|| socket.display().to_string())?;
        let mut command = self.command(&initramfs);
        command.args(["-serial", "stdio", "-monitor", "none", "-chardev"]);
        command.arg(format!("socket,id=channel,path={}", socket.display()));
        command.args(["-serial", "chardev:channel"]);
        let outcome = self.watch(command, listener, &socket, &nonce, each);
        // A large file per run that is not read again.
        let _ = fs::remove_file(initramfs);
        outcome
    }

    /// Boots the guest on our own terminal.
    ///
    /// # Errors
    /// QEMU cannot be started or fails.
    pub fn interactive(&self) -> Result<()> {
        fs::create_dir_all(&self.directory)?;
        let initramfs = self.initramfs(&nonce(), true)?;
        let mut command = self.command(&initramfs);
        let channel = self.directory.join("channel.log");
        command.args(["-serial", "mon:stdio", "-serial"]);
        command.arg(format!("file:{}", channel.display()));
        let result = cmd::run(&mut command);
        let _ = fs::remove_file(initramfs);
        result
    }

    fn command(&self, initramfs: &Path) -> Command {
        let machine = &self.machine;
        let mut command = host::command(&machine.qemu);
        command
            .args([
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
            ])
            .args(["-accel", &machine.accel, "-cpu", &machine.cpu])
            .args([
                "-smp",
                &machine.cpus.to_string(),
                "-m",
                &machine.memory.to_string(),
            ])
            .args(&machine.extra)
            .arg("-kernel")
            .arg(&self.kernel.vmlinuz)
            .arg("-initrd")
            .arg(initramfs)
            .arg("-append")
            .arg(format!(
                "console=ttyS0 rdinit=/init {}",
                self.cmdline.join(" ")
            ));
        command
    }

    /// The image with this run's own files laid over it.
    fn initramfs(&self, nonce: &str, console: bool) -> Result<std::path::PathBuf> {
        let path = self.directory.join("initramfs.cpio");
        fs::copy(&self.image.path, &path).with_context(|| path.display().to_string())?;
        let file = File::options().append(true).open(&path)?;
        let mut over = Newc::new(std::io::BufWriter::new(file));
        let mut conf = format!("nonce {nonce}\n");
        let library = format!("/lib/modules/{}", self.kernel.release);
        let library = format!("/usr{library}");
        for module in &self.kernel.modules {
            let name = module
                .file_name()
                .context("a module has a name")?
                .to_string_lossy();
            over.copy(&format!("{library}/{name}"), module)?;
        }
        over.file(
            &format!("{library}/modules.dep"),
            0o644,
            self.modules_dep()?.as_bytes(),
        )?;
        let mut loaded = Vec::new();
        for (name, params) in &self.modules {
            for file in self.kernel.load_order(std::slice::from_ref(name))? {
                let stem = file
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                if !loaded.contains(&stem) {
                    let params = if stem == *name { params.as_str() } else { "" };
                    conf += &format!("module {library}/{stem}.ko {params}\n");
                    loaded.push(stem);
                }
            }
        }
        for (path, value) in &self.sets {
            conf += &format!("set {path} {value}\n");
        }
        for (name, value) in &self.env {
            conf += &format!("env {name}={value}\n");
        }
        for word in &self.program {
            anyhow::ensure!(
                !word.contains('\n'),
                "a line break in an argument: {word:?}"
            );
            conf += &format!("exec {word}\n");
        }
        if console {
            conf += "console yes\n";
        }
        let before = self.deadline.saturating_sub(Duration::from_secs(10));
        if before > Duration::from_secs(30) && !console {
            conf += &format!("watchdog {}\n", before.as_secs());
        }
        over.file("/guest.conf", 0o644, conf.as_bytes())?;
        for (to, from) in &self.files {
            over.copy(to, from)?;
        }
        over.finish()?;
        Ok(path)
    }

    /// The content of `modules.dep` for `modprobe`.
    fn modules_dep(&self) -> Result<String> {
        let mut text = String::new();
        for module in &self.kernel.modules {
            let name = module
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let mut order = self.kernel.load_order(std::slice::from_ref(&name))?;
            order.pop();
            let needs = order.iter().rev().filter_map(|path| path.file_name());
            let needs: Vec<_> = needs.map(|file| file.to_string_lossy()).collect();
            text += &format!("{name}.ko: {}\n", needs.join(" "));
        }
        Ok(text)
    }

    fn watch(
        &self,
        mut command: Command,
        listener: UnixListener,
        socket: &Path,
        nonce: &str,
        each: &mut dyn FnMut(&str),
    ) -> Result<Outcome> {
        let messages = File::create(self.directory.join("qemu.log"))?;
        let line = cmd::line(&command);
        let start = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(messages)
            .spawn()
            .with_context(|| format!("cannot start: {line}"))?;
        fs::write(self.directory.join("qemu.pid"), child.id().to_string())?;
        let (sender, events) = mpsc::channel();
        let stdout = child.stdout.take().context("piped above")?;
        let (console, channel) = (sender.clone(), sender);
        let place = socket.to_owned();
        thread::spawn(move || {
            pump(stdout, &console, Event::Console);
            let _ = console.send(Event::ConsoleEnd);
            // QEMU has exited. If it never connected to the channel, nothing else will: release the listener.
            let _ = UnixStream::connect(place);
        });
        thread::spawn(move || {
            if let Ok((stream, _)) = listener.accept() {
                pump(stream, &channel, Event::Channel);
            }
            let _ = channel.send(Event::ChannelEnd);
        });
        let console = self.directory.join("console.log");
        let mut follow = Follow::new(nonce, &self.harmless, self.deadline);
        let mut logs = (
            File::create(&console)?,
            File::create(self.directory.join("channel.log"))?,
        );
        let result = follow.until_end(&events, &mut logs, each);
        // No guest may be left running, whatever happened.
        let _ = child.kill();
        let _ = child.wait();
        let _ = fs::remove_file(self.directory.join("qemu.pid"));
        result?;
        let (verdict, lines) = follow.conclude();
        Ok(Outcome {
            verdict,
            lines,
            console,
            elapsed: start.elapsed(),
            command: line,
        })
    }
}

fn pump(mut from: impl Read, to: &Sender<Event>, event: fn(Vec<u8>) -> Event) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.send(event(buffer[..count].to_vec())).is_err() {
            return;
        }
    }
}

/// A unique word of constant length, so that the images of all runs have the same length.
fn nonce() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    format!(
        "{:016x}-{:08x}",
        now.unwrap_or_default().as_nanos(),
        std::process::id()
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::time::Duration;

    use crate::guest::image::Image;
    use crate::guest::{Guest, Machine, Outcome, Verdict};
    use crate::kernel::Kernel;

    /// Runs a shell script instead of QEMU.
    fn run(script: &str, deadline: Duration) -> Outcome {
        let directory = tempfile::tempdir().unwrap().keep();
        let qemu = directory.join("qemu");
        // `exec`, so that the kill reaches the running program.
        fs::write(&qemu, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
        let image = Image {
            path: directory.join("image"),
        };
        fs::write(&image.path, "").unwrap();
        let kernel = Kernel {
            name: "6.12".into(),
            series: "6.12".into(),
            release: "6.12.0".into(),
            vmlinuz: directory.join("vmlinuz"),
            modules: Vec::new(),
        };
        let guest = Guest {
            kernel: &kernel,
            image: &image,
            machine: Machine {
                qemu: qemu.display().to_string(),
                accel: "tcg".into(),
                cpu: "max".into(),
                cpus: 1,
                memory: 64,
                extra: Vec::new(),
            },
            cmdline: Vec::new(),
            modules: Vec::new(),
            sets: Vec::new(),
            files: Vec::new(),
            program: vec!["/bin/true".into()],
            env: Vec::new(),
            deadline,
            directory: directory.clone(),
            harmless: vec!["WARNING: known".into()],
        };
        let outcome = guest.run(&mut |_| ()).unwrap();
        assert!(!Path::new(&directory.join("qemu.pid")).exists());
        outcome
    }

    const LONG: Duration = Duration::from_secs(60);

    /// L90 A guest that ends without a verdict has failed, even if QEMU exits with status 0.
    #[test]
    fn l90_no_verdict_is_a_failure() {
        let outcome = run("echo booted; echo 'bad flag' >&2; exit 0", LONG);
        assert_eq!(outcome.verdict, Verdict::Missing);
        let report = outcome.report();
        for part in ["without a verdict", "booted", "bad flag", "-append"] {
            assert!(report.contains(part), "{part} in {report}");
        }
        fs::remove_dir_all(outcome.console.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_fault_ends_the_run_early() {
        let outcome = run(
            "echo '[ 1.0] WARNING: known'; echo '[ 1.0] Oops: 0000 [#1]'; echo more; exec sleep 1000",
            LONG,
        );
        assert_eq!(
            outcome.verdict,
            Verdict::KernelFault("Oops: 0000 [#1]".into())
        );
        assert!(
            outcome.elapsed < Duration::from_secs(30),
            "{:?}",
            outcome.elapsed
        );
        let console = fs::read_to_string(&outcome.console).unwrap();
        assert!(
            console.contains("more"),
            "the words after the fault are kept"
        );
        fs::remove_dir_all(outcome.console.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_guest_that_hangs_is_killed() {
        let deadline = Duration::from_millis(300);
        let outcome = run("exec sleep 1000", deadline);
        assert_eq!(outcome.verdict, Verdict::TimedOut(deadline));
        assert!(
            outcome.elapsed < Duration::from_secs(30),
            "{:?}",
            outcome.elapsed
        );
        fs::remove_dir_all(outcome.console.parent().unwrap()).unwrap();
    }
}
