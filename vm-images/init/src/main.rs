//! Process one of the guest: mounts file systems, loads modules, runs one program, reports the verdict, powers off.
//!
//! The program's output goes to the result channel (the second serial port), separate from the console, to which the
//! kernel writes. The verdict is one line on the channel:
//!
//! ```text
//! @verdict NONCE exit STATUS | signal NUMBER | error TEXT
//! ```
//!
//! In an image with systemd this process mounts, loads modules, and becomes systemd. A unit of the image starts it
//! again, as `/init --run`, to do the rest.

mod conf;
mod sys;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use conf::Conf;
use sys::Ended;

const CHANNEL: &str = "/dev/ttyS1";
const CONSOLE: &str = "/dev/console";
const CONF: &str = "/guest.conf";
const SYSTEMD: &str = "/usr/lib/systemd/systemd";

/// The part that this process plays in the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Process one in an image without systemd: everything.
    Whole,
    /// Process one, before it becomes systemd.
    Before,
    /// Started by systemd.
    Run,
}

fn main() {
    let again = std::env::args().nth(1).as_deref() == Some("--run") && fs::metadata(CONF).is_ok();
    let part = match (std::process::id(), again) {
        (1, _) if fs::metadata(SYSTEMD).is_ok() => Part::Before,
        (1, _) => Part::Whole,
        (_, true) => Part::Run,
        _ => {
            eprintln!("guest-init is process one of a test guest; it does nothing on a host");
            std::process::exit(2);
        }
    };
    if let Err(error) = life(part) {
        // Without a channel only the console is left; a missing verdict counts as a failure.
        eprintln!("guest-init: {error:#}");
    }
    sys::sync();
    let error = sys::power_off();
    eprintln!("guest-init: power off: {error:?}");
}

fn life(part: Part) -> Result<()> {
    if part != Part::Run {
        mounts()?;
    }
    let mut channel = OpenOptions::new()
        .read(true)
        .write(true)
        .open(CHANNEL)
        .with_context(|| CHANNEL.to_owned())?;
    sys::make_raw(&channel).context("raw mode of the channel")?;
    let text = fs::read_to_string(CONF).context(CONF)?;
    let nonce = text
        .lines()
        .find_map(|line| line.strip_prefix("nonce "))
        .unwrap_or("none")
        .to_owned();
    let lived = Conf::parse(&text).and_then(|conf| {
        if part != Part::Run {
            prepare(&conf)?;
        }
        if part == Part::Before {
            // Returns only on failure.
            let error = Command::new(SYSTEMD).env_clear().exec();
            return Err(error).context(SYSTEMD);
        }
        run(&conf, &channel)
    });
    let verdict = match lived {
        Ok(Ended::Exit(status)) => format!("exit {status}"),
        Ok(Ended::Signal(signal)) => format!("signal {signal}"),
        Err(error) => format!("error {}", format!("{error:#}").replace('\n', " ")),
    };
    write!(channel, "\n@verdict {nonce} {verdict}\n").context("verdict")?;
    sys::drain(&channel);
    Ok(())
}

fn mounts() -> Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("debugfs", "/sys/kernel/debug"),
        ("configfs", "/sys/kernel/config"),
    ] {
        if let Err(error) = fs::create_dir_all(target) {
            // sysfs creates its own mount points; if the kernel lacks one, it is not needed.
            if target.starts_with("/sys/") {
                continue;
            }
            return Err(error).context(target);
        }
        match sys::mount(kind, target) {
            Err(error) if !target.starts_with("/sys/kernel") => {
                return Err(error).with_context(|| format!("mount {kind} on {target}"));
            }
            _ => {}
        }
    }
    fs::create_dir_all("/dev/shm").context("/dev/shm")?;
    sys::mount("tmpfs", "/dev/shm").context("mount /dev/shm")?;
    fs::create_dir_all("/dev/pts").context("/dev/pts")?;
    // Only an interactive shell needs pseudo terminals.
    let _ = sys::mount("devpts", "/dev/pts");
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/mounts", "/etc/mtab"),
    ] {
        std::os::unix::fs::symlink(target, link).with_context(|| link.to_owned())?;
    }
    Ok(())
}

/// One-time preparation: kernel settings, modules, the network.
fn prepare(conf: &Conf) -> Result<()> {
    for (path, value) in &conf.sets {
        if fs::metadata(path).is_ok() {
            fs::write(path, value).with_context(|| format!("write {value:?} to {path}"))?;
        }
    }
    for (module, params) in &conf.modules {
        sys::load_module(module.as_ref(), params).with_context(|| format!("module {module}"))?;
    }
    network()
}

fn run(conf: &Conf, channel: &File) -> Result<Ended> {
    if let Some(seconds) = conf.watchdog {
        thread::spawn(move || watchdog(Duration::from_secs(seconds)));
    }
    let (input, output, errors) = if conf.console {
        let console = || OpenOptions::new().read(true).write(true).open(CONSOLE);
        (console()?.into(), console()?, console()?)
    } else {
        (Stdio::null(), channel.try_clone()?, channel.try_clone()?)
    };
    let program = conf.exec.first().context("no program")?;
    let mut command = Command::new(program);
    command
        .args(&conf.exec[1..])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("TERM", "linux")
        .envs(conf.env.iter().map(|(name, value)| (name, value)))
        .current_dir("/root")
        .stdin(input)
        .stdout(output)
        .stderr(errors)
        .process_group(0);
    let child = command
        .spawn()
        .with_context(|| format!("start {program}"))?;
    // Process one inherits every orphan: reap them all, stop at the program itself. Under systemd there are none.
    loop {
        match sys::reap_any().context("wait")? {
            Some((pid, ended)) if pid == child.id() => return Ok(ended),
            Some(_) => {}
            None => anyhow::bail!("the program is gone without a status"),
        }
    }
}

/// Sets the host name and brings up the loopback interface, with busybox.
fn network() -> Result<()> {
    fs::write("/proc/sys/kernel/hostname", "guest").context("host name")?;
    let status = Command::new("/usr/bin/busybox")
        .args(["ip", "link", "set", "lo", "up"])
        .stdin(Stdio::null())
        .status();
    // A kernel without IPv4 or an image without busybox still runs every block test.
    if let Ok(status) = status
        && !status.success()
    {
        eprintln!("guest-init: loopback interface: {status}");
    }
    Ok(())
}

/// Shortly before the host gives up, dumps the state of all tasks to the console.
fn watchdog(after: Duration) {
    thread::sleep(after);
    for key in ["w", "l"] {
        // Best effort: without sysrq the host still has the console output so far.
        let _ = fs::write("/proc/sysrq-trigger", key);
    }
}
