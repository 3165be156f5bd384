use super::*;
use std::time::Duration;
use ublk_backends::ZoneLayout;
use ublk_core::Mode;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn spec(backend: BackendSpec, block_size: u32) -> AddSpec {
    AddSpec {
        backend,
        block_size,
        read_only: true,
        ..crate::fakes::spec()
    }
}

#[test]
fn backends_are_what_was_asked_for() {
    for backend in [
        BackendSpec::Null { size: 1 << 30 },
        BackendSpec::Mem { size: 1 << 30 },
    ] {
        let limits = limits_of(&spec(backend, 4096), soon()).unwrap();
        assert_eq!((limits.size, limits.logical_block_size), (1 << 30, 4096));
        assert!(limits.read_only);
    }
}

/// Only an open mode is chosen, and never one in which a reader could see data from outside the device.
#[test]
fn the_data_mode_is_chosen_by_backend() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    create_file(&path, 1 << 20).unwrap().keep();
    let in_memory = File::options(&path).open().unwrap().is_in_memory();
    let of_file = if in_memory {
        DataMode::Copy
    } else {
        DataMode::ZeroCopy
    };
    for (mut spec, pays) in [
        (
            spec(BackendSpec::Null { size: 1 << 20 }, 512),
            DataMode::Copy,
        ),
        (
            spec(BackendSpec::Mem { size: 1 << 20 }, 512),
            DataMode::Copy,
        ),
        (file(&path), of_file),
    ] {
        resolve(&mut spec, soon()).unwrap();
        assert_eq!(spec.auto, None);
        spec.auto = Some(DataMode::GetData);
        resolve(&mut spec, soon()).unwrap();
        assert_eq!(spec.auto, Some(pays));
        spec.unprivileged = true;
        resolve(&mut spec, soon()).unwrap();
        assert_eq!(spec.auto, Some(DataMode::Copy));
    }
}

/// A zoned device has one data mode, and is checked with it.
#[test]
fn zoned_devices_use_user_copy() {
    let mut open = spec(BackendSpec::Mem { size: 1 << 20 }, 4096);
    open.read_only = false;
    open.auto = Some(DataMode::Copy);
    open.parameters.zones = Some(ZoneLayout {
        size: 64 << 10,
        capacity: 64 << 10,
        conventional: 0,
        max_open: 0,
        max_active: 0,
    });
    let limits = resolve(&mut open, soon()).unwrap();
    assert_eq!((open.mode.data, open.auto), (DataMode::UserCopy, None));
    crate::front::check(&open, limits).unwrap();
}

fn file(path: &Path) -> AddSpec {
    let backend = BackendSpec::File {
        path: path.to_owned(),
        offset: 4096,
        length: None,
        buffered: false,
        discard: true,
        force: false,
        integrity_file: None,
    };
    let mut spec = spec(backend, 0);
    spec.read_only = false;
    spec
}

/// The metadata of a file is made for a new device only, and never where the device is only looked at; data is not written
/// without it.
#[test]
fn a_file_keeps_its_integrity_metadata() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    create_file(&path, 1 << 20).unwrap().keep();
    let mut plain = file(&path);
    plain.block_size = 512;
    let mut spec = plain.clone();
    spec.parameters.integrity = Some("crc16:8".parse().unwrap());
    spec.auto = Some(DataMode::Copy);
    resolve(&mut spec, soon()).unwrap();
    assert_eq!(spec.mode.data, DataMode::UserCopy);
    let side = side_file(&spec).unwrap();
    assert_eq!(side.path(), directory.path().join("disk.img.integrity"));
    assert!(!side.exists());
    limits_of(&plain, soon()).unwrap();
    let serve = |spec: &AddSpec, purpose| {
        let opened = open(spec, purpose, |number, path, _| {
            let file = options(spec, number, path).open();
            file.map_err(|e| of_file(path, &e))
        });
        opened.map(|(opened, _)| opened)
    };
    let failure = serve(&spec, Purpose::Continue).unwrap_err();
    assert!(
        failure.text.contains("integrity metadata is missing"),
        "{failure:?}"
    );
    let served = serve(&spec, Purpose::Make).unwrap();
    assert!(side.exists());
    let failure = limits_of(&plain, soon()).unwrap_err();
    assert!(failure.text.contains("would not match"), "{failure:?}");
    plain.read_only = true;
    limits_of(&plain, soon()).unwrap();
    drop(served);
    // The next server may be for another size, a new device may not.
    spec.backend.set_size(512 << 10);
    let failure = serve(&spec, Purpose::Make).unwrap_err();
    assert!(failure.text.contains("--length 1044480"), "{failure:?}");
    let Opened::ProtectedFile(device) = serve(&spec, Purpose::Continue).unwrap() else {
        panic!("no file with metadata");
    };
    start_protected(&spec, &device, Duration::ZERO).unwrap();
    if let BackendSpec::File { integrity_file, .. } = &mut spec.backend {
        *integrity_file = Some(directory.path().join("elsewhere"));
    }
    assert_eq!(
        side_file(&spec).unwrap().path(),
        directory.path().join("elsewhere")
    );
}

