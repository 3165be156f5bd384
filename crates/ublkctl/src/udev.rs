//! `udev-owner`: what the shipped rules ask about a node.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;
use ublk_core::DevId;
use ublk_daemon::front::{self, Ownership};
use ublk_daemon::wire::{Failure, FailureKind};

/// How long the driver may take to answer: udev waits.
const DEADLINE: Duration = Duration::from_secs(5);

/// The lines about a node.
///
/// # Errors
/// A name that is none of ublk, and what the driver says.
pub fn owner(program: &Path, node: &str) -> Result<String, Failure> {
    let id = device(node).ok_or_else(|| {
        Failure::new(FailureKind::Usage, format!("`{node}` is no node of ublk"))
            .hint("give the kernel's name: ublkc0, ublkb0, ublkb0p1")
    })?;
    front::ownership(program, id, DEADLINE).map(|found| lines(&found))
}

/// The device of a node or of one of its partitions.
fn device(node: &str) -> Option<DevId> {
    let name = node.strip_prefix("/dev/").unwrap_or(node);
    let (number, partition) = match name.strip_prefix("ublkb") {
        Some(rest) => rest.split_once('p').unwrap_or((rest, "1")),
        None => (name.strip_prefix("ublkc")?, "1"),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(number) || !digits(partition) {
        return None;
    }
    DevId::new(number.parse().ok()?).ok()
}

fn lines(found: &Ownership) -> String {
    let mut text = String::new();
    let unprivileged = u8::from(found.unprivileged);
    let _ = writeln!(text, "UBLK_UNPRIVILEGED={unprivileged}");
    let _ = writeln!(text, "UBLK_OWNER_UID={}", found.uid);
    let _ = writeln!(text, "UBLK_OWNER_GID={}", found.gid);
    if let Some(name) = &found.name {
        let _ = writeln!(text, "UBLK_NAME={name}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_and_partitions_are_those_of_a_device() {
        let of = |node| device(node).map(DevId::get);
        for (node, id) in [
            ("ublkc0", 0),
            ("ublkb12", 12),
            ("ublkb12p3", 12),
            ("/dev/ublkb7", 7),
        ] {
            assert_eq!(of(node), Some(id), "{node}");
        }
        for node in [
            "",
            "sda",
            "ublkb",
            "ublkbp1",
            "ublkb1p",
            "ublkb+1",
            "ublkc1p1",
            "ublkb1048576",
            "ublkb1x",
            "../ublkb1",
        ] {
            assert_eq!(of(node), None, "{node}");
        }
    }
}
