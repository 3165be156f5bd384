//! `up` and `down`: devices of a configuration, each identified by its name.

mod differences;

use super::add::{add_checked, recover_in_front};
use super::lookup::find;
use super::reserve::reserve;
use super::{Foreground, ListEntry, Stop, Target, check, delete};
use crate::backend::{self, Second};
use crate::failure::{Failure, FailureKind};
use crate::link::message::Lifetime;
use crate::names;
use crate::report::Added;
use crate::spec::{AddSpec, BackendSpec};
use crate::state::{Phase, Record};
use differences::differences;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use ublk_core::{DevId, Limits, deadline_in};
use ublk_ctrl::wait;

/// How long old processes may take to exit.
const ENDING: Duration = Duration::from_secs(10);

/// A device to be created, and its file.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The device.
    pub spec: AddSpec,
    /// Size in bytes of the sparse file to create for a file device.
    pub create: Option<u64>,
    /// Whether the file may already exist, with that size.
    pub reuse: bool,
    /// The log file; `None` for `ID.log` in the run directory.
    pub log: Option<PathBuf>,
}

/// What `up` did with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Outcome {
    /// It was created.
    Added,
    /// It waited for a server, or its server for an agent, and now has one.
    Recovered,
    /// It already ran as configured; nothing was done.
    Unchanged,
    /// It exists with other options; nothing was done.
    Differs,
}

/// A device that `up` has handled.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Up {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u32,
    /// Its block device.
    pub path: PathBuf,
    /// What was done.
    pub outcome: Outcome,
    /// The options that differ.
    pub differences: Vec<Difference>,
}

/// An option that differs from the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// The option, as `add` names it.
    pub option: String,
    /// The device's value.
    pub has: String,
    /// The configured value.
    pub wanted: String,
}

