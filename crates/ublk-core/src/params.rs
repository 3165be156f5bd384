//! Encodes limits as the driver's parameters, and decodes parameters for display.

use crate::{Limits, SECTOR_SIZE};
use core::fmt;
use ublk_sys::{
    UBLK_ATTR_FUA, UBLK_ATTR_READ_ONLY, UBLK_ATTR_ROTATIONAL, UBLK_ATTR_VOLATILE_CACHE,
    UBLK_PARAM_TYPE_BASIC, UBLK_PARAM_TYPE_DEVT, UBLK_PARAM_TYPE_DISCARD,
    UBLK_PARAM_TYPE_DMA_ALIGN, UBLK_PARAM_TYPE_INTEGRITY, UBLK_PARAM_TYPE_SEGMENT,
    UBLK_PARAM_TYPE_ZONED, ublk_param_basic, ublk_param_discard, ublk_param_dma_align,
    ublk_param_segment, ublk_param_zoned, ublk_params,
};

/// The largest DISCARD or WRITE_ZEROES a bio can carry, in sectors (`UINT_MAX >> 9`).
const MAX_BIO_SECTORS: u64 = u32::MAX as u64 / SECTOR_SIZE;

/// A boundary that no segment reaches: the driver accepts neither 0 nor all ones for "none".
const NO_BOUNDARY: u64 = i64::MAX as u64;

/// Adds the limits for memory that is passed on to a file.
pub(crate) fn encode_memory(limits: &Limits, params: &mut ublk_params) {
    if limits.dma_alignment > 1 {
        params.types |= UBLK_PARAM_TYPE_DMA_ALIGN;
        params.dma = ublk_param_dma_align {
            alignment: limits.dma_alignment - 1,
            ..Default::default()
        };
    }
    let boundary = limits.segment_boundary;
    if limits.max_segments != 0 || limits.max_segment_size != 0 || boundary != 0 {
        params.types |= UBLK_PARAM_TYPE_SEGMENT;
        params.seg = ublk_param_segment {
            seg_boundary_mask: match boundary {
                0 => NO_BOUNDARY,
                bytes => bytes - 1,
            },
            max_segment_size: match limits.max_segment_size {
                0 => u32::MAX,
                size => size,
            },
            max_segments: limits.max_segments,
            ..Default::default()
        };
    }
}

/// Encodes checked limits, for a device with requests of at most `max_io_bytes`.
pub(crate) fn encode(limits: &Limits, max_io_bytes: u32) -> ublk_params {
    let attr = |yes: bool, bit: u32| if yes { bit } else { 0 };
    let block = u64::from(limits.logical_block_size);
    let optimal = match limits.optimal_io_size {
        // The field is a shift, so it cannot say "none"; tools read the physical block size as none. A zero would mean
        // one byte.
        0 => limits.physical_block_size,
        size => size,
    };
    let mut params = ublk_params {
        len: ublk_params::WHOLE,
        types: UBLK_PARAM_TYPE_BASIC,
        basic: ublk_param_basic {
            attrs: attr(limits.read_only, UBLK_ATTR_READ_ONLY)
                | attr(limits.rotational, UBLK_ATTR_ROTATIONAL)
                | attr(limits.volatile_cache, UBLK_ATTR_VOLATILE_CACHE)
                | attr(limits.volatile_cache && limits.fua, UBLK_ATTR_FUA),
            logical_bs_shift: shift_of(limits.logical_block_size),
            physical_bs_shift: shift_of(limits.physical_block_size),
            io_min_shift: shift_of(match limits.minimum_io_size {
                0 => limits.physical_block_size,
                bytes => bytes,
            }),
            io_opt_shift: shift_of(optimal),
            // Sectors are 512 bytes whatever the block size (L02); a request is whole blocks.
            max_sectors: sectors(u64::from(max_io_bytes), block),
            // The zone size was checked: it must not be lowered to what a bio can carry.
            chunk_sectors: limits.zones.map_or_else(
                || sectors(limits.chunk_size.into(), block),
                |zones| u32::try_from(zones.size / SECTOR_SIZE).unwrap_or(0),
            ),
            virt_boundary_mask: u64::from(limits.virtual_boundary.saturating_sub(1)),
            dev_sectors: limits.size / SECTOR_SIZE,
        },
        ..Default::default()
    };
    if let Some(zones) = limits.zones {
        params.types |= UBLK_PARAM_TYPE_ZONED;
        params.zoned = ublk_param_zoned {
            max_open_zones: zones.max_open,
            max_active_zones: zones.max_active,
            max_zone_append_sectors: sectors(zones.max_append.min(max_io_bytes).into(), block),
            ..Default::default()
        };
    }
    if let Some(integrity) = &limits.integrity {
        params.types |= UBLK_PARAM_TYPE_INTEGRITY;
        params.integrity = integrity.encode(limits.logical_block_size);
    }
    if limits.max_discard != 0 || limits.max_write_zeroes != 0 {
        params.types |= UBLK_PARAM_TYPE_DISCARD;
        let granularity = limits.discard_granularity.max(limits.logical_block_size);
        params.discard = ublk_param_discard {
            discard_alignment: limits.discard_alignment,
            // Bytes, not a shift and not sectors (L12); never zero if the parameter type is set.
            discard_granularity: granularity,
            max_discard_sectors: sectors(limits.max_discard, granularity.into()),
            max_write_zeroes_sectors: sectors(limits.max_write_zeroes, block),
            max_discard_segments: u16::from(limits.max_discard != 0),
            ..Default::default()
        };
    }
    params
}

