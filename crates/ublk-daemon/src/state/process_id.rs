//! Identifies a process so that a later one with the same pid is not mistaken for it.

use serde::{Deserialize, Serialize};
use std::fs;

/// A pid with the start time of its process (L40).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process.
    pub pid: u32,
    /// Clock ticks from boot to its start (`starttime` of proc_pid_stat(5)).
    pub start: u64,
}

impl ProcessId {
    /// The process that has this pid now; `None` if there is none.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            pid,
            start: start_time(&stat)?,
        })
    }

    /// Whether this process still runs; a zombie does not.
    #[must_use]
    pub fn runs(&self) -> bool {
        let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else {
            return false;
        };
        start_time(&stat) == Some(self.start) && !matches!(state(&stat), Some('Z' | 'X'))
    }
}

impl ProcessId {
    /// Whether this process is stopped, by a signal or a debugger.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        start_time(&stat) == Some(self.start) && matches!(state(&stat), Some('T' | 't'))
    }
}

/// Whether process `pid` of this machine may be running. A process in a nested PID namespace (pid_namespaces(7)) cannot
/// tell, and gets true (L47).
#[must_use]
pub fn may_run(pid: u32) -> bool {
    // The initial namespace has a fixed inode number (PROC_PID_INIT_INO, linux/proc_ns.h).
    let own = fs::read_link("/proc/self/ns/pid");
    let all = own.is_ok_and(|own| own.as_os_str() == "pid:[4026531836]");
    !all || std::path::Path::new(&format!("/proc/{pid}")).exists()
}

/// The fields after the name, which is in parentheses and may itself contain spaces and parentheses.
fn after_name(stat: &str) -> Option<std::str::SplitAsciiWhitespace<'_>> {
    Some(stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace())
}

fn state(stat: &str) -> Option<char> {
    after_name(stat)?.next()?.chars().next()
}

fn start_time(stat: &str) -> Option<u64> {
    // Field 22 of the line; field 3 is the first after the name.
    after_name(stat)?.nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L40 A pid counts only with its start time.
    #[test]
    fn l40_a_recycled_pid_is_another_process() {
        let me = ProcessId::of(std::process::id()).unwrap();
        assert!(me.runs());
        let earlier = ProcessId {
            start: me.start - 1,
            ..me
        };
        assert!(!earlier.runs());
        assert_eq!(ProcessId::of(u32::MAX), None);
    }

    #[test]
    fn a_name_full_of_brackets_does_not_shift_the_fields() {
        let stat = "7 (a) b) (c) S 1 7 7 0 -1 4 5 6 7 8 9 10 11 12 20 0 1 0 4242 99";
        assert_eq!(state(stat), Some('S'));
        assert_eq!(start_time(stat), Some(4242));
        assert_eq!(start_time("garbage"), None);
    }
}
