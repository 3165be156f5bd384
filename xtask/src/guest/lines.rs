//! Parses a guest's output: faults on the console, the verdict on the channel.

use super::Verdict;

/// Starts of kernel messages that mean a fault.
const STARTS: [&str; 11] = [
    "WARNING:",
    "BUG:",
    "Oops:",
    "kernel BUG at",
    "general protection fault",
    "Kernel panic",
    "Unable to handle kernel",
    "UBSAN:",
    "refcount_t:",
    "list_add corruption",
    "list_del corruption",
];

/// Parts of kernel messages that mean a fault.
const PARTS: [&str; 8] = [
    "soft lockup",
    "hard LOCKUP",
    "blocked for more than",
    "blocked in I/O wait for more than",
    "self-detected stall on CPU",
    "detected stalls on CPUs",
    "detected expedited stalls",
    "kernel BUG at",
];

/// The message of a console line that reports a kernel fault.
pub fn fault(line: &str, harmless: &[String]) -> Option<String> {
    if harmless.iter().any(|part| line.contains(part.as_str())) {
        return None;
    }
    let message = message(line);
    let start = STARTS.iter().any(|start| message.starts_with(start));
    let part = PARTS.iter().any(|part| message.contains(part));
    (start || part).then(|| message.to_owned())
}

/// A line without the kernel's time stamp and caller, `[    1.234567][   T12] `.
fn message(line: &str) -> &str {
    let mut rest = line.trim_end_matches('\r').trim_start();
    while let Some(inner) = rest.strip_prefix('[') {
        let Some((stamp, after)) = inner.split_once(']') else {
            break;
        };
        let known = |c: char| c.is_ascii_digit() || " .TC".contains(c);
        if !stamp.chars().all(known) {
            break;
        }
        rest = after.trim_start();
    }
    rest
}

/// The verdict in a line of the channel, if it belongs to this run.
pub fn verdict(line: &str, nonce: &str) -> Option<Verdict> {
    let rest = line.trim_end_matches('\r').strip_prefix("@verdict ")?;
    let (of, rest) = rest.split_once(' ')?;
    if of != nonce {
        return None;
    }
    let (kind, value) = rest.split_once(' ')?;
    match (kind, value.parse()) {
        ("exit", Ok(status)) => Some(Verdict::Exit(status)),
        ("signal", Ok(signal)) => Some(Verdict::Signal(signal)),
        ("error", _) => Some(Verdict::GuestError(value.to_owned())),
        _ => None,
    }
}

/// Splits a stream of bytes into lines; a line may arrive in pieces.
#[derive(Debug, Default)]
pub struct Splitter {
    partial: Vec<u8>,
}

impl Splitter {
    /// Adds bytes and returns the lines that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<String> {
        self.partial.extend_from_slice(bytes);
        let mut lines = Vec::new();
        while let Some(end) = self.partial.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.partial.drain(..=end).collect();
            lines.push(text(&line[..end]));
        }
        lines
    }

    /// The remainder when the stream has ended.
    pub fn finish(self) -> Option<String> {
        (!self.partial.is_empty()).then(|| text(&self.partial))
    }
}

fn text(line: &[u8]) -> String {
    String::from_utf8_lossy(line)
        .trim_end_matches('\r')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Splitter, fault, verdict};
    use crate::guest::Verdict;

    /// L90 Each kind of fault is seen, in the shapes that kernels print.
    #[test]
    fn l90_faults_are_seen() {
        for line in [
            "[    3.141592] WARNING: CPU: 1 PID: 42 at block/blk-mq.c:100 foo+0x1/0x2",
            "[    3.141592][   T42] WARNING: block/blk-mq.c:100 at foo+0x1/0x2, CPU#1: fio/42",
            "[    3.141592] BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "[    3.141592] kernel BUG at fs/ext4/inode.c:1!",
            "[    3.141592] Oops: 0000 [#1] PREEMPT SMP NOPTI",
            "[    3.141592] Oops: general protection fault, probably for non-canonical address",
            "[    3.141592] Kernel panic - not syncing: Attempted to kill init!",
            "[    3.141592] watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [fio:42]",
            "[    3.141592] INFO: task fio:42 blocked for more than 60 seconds.",
            "[    3.141592] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[    3.141592] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "Kernel panic - not syncing: no time stamp",
        ] {
            assert!(fault(line, &[]).is_some(), "{line}");
        }
    }

    #[test]
    fn boot_lines_are_no_faults() {
        for line in [
            "[    0.000000] Linux version 6.12.117+deb13-amd64",
            "[    0.000000] Command line: loglevel=7 panic=-1 oops=panic",
            "[    0.100000] Kernel command line: panic=-1 hung_task BUG: in a value",
            "[    1.000000] ublk_drv: loading out-of-tree module taints kernel.",
            "",
        ] {
            assert_eq!(fault(line, &[]), None, "{line}");
        }
    }

    #[test]
    fn harmless_lines_are_let_through_by_name_only() {
        let harmless = ["known thing".to_owned()];
        assert_eq!(fault("[ 1.0] WARNING: known thing, again", &harmless), None);
        assert!(fault("[ 1.0] WARNING: another thing", &harmless).is_some());
    }

    #[test]
    fn verdicts_are_ours_or_none() {
        assert_eq!(verdict("@verdict n1 exit 0", "n1"), Some(Verdict::Exit(0)));
        assert_eq!(
            verdict("@verdict n1 exit 101\r", "n1"),
            Some(Verdict::Exit(101))
        );
        assert_eq!(
            verdict("@verdict n1 signal 9", "n1"),
            Some(Verdict::Signal(9))
        );
        let error = verdict("@verdict n1 error no module x", "n1");
        assert_eq!(error, Some(Verdict::GuestError("no module x".into())));
        for line in [
            "@verdict n2 exit 0",
            "x @verdict n1 exit 0",
            "@verdict n1 exit",
            "exit 0",
        ] {
            assert_eq!(verdict(line, "n1"), None, "{line}");
        }
    }

    #[test]
    fn lines_come_whole_from_pieces() {
        let mut splitter = Splitter::default();
        assert!(splitter.push(b"on").is_empty());
        assert_eq!(splitter.push(b"e\r\ntwo\nth"), ["one", "two"]);
        assert_eq!(splitter.finish().unwrap(), "th");
    }
}
