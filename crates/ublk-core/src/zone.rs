//! Zones of a zoned device: what a backend declares of them, and what it reports.
//!
//! Bytes everywhere; the kernel's structs count sectors of 512.

use ublk_sys::{
    BLK_ZONE_COND_CLOSED, BLK_ZONE_COND_EMPTY, BLK_ZONE_COND_EXP_OPEN, BLK_ZONE_COND_FULL,
    BLK_ZONE_COND_IMP_OPEN, BLK_ZONE_COND_NOT_WP, BLK_ZONE_COND_OFFLINE, BLK_ZONE_COND_READONLY,
    BLK_ZONE_TYPE_CONVENTIONAL, BLK_ZONE_TYPE_SEQWRITE_PREF, BLK_ZONE_TYPE_SEQWRITE_REQ, blk_zone,
};

use crate::SECTOR_SIZE;

/// The zones that a backend declares ([`Limits::zones`](crate::Limits::zones)). Such a device is host-managed: the block
/// layer writes each sequential zone in order, or appends to it. Linux 6.6, with `CONFIG_BLK_DEV_ZONED`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Zones {
    /// Bytes of every zone but the last, which may be shorter: a power of two, whole logical blocks. It is the device's
    /// `chunk_sectors`.
    pub size: u64,
    /// Largest append in bytes, whole logical blocks, not 0. The device's largest request bounds it too.
    pub max_append: u32,
    /// Most zones that may be open at once, or 0 for no limit.
    pub max_open: u32,
    /// Most zones that may be open or closed with data at once, or 0 for no limit; not below `max_open` then.
    pub max_active: u32,
}

impl Zones {
    /// Zones of `size` bytes that take appends of up to `max_append` bytes, any number of them open and active.
    #[must_use]
    pub const fn new(size: u64, max_append: u32) -> Self {
        Self {
            size,
            max_append,
            max_open: 0,
            max_active: 0,
        }
    }

    /// Limits how many zones may be open, and how many active, at once; 0 is no limit.
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
    /// Better at its write pointer.
    SequentialPreferred = BLK_ZONE_TYPE_SEQWRITE_PREF,
}

/// Where a zone is in its life (`BLK_ZONE_COND_*`).
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
    /// First byte.
    pub start: u64,
    /// Bytes from one zone to the next, what is beyond the capacity included.
    pub len: u64,
    /// Bytes that can be written.
    pub capacity: u64,
    /// The next byte to be written, absolute; of no meaning in a conventional zone.
    pub write_pointer: u64,
    /// How it is written.
    pub kind: ZoneKind,
    /// Where it is in its life.
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

    /// A zone that is written in sequence, all of which can be written; `write_pointer` is absolute.
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

    /// Bytes of a zone in a report.
    pub const ENCODED: usize = 64;

    /// The zone as the kernel has it.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::ENCODED] {
        let pointer = match self.kind {
            // The kernel takes what is beyond the zone for "none".
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

/// A report of zones on its way to the block layer: the data of a [`ReportZones`](crate::Op::ReportZones) request.
#[derive(Debug)]
pub struct ZoneReport<'a> {
    free: &'a mut [u8],
}

impl<'a> ZoneReport<'a> {
    /// An empty report in the request's data, which is zeroed: an entry without length ends a report.
    #[must_use]
    pub fn new(data: &'a mut [u8]) -> Self {
        data.fill(0);
        Self { free: data }
    }

    /// How many zones there is still room for.
    #[must_use]
    pub const fn room(&self) -> usize {
        self.free.len() / Zone::ENCODED
    }

    /// Adds the next zone. False if there is no room for it: the block layer asks again from there.
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

/// What is to be done with a zone, by a command that carries no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ZoneAction {
    /// Open it by command: it counts as open until it is closed, finished or reset.
    Open,
    /// Close it: it is no longer open, but active if anything is written.
    Close,
    /// Finish it: it is full, whatever is written.
    Finish,
    /// Reset its write pointer: it is empty, and its data gone.
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

    /// L05 A report that is shorter than its buffer ends with an entry without length, whatever was there.
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
