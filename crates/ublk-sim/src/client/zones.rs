//! The block layer's side of a zoned device: appends, resets and reports, and where data must be written.

use std::ops::Range;

use ublk_core::{Op, Zone};

use super::{BLOCK, Client, Sent};
use crate::rng::Rng;

/// The client's view of its zones.
pub(crate) struct Zones {
    /// Blocks per zone.
    blocks: usize,
    /// Number of blocks written in each; `None` after a failed append or reset.
    written: Vec<Option<usize>>,
}

impl Zones {
    /// Zones of `size` bytes on a device of this many blocks; `None` if `size` is 0.
    pub(crate) fn new(size: usize, blocks: usize) -> Option<Self> {
        let zone = size / BLOCK;
        (zone > 0).then(|| Self {
            blocks: zone,
            written: vec![Some(0); blocks / zone],
        })
    }

    /// The blocks of the zone at an offset in bytes.
    fn range(&self, offset: usize) -> Range<usize> {
        let zone = offset / BLOCK / self.blocks;
        zone * self.blocks..(zone + 1) * self.blocks
    }
}

impl Client {
    /// The blocks for which nothing else may be in flight.
    pub(crate) fn reach(&self, op: Op, range: Range<usize>) -> Range<usize> {
        match (&self.zones, op) {
            (Some(zones), Op::ZoneAppend | Op::ZoneReset) => zones.range(range.start * BLOCK),
            (_, Op::ReportZones) => 0..0,
            _ => range,
        }
    }

    /// Chooses what to send instead of a write: an append, the reset of a zone without room for it, or a report.
    /// `blocks` is the length of the append.
    pub(crate) fn zoned(&self, rng: &mut Rng, blocks: usize) -> Option<(Op, Range<usize>, usize)> {
        let zones = self.zones.as_ref()?;
        let zone = rng.below(zones.written.len());
        let first = zone * zones.blocks;
        if rng.chance(10) {
            let count = 1 + rng.below(2 * zones.written.len());
            return Some((Op::ReportZones, first..first, count * Zone::ENCODED));
        }
        let blocks = blocks.min(zones.blocks);
        let has_room = |written: usize| written + blocks <= zones.blocks;
        Some(match zones.written[zone].is_some_and(has_room) {
            true => (Op::ZoneAppend, first..first + blocks, blocks * BLOCK),
            false => (Op::ZoneReset, first..first, 0),
        })
    }

    /// Checks the answer to one of those; `landed` is the commit's sector, `buffer` the server's data.
    pub(crate) fn completed_zoned(
        &mut self,
        sent: &Sent,
        failed: bool,
        landed: u64,
        buffer: &[u8],
    ) -> Result<(), String> {
        let Some(zones) = &mut self.zones else {
            return Ok(());
        };
        let zone = sent.offset / BLOCK / zones.blocks;
        let start = zone * zones.blocks;
        match sent.op {
            Op::ReportZones if failed => {}
            Op::ReportZones => return zones.check_report(zone, buffer),
            _ if failed => zones.written[zone] = None,
            Op::ZoneReset => {
                zones.written[zone] = Some(0);
                self.content[start * BLOCK..(start + zones.blocks) * BLOCK].fill(0);
            }
            _ => {
                let Some(written) = zones.written[zone] else {
                    return Err("an append to a zone whose state is unknown".to_owned());
                };
                let at = (start + written) * BLOCK;
                if usize::try_from(landed * 512) != Ok(at) {
                    return Err(format!(
                        "an append landed at sector {landed}, not at byte {at}"
                    ));
                }
                zones.written[zone] = Some(written + sent.len / BLOCK);
                self.content[at..at + sent.len].copy_from_slice(&sent.data);
            }
        }
        Ok(())
    }
}

impl Zones {
    /// Checks that the report has every zone from the first requested one on, as far as there is room, and nothing
    /// else.
    fn check_report(&self, first: usize, buffer: &[u8]) -> Result<(), String> {
        let (entries, _) = buffer.as_chunks::<{ Zone::ENCODED }>();
        for (n, entry) in entries.iter().enumerate() {
            let found = ublk_sys::blk_zone::from_bytes(entry);
            let zone = first + n;
            let sectors = if zone < self.written.len() {
                self.blocks * BLOCK / 512
            } else {
                0
            };
            let start = if sectors == 0 { 0 } else { zone * sectors };
            let is = |value: u64, wanted: usize| usize::try_from(value) == Ok(wanted);
            if !is(found.len, sectors) || !is(found.start, start) {
                return Err(format!("zone {zone} is reported as {found:?}"));
            }
        }
        Ok(())
    }
}