/// Creates a device and its file, as [`add`](super::add) does. A file that was created is removed again if the device
/// fails.
///
/// # Errors
/// As [`add`](super::add), and file system errors.
pub fn make(
    program: &Path,
    wanted: &Wanted,
    lifetime: Lifetime,
    deadline: Duration,
) -> Result<(Added, Foreground), Failure> {
    let until = deadline_in(deadline);
    let _name = reserve(wanted.spec.name.as_deref(), until)?;
    make_reserved(program, wanted, lifetime, left(until))
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// How long a server may take to describe an export that is only checked.
const LOOK: Duration = Duration::from_secs(10);

/// Like [`make`]; the caller has reserved the name.
fn make_reserved(
    program: &Path,
    wanted: &Wanted,
    lifetime: Lifetime,
    deadline: Duration,
) -> Result<(Added, Foreground), Failure> {
    let mut spec = wanted.spec.clone();
    let created = create(wanted)?;
    let second = Second::of(&spec).filter(|second| !second.is_there());
    let until = deadline_in(deadline);
    let limits = backend::resolve(&mut spec, until)?;
    fits(wanted, &limits)?;
    let made = check(&spec, limits).and_then(|()| {
        let log = wanted.log.clone();
        add_checked(program, spec, lifetime, log, left(until))
    });
    // A device that may still come up needs its files.
    let failure = made.as_ref().err();
    let stays = failure.is_none_or(|e| e.kind == FailureKind::TimedOut);
    if let Some(created) = created.filter(|_| stays) {
        created.keep();
    }
    if let Some(second) = second.filter(|_| !stays) {
        // The server made it, if it came so far; nothing was written. Or another device has it, which was added meanwhile.
        second.remove_unused();
    }
    made
}

/// Checks a device and its file, as far as possible without the driver and without creating anything. A file that does
/// not exist yet is not checked.
///
/// # Errors
/// As [`check`], and a file that is there and has another size than it was to be made with.
pub fn vet(wanted: &Wanted) -> Result<(), Failure> {
    if wanted.create.is_some() && std::fs::symlink_metadata(file(&wanted.spec)).is_err() {
        return Ok(());
    }
    let limits = backend::limits_of(&wanted.spec, deadline_in(LOOK))?;
    check(&wanted.spec, limits)?;
    fits(wanted, &limits)
}

/// Refuses an existing file of another size than configured. `found` are the limits of the existing file.
fn fits(wanted: &Wanted, found: &Limits) -> Result<(), Failure> {
    match wanted.create {
        Some(size) if found.size != size => Err(Failure::failed(format!(
            "{}: the file exists and has {} bytes instead of {size}",
            file(&wanted.spec).display(),
            found.size
        ))
        .hint("set `size` to the size of the file, or resize the file (`truncate -s`)")),
        _ => Ok(()),
    }
}

fn create(wanted: &Wanted) -> Result<Option<ublk_backends::Created>, Failure> {
    let Some(size) = wanted.create else {
        return Ok(None);
    };
    let path = file(&wanted.spec);
    if wanted.reuse && std::fs::symlink_metadata(&path).is_ok() {
        return Ok(None);
    }
    Second::of(&wanted.spec).map_or(Ok(()), |second| second.refuse_old())?;
    backend::create_file(&path, size).map(Some)
}

/// The file of a file device.
fn file(spec: &AddSpec) -> PathBuf {
    match &spec.backend {
        BackendSpec::File { path, .. } => path.clone(),
        _ => PathBuf::new(),
    }
}

/// Ensures that a device exists and serves: one that runs as configured is left unchanged, a waiting one is recovered, a
/// dead one is deleted and created again. One with other options is reported and left unchanged.
///
/// # Errors
/// A device without a name, one that runs already where its processes should be this front's, and all that
/// [`add`](super::add) and [`recover`](super::recover) say.
pub fn up(
    program: &Path,
    wanted: &Wanted,
    lifetime: Lifetime,
    deadline: Duration,
) -> Result<(Up, Option<Foreground>), Failure> {
    let until = deadline_in(deadline);
    let left = || until.saturating_duration_since(Instant::now());
    let name = wanted.spec.name.clone();
    let name = name.ok_or_else(|| Failure::new(FailureKind::Usage, "a device without a name"))?;
    // Two concurrent commands would create two devices.
    let _lock = reserve(Some(&name), until)?;
    let found = once_idle(program, &name, until)?;
    let done = |id: u32, outcome, differences| Up {
        name: name.clone(),
        id,
        path: PathBuf::from(format!("/dev/ublkb{id}")),
        outcome,
        differences,
    };
    if let Some((entry, record)) = found {
        let id = DevId::new(entry.id).map_err(|e| Failure::failed(e.to_string()))?;
        if entry.state == "dead" {
            tracing::info!("{name}: device {id} is dead; deleting it and adding it again");
            let nonce = Some(record.nonce);
            delete(program, Target { id, nonce }, Stop::Safe, false, left())?;
        } else {
            let mut differences = differences(&record.spec, entry.id, &wanted.spec);
            differences.extend(other_size(wanted, &entry, &record));
            if !differences.is_empty() {
                return Ok((done(entry.id, Outcome::Differs, differences), None));
            }
            if entry.orphan || entry.agent_alive == Some(false) {
                let (added, device) = recover_in_front(program, id, lifetime, left())?;
                return Ok((
                    done(added.id, Outcome::Recovered, differences),
                    Some(device),
                ));
            }
            if lifetime != Lifetime::Own {
                let pid = entry.server_pid.unwrap_or_default();
                return Err(Failure::failed(format!(
                    "{name}: device {id} is already served by process {pid}"
                ))
                .hint("--foreground cannot take over a running device: stop it first"));
            }
            return Ok((done(entry.id, Outcome::Unchanged, differences), None));
        }
    }
    let (added, device) = make_reserved(program, wanted, lifetime, left())?;
    if lifetime == Lifetime::Own {
        // The configuration file names the device.
        device.keep()?;
        return Ok((done(added.id, Outcome::Added, Vec::new()), None));
    }
    Ok((done(added.id, Outcome::Added, Vec::new()), Some(device)))
}

/// What `down` did with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Down {
    /// It was stopped and deleted.
    Deleted(u32),
    /// There is no device with this name.
    Absent,
    /// The device no longer runs in the foreground: another agent manages it.
    HandedOver(u32),
}

/// Stops and deletes the device with this name, as [`delete`] does. With `in_front`, only if its processes end with a
/// front: a service that stops does not remove a device that was handed over to an agent of its own.
///
/// # Errors
/// As [`delete`].
pub fn down(
    program: &Path,
    name: &str,
    how: Stop,
    in_front: bool,
    deadline: Duration,
) -> Result<Down, Failure> {
    let until = deadline_in(deadline);
    let left = || until.saturating_duration_since(Instant::now());
    let Some((entry, record)) = find(program, name, left())? else {
        // A link without a record of the caller's: another user's device, not an absent one.
        return match names::resolve(name) {
            Some(id) if Path::new(&format!("/dev/ublkb{id}")).exists() => Err(Failure::failed(
                format!("{name} is device {id}, which this user did not create"),
            )
            .hint("run as the user who created it, or as root; see `ublkctl list`")),
            _ => Ok(Down::Absent),
        };
    };
    if in_front && record.lifetime == Some(Lifetime::Own) {
        return Ok(Down::HandedOver(entry.id));
    }
    let id = DevId::new(entry.id).map_err(|e| Failure::failed(e.to_string()))?;
    let nonce = Some(record.nonce);
    match delete(program, Target { id, nonce }, how, false, left()) {
        Ok(()) => Ok(Down::Deleted(entry.id)),
        // Another process was faster.
        Err(failure) if failure.kind == FailureKind::NoSuchDevice => Ok(Down::Absent),
        Err(failure) => Err(failure),
    }
}