/// Sectors in `bytes`, rounded down to `unit` bytes, at most as many as a bio can carry.
fn sectors(bytes: u64, unit: u64) -> u32 {
    let unit = (unit / SECTOR_SIZE).max(1);
    let sectors = (bytes / SECTOR_SIZE).min(MAX_BIO_SECTORS) / unit * unit;
    u32::try_from(sectors).unwrap_or(u32::MAX)
}

/// Log2 of a power of two.
fn shift_of(power: u32) -> u8 {
    u8::try_from(power.trailing_zeros()).unwrap_or(0)
}

/// The parameters of a device from GET_PARAMS, in bytes: for people and scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct DeviceParams {
    /// Size in bytes; saturated if it exceeds 64 bits.
    pub size: u64,
    /// Logical block size in bytes.
    pub logical_block_size: u32,
    /// Physical block size in bytes.
    pub physical_block_size: u32,
    /// Smallest preferred I/O in bytes.
    pub minimum_io_size: u32,
    /// Preferred I/O in bytes.
    pub optimal_io_size: u32,
    /// Largest request in bytes.
    pub max_io_bytes: u64,
    /// Requests never cross a multiple of this many bytes; 0 for no boundary.
    pub chunk_bytes: u64,
    /// The device refuses writes.
    pub read_only: bool,
    /// Seeks are expensive.
    pub rotational: bool,
    /// Completed writes may need a FLUSH.
    pub volatile_cache: bool,
    /// FUA writes are passed on as such.
    pub fua: bool,
    /// Largest DISCARD in bytes, 0 for none.
    pub max_discard: u64,
    /// Granularity of DISCARD in bytes, 0 if the device has no discard limits.
    pub discard_granularity: u32,
    /// Largest WRITE_ZEROES in bytes, 0 for none.
    pub max_write_zeroes: u64,
    /// Major and minor number of the character device, filled in by the kernel.
    pub char_devt: Option<(u32, u32)>,
    /// Major and minor number of the block device, while it exists.
    pub disk_devt: Option<(u32, u32)>,
    /// The parameter types (`UBLK_PARAM_TYPE_*`) that the kernel has stored.
    pub types: u32,
}

impl DeviceParams {
    /// Decodes parameters; `None` if no basic parameters were set.
    #[must_use]
    pub fn decode(params: &ublk_params) -> Option<Self> {
        if params.types & UBLK_PARAM_TYPE_BASIC == 0 {
            return None;
        }
        let basic = &params.basic;
        let has = |bit: u32| basic.attrs & bit != 0;
        let bytes = |shift: u8| 1u32.checked_shl(shift.into()).unwrap_or(0);
        let discard = (params.types & UBLK_PARAM_TYPE_DISCARD != 0).then_some(&params.discard);
        let devt = |major: u32, minor: u32| {
            (params.types & UBLK_PARAM_TYPE_DEVT != 0 && (major, minor) != (0, 0))
                .then_some((major, minor))
        };
        let whole = |sectors: u32| u64::from(sectors) * SECTOR_SIZE;
        Some(Self {
            size: basic.dev_sectors.saturating_mul(SECTOR_SIZE),
            logical_block_size: bytes(basic.logical_bs_shift),
            physical_block_size: bytes(basic.physical_bs_shift),
            minimum_io_size: bytes(basic.io_min_shift),
            optimal_io_size: bytes(basic.io_opt_shift),
            max_io_bytes: whole(basic.max_sectors),
            chunk_bytes: whole(basic.chunk_sectors),
            read_only: has(UBLK_ATTR_READ_ONLY),
            rotational: has(UBLK_ATTR_ROTATIONAL),
            volatile_cache: has(UBLK_ATTR_VOLATILE_CACHE),
            // Without a volatile cache the kernel ignores the bit.
            fua: has(UBLK_ATTR_FUA) && has(UBLK_ATTR_VOLATILE_CACHE),
            max_discard: discard.map_or(0, |d| whole(d.max_discard_sectors)),
            discard_granularity: discard.map_or(0, |d| d.discard_granularity),
            max_write_zeroes: discard.map_or(0, |d| whole(d.max_write_zeroes_sectors)),
            char_devt: devt(params.devt.char_major, params.devt.char_minor),
            disk_devt: devt(params.devt.disk_major, params.devt.disk_minor),
            types: params.types,
        })
    }
}

