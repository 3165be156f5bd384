//! The device that an argument names: a number, a node, a partition, a link to one of these, or a name.

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ublk_core::DevId;
use ublk_daemon::failure::Failure;
use ublk_daemon::front::{self, ListEntry};
use ublk_daemon::link::peer::this_program;

/// How long listing the devices may take to explain why a name is not found.
const LOOK: Duration = Duration::from_secs(5);

/// Maximum number of links followed, same as the kernel's.
const MAX_LINKS: usize = 40;

/// A device as the user named it. The name is resolved when it is needed, so that a missing device is not a usage
/// error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// As named by the user.
    Operand(String),
    /// As found in a list.
    Found(front::Target),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operand(operand) => f.write_str(operand),
            Self::Found(found) => found.id.fmt(f),
        }
    }
}

impl From<front::Target> for Target {
    fn from(found: front::Target) -> Self {
        Self::Found(found)
    }
}

/// Accepts any non-empty argument, for clap.
///
/// # Errors
/// The argument is empty.
pub fn parse(operand: &str) -> Result<Target, String> {
    if operand.is_empty() {
        return Err("empty argument: give the device's number, node or name".into());
    }
    Ok(Target::Operand(operand.to_owned()))
}

impl Target {
    /// The device that currently has this number, node or name. A named device is also identified by its nonce.
    ///
    /// # Errors
    /// No such device; or, if the driver cannot be asked, that.
    pub fn resolve(&self) -> Result<front::Target, Failure> {
        let operand = match self {
            Self::Operand(operand) => operand.as_str(),
            Self::Found(found) => return Ok(*found),
        };
        let found = match parse_operand(operand) {
            Operand::Device(id) => Some(id.into()),
            Operand::Name(name) => match front::target(name) {
                Some(found) => Some(found),
                // A missing driver must not look like a missing name.
                None => none_of(name, &front::list(&this_program(), LOOK)?)?,
            },
            Operand::Nothing => None,
        };
        found.ok_or_else(|| Failure::no_such_device(operand))
    }
}

/// Handles a name without a record; a record that cannot be read may have it.
fn none_of(name: &str, entries: &[ListEntry]) -> Result<Option<front::Target>, Failure> {
    let unknown = entries
        .iter()
        .find_map(|e| Some((e.id, e.record_error.as_ref()?)));
    unknown.map_or(Ok(None), |(id, why)| {
        Err(Failure::failed(format!(
            "no device named {name} found, but the record of device {id} cannot be read: {why}"
        ))
        .hint("give the number of the device; `ublkctl list` shows it"))
    })
}

/// What an operand can mean, judged without the driver.
#[derive(Debug, PartialEq, Eq)]
enum Operand<'a> {
    Device(DevId),
    Name(&'a str),
    Nothing,
}

fn parse_operand(operand: &str) -> Operand<'_> {
    if operand.bytes().all(|b| b.is_ascii_digit()) {
        return match operand.parse().ok().and_then(|n| DevId::new(n).ok()) {
            Some(id) => Operand::Device(id),
            None => Operand::Nothing,
        };
    }
    if let Some(name) = operand.strip_prefix("/dev/ublkctl/") {
        return Operand::Name(name);
    }
    if operand.contains('/') {
        return of_path(Path::new(operand)).map_or(Operand::Nothing, Operand::Device);
    }
    of_node(operand).map_or(Operand::Name(operand), Operand::Device)
}

