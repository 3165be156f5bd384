//! Zones of a zoned device: the backend's declaration, and zone reports.
//!
//! All sizes are in bytes; the kernel's structs count sectors of 512.

use ublk_sys::{
    BLK_ZONE_COND_CLOSED, BLK_ZONE_COND_EMPTY, BLK_ZONE_COND_EXP_OPEN, BLK_ZONE_COND_FULL,
    BLK_ZONE_COND_IMP_OPEN, BLK_ZONE_COND_NOT_WP, BLK_ZONE_COND_OFFLINE, BLK_ZONE_COND_READONLY,
    BLK_ZONE_TYPE_CONVENTIONAL, BLK_ZONE_TYPE_SEQWRITE_PREF, BLK_ZONE_TYPE_SEQWRITE_REQ, blk_zone,
};

use crate::SECTOR_SIZE;

/// The zones of a backend ([`Limits::zones`](crate::Limits::zones)). Such a device is host-managed: the block layer
/// writes each sequential zone in order, or appends to it. Linux 6.6, with `CONFIG_BLK_DEV_ZONED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Zones {
    /// Size of each zone in bytes, except the last, which may be shorter: a power of two, whole logical blocks. Becomes
    /// the device's `chunk_sectors`.
    pub size: u64,
    /// Largest append in bytes: whole logical blocks, not 0. The device's largest request bounds it, too.
    pub max_append: u32,
    /// Maximum number of open zones, or 0 for no limit.
    pub max_open: u32,
    /// Maximum number of active zones (open, or closed with data), or 0 for no limit; otherwise at least `max_open`.
    pub max_active: u32,
}

impl Zones {
    /// Zones of `size` bytes with appends of up to `max_append` bytes, without limits on open and active zones.
    #[must_use]
    pub const fn new(size: u64, max_append: u32) -> Self {
        Self {
            size,
            max_append,
            max_open: 0,
            max_active: 0,
        }
    }

    /// Limits the number of open and of active zones; 0 is no limit.
    #[must_use]
    pub const fn at_once(mut self, open: u32, active: u32) -> Self {
        self.max_open = open;
        self.max_active = active;
        self
    }
}

/// How a zone is written (`BLK_ZONE_TYPE_*`).
#[doc(alias = "blk_zone_type")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum ZoneKind {
    /// In any order; the zone has no write pointer.
    Conventional = BLK_ZONE_TYPE_CONVENTIONAL,
    /// At its write pointer only.
    SequentialRequired = BLK_ZONE_TYPE_SEQWRITE_REQ,
    /// Preferably at its write pointer.
    SequentialPreferred = BLK_ZONE_TYPE_SEQWRITE_PREF,
}

/// The condition of a zone (`BLK_ZONE_COND_*`).
#[doc(alias = "blk_zone_cond")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum ZoneCondition {
    /// A conventional zone, which has no write pointer.
    NotWritePointer = BLK_ZONE_COND_NOT_WP,
    /// Nothing is written.
    Empty = BLK_ZONE_COND_EMPTY,
    /// Opened by a write.
    ImplicitlyOpen = BLK_ZONE_COND_IMP_OPEN,
    /// Opened by command.
    ExplicitlyOpen = BLK_ZONE_COND_EXP_OPEN,
    /// Partly written, and closed.
    Closed = BLK_ZONE_COND_CLOSED,
    /// Can no longer be written.
    ReadOnly = BLK_ZONE_COND_READONLY,
    /// Written to its capacity, or finished.
    Full = BLK_ZONE_COND_FULL,
    /// Can no longer be used.
    Offline = BLK_ZONE_COND_OFFLINE,
}

/// One zone of a report.
#[doc(alias = "blk_zone")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Zone {
    /// Offset of the zone in bytes.
    pub start: u64,
    /// Distance to the next zone in bytes, including the part beyond the capacity.
    pub len: u64,
    /// Writable bytes.
    pub capacity: u64,
    /// Offset on the device of the next byte to be written; meaningless in a conventional zone.
    pub write_pointer: u64,
    /// How it is written.
    pub kind: ZoneKind,
    /// Its condition.
    pub condition: ZoneCondition,
}

