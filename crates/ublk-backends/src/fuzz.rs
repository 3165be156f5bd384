//! Bodies of fuzz targets, also replayed by `cargo test`: each takes arbitrary bytes and panics if an invariant is broken.

#![forbid(unsafe_code)]

use ublk_core::{Backend, Errno, Limits, ZoneAction, ZoneReport};

use crate::{Memory, ZoneLayout, ZonedDevice};

pub use crate::protected::fuzzed as metadata_geometry;

/// Bytes of a block, and of a zone.
const BLOCK: u64 = 512;
const ZONE: u64 = 4096;

/// A zone of a report, as the block layer reads it, in sectors.
#[derive(Debug, Clone, Copy)]
struct Told {
    start: u64,
    len: u64,
    pointer: u64,
    kind: u8,
    condition: u8,
    capacity: u64,
}

fn told(entry: &[u8; 64]) -> Told {
    let word = |at: usize| {
        let bytes = entry.get(at..).and_then(|rest| rest.first_chunk::<8>());
        u64::from_le_bytes(*bytes.expect("inside"))
    };
    Told {
        start: word(0),
        len: word(8),
        pointer: word(16),
        kind: entry[24],
        condition: entry[25],
        capacity: word(32),
    }
}

/// Zone reports of any length, from any place, after any operations: they fit their buffer, and tell zones in order, with
/// pointers, conditions and numbers of open and active zones that the block layer accepts. What is behind a pointer is zero.
///
/// # Panics
/// If a report, or the answer to an operation, is not what the model says.
pub fn zone_reports(bytes: &[u8]) {
    let Some((head, steps)) = bytes.split_first_chunk::<5>() else {
        return;
    };
    let [zones, conventional, capacity, open, active] = *head;
    let zones = u64::from(zones % 9);
    let layout = ZoneLayout {
        size: ZONE,
        capacity: u64::from(capacity % 10) * BLOCK,
        conventional: (conventional % 4).into(),
        max_open: (open % 5).into(),
        max_active: (active % 5).into(),
    };
    // Bytes behind the last whole zone are not the device's.
    let Ok(memory) = Memory::new(zones * ZONE + BLOCK, 512) else {
        return;
    };
    let Ok(device) = ZonedDevice::memory(memory, layout) else {
        return;
    };
    let limits = device.limits();
    assert_eq!(limits.size, zones * ZONE);
    for step in steps.as_chunks::<3>().0 {
        operate(&device, &layout, &limits, *step);
        check(&device, &layout, &limits);
    }
}

fn operate(
    device: &ZonedDevice<Memory>,
    layout: &ZoneLayout,
    limits: &Limits,
    [kind, zone, amount]: [u8; 3],
) {
    let start = u64::from(zone) % (limits.size / ZONE) * ZONE;
    let sequential = start / ZONE >= u64::from(layout.conventional);
    let data = vec![0xa5; usize::from(amount % 4 + 1) * 512];
    let before = report(device, start, 64).first().copied();
    let before = before.expect("a zone of the device");
    let done = match kind % 8 {
        0 => {
            let at = start + u64::from(amount / 4 % 8) * BLOCK;
            let fits = at + data.len() as u64 <= start + ZONE;
            let done = if fits {
                device.write_at(&data, at, false)
            } else {
                return;
            };
            let in_place = at == before.pointer.wrapping_mul(BLOCK);
            assert!(!sequential || done.is_err() || in_place, "not in sequence");
            done
        }
        1 => {
            let place = device.zone_append(&data, start);
            if let Ok(place) = place {
                assert_eq!(place, before.pointer * BLOCK);
            }
            place.map(drop)
        }
        2 => device.manage_zone(ZoneAction::Open, start),
        3 => device.manage_zone(ZoneAction::Close, start),
        4 => device.manage_zone(ZoneAction::Finish, start),
        5 => device.manage_zone(ZoneAction::Reset, start),
        6 if amount == 0 => device.reset_all_zones(),
        6 => device.flush(),
        _ => {
            reported_anywhere(device, limits, zone, amount);
            Ok(())
        }
    };
    if !sequential && matches!(kind % 8, 1..=5) {
        assert!(done.is_err(), "an operation of zones on a conventional one");
    }
    if kind % 8 == 5 && sequential {
        assert_eq!(done, Ok(()));
        let after = report(device, start, 64)[0];
        assert_eq!((after.pointer * BLOCK, after.condition), (start, 1));
    }
}

/// A report from any offset into a buffer of any length.
fn reported_anywhere(device: &ZonedDevice<Memory>, limits: &Limits, zone: u8, amount: u8) {
    let offset = u64::from(zone) * BLOCK;
    let zones = report(device, offset, usize::from(amount) * 3);
    let all = limits.size / ZONE;
    let expected = all.saturating_sub(offset / ZONE);
    let room = u64::from(amount) * 3 / 64;
    assert_eq!(zones.len() as u64, expected.min(room));
    for (number, told) in (offset / ZONE..).zip(zones) {
        assert_eq!(told.start, number * ZONE / 512);
    }
}

fn report(device: &ZonedDevice<Memory>, offset: u64, room: usize) -> Vec<Told> {
    let mut data = vec![0xee; room];
    let answer = device.report_zones(offset, &mut ZoneReport::new(&mut data));
    assert!(matches!(answer, Ok(()) | Err(Errno::EIO)), "{answer:?}");
    let (entries, rest) = data.as_chunks::<64>();
    assert!(rest.iter().all(|byte| *byte == 0), "stale bytes");
    let mut zones = entries.iter().map(told);
    let there: Vec<Told> = zones.by_ref().take_while(|told| told.len != 0).collect();
    assert!(zones.all(|told| told.len == 0), "a zone behind the end");
    there
}

/// The rules of `blk_revalidate_disk_zones`, and of the limits.
fn check(device: &ZonedDevice<Memory>, layout: &ZoneLayout, limits: &Limits) {
    let zones = report(device, 0, 64 * 9);
    assert_eq!(zones.len() as u64, limits.size / ZONE);
    let (mut open, mut active) = (0, 0);
    for (number, zone) in (0..).zip(&zones) {
        assert_eq!((zone.start, zone.len), (number * ZONE / 512, ZONE / 512));
        if number < u64::from(layout.conventional) {
            assert_eq!((zone.kind, zone.condition), (1, 0));
            continue;
        }
        assert_eq!((zone.kind, zone.capacity), (2, layout.capacity / 512));
        let at = zone.pointer - zone.start;
        match zone.condition {
            1 => assert_eq!(at, 0, "empty"),
            2 | 3 => open += 1,
            4 => active += 1,
            14 => {}
            other => panic!("condition {other}"),
        }
        if zone.condition != 14 {
            assert!(at < zone.capacity, "full, and not told so");
        }
        let mut data = vec![0xee; 4096];
        device.read_at(&mut data, zone.start * 512).expect("inside");
        if at < zone.len {
            let behind = usize::try_from(at * 512).expect("a zone is small");
            assert!(data[behind..].iter().all(|byte| *byte == 0));
        }
    }
    assert!(layout.max_open == 0 || open <= layout.max_open);
    assert!(layout.max_active == 0 || open + active <= layout.max_active);
}

#[cfg(all(test, not(miri)))]
mod tests {
    #[test]
    fn zone_reports_of_any_kind() {
        bolero::check!()
            .with_max_len(200)
            .for_each(super::zone_reports);
    }

    #[test]
    fn metadata_geometry_of_any_kind() {
        bolero::check!()
            .with_max_len(600)
            .for_each(super::metadata_geometry);
    }
}
