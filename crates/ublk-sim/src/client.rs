//! The block layer's side: a random workload and the oracle of the device's content.

use ublk_core::Op;

use crate::disk::{Disk, Promise};
use crate::rng::Rng;

mod zones;

pub(crate) use zones::Zones;

/// Content is tracked, and requests are aligned, in blocks of this size.
pub(crate) const BLOCK: usize = 4096;

/// A request in flight.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) op: Op,
    pub(crate) offset: usize,
    pub(crate) len: usize,
    /// The data of a WRITE.
    pub(crate) data: Vec<u8>,
    /// Must be durable before it completes.
    pub(crate) fua: bool,
    /// The changes that a FLUSH must make durable, as of the time it was sent.
    pub(crate) promise: Promise,
}

/// Generates requests that do not overlap in time, and knows what each read must return.
pub(crate) struct Client {
    pub(crate) content: Vec<u8>,
    /// For a zoned device.
    pub(crate) zones: Option<Zones>,
    /// Blocks that a failed request may have changed in part.
    unknown: Vec<bool>,
    /// Storage of the server, if durability is to be checked.
    pub(crate) disk: Option<Disk>,
    busy: Vec<bool>,
    left: usize,
    read_percent: u8,
    max_blocks: usize,
    pub(crate) completed: usize,
    pub(crate) failed: usize,
}

impl Client {
    pub(crate) fn new(size: usize, requests: usize, read_percent: u8, max_io_bytes: u32) -> Self {
        let max_blocks = usize::try_from(max_io_bytes).unwrap_or(BLOCK) / BLOCK;
        Self {
            content: vec![0; size],
            zones: None,
            unknown: vec![false; size / BLOCK],
            disk: None,
            busy: vec![false; size / BLOCK],
            left: requests,
            read_percent,
            max_blocks: max_blocks.max(1),
            completed: 0,
            failed: 0,
        }
    }

    pub(crate) fn all_sent(&self) -> bool {
        self.left == 0
    }

    /// The next request, or `None` if all are sent or the selected range is busy.
    pub(crate) fn next(&mut self, rng: &mut Rng) -> Option<Sent> {
        if self.left == 0 {
            return None;
        }
        let blocks = 1 + rng.below(self.max_blocks.min(self.busy.len()));
        let first = rng.below(self.busy.len() - blocks + 1);
        let reads = rng.chance(self.read_percent);
        if !reads && let Some((op, range, len)) = self.zoned(rng, blocks) {
            return self.send(rng, op, range, len);
        }
        let op = if reads {
            Op::Read
        } else {
            match rng.below(20) {
                0 => Op::Flush,
                1 => Op::Discard,
                2 => Op::WriteZeroes,
                _ => Op::Write,
            }
        };
        let range = match op {
            Op::Flush => 0..0,
            // No buffer limits a range without data.
            Op::Discard | Op::WriteZeroes => first..(first + 4 * blocks).min(self.busy.len()),
            _ => first..first + blocks,
        };
        let len = range.len() * BLOCK;
        self.send(rng, op, range, len)
    }

    fn send(
        &mut self,
        rng: &mut Rng,
        op: Op,
        range: std::ops::Range<usize>,
        len: usize,
    ) -> Option<Sent> {
        let reach = self.reach(op, range.clone());
        if self.busy[reach.clone()].iter().any(|busy| *busy) {
            return None;
        }
        self.busy[reach].fill(true);
        self.left -= 1;
        let mut data = Vec::new();
        if op.brings_data() {
            data = (0..len / 8)
                .flat_map(|_| rng.next_u64().to_ne_bytes())
                .collect();
        }
        let fua = op == Op::Write && self.disk.is_some() && rng.chance(20);
        let promise = match (&self.disk, op) {
            (Some(disk), Op::Flush) => disk.promise(),
            _ => Promise::new(),
        };
        Some(Sent {
            op,
            offset: range.start * BLOCK,
            len,
            data,
            fua,
            promise,
        })
    }

    /// Checks the answer to a request and the `addr` it came with; returns what is wrong with it.
    pub(crate) fn completed(
        &mut self,
        sent: &Sent,
        result: i32,
        addr: u64,
        buffer: &[u8],
    ) -> Result<(), String> {
        let range = sent.offset..sent.offset + sent.len;
        let blocks = range.start / BLOCK..range.end / BLOCK;
        let reach = self.reach(sent.op, blocks.clone());
        self.busy[reach].fill(false);
        self.completed += 1;
        if matches!(sent.op, Op::ZoneAppend | Op::ZoneReset | Op::ReportZones) {
            self.completed_zoned(sent, result < 0, addr, buffer)?;
        }
        if result < 0 {
            self.failed += 1;
            if matches!(sent.op, Op::Write | Op::Discard | Op::WriteZeroes) {
                self.unknown[blocks].fill(true);
            }
            return Ok(());
        }
        self.check_disk(sent, &range)?;
        let full = if sent.op.has_data() { sent.len } else { 0 };
        if usize::try_from(result) != Ok(full) {
            return Err(format!(
                "L11: {:?} of {full} bytes answered with {result}",
                sent.op
            ));
        }
        let known = !self.unknown[blocks.clone()].iter().any(|unknown| *unknown);
        if matches!(sent.op, Op::Write | Op::Discard | Op::WriteZeroes) {
            self.unknown[blocks].fill(false);
        }
        match sent.op {
            Op::Read if known && buffer != &self.content[range.clone()] => {
                return Err(format!(
                    "wrong data read at {}, {} bytes",
                    sent.offset, sent.len
                ));
            }
            Op::Write => self.content[range].copy_from_slice(&sent.data),
            Op::Discard | Op::WriteZeroes => self.content[range].fill(0),
            _ => {}
        }
        Ok(())
    }

    /// L07: checks that the data of a FLUSH or FUA is durable.
    fn check_disk(&mut self, sent: &Sent, range: &std::ops::Range<usize>) -> Result<(), String> {
        let Some(disk) = &mut self.disk else {
            return Ok(());
        };
        match sent.op {
            Op::Flush => match disk.broken(&sent.promise) {
                Some(block) => Err(format!("L07: a flush did not cover block {block}")),
                None => Ok(()),
            },
            Op::Write if sent.fua && !disk.is_durable(range) => {
                Err(format!("L07: FUA at {} is not durable", sent.offset))
            }
            Op::Read => Ok(()),
            _ => {
                disk.answered(range);
                Ok(())
            }
        }
    }
}