impl Zone {
    /// A zone that is written in any order.
    #[must_use]
    pub const fn conventional(start: u64, len: u64) -> Self {
        Self {
            start,
            len,
            capacity: len,
            write_pointer: 0,
            kind: ZoneKind::Conventional,
            condition: ZoneCondition::NotWritePointer,
        }
    }

    /// A zone that is written in sequence, writable in full; `write_pointer` is an offset on the device.
    #[must_use]
    pub const fn sequential(
        start: u64,
        len: u64,
        write_pointer: u64,
        condition: ZoneCondition,
    ) -> Self {
        Self {
            start,
            len,
            capacity: len,
            write_pointer,
            kind: ZoneKind::SequentialRequired,
            condition,
        }
    }

    /// Size of a zone in a report, in bytes.
    pub const ENCODED: usize = 64;

    /// Encodes the zone in the kernel's format.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::ENCODED] {
        let pointer = match self.kind {
            // The kernel takes a position beyond the zone as "none".
            ZoneKind::Conventional => u64::MAX,
            _ => self.write_pointer / SECTOR_SIZE,
        };
        let zone = blk_zone {
            start: self.start / SECTOR_SIZE,
            len: self.len / SECTOR_SIZE,
            wp: pointer,
            r#type: self.kind as u8,
            cond: self.condition as u8,
            capacity: self.capacity / SECTOR_SIZE,
            ..blk_zone::ZERO
        };
        zone.to_bytes()
    }
}

/// A zone report: the data of a [`ReportZones`](crate::Op::ReportZones) request.
#[derive(Debug)]
pub struct ZoneReport<'a> {
    free: &'a mut [u8],
}

impl<'a> ZoneReport<'a> {
    /// An empty report in the request's data, which is zeroed: an entry of length 0 ends a report.
    #[must_use]
    pub fn new(data: &'a mut [u8]) -> Self {
        data.fill(0);
        Self { free: data }
    }

    /// Number of zones that still fit.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.free.len() / Zone::ENCODED
    }

    /// Adds the next zone. False if it does not fit: the block layer then asks again from there.
    pub fn push(&mut self, zone: &Zone) -> bool {
        let free = core::mem::take(&mut self.free);
        match free.split_first_chunk_mut::<{ Zone::ENCODED }>() {
            Some((entry, rest)) => {
                *entry = zone.encode();
                self.free = rest;
                true
            }
            None => false,
        }
    }
}

/// An operation on a zone that carries no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ZoneAction {
    /// Open it explicitly: it stays open until it is closed, finished or reset.
    Open,
    /// Close it: it is not open any more, but active if anything is written.
    Close,
    /// Finish it: it becomes full, whatever is written.
    Finish,
    /// Reset its write pointer: it becomes empty, and its data is lost.
    Reset,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_zone_is_told_in_sectors() {
        let zone = Zone::sequential(4 * MIB, MIB, 4 * MIB + 8192, ZoneCondition::ImplicitlyOpen);
        let raw = blk_zone::from_bytes(&zone.encode());
        assert_eq!((raw.start, raw.len, raw.capacity), (8192, 2048, 2048));
        assert_eq!((raw.wp, raw.r#type, raw.cond), (8192 + 16, 2, 2));
        let raw = blk_zone::from_bytes(&Zone::conventional(0, MIB).encode());
        assert_eq!((raw.wp, raw.r#type, raw.cond), (u64::MAX, 1, 0));
    }

    /// L05 A report shorter than its buffer ends with an entry of length 0, whatever the buffer held.
    #[test]
    fn l05_a_short_report_ends() {
        let mut data = [0xee; 3 * Zone::ENCODED + 8];
        let mut report = ZoneReport::new(&mut data);
        assert_eq!(report.room(), 3);
        assert!(report.push(&Zone::conventional(0, MIB)));
        assert!(report.push(&Zone::conventional(MIB, MIB)));
        assert_eq!(report.room(), 1);
        assert!(data[2 * Zone::ENCODED..].iter().all(|byte| *byte == 0));
        let mut report = ZoneReport::new(&mut data[..Zone::ENCODED]);
        assert!(report.push(&Zone::conventional(0, MIB)));
        assert!(!report.push(&Zone::conventional(MIB, MIB)) && report.room() == 0);
    }
}
