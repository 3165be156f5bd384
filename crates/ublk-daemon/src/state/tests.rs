use super::*;
use crate::spec::BackendSpec;
use std::os::unix::fs::{PermissionsExt, symlink};

fn spec() -> AddSpec {
    AddSpec {
        backend: BackendSpec::Mem { size: 1 << 30 },
        id: None,
        queues: 2,
        depth: 64,
        block_size: 512,
        max_io_bytes: 512 << 10,
        read_only: false,
        mode: ublk_core::Mode::default(),
        auto: None,
        recovery: ublk_core::Recovery::None,
        parameters: Box::default(),
        serving: crate::spec::Serving::default(),
        name: None,
        scheduler: Default::default(),
        supervise: false,
        unprivileged: false,
        trust_kernel: false,
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path().join("run"));
    store.prepare().unwrap();
    (dir, store)
}

fn record(id: Option<u32>, nonce: u64) -> Record {
    Record {
        id,
        ..Record::new(nonce, spec())
    }
}

/// L31 A device is attributed by its nonce from before ADD_DEV to its end.
#[test]
fn l31_a_record_is_found_before_and_after_the_id_is_known() {
    let (_dir, store) = store();
    store.write(&record(None, 0xabc)).unwrap();
    // Killed between ADD_DEV and the next write: the kernel has id 5 and the nonce, the record only the nonce.
    assert_eq!(store.find(5, 0xabc).unwrap().unwrap().id, None);
    store.write(&record(Some(5), 0xabc)).unwrap();
    assert_eq!(store.find(5, 0xabc).unwrap().unwrap().id, Some(5));
    assert!(!store.pending_path(0xabc).exists());
    assert!(store.find(5, 0xdef).unwrap().is_none(), "a recycled id");
    store.remove(5, 0xdef).unwrap();
    assert!(store.find(5, 0xabc).unwrap().is_some(), "not its record");
    store.remove(5, 0xabc).unwrap();
    assert!(store.find(5, 0xabc).unwrap().is_none());
    assert_eq!(fs::read_dir(&store.dir).unwrap().count(), 0);
}

/// L40 A record is replaced by rename: a reader never sees a partial record, and a killed writer's leftover is no
/// obstacle.
#[test]
fn l40_a_record_is_replaced_whole() {
    let (_dir, store) = store();
    store.write(&record(Some(1), 7)).unwrap();
    let old = File::open(store.path(1)).unwrap();
    fs::write(store.dir.join(format!(".{:016x}.tmp", 7)), b"half a rec").unwrap();
    let mut second = record(Some(1), 7);
    second.phase = Phase::Live;
    store.write(&second).unwrap();
    // The old inode was not overwritten.
    let kept: Record = serde_json::from_reader(old).unwrap();
    assert_eq!(kept.phase, Phase::Adding);
    assert_eq!(store.find(1, 7).unwrap().unwrap().phase, Phase::Live);
    let mode = fs::metadata(store.path(1)).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::read_dir(&store.dir).unwrap().count(), 1);
}

/// L40 Links to a record or to the directory are not followed.
#[test]
fn l40_links_are_refused() {
    let (dir, store) = store();
    store.write(&record(Some(1), 7)).unwrap();
    symlink(store.path(1), store.path(2)).unwrap();
    let linked = store.last(2);
    assert!(
        matches!(linked, Err(StateError::Untrusted { .. })),
        "{linked:?}"
    );
    let link = dir.path().join("link");
    symlink(&store.dir, &link).unwrap();
    let linked = Store::at(link).prepare();
    assert!(
        matches!(linked, Err(StateError::Untrusted { .. })),
        "{linked:?}"
    );
    let log = dir.path().join("log");
    symlink(dir.path().join("victim"), &log).unwrap();
    assert!(Store::open_log(&log).is_err());
}

