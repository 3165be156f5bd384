//! Information on processes from /proc.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait::{secs, until};

/// The first fields of a `stat` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Process or thread id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// R, S, D, Z, …
    pub state: char,
    /// Id of the parent.
    pub parent: u32,
    /// The kernel's `PF_*` flags.
    pub flags: u64,
}

impl Stat {
    /// Parses a `stat` file; the name may contain anything, even parentheses.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, rest) = text.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        Some(Self {
            id: id.trim().parse().ok()?,
            name: name.to_owned(),
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            flags: fields.get(6)?.parse().ok()?,
        })
    }

    fn of(directory: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(directory.join("stat")).ok()?)
    }
}

fn numbered(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let number = |name: &str| name.bytes().all(|b| b.is_ascii_digit());
    entries
        .filter(|e| e.file_name().to_str().is_some_and(number))
        .map(|e| e.path())
        .collect()
}

/// All processes.
pub fn processes() -> Vec<Stat> {
    let all = numbered(Path::new("/proc"));
    all.iter().filter_map(|p| Stat::of(p)).collect()
}

/// The threads of a process.
pub fn threads(pid: u32) -> Vec<Stat> {
    let all = numbered(&PathBuf::from(format!("/proc/{pid}/task")));
    all.iter().filter_map(|p| Stat::of(p)).collect()
}

/// Processes whose program file has this name, without zombies.
pub fn running(program: &str) -> Vec<Stat> {
    let is = |stat: &Stat| {
        let exe = fs::read_link(format!("/proc/{}/exe", stat.id));
        exe.is_ok_and(|exe| exe.file_name().is_some_and(|name| name == program))
    };
    let all = processes().into_iter();
    all.filter(|stat| stat.state != 'Z' && is(stat)).collect()
}

/// Threads of any process in uninterruptible sleep, without kernel threads.
pub fn stuck() -> Vec<Stat> {
    let user = processes()
        .into_iter()
        .filter(|p| p.parent != 2 && p.id != 2);
    user.flat_map(|p| threads(p.id))
        .filter(|t| t.state == 'D')
        .collect()
}

/// Waits until no thread of a user process is in uninterruptible sleep.
pub fn nothing_stuck(limit: Duration) -> Result<()> {
    let settled = until("no process in state D", limit, || {
        Ok(stuck().is_empty().then_some(()))
    });
    settled.with_context(|| format!("stuck: {:?}", stuck()))
}

/// Kernel stacks of the tool's processes and of all threads in uninterruptible sleep: for the report of a hang.
pub fn whereabouts() -> String {
    let ours = |stat: &Stat| stat.name.starts_with("ublk") || stat.state == 'D';
    let threads = processes().into_iter().flat_map(|p| threads(p.id));
    let mut text = String::new();
    for thread in threads.filter(ours) {
        let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", thread.id));
        let words = read("cmdline").unwrap_or_default().replace('\0', " ");
        let Stat {
            id, name, state, ..
        } = thread;
        text += &format!("\n{id} {name} {state}: {words}");
        for line in read("stack").unwrap_or_default().lines().take(9) {
            text += &format!("\n    {line}");
        }
    }
    text
}

/// Sends a signal.
pub fn kill(pid: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .context("a process number")?;
    kill_process(pid, signal).with_context(|| format!("kill {}", pid.as_raw_nonzero()))
}

/// Stops a process (SIGSTOP) and waits until all its threads have stopped, which takes a moment. The kernel's own
/// workers in it (`PF_IO_WORKER`) do not count.
pub fn stop(pid: u32) -> Result<()> {
    const PF_IO_WORKER: u64 = 0x10;
    kill(pid, Signal::STOP)?;
    until("a stopped process", secs(10), || {
        let mut own = threads(pid)
            .into_iter()
            .filter(|t| t.flags & PF_IO_WORKER == 0);
        Ok(own.all(|t| t.state == 'T').then_some(()))
    })
}

/// A number in `/proc/PID/status`, such as `VmRSS` (in bytes here) or `Threads`.
pub fn status(pid: u32, key: &str) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("status")?;
    status_of(&text, key).with_context(|| format!("no {key} in the status of {pid}"))
}

/// Available memory of the machine in bytes.
pub fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("meminfo")?;
    status_of(&text, "MemAvailable").context("no MemAvailable")
}

fn status_of(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    let mut words = line.split_whitespace();
    let number: u64 = words.next()?.parse().ok()?;
    Some(if words.next() == Some("kB") {
        number * 1024
    } else {
        number
    })
}

/// Parses a list of CPUs in /proc: `0-2,5`.
pub fn cpu_list(text: &str) -> std::collections::BTreeSet<u64> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse().ok()?..=last.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// Descriptors, mappings and threads of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Number of open descriptors.
    pub descriptors: usize,
    /// Descriptors and mappings of rings and ublk nodes.
    pub rings: usize,
    /// Number of threads.
    pub threads: usize,
}

/// The present footprint of a process.
pub fn footprint(pid: u32) -> Result<Footprint> {
    let fds = numbered(&PathBuf::from(format!("/proc/{pid}/fd")));
    let ours = |text: &str| text.contains("io_uring") || text.contains("/dev/ublk");
    let links = fds.iter().filter_map(|fd| fs::read_link(fd).ok());
    let open = links.filter(|l| ours(&l.to_string_lossy())).count();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).context("maps")?;
    Ok(Footprint {
        descriptors: fds.len(),
        rings: open + maps.lines().filter(|l| ours(l)).count(),
        threads: threads(pid).len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_understood() {
        let text = "42 (a) b (c) D 7 1 1 0 -1 4194560 1 2 3 4\n";
        let found = Stat::parse(text).expect("a stat line");
        assert_eq!((found.id, found.name.as_str()), (42, "a) b (c"));
        assert_eq!(
            (found.state, found.parent, found.flags),
            ('D', 7, 4_194_560)
        );
        assert_eq!(Stat::parse("42 a D 7"), None);
    }

    #[test]
    fn status_lines_are_understood() {
        let text = "VmRSSx:\t1 kB\nVmRSS:\t  12 kB\nThreads:\t3\n";
        assert_eq!(status_of(text, "VmRSS"), Some(12 << 10));
        assert_eq!(status_of(text, "Threads"), Some(3));
        assert_eq!(status_of(text, "Thread"), None);
    }

    #[test]
    fn cpu_lists_are_understood() {
        let list = |text| cpu_list(text).into_iter().collect::<Vec<_>>();
        assert_eq!(list("\t0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(list("3"), [3]);
    }

    /// L90 A leaked descriptor and a leaked thread show up in the footprint.
    #[test]
    fn l90_a_footprint_grows_with_what_is_left() {
        let me = std::process::id();
        let _kept: Vec<_> = (0..50)
            .map(|_| fs::File::open("/dev/null").expect("null"))
            .collect();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        let with = footprint(me).expect("our own");
        assert!(with.descriptors >= 50 && with.threads >= 2, "{with:?}");
        drop(go);
        assert!(thread.join().expect("no panic").is_err());
        assert!(running("no-such-program").is_empty());
    }
}