/// As `find`, once old processes that may still change the device's state have exited.
fn once_idle(
    program: &Path,
    name: &str,
    until: Instant,
) -> Result<Option<(ListEntry, Record)>, Failure> {
    let patience = until.min(Instant::now() + ENDING);
    let mut last = None;
    let found = wait::until(patience, || {
        let left = until.saturating_duration_since(Instant::now());
        let found = find(program, name, left)?;
        let idle = found.as_ref().is_none_or(|(e, r)| {
            let ending = matches!(r.phase, Phase::HandingOver | Phase::Leaving);
            let serves = e.state == "live" && e.server_alive && !ending;
            e.orphan || serves || (r.spec.supervise && !ending)
        });
        if idle {
            return Ok::<_, Failure>(Some(found));
        }
        last = found;
        Ok(None)
    })?;
    match (found, last) {
        (Some(found), _) => Ok(found),
        (None, Some((entry, _))) => Err(Failure::timed_out(format!(
            "{name}: device {} is {} and its processes have not exited yet",
            entry.id, entry.state
        ))
        .hint(format!("see `ublkctl info {}`", entry.id))),
        (None, None) => Ok(None),
    }
}

/// The size of a device whose file was to be created, if it differs from the configured one.
fn other_size(wanted: &Wanted, entry: &ListEntry, record: &Record) -> Option<Difference> {
    let size = wanted.create?;
    let has = entry.size.unwrap_or_else(|| record.spec.backend.size());
    (has != size).then(|| Difference {
        option: "size".to_owned(),
        has: has.to_string(),
        wanted: size.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::spec;

    fn file_spec() -> AddSpec {
        AddSpec {
            backend: BackendSpec::File {
                path: "/srv/data.img".into(),
                offset: 0,
                length: None,
                buffered: false,
                discard: true,
                force: false,
                integrity_file: None,
            },
            block_size: 0,
            name: Some("data".to_owned()),
            ..spec()
        }
    }

    /// Where a device moves to is no option; those of TLS have their names.
    #[test]
    fn nbd_devices_are_compared_by_options() {
        let on = |moving_to: Option<&str>, ca: Option<&str>| AddSpec {
            backend: BackendSpec::Nbd {
                uri: "nbds://one/".to_owned(),
                moving_to: moving_to.map(str::to_owned),
                length: None,
                retry: crate::spec::Retry::Never,
                request_timeout: 30,
                wait_for_server: 0,
                tls: Box::new(crate::spec::TlsOptions {
                    ca: ca.map(PathBuf::from),
                    ..crate::spec::TlsOptions::default()
                }),
            },
            ..spec()
        };
        let wanted = on(None, Some("/ca.pem"));
        assert_eq!(
            differences(&on(Some("nbds://two/"), Some("/ca.pem")), 7, &wanted),
            []
        );
        let other = differences(&on(None, Some("/other.pem")), 7, &wanted);
        assert_eq!(other.len(), 1);
        assert_eq!(other[0].option, "tls-ca");
        // What cannot be added is refused without a look at the server.
        crate::backend::well_formed(&wanted).unwrap();
        let failure = crate::backend::well_formed(&on(None, None)).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage);
    }

    /// An option that the configuration leaves open is no difference; one that it sets is, under the option's name.
    #[test]
    fn devices_are_compared_by_what_was_said() {
        let wanted = file_spec();
        let mut has = wanted.clone();
        has.block_size = 4096;
        has.backend.set_size(1 << 30);
        assert_eq!(differences(&has, 7, &wanted), []);
        has.queues += 1;
        has.max_io_bytes = 8192;
        has.serving.options.threads_per_queue = 3;
        has.mode.batch = true;
        has.recovery = ublk_core::Recovery::Queue;
        if let BackendSpec::File { discard, path, .. } = &mut has.backend {
            *discard = false;
            *path = "/srv/other.img".into();
        }
        let wanted = AddSpec {
            id: Some(9),
            ..wanted
        };
        let found = differences(&has, 7, &wanted);
        let options: Vec<&str> = found.iter().map(|d| d.option.as_str()).collect();
        let all = [
            "batch",
            "id",
            "max-io",
            "no-discard",
            "path",
            "queues",
            "recovery",
            "threads",
        ];
        assert_eq!(options, all);
        assert_eq!(
            (found[1].has.as_str(), found[1].wanted.as_str()),
            ("7", "9")
        );
        let mem = BackendSpec::Mem { size: 4096 };
        let found = differences(
            &AddSpec {
                backend: mem,
                ..has
            },
            7,
            &wanted,
        );
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(
            (found[0].has.as_str(), found[0].wanted.as_str()),
            ("mem", "file")
        );
    }

    /// An existing file is served only if it has the configured size, and is never modified.
    #[test]
    fn a_file_that_is_there_has_to_fit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, vec![7; 8192]).unwrap();
        let mut spec = file_spec();
        spec.backend = BackendSpec::File {
            path: path.clone(),
            offset: 0,
            length: None,
            buffered: false,
            discard: true,
            force: false,
            integrity_file: None,
        };
        let mut wanted = Wanted {
            spec,
            create: Some(4096),
            reuse: true,
            log: None,
        };
        let program = Path::new("/nonexistent/program");
        let failed = |wanted: &Wanted| {
            make(program, wanted, Lifetime::Own, ENDING)
                .map(drop)
                .unwrap_err()
        };
        assert!(failed(&wanted).text.contains("has 8192 bytes"));
        wanted.reuse = false;
        assert!(failed(&wanted).text.contains("cannot create"));
        assert_eq!(std::fs::read(&path).unwrap(), vec![7; 8192]);
    }

    /// Zones and integrity metadata are told by the keys of a configuration, and a device's size is not taken for a zone's.
    #[test]
    fn differences_have_the_names_of_options() {
        let zones = |size: u64, open: u32| {
            let mut spec = spec();
            spec.backend = BackendSpec::Mem { size: 64 << 20 };
            spec.parameters.zones = Some(ublk_backends::ZoneLayout {
                size,
                capacity: size,
                conventional: 0,
                max_open: open,
                max_active: 0,
            });
            spec
        };
        let named = |has: &AddSpec, wanted: &AddSpec| {
            let all = differences(has, 0, wanted);
            all.into_iter().map(|d| d.option).collect::<Vec<_>>()
        };
        let has = zones(4 << 20, 0);
        assert_eq!(named(&has, &has), [""; 0]);
        let other = zones(8 << 20, 2);
        assert_eq!(
            named(&has, &other),
            ["max-open-zones", "zone-capacity", "zone-size"]
        );
        let mut larger = has.clone();
        larger.backend = BackendSpec::Mem { size: 128 << 20 };
        assert_eq!(named(&has, &larger), ["size"]);
        let with = |text: &str| {
            let mut spec = spec();
            spec.parameters.integrity = Some(text.parse().unwrap());
            spec
        };
        let found = differences(&with("crc16:8"), 0, &with("crc16:8:reftag"));
        let found: Vec<_> = found
            .iter()
            .map(|d| (&*d.option, &*d.has, &*d.wanted))
            .collect();
        assert_eq!(found, [("integrity", "crc16:8", "crc16:8:reftag")]);
    }

    /// A new file does not get the integrity metadata of an older one, and what a failed device has made is removed, but
    /// nothing else.
    #[test]
    fn old_integrity_metadata_is_not_for_a_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let (path, side) = (dir.path().join("disk"), dir.path().join("disk.integrity"));
        let mut spec = file_spec();
        spec.parameters.integrity = Some("crc16:8".parse().unwrap());
        if let BackendSpec::File { path: to, .. } = &mut spec.backend {
            to.clone_from(&path);
        }
        let wanted = Wanted {
            spec,
            create: Some(1 << 20),
            reuse: false,
            log: None,
        };
        let program = Path::new("/nonexistent/program");
        let failed = || {
            let made = make(program, &wanted, Lifetime::Own, ENDING);
            made.map(drop).unwrap_err()
        };
        failed();
        assert!(!path.exists() && !side.exists());
        std::fs::write(&side, "old").unwrap();
        let failure = failed();
        assert!(failure.text.contains("already"), "{failure:?}");
        assert!(!path.exists() && side.exists());
    }
}
