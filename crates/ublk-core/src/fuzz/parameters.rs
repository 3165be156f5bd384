//! The body of the target `parameters`: what the driver tells, and what it is told.

use ublk_sys::{
    LBMD_PI_CAP_INTEGRITY, LBMD_PI_CAP_REFTAG, UBLK_PARAM_TYPE_BASIC, UBLK_PARAM_TYPE_DISCARD,
    UBLK_PARAM_TYPE_DMA_ALIGN, UBLK_PARAM_TYPE_INTEGRITY, UBLK_PARAM_TYPE_SEGMENT,
    UBLK_PARAM_TYPE_ZONED, ublk_params,
};

use crate::params::DeviceParams;
use crate::{Checksum, DeviceSpec, Features, Geometry, Integrity, Limits, Zones};

/// The page size of the machine that is modelled.
const PAGE: u32 = 4096;

/// Numbers from arbitrary bytes; powers of two and small multiples are likely, since rules ask for them.
struct Numbers<'a>(&'a [u8]);

impl Numbers<'_> {
    fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    fn wide(&mut self) -> u64 {
        let (kind, value) = (self.byte(), self.byte());
        let shifted = 1_u64 << (value % 64);
        match kind % 6 {
            0 => 0,
            1 => shifted,
            2 => shifted.wrapping_mul(u64::from(self.byte())),
            3 => shifted.wrapping_sub(1),
            4 => u64::from(value) * 4096,
            _ => u64::from_le_bytes(core::array::from_fn(|_| self.byte())),
        }
    }

    fn word(&mut self) -> u32 {
        let wide = self.wide();
        u32::try_from(wide).unwrap_or(u32::MAX)
    }

    fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }
}

fn limits(from: &mut Numbers<'_>) -> Limits {
    let mut limits = Limits::new(from.wide())
        .read_only(from.flag())
        .volatile_cache(from.flag())
        .fua(from.flag());
    limits.logical_block_size = from.word();
    limits.physical_block_size = from.word();
    limits.optimal_io_size = from.word();
    limits.max_discard = from.wide();
    limits.discard_granularity = from.word();
    limits.max_write_zeroes = from.wide();
    let special = from.byte();
    if special & 1 != 0 {
        limits.dma_alignment = from.word();
        limits.max_segments = u16::try_from(from.word() % 65_536).unwrap_or(0);
        limits.max_segment_size = from.word();
        limits.segment_boundary = from.wide();
        limits.memory_in_every_mode = true;
    }
    if special & 2 != 0 {
        limits.minimum_io_size = from.word();
        limits.chunk_size = from.word();
        limits.virtual_boundary = from.word();
        limits.discard_alignment = from.word();
    }
    if special & 4 != 0 {
        let zones = Zones::new(from.wide(), from.word());
        limits.zones = Some(zones.at_once(from.word(), from.word()));
    }
    if special & 8 != 0 {
        limits.integrity = Some(integrity(from));
    }
    limits
}

fn integrity(from: &mut Numbers<'_>) -> Integrity {
    let all = [
        Checksum::None,
        Checksum::Ip,
        Checksum::Crc16,
        Checksum::Crc64,
    ];
    let checksum = all[usize::from(from.byte() % 4)];
    let mut integrity = Integrity::new(checksum, from.byte())
        .interval(from.word())
        .offset(from.byte())
        .reference_tag(from.flag());
    integrity.tag_bytes = from.byte();
    integrity
}

/// Hostile parameters: any that a driver reports are decoded and shown without wrapping, and limits of any numbers are either
/// refused, or become parameters that the driver's rules allow. The rules are written down here once more, from
/// `ublk_validate_params` of Linux 7.3.
///
/// # Panics
/// If a number wraps, or the driver would refuse what was let through.
pub fn parameters(bytes: &[u8]) {
    if let Some(raw) = bytes.first_chunk::<{ size_of::<ublk_params>() }>() {
        reported(&ublk_params::from_bytes(raw));
    }
    let mut from = Numbers(bytes);
    let limits = limits(&mut from);
    let spec = DeviceSpec::new(limits)
        .max_io_bytes(from.word())
        .features(Features::USER_COPY);
    let Ok(checked) = spec.check(PAGE) else {
        return;
    };
    let mut info = checked.dev_info();
    info.dev_id = 0;
    let Ok(geometry) = Geometry::from_reply(&info) else {
        return;
    };
    let params = checked.params(&geometry).expect("the size was checked");
    allowed(&params, geometry.max_io_bytes());
    meant(&limits, &params);
}

