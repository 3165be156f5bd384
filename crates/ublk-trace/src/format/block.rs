//! A block: its header, its checksum, and its records in bytes.

use super::varint;
use crate::record::{Op, Record};
use std::num::NonZeroU16;

/// The first bytes of a block.
pub(super) const MAGIC: [u8; 4] = *b"UTBK";

/// The length of a block's header.
pub(super) const HEADER: usize = 36;

/// The most records of a block.
pub(super) const MAX_RECORDS: usize = 1024;

/// The longest payload. The longest record has a byte, four numbers of ten bytes and two of three.
pub(super) const MAX_PAYLOAD: usize = 65_536;

const _: () = assert!(MAX_RECORDS * (1 + 4 * varint::MAX + 2 * 3) <= MAX_PAYLOAD);

const SECTORS: u32 = 1;
const END: u32 = 2;

const FAILED: u8 = 1 << 3;
const SAME_QUEUE: u8 = 1 << 4;
const ADJACENT: u8 = 1 << 5;
const SAME_LEN: u8 = 1 << 6;
const NO_LATENCY: u8 = 1 << 7;

/// The header of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub payload: usize,
    pub records: usize,
    sectors: bool,
    pub end: bool,
    time: u64,
    pub lost: u64,
    crc: u32,
}

impl Head {
    /// Reads a header and checks all numbers but the checksum, which covers the payload, too.
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, &'static str> {
        let (magic, rest) = bytes.split_at(4);
        if magic != MAGIC {
            return Err("no block begins here");
        }
        let u32_at = |at: usize| rest.get(at..at + 4).and_then(|b| b.try_into().ok());
        let u32_at = |at| u32::from_le_bytes(u32_at(at).unwrap_or_default());
        let u64_at = |at| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let flags = u32_at(8);
        let small = |value: u32, most: usize| usize::try_from(value).ok().filter(|v| *v <= most);
        let head = Self {
            payload: small(u32_at(0), MAX_PAYLOAD).ok_or("a block is too long")?,
            records: small(u32_at(4), MAX_RECORDS).ok_or("a block has too many records")?,
            sectors: flags & SECTORS != 0,
            end: flags & END != 0,
            time: u64_at(12),
            lost: u64_at(20),
            crc: u32_at(28),
        };
        if flags & !(SECTORS | END) != 0 {
            return Err("a block has flags of a later version");
        }
        if head.end && (head.records != 0 || head.payload != 0) {
            return Err("the end has records");
        }
        Ok(head)
    }

    /// Whether the checksum of a header and its payload is right.
    pub fn is_whole(&self, header: &[u8; HEADER], payload: &[u8]) -> bool {
        self.crc == checksum(header.get(..HEADER - 4).unwrap_or_default(), payload)
    }

    /// Appends the records of a payload to `records`.
    pub fn decode(
        &self,
        mut payload: &[u8],
        records: &mut Vec<Record>,
    ) -> Result<(), &'static str> {
        let mut previous = Previous::at(self.time);
        for _ in 0..self.records {
            let record = previous
                .decode(&mut payload, self.shift())
                .filter(Record::is_sound)
                .ok_or("a record makes no sense")?;
            records.push(record);
        }
        if payload.is_empty() {
            Ok(())
        } else {
            Err("bytes are left behind the last record")
        }
    }

    const fn shift(&self) -> u32 {
        if self.sectors { 9 } else { 0 }
    }
}

/// A whole block of records, at most [`MAX_RECORDS`]; without any, the end of the trace.
pub(super) fn encode(records: &[Record], lost: u64) -> Vec<u8> {
    let aligned = |r: &Record| (r.offset | r.len).is_multiple_of(512);
    let sectors = records.iter().all(aligned);
    let shift = if sectors { 9 } else { 0 };
    let time = records.first().map_or(0, |r| r.time);
    let mut payload = Vec::with_capacity(records.len() * 12);
    let mut previous = Previous::at(time);
    for record in records {
        previous.encode(record, shift, &mut payload);
    }
    let flags = u32::from(sectors) * SECTORS + u32::from(records.is_empty()) * END;
    let mut block = MAGIC.to_vec();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    block.extend(count(payload.len()));
    block.extend(count(records.len()));
    block.extend(flags.to_le_bytes());
    block.extend(time.to_le_bytes());
    block.extend(lost.to_le_bytes());
    block.extend(checksum(&block, &payload).to_le_bytes());
    block.append(&mut payload);
    block
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(header);
    crc.update(payload);
    crc.finalize()
}

/// What the next record is relative to; offset and length in the block's unit.
struct Previous {
    time: u64,
    queue: u16,
    end: u64,
    len: u64,
}

impl Previous {
    const fn at(time: u64) -> Self {
        Self {
            time,
            queue: 0,
            end: 0,
            len: 0,
        }
    }

    fn encode(&mut self, record: &Record, shift: u32, out: &mut Vec<u8>) {
        let (offset, len) = (record.offset >> shift, record.len >> shift);
        let flag = |flag, set| if set { flag } else { 0 };
        out.push(
            record.op as u8
                | flag(FAILED, record.error.is_some())
                | flag(SAME_QUEUE, record.queue == self.queue)
                | flag(ADJACENT, offset == self.end)
                | flag(SAME_LEN, len == self.len)
                | flag(NO_LATENCY, record.latency.is_none()),
        );
        varint::put_signed(out, record.time.wrapping_sub(self.time));
        if record.queue != self.queue {
            varint::put(out, record.queue.into());
        }
        if offset != self.end {
            varint::put_signed(out, offset.wrapping_sub(self.end));
        }
        if len != self.len {
            varint::put(out, len);
        }
        if let Some(latency) = record.latency {
            varint::put(out, latency);
        }
        if let Some(error) = record.error {
            varint::put(out, error.get().into());
        }
        *self = Self {
            time: record.time,
            queue: record.queue,
            end: offset.wrapping_add(len),
            len,
        };
    }

    fn decode(&mut self, bytes: &mut &[u8], shift: u32) -> Option<Record> {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let has = |flag| byte & flag != 0;
        let time = self.time.wrapping_add(varint::take_signed(bytes)?);
        let queue = if has(SAME_QUEUE) {
            self.queue
        } else {
            u16::try_from(varint::take(bytes)?).ok()?
        };
        let offset = if has(ADJACENT) {
            self.end
        } else {
            self.end.wrapping_add(varint::take_signed(bytes)?)
        };
        let len = if has(SAME_LEN) {
            self.len
        } else {
            varint::take(bytes)?
        };
        let latency = if has(NO_LATENCY) {
            None
        } else {
            Some(varint::take(bytes)?)
        };
        let error = if has(FAILED) {
            Some(NonZeroU16::new(u16::try_from(varint::take(bytes)?).ok()?)?)
        } else {
            None
        };
        *self = Self {
            time,
            queue,
            end: offset.wrapping_add(len),
            len,
        };
        Some(Record {
            time,
            op: Op::of_number(byte & 7)?,
            offset: offset.checked_mul(1 << shift)?,
            len: len.checked_mul(1 << shift)?,
            queue,
            latency,
            error,
        })
    }
}