/// L40 A directory or file that others own or can write to is not trusted.
#[test]
fn l40_other_owners_and_writers_are_refused() {
    let (_dir, store) = store();
    store.write(&record(Some(1), 7)).unwrap();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&store.path(1), 0o666);
    assert!(matches!(store.last(1), Err(StateError::Untrusted { .. })));
    mode(&store.path(1), 0o600);
    mode(&store.dir, 0o777);
    assert!(matches!(store.last(1), Err(StateError::Untrusted { .. })));
    assert!(store.write(&record(Some(1), 7)).is_err());
    mode(&store.dir, 0o700);
    assert!(store.last(1).unwrap().is_some());
    if effective_uid() == 0 {
        std::os::unix::fs::chown(store.path(1), Some(1), None).unwrap();
        assert!(matches!(store.last(1), Err(StateError::Untrusted { .. })));
        std::os::unix::fs::chown(store.path(1), Some(0), None).unwrap();
        std::os::unix::fs::chown(&store.dir, Some(1), None).unwrap();
        assert!(matches!(store.prepare(), Err(StateError::Untrusted { .. })));
    }
}

/// L31 The files that killed processes left of devices that no longer exist are removed; those of existing devices and
/// running processes stay.
#[test]
fn l31_records_of_nothing_are_swept() {
    let (_dir, store) = store();
    let gone = |id, nonce| Record {
        agent: None,
        ..record(id, nonce)
    };
    store.write(&gone(Some(1), 11)).unwrap();
    store.write(&gone(Some(2), 12)).unwrap();
    store.write(&gone(None, 13)).unwrap();
    store.write(&record(None, 14)).unwrap();
    let mut swept = store.sweep(&[12]).unwrap();
    swept.sort();
    assert_eq!(swept, [store.path(1), store.pending_path(13)]);
    assert!(store.last(2).unwrap().is_some());
    assert!(store.find(9, 14).unwrap().is_some());
    assert!(store.sweep(&[12]).unwrap().is_empty());
}

/// L40 A record of another version is reported as such, distinct from garbage.
#[test]
fn l40_versions_and_garbage_are_told_apart() {
    let (_dir, store) = store();
    store.write(&record(Some(1), 7)).unwrap();
    let text = fs::read_to_string(store.path(1)).unwrap();
    let other = text.replace("\"version\": 2", "\"version\": 3");
    assert_ne!(text, other);
    fs::write(store.path(1), other).unwrap();
    let found = store.last(1);
    assert!(
        matches!(found, Err(StateError::Version { version: 3, .. })),
        "{found:?}"
    );
    for garbage in [&b"{"[..], b"", b"{\"version\":2}", &vec![b' '; 70_000]] {
        fs::write(store.path(1), garbage).unwrap();
        assert!(matches!(store.last(1), Err(StateError::Garbled { .. })));
    }
}

/// A record from before modes existed means copy mode.
#[test]
fn a_record_without_a_mode_is_of_copy_mode() {
    let (_dir, store) = store();
    let mut asked = record(Some(1), 7);
    asked.spec.mode.batch = true;
    store.write(&asked).unwrap();
    assert_eq!(store.last(1).unwrap(), Some(asked));
    let text = fs::read_to_string(store.path(1)).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mode = json["spec"].as_object_mut().unwrap().remove("mode");
    assert!(mode.is_some());
    fs::write(store.path(1), json.to_string()).unwrap();
    let found = store.last(1).unwrap().unwrap();
    assert_eq!(found.spec.mode, ublk_core::Mode::default());
}

#[test]
fn nonces_differ_and_are_not_zero() {
    let (a, b) = (nonce().unwrap(), nonce().unwrap());
    assert!(a != b && a != 0 && b != 0);
}

/// L42 A name is taken while a running agent adds its device.
#[test]
fn l42_a_name_is_taken_while_its_device_is_added() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::at(dir.path().join("run"));
    let mut spec = crate::fakes::spec();
    spec.name = Some("data".to_owned());
    let mut record = Record::new(5, spec);
    store.write(&record).unwrap();
    assert!(store.is_adding("data") && !store.is_adding("other"));
    record.agent = record.agent.map(|a| ProcessId {
        start: a.start.wrapping_add(1),
        ..a
    });
    store.write(&record).unwrap();
    assert!(!store.is_adding("data"), "its agent was killed");
    assert!(store.ids().is_empty());
    record.id = Some(3);
    store.write(&record).unwrap();
    assert_eq!(store.ids(), [3]);
}