/// The device of a node or a partition by its name: `ublkb0`, `ublkb0p1`, `ublkc0`.
pub fn of_node(name: &str) -> Option<DevId> {
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

/// The device of a path. If the node exists, the kernel identifies it; a missing node below `/dev` is identified by its
/// name.
fn of_path(path: &Path) -> Option<DevId> {
    let end = followed(path);
    let Ok(node) = fs::metadata(&end) else {
        let in_dev = end.parent().and_then(|d| fs::canonicalize(d).ok());
        return (in_dev? == Path::new("/dev"))
            .then(|| of_node(end.file_name()?.to_str()?))
            .flatten();
    };
    let kind = match node.file_type() {
        t if t.is_block_device() => "block",
        t if t.is_char_device() => "char",
        _ => return None,
    };
    let (major, minor) = (libc::major(node.rdev()), libc::minor(node.rdev()));
    let link = fs::read_link(format!("/sys/dev/{kind}/{major}:{minor}")).ok()?;
    of_node(link.file_name()?.to_str()?)
}

/// Follows the links of a path.
fn followed(path: &Path) -> PathBuf {
    let mut at = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        let Ok(next) = fs::read_link(&at) else { break };
        at = at.parent().unwrap_or(Path::new("/")).join(next);
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: u32, record_error: Option<&str>) -> ListEntry {
        serde_json::from_value(serde_json::json!({
            "id": id, "path": "/dev/ublkb3", "char_path": "/dev/ublkc3", "state": "live",
            "queues": 2, "depth": 64, "data": "copy", "batch": false, "size": 4096,
            "backend": null, "server_pid": 7, "server_alive": true,
            "owner": {"uid": 0, "gid": 0}, "foreign": true, "phase": null, "cause": null,
            "name": null, "link": null, "recovery": "none", "supervised": null, "shared_memory": null,
            "backing": null, "threads": null, "polling": null, "orphan": false, "next": null,
            "readable": true, "record_error": record_error,
        }))
        .expect("an entry")
    }

    /// L42 A name without a record does not exist, unless a record that cannot be read may have it.
    #[test]
    fn l42_a_record_that_cannot_be_read_may_have_the_name() {
        assert_eq!(none_of("data", &[entry(1, None)]), Ok(None));
        let all = [
            entry(1, None),
            entry(2, Some("/run/2.json is not a state file")),
        ];
        let failure = none_of("data", &all).expect_err("not known");
        assert_eq!(failure.kind.exit_code(), 1);
        assert!(
            failure.text.contains("the record of device 2"),
            "{failure:?}"
        );
    }
    use std::os::unix::fs::symlink;

    fn device(operand: &str) -> Option<u32> {
        match parse_operand(operand) {
            Operand::Device(id) => Some(id.get()),
            _ => None,
        }
    }

    #[test]
    fn a_device_may_be_named_by_number_node_or_partition() {
        for (operand, id) in [
            ("7", 7),
            ("007", 7),
            ("1048575", 1_048_575),
            ("ublkc12", 12),
            ("ublkb12p3", 12),
            ("/dev/ublkb7", 7),
            ("/dev/ublkc7", 7),
            ("/dev/ublkb7p2", 7),
            ("/dev/../dev/ublkb7", 7),
        ] {
            assert_eq!(device(operand), Some(id), "{operand}");
        }
    }

    /// An operand that cannot name a device is refused; one that can be a name is looked up as a name.
    #[test]
    fn other_operands_are_names_or_nothing() {
        for operand in [
            "data",
            "ublkb",
            "ublkb1x",
            "ublkc1p1",
            "all",
            "-1",
            "/dev/ublkctl/data",
        ] {
            let name = operand.trim_start_matches("/dev/ublkctl/");
            assert_eq!(parse_operand(operand), Operand::Name(name), "{operand}");
        }
        for operand in [
            "1048576",
            "99999999999999999999",
            "/dev/null",
            "/dev/sda1",
            "/etc/passwd",
            "./x",
            "/no/such/ublkb3",
        ] {
            assert_eq!(parse_operand(operand), Operand::Nothing, "{operand}");
        }
        assert!(parse("").is_err() && parse("x").is_ok());
    }

    /// Links are followed, also to missing nodes and through several steps.
    #[test]
    fn links_lead_to_their_device() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two, round) = (
            dir.path().join("1"),
            dir.path().join("2"),
            dir.path().join("3"),
        );
        symlink("/dev/ublkb1000007", &one).unwrap();
        symlink("1", &two).unwrap();
        symlink("3", &round).unwrap();
        assert_eq!(device(two.to_str().unwrap()), Some(1_000_007));
        assert_eq!(device(round.to_str().unwrap()), None);
        fs::remove_file(&one).unwrap();
        symlink("/dev/null", &one).unwrap();
        assert_eq!(device(two.to_str().unwrap()), None);
    }

    #[test]
    fn nodes_and_partitions_are_those_of_a_device() {
        for name in [
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
            assert_eq!(of_node(name), None, "{name}");
        }
    }
}