/// What was left to the file is recorded, so that a file that has grown yields the same device.
#[test]
fn a_file_device_keeps_its_size() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    create_file(&path, 1 << 20).unwrap().keep();
    let mut spec = file(&path);
    resolve(&mut spec, soon()).unwrap();
    assert_eq!(spec.backend.size(), (1 << 20) - 4096);
    assert!(spec.block_size >= 512);
    let grown = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    grown.set_len(2 << 20).unwrap();
    assert_eq!(limits_of(&spec, soon()).unwrap().size, (1 << 20) - 4096);
    let failure = create_file(&path, 1 << 20).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Failed);
    assert!(
        failure.text.contains("disk.img: cannot create the file"),
        "{failure:?}"
    );
    grown.set_len(4096).unwrap();
    let failure = limits_of(&spec, soon()).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Usage);
    assert!(failure.text.contains("disk.img"), "{failure:?}");
    let failure = limits_of(&file(Path::new("/no/such/file")), soon()).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Failed);
    let hint = failure.hint.unwrap_or_default();
    assert!(hint.contains("--create --size"), "{hint}");
    let loops = path.with_file_name("loop.img");
    std::os::unix::fs::symlink(&loops, &loops).unwrap();
    let failure = limits_of(&file(&loops), soon()).unwrap_err();
    assert!(failure.text.contains("ELOOP"), "{failure:?}");
    assert_eq!(failure.errno, Some(ublk_core::Errno::ELOOP));
}

/// L13 Insufficient address space is reported as the machine's limit, not as a usage error.
#[test]
fn l13_too_little_address_space_is_a_failure() {
    let failure = limits_of(&spec(BackendSpec::Mem { size: 1 << 62 }, 512), soon()).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Failed, "{failure:?}");
    assert!(failure.text.contains("smaller size"), "{failure:?}");
}

/// Every mode for each backend: served, or refused as a usage error with the reason.
#[test]
fn modes_that_cannot_be_served_are_refused_with_the_reason() {
    let (null, mem) = (
        BackendSpec::Null { size: 4096 },
        BackendSpec::Mem { size: 4096 },
    );
    for data in DataMode::ALL {
        for batch in [false, true] {
            for backend in [&null, &mem] {
                let mode = Mode::new(data).batched(batch);
                let why = match (data, backend) {
                    (DataMode::GetData, _) if batch => Some("no get-data command"),
                    (DataMode::ZeroCopy | DataMode::ZeroCopyManual, BackendSpec::Mem { .. }) => {
                        Some("no file")
                    }
                    _ => None,
                };
                let asked = AddSpec {
                    mode,
                    ..spec(backend.clone(), 512)
                };
                match (limits_of(&asked, soon()), why) {
                    (Ok(_), None) => {}
                    (Err(failure), Some(why)) => {
                        assert_eq!(failure.kind, FailureKind::Usage, "{failure:?}");
                        assert!(failure.text.contains(why), "{failure:?}");
                    }
                    other => panic!("{mode} of {backend:?}: {other:?}"),
                }
            }
        }
    }
}

/// L13 Impossible sizes are usage errors.
#[test]
fn l13_bad_sizes_are_usage_errors() {
    for size in [0, 100, 513, u64::MAX] {
        let failure = limits_of(&spec(BackendSpec::Mem { size }, 512), soon()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Usage, "{size}");
    }
}

/// Zones keep their write pointers beside the file that a link leads to; nobody else writes to that file, and one that is made
/// anew does not get old ones.
#[test]
fn a_file_keeps_its_write_pointers() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    create_file(&path, 32 << 20).unwrap().keep();
    let plain = file(&path);
    let zoned = |path: &Path| {
        let mut spec = file(path);
        spec.parameters.zones = Some(ublk_backends::ZoneLayout {
            size: 4 << 20,
            capacity: 4 << 20,
            conventional: 0,
            max_open: 0,
            max_active: 0,
        });
        spec.mode.data = DataMode::UserCopy;
        spec
    };
    let serve = |spec: &AddSpec, purpose| {
        let opened = open(spec, purpose, |number, path, _| {
            let file = options(spec, number, path).claim(false).open();
            file.map_err(|e| of_file(path, &e))
        });
        opened.map(|(opened, _)| opened)
    };
    limits_of(&plain, soon()).unwrap();
    let second = |path: &Path| Second::of(&zoned(path)).unwrap();
    second(&link).refuse_old().unwrap();
    let served = serve(&zoned(&link), Purpose::Make).unwrap();
    let pointers = directory.path().join("disk.img.zones");
    assert!(pointers.exists());
    for path in [&path, &link] {
        let mut other = file(path);
        let failure = limits_of(&other, soon()).unwrap_err();
        assert!(failure.text.contains("write pointers"), "{failure:?}");
        other.parameters.integrity = Some("crc16:8".parse().unwrap());
        other.mode.data = DataMode::UserCopy;
        let failure = limits_of(&other, soon()).unwrap_err();
        assert!(failure.text.contains("write pointers"), "{failure:?}");
        let failure = serve(&zoned(path), Purpose::Make).unwrap_err();
        assert!(failure.text.contains("another server"), "{failure:?}");
        second(path).remove_unused();
        let failure = second(path).refuse_old().unwrap_err();
        assert!(
            failure.text.contains("write pointers already"),
            "{failure:?}"
        );
    }
    drop(served);
    // Another part of the same file would have other pointers.
    let mut behind = zoned(&path);
    if let BackendSpec::File { offset, .. } = &mut behind.backend {
        *offset = 16 << 20;
    }
    let failure = serve(&behind, Purpose::Make).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Failed);
    assert!(failure.text.contains("not 16777216"), "{failure:?}");
    // Those of another file are not for the next server, unless it is told to take what is there.
    let other = directory.path().join("other.img");
    create_file(&other, 32 << 20).unwrap().keep();
    drop(serve(&zoned(&other), Purpose::Make).unwrap());
    std::fs::rename(directory.path().join("other.img.zones"), &pointers).unwrap();
    let failure = serve(&zoned(&path), Purpose::Continue).unwrap_err();
    assert!(failure.text.contains("of another file"), "{failure:?}");
    drop(serve(&zoned(&path), Purpose::Accept).unwrap());
    second(&link).remove_unused();
    assert!(!pointers.exists(), "nobody uses it");
}
