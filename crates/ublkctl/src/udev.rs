//! `udev-owner`: answers the shipped udev rules about a node.

use crate::target;
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;
use ublk_daemon::failure::{Failure, FailureKind};
use ublk_daemon::front::{self, Ownership};

/// Deadline for the driver's answer, because udev waits.
const DEADLINE: Duration = Duration::from_secs(5);

/// The JSON form.
#[derive(Debug, Serialize)]
pub struct Owner {
    unprivileged: bool,
    uid: u32,
    gid: u32,
    name: Option<String>,
}

/// The owner of a node, and the lines for udev.
///
/// # Errors
/// The name is not that of a ublk node; the driver's error.
pub fn owner(program: &Path, node: &str) -> Result<(Owner, String), Failure> {
    let name = node.strip_prefix("/dev/").unwrap_or(node);
    let id = target::of_node(name).ok_or_else(|| {
        Failure::new(FailureKind::Usage, format!("`{node}` is not a ublk node"))
            .hint("give the kernel's name, such as ublkc0, ublkb0 or ublkb0p1")
    })?;
    let found = front::ownership(program, id, DEADLINE)?;
    let text = lines(&found);
    let Ownership {
        unprivileged,
        uid,
        gid,
        name,
        ..
    } = found;
    Ok((
        Owner {
            unprivileged,
            uid,
            gid,
            name,
        },
        text,
    ))
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