impl fmt::Display for DeviceParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes in blocks of {} (physical {}), requests up to {}",
            self.size, self.logical_block_size, self.physical_block_size, self.max_io_bytes
        )?;
        let words = [
            (self.read_only, "read-only"),
            (self.rotational, "rotational"),
            (self.volatile_cache, "volatile cache"),
            (self.fua, "fua"),
            (self.max_discard != 0, "discard"),
            (self.max_write_zeroes != 0, "write-zeroes"),
        ];
        for (_, word) in words.iter().filter(|(yes, _)| *yes) {
            write!(f, ", {word}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Zones;

    const GIB: u64 = 1 << 30;

    /// L02 A 4096-byte device has as many sectors, and as long requests, as a 512-byte one.
    #[test]
    fn l02_block_size_scales_nothing() {
        for block in [512, 1024, 4096] {
            let p = encode(&Limits::new(GIB).block_size(block), 512 << 10);
            assert_eq!(p.basic.dev_sectors, GIB / 512, "{block}");
            assert_eq!(p.basic.max_sectors, 1024, "{block}");
            assert_eq!(1 << p.basic.logical_bs_shift, block);
            let view = DeviceParams::decode(&p).unwrap();
            assert_eq!((view.size, view.max_io_bytes), (GIB, 512 << 10));
        }
    }

    /// L06 Attributes and limits follow from the backend's declaration, one by one.
    #[test]
    fn l06_what_is_declared_is_sent() {
        let attrs = |l: Limits| encode(&l, 65536).basic.attrs;
        let plain = Limits::new(GIB);
        assert_eq!(attrs(plain), UBLK_ATTR_VOLATILE_CACHE);
        assert_eq!(attrs(plain.volatile_cache(false)), 0);
        assert_eq!(
            attrs(plain.fua(true)),
            UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA
        );
        assert_eq!(
            attrs(plain.read_only(true)),
            UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_READ_ONLY
        );
        let mut slow = plain;
        slow.rotational = true;
        assert_eq!(attrs(slow), UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_ROTATIONAL);
        let types = |l: Limits| encode(&l, 65536).types;
        assert_eq!(types(plain), UBLK_PARAM_TYPE_BASIC);
        let both = UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD;
        assert_eq!(types(plain.discard(GIB, 4096)), both);
        assert_eq!(types(plain.write_zeroes(GIB)), both);
    }

    /// L12 Granularity is bytes, limits are sectors, and one segment goes with a discard limit.
    #[test]
    fn l12_discard_units() {
        let p = encode(&Limits::new(GIB).discard(1 << 20, 8192), 65536).discard;
        assert_eq!(p.discard_granularity, 8192);
        assert_eq!((p.discard_alignment, p.max_discard_sectors), (0, 2048));
        assert_eq!((p.max_discard_segments, p.max_write_zeroes_sectors), (1, 0));
        // Write-zeroes alone: the driver still requires a granularity, but no discard segment.
        let p = encode(
            &Limits::new(GIB).block_size(4096).write_zeroes(1 << 20),
            65536,
        );
        assert_eq!(p.discard.discard_granularity, 4096);
        assert_eq!(p.discard.max_discard_segments, 0);
        assert_eq!(p.discard.max_discard_sectors, 0);
        assert_eq!(p.discard.max_write_zeroes_sectors, 2048);
        let view = DeviceParams::decode(&p).unwrap();
        assert_eq!((view.max_discard, view.max_write_zeroes), (0, 1 << 20));
    }

    /// L13 Limits beyond 32 bits of bytes are lowered to what a bio carries, and do not wrap.
    #[test]
    fn l13_limits_do_not_wrap() {
        let l = Limits::new(i64::MAX as u64 / 4096 * 4096)
            .block_size(4096)
            .discard(u64::MAX, 1 << 20)
            .write_zeroes(1 << 41);
        let p = encode(&l, 32 << 20);
        assert_eq!(p.basic.dev_sectors, (1 << 54) - 8);
        assert_eq!(p.basic.max_sectors, 65536);
        assert_eq!(p.discard.max_discard_sectors, 0x7f_ffff / 2048 * 2048);
        assert_eq!(p.discard.max_write_zeroes_sectors, 0x7f_ffff / 8 * 8);
        let view = DeviceParams::decode(&p).unwrap();
        assert_eq!(view.size, l.size);
        let mut huge = p;
        huge.basic.dev_sectors = u64::MAX;
        assert_eq!(DeviceParams::decode(&huge).unwrap().size, u64::MAX);
    }

    /// L06 The backend's zones are sent, in sectors; an append is no longer than a request.
    #[test]
    fn l06_zones_are_sent() {
        let zones = Zones::new(1 << 20, 256 << 10).at_once(4, 8);
        let p = encode(&Limits::new(GIB).zones(zones), 64 << 10);
        assert_eq!(p.types, UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_ZONED);
        assert_eq!(p.basic.chunk_sectors, 2048);
        assert_eq!((p.zoned.max_open_zones, p.zoned.max_active_zones), (4, 8));
        assert_eq!(p.zoned.max_zone_append_sectors, 128);
        let plain = encode(&Limits::new(GIB), 64 << 10);
        assert_eq!(
            (plain.basic.chunk_sectors, plain.zoned.max_open_zones),
            (0, 0)
        );
    }

    /// Memory limits are sent in the driver's form, and only if declared.
    #[test]
    fn memory_is_described_in_the_drivers_form() {
        let with = |l: Limits| {
            let mut p = encode(&l, 65536);
            encode_memory(&l, &mut p);
            p
        };
        assert_eq!(with(Limits::new(GIB)), encode(&Limits::new(GIB), 65536));
        let p = with(Limits::new(GIB).memory(512, 0, 0));
        assert_eq!(p.types, UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DMA_ALIGN);
        assert_eq!((p.dma.alignment, p.seg.max_segments), (511, 0));
        let p = with(Limits::new(GIB).memory(0, 33, 0)).seg;
        assert_eq!((p.max_segments, p.max_segment_size), (33, u32::MAX));
        assert!((p.seg_boundary_mask + 1).is_power_of_two() && p.seg_boundary_mask != u64::MAX);
        let p = with(Limits::new(GIB).memory(4096, 0, 65536));
        assert_eq!(p.types & UBLK_PARAM_TYPE_SEGMENT, UBLK_PARAM_TYPE_SEGMENT);
        assert_eq!((p.seg.max_segment_size, p.dma.alignment), (65536, 4095));
    }

    #[test]
    fn preferred_sizes_are_shifts() {
        let mut l = Limits::new(GIB);
        let p = encode(&l, 65536).basic;
        assert_eq!((p.io_min_shift, p.io_opt_shift), (12, 12));
        l.optimal_io_size = 65536;
        assert_eq!(encode(&l, 65536).basic.io_opt_shift, 16);
        assert_eq!(p.physical_bs_shift, 12);
        assert_eq!(encode(&l, 65536).len, 152);
    }

    #[test]
    fn foreign_parameters_are_read_without_trust() {
        assert_eq!(DeviceParams::decode(&ublk_params::default()), None);
        let mut p = encode(&Limits::new(GIB), 65536);
        p.basic.logical_bs_shift = 200;
        p.basic.attrs = UBLK_ATTR_FUA;
        p.types |= UBLK_PARAM_TYPE_DEVT;
        p.devt.char_major = 240;
        p.discard.max_discard_sectors = 9; // not valid without the DISCARD type
        let view = DeviceParams::decode(&p).unwrap();
        assert_eq!(view.logical_block_size, 0);
        assert!(!view.fua && !view.volatile_cache);
        assert_eq!((view.char_devt, view.disk_devt), (Some((240, 0)), None));
        assert_eq!(view.max_discard, 0);
        assert!(view.to_string().starts_with("1073741824 bytes"));
    }
}