fn reported(params: &ublk_params) {
    let Some(view) = DeviceParams::decode(params) else {
        assert_eq!(params.types & UBLK_PARAM_TYPE_BASIC, 0);
        return;
    };
    assert!(view.to_string().contains("bytes in blocks of"));
    let size = u128::from(params.basic.dev_sectors) * 512;
    assert_eq!(u128::from(view.size), size.min(u64::MAX.into()));
    assert_eq!(view.max_io_bytes, u64::from(params.basic.max_sectors) * 512);
    assert!(!view.fua || view.volatile_cache);
}

/// What the driver checks.
fn allowed(params: &ublk_params, max_io: u32) {
    let has = |bit: u32| params.types & bit != 0;
    let basic = &params.basic;
    assert!(has(UBLK_PARAM_TYPE_BASIC));
    assert!((9..=12).contains(&basic.logical_bs_shift));
    assert!(basic.logical_bs_shift <= basic.physical_bs_shift);
    let shifts = [
        basic.physical_bs_shift,
        basic.io_min_shift,
        basic.io_opt_shift,
    ];
    assert!(shifts.iter().all(|shift| *shift <= 28), "{shifts:?}");
    assert!(basic.max_sectors >= PAGE / 512 && basic.max_sectors <= max_io / 512);
    if has(UBLK_PARAM_TYPE_DISCARD) {
        let discard = &params.discard;
        assert_ne!(discard.discard_granularity, 0);
        assert!(discard.max_discard_sectors == 0 || discard.max_discard_segments == 1);
    }
    if has(UBLK_PARAM_TYPE_ZONED) {
        assert!(basic.chunk_sectors.is_power_of_two());
        let (zoned, count) = (
            &params.zoned,
            basic.dev_sectors / u64::from(basic.chunk_sectors),
        );
        assert_ne!(zoned.max_zone_append_sectors, 0);
        assert!(u64::from(zoned.max_open_zones) <= count);
        assert!(u64::from(zoned.max_active_zones) <= count);
        assert!(zoned.max_active_zones == 0 || zoned.max_open_zones <= zoned.max_active_zones);
        // The driver looks no further.
        assert!(!has(UBLK_PARAM_TYPE_INTEGRITY));
    }
    if has(UBLK_PARAM_TYPE_DMA_ALIGN) {
        let alignment = u64::from(params.dma.alignment) + 1;
        assert!(alignment.is_power_of_two() && alignment <= PAGE.into());
    }
    if has(UBLK_PARAM_TYPE_SEGMENT) {
        let boundary = params.seg.seg_boundary_mask.checked_add(1);
        assert!(boundary.is_some_and(|b| b.is_power_of_two() && b >= 4096));
        assert!(params.seg.max_segment_size >= PAGE);
    }
    if has(UBLK_PARAM_TYPE_INTEGRITY) {
        let told = &params.integrity;
        assert_eq!(
            told.flags & !(LBMD_PI_CAP_INTEGRITY | LBMD_PI_CAP_REFTAG),
            0
        );
        let tuple: u16 = match told.csum_type {
            0 => 0,
            1 | 2 => 8,
            4 => 16,
            other => panic!("checksum {other}"),
        };
        assert_ne!(told.metadata_size, 0);
        assert!(u16::from(told.pi_offset) + tuple <= told.metadata_size.into());
        assert!(told.flags & LBMD_PI_CAP_REFTAG == 0 || told.csum_type != 0);
        assert!((9..=basic.logical_bs_shift).contains(&told.interval_exp));
    }
}

/// The parameters are those that the limits name, in the driver's units.
fn meant(limits: &Limits, params: &ublk_params) {
    assert_eq!(params.basic.dev_sectors * 512, limits.size);
    let block = u64::from(limits.logical_block_size);
    assert_eq!(1 << params.basic.logical_bs_shift, block);
    assert!((u64::from(params.basic.max_sectors) * 512).is_multiple_of(block));
    if let Some(zones) = limits.zones {
        assert_eq!(u64::from(params.basic.chunk_sectors) * 512, zones.size);
        let append = u64::from(params.zoned.max_zone_append_sectors) * 512;
        assert!(append <= zones.max_append.into() && append.is_multiple_of(block));
    }
    let Some(integrity) = limits.integrity else {
        return;
    };
    let interval = u64::from(integrity.interval_bytes(limits.logical_block_size));
    assert_eq!(1 << params.integrity.interval_exp, interval);
    // The metadata of a block begins where that of the one before it ends, up to the end of the device.
    let per_block = u128::from(block / interval) * u128::from(integrity.metadata);
    for bytes in [0, block, limits.size - block, limits.size] {
        let wanted = u128::from(bytes / block) * per_block;
        let place = integrity.bytes_for(bytes, limits.logical_block_size);
        assert_eq!(u128::from(place), wanted.min(u64::MAX.into()));
    }
    let text = integrity.to_string();
    let read: Integrity = text.parse().expect("its own words");
    assert_eq!(read.to_string(), text);
}
