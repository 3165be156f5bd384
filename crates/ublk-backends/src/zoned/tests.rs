use super::*;
use crate::ZonesFileError;
use ublk_core::ZoneCondition;

const LAYOUT: ZoneLayout = ZoneLayout {
    size: 64 << 10,
    capacity: 48 << 10,
    conventional: 1,
    max_open: 0,
    max_active: 0,
};
const ZONE: u64 = LAYOUT.size;

fn memory() -> ZonedDevice<Memory> {
    let memory = Memory::new(4 * ZONE + 4096, 4096).unwrap();
    ZonedDevice::memory(memory, LAYOUT).unwrap()
}

/// Conventional zones are written anywhere, sequential ones in order; what is behind a pointer reads as zeroes, also
/// after a reset of written zones.
#[test]
fn data_is_where_zones_say() {
    let device = memory();
    assert_eq!(device.limits().size, 4 * ZONE);
    device.write_at(&[1; 4096], 8192, false).unwrap();
    device.write_at(&[2; 4096], 4096, false).unwrap();
    assert_eq!(
        device.write_at(&[3; 4096], ZONE + 4096, false),
        Err(Errno::EIO)
    );
    device.write_at(&[3; 4096], ZONE, false).unwrap();
    assert_eq!(device.zone_append(&[4; 8192], ZONE), Ok(ZONE + 4096));
    let mut back = vec![9; 32 << 10];
    device.read_at(&mut back, ZONE - 4096).unwrap();
    let pieces: Vec<u8> = back.chunks(4096).map(|piece| piece[0]).collect();
    assert_eq!(pieces, [0, 3, 4, 4, 0, 0, 0, 0]);
    device.manage_zone(ZoneAction::Reset, ZONE).unwrap();
    device.read_at(&mut back, ZONE).unwrap();
    assert!(back.iter().all(|byte| *byte == 0));
    assert_eq!(device.zone_append(&[5; 4096], ZONE), Ok(ZONE));
    assert_eq!(
        device.zone_append(&[5; 4096], 0),
        Err(Errno::EIO),
        "conventional"
    );
    assert_eq!(device.zone_append(&[5; 4096], 4 * ZONE), Err(Errno::EIO));
    device.reset_all_zones().unwrap();
    assert_eq!(device.zone_append(&[5; 4096], ZONE), Ok(ZONE));
}

/// The report has every zone with its capacity, pointer and condition.
#[test]
fn zones_are_reported() {
    let device = memory();
    device.zone_append(&[1; 4096], 2 * ZONE).unwrap();
    device.manage_zone(ZoneAction::Open, 3 * ZONE).unwrap();
    device.manage_zone(ZoneAction::Finish, ZONE).unwrap();
    let mut data = vec![0xee; 5 * Zone::ENCODED];
    let mut report = ZoneReport::new(&mut data);
    device.report_zones(0, &mut report).unwrap();
    assert_eq!(report.room(), 1);
    let words = |zone: usize| {
        let entry = &data[zone * Zone::ENCODED..][..Zone::ENCODED];
        let word = |at: usize| u64::from_le_bytes(*entry[at..].first_chunk().unwrap());
        (word(0), word(16), entry[25], word(32))
    };
    let sectors = ZONE / 512;
    let condition = |condition: ZoneCondition| condition as u8;
    assert_eq!(words(0), (0, u64::MAX, 0, sectors));
    assert_eq!(words(1).2, condition(ZoneCondition::Full));
    let written = (
        2 * sectors,
        2 * sectors + 8,
        condition(ZoneCondition::ImplicitlyOpen),
        96,
    );
    assert_eq!(words(2), written);
    assert_eq!(words(3).2, condition(ZoneCondition::ExplicitlyOpen));
}

/// Appends of several threads have disjoint places, and each place has its data.
#[test]
fn appends_are_disjoint() {
    let device = memory();
    let append = |thread: u8| {
        let device = &device;
        move || {
            (0..4)
                .map(|_| device.zone_append(&[thread; 4096], ZONE).unwrap())
                .collect::<Vec<_>>()
        }
    };
    let mut all = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..4).map(|n| (n, scope.spawn(append(n)))).collect();
        let places = threads.into_iter().flat_map(|(n, thread)| {
            let places = thread.join().unwrap();
            places.into_iter().map(move |place| (place, n))
        });
        places.collect::<Vec<_>>()
    });
    all.sort_unstable();
    for (number, (place, thread)) in all.iter().enumerate() {
        assert_eq!(*place, ZONE + number as u64 * 4096);
        let mut back = [0; 4096];
        device.read_at(&mut back, *place).unwrap();
        assert_eq!(back, [*thread; 4096]);
    }
    assert_eq!(device.zone_append(&[1; 4096], ZONE), Err(Errno::ENOSPC));
}

/// The next server of a file finds the pointer where acknowledged writes end, and one that had opened it before reads
/// it again.
#[test]
fn l34_pointers_pass_to_the_next_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink("disk", &link).unwrap();
    std::fs::File::create(&path)
        .unwrap()
        .set_len(4 * ZONE)
        .unwrap();
    // Of the file that the link leads to.
    let pointers = ZonesFile::beside(&link).create(true);
    let file = || {
        let file = File::options(&path).block_size(Some(4096)).buffered(true);
        file.open().unwrap()
    };
    let open = || ZonedDevice::file(file(), LAYOUT, &pointers).unwrap();
    let blank = ZonedDevice::looked_at(file(), LAYOUT, &pointers).unwrap();
    assert!(!pointers.exists());
    assert_eq!(blank.limits().size, 4 * ZONE);
    let device = open();
    assert!(pointers.exists() && directory.path().join("disk.zones").exists());
    let same = pointers.clone().same_data(true);
    let next = ZonedDevice::prepared(file(), LAYOUT, &same).unwrap();
    assert_eq!(
        next.start(Duration::ZERO),
        Err(ZonesFileError::Locked.into())
    );
    device.zone_append(&[1; 8192], ZONE).unwrap();
    device.flush().unwrap();
    device.zone_append(&[2; 4096], ZONE).unwrap();
    drop(device);
    next.start(Duration::ZERO).unwrap();
    assert_eq!(next.zone_append(&[3; 4096], ZONE), Ok(ZONE + 12_288));
    next.manage_zone(ZoneAction::Reset, ZONE).unwrap();
    drop(next);
    assert_eq!(open().zone_append(&[4; 4096], ZONE), Ok(ZONE));
}

/// Layouts that no device can have are refused, saying why.
#[test]
fn layouts_are_checked() {
    let refused = |layout: ZoneLayout| {
        let memory = Memory::new(4 * ZONE, 4096).unwrap();
        ZonedDevice::memory(memory, layout)
            .err()
            .map(|e| e.to_string())
    };
    assert_eq!(refused(LAYOUT), None);
    for (layout, part) in [
        (
            ZoneLayout {
                size: 3 << 14,
                ..LAYOUT
            },
            "power of two",
        ),
        (
            ZoneLayout {
                capacity: 1000,
                ..LAYOUT
            },
            "capacity",
        ),
        (
            ZoneLayout {
                capacity: 2 * ZONE,
                ..LAYOUT
            },
            "capacity",
        ),
        (
            ZoneLayout {
                conventional: 4,
                ..LAYOUT
            },
            "sequential zone",
        ),
        (
            ZoneLayout {
                size: 8 * ZONE,
                ..LAYOUT
            },
            "sequential zone",
        ),
    ] {
        let said = refused(layout).unwrap_or_default();
        assert!(said.contains(part), "{said}");
    }
}
