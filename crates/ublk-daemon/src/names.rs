//! Device names: links in a directory of ours, kept while servers are replaced.
#![forbid(unsafe_code)]

use crate::failure::{Failure, FailureKind};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use ublk_core::DevId;

/// Directory of the links.
const DIR: &str = "/dev/ublkctl";

/// Path of the link for a name.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new(DIR).join(name)
}

/// Whether this is a valid name: letters, digits, `-`, `_` and `.`, at most 64, not a number, not a path, and not the
/// name of a device node (L42).
///
/// # Errors
/// A usage failure with the violated rule.
pub fn check(name: &str) -> Result<(), Failure> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let good = (1..=64).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with('.')
        && !name.bytes().all(|b| b.is_ascii_digit());
    if good && is_node(name) {
        let failure = Failure::new(
            FailureKind::Usage,
            format!("`{name}` is not a valid name: it is the name of a device node"),
        );
        return Err(
            failure.hint("choose a name that does not begin with `ublkb` or `ublkc` and a digit")
        );
    }
    if good {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::Usage,
        format!("`{name}` is not a valid device name"),
    )
    .hint("use up to 64 letters, digits, `-`, `_` and `.`, no leading dot, not only digits"))
}

/// Whether a word is, or begins like, the name of a node: `ublkb3`, `ublkc3`, `ublkb3p1`.
#[must_use]
pub fn is_node(word: &str) -> bool {
    let rest = word.strip_prefix("ublkb").or(word.strip_prefix("ublkc"));
    rest.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// Checks that a name is free; `holder` is a device that may have it.
///
/// # Errors
/// Another device has the name.
pub fn free(name: &str, holder: Option<u32>) -> Result<(), Failure> {
    match holder {
        Some(id) if Path::new(&format!("/dev/ublkc{id}")).exists() => Err(Failure::new(
            FailureKind::Busy,
            format!("the name {name} belongs to device {id}"),
        )
        .hint(format!(
            "choose another name, or delete that device (`ublkctl delete {id}`)"
        ))),
        _ => Ok(()),
    }
}

/// The device that a name's link leads to.
#[must_use]
pub fn resolve(name: &str) -> Option<u32> {
    resolve_in(Path::new(DIR), name)
}

fn resolve_in(dir: &Path, name: &str) -> Option<u32> {
    let target = fs::read_link(dir.join(name)).ok()?;
    target.to_str()?.strip_prefix("../ublkb")?.parse().ok()
}

/// Creates the link for a device, replacing an earlier one with that name.
///
/// # Errors
/// File system errors.
pub fn link(name: &str, id: DevId) -> io::Result<()> {
    link_in(Path::new(DIR), name, id)
}

fn link_in(dir: &Path, name: &str, id: DevId) -> io::Result<()> {
    make_directory(dir)?;
    // Created under a temporary name and renamed, so that readers see the old or the new link.
    let aside = dir.join(format!(".{id}.new"));
    match fs::remove_file(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    symlink(format!("../ublkb{id}"), &aside)?;
    fs::rename(&aside, dir.join(name))
}

/// Creates the directory, readable for all whatever the umask.
fn make_directory(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Ok(()) => fs::set_permissions(dir, fs::Permissions::from_mode(0o755)),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// Removes the link of a device, if it still leads to that device.
pub fn unlink(name: Option<&str>, id: DevId) {
    if let Some(name) = name {
        unlink_in(Path::new(DIR), name, id);
    }
}

fn unlink_in(dir: &Path, name: &str, id: DevId) {
    if resolve_in(dir, name) == Some(id.get())
        && let Err(e) = fs::remove_file(dir.join(name))
    {
        tracing::warn!("{}: {e}", dir.join(name).display());
    }
    // Fails while the directory has other names.
    let _ = fs::remove_dir(dir);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_words() {
        for good in ["data", "vm-1.img", "a_b", "1a"] {
            assert!(check(good).is_ok(), "{good}");
        }
        let long = "x".repeat(65);
        for bad in ["", "..", ".hidden", "a/b", "17", "a b", "ä", long.as_str()] {
            assert_eq!(check(bad).unwrap_err().kind, FailureKind::Usage, "{bad}");
        }
    }

    /// L42 A name that looks like a node could be mistaken for that device.
    #[test]
    fn l42_nodes_are_no_names() {
        for node in ["ublkb4", "ublkc0", "ublkb3p1", "ublkb4x"] {
            assert_eq!(check(node).unwrap_err().kind, FailureKind::Usage, "{node}");
        }
        for name in ["ublkbackup", "ublkcd", "ublk1", "my-ublkb4"] {
            assert!(check(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_link_is_that_of_its_device_only() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("names");
        let (one, two) = (DevId::new(1).unwrap(), DevId::new(2).unwrap());
        link_in(&dir, "disk", one).unwrap();
        let mode = fs::metadata(&dir).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755, "for all to look into");
        assert_eq!(resolve_in(&dir, "disk"), Some(1));
        link_in(&dir, "disk", two).unwrap();
        unlink_in(&dir, "disk", one);
        assert_eq!(resolve_in(&dir, "disk"), Some(2));
        unlink_in(&dir, "disk", two);
        assert_eq!(resolve_in(&dir, "disk"), None);
        assert!(!dir.exists(), "an empty directory goes, too");
        fs::create_dir(&dir).unwrap();
        symlink("/etc/passwd", dir.join("other")).unwrap();
        assert_eq!(resolve_in(&dir, "other"), None);
    }
}
