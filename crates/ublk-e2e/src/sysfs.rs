//! Attributes of a block device in sysfs.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The directory of device `ublkb<id>`.
pub fn directory(id: u32) -> PathBuf {
    PathBuf::from(format!("/sys/block/ublkb{id}"))
}

/// An attribute, for example `queue/logical_block_size`, without the newline.
pub fn text(id: u32, name: &str) -> Result<String> {
    let path = directory(id).join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_owned())
}

/// An attribute that is a number.
pub fn number(id: u32, name: &str) -> Result<u64> {
    let text = text(id, name)?;
    text.parse()
        .with_context(|| format!("{name} of ublkb{id}: {text:?}"))
}

/// Hw queues of a device.
pub fn queues(id: u32) -> Result<usize> {
    let path = directory(id).join("mq");
    let entries = fs::read_dir(&path).with_context(|| path.display().to_string())?;
    Ok(entries.flatten().count())
}

/// Nodes and disks of ublk that exist now, without the control node.
pub fn present() -> Vec<String> {
    let names = |directory: &str, start: &[&str]| -> Vec<String> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
        let ours = |name: &String| {
            start
                .iter()
                .filter_map(|s| name.strip_prefix(s))
                .any(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        names
            .filter(ours)
            .map(|name| format!("{directory}/{name}"))
            .collect()
    };
    let mut all = names("/dev", &["ublkb", "ublkc"]);
    all.extend(names("/sys/block", &["ublkb"]));
    all.extend(names("/sys/class/ublk-char", &["ublkc"]));
    all.sort();
    all
}

/// The kernel's version as `(major, minor)`.
pub fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    version(&release)
}

fn version(release: &str) -> (u32, u32) {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    let mut next = || parts.next().and_then(|p| p.parse().ok()).unwrap_or(0);
    (next(), next())
}

/// Whether this is the test guest, where cases may change the state of the machine.
pub fn in_guest() -> bool {
    Path::new("/guest.conf").exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_understood() {
        assert_eq!(version("6.12.117+deb13-amd64\n"), (6, 12));
        assert_eq!(version("7.3-rc1"), (7, 3));
        assert_eq!(version(""), (0, 0));
        assert!(kernel() > (2, 6));
    }

    #[test]
    fn a_missing_attribute_is_an_error_with_its_path() {
        let error = number(1 << 19, "queue/fua").expect_err("no such device");
        assert!(
            format!("{error:#}").contains("ublkb524288/queue/fua"),
            "{error:#}"
        );
    }
}
