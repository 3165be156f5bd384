//! Writes a trace as a stream.

use super::{HEADER, Header, MAGIC, VERSION, block};
use crate::error::Error;
use crate::record::Record;
use std::io::{self, Write};

/// Writes a trace, a block at a time. What was not [finished](Writer::finish) reads as cut off.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    pending: Vec<Record>,
    lost: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a trace: writes its header.
    ///
    /// # Errors
    /// Those of the output.
    pub fn new(mut out: W, header: &Header) -> io::Result<Self> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(u16::try_from(HEADER).unwrap_or(u16::MAX).to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(header.began.to_le_bytes());
        bytes.extend(header.size.to_le_bytes());
        bytes.extend(header.block_size.to_le_bytes());
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        out.write_all(&bytes)?;
        Ok(Self {
            out,
            pending: Vec::with_capacity(block::MAX_RECORDS),
            lost: 0,
        })
    }

    /// Adds a request; every 1024th writes a block.
    ///
    /// # Errors
    /// [`Error::Limits`] for a record that is not [sound](Record::is_sound); those of the output.
    pub fn push(&mut self, record: &Record) -> Result<(), Error> {
        if !record.is_sound() {
            return Err(Error::Limits(format!("{record:?}")));
        }
        self.pending.push(*record);
        if self.pending.len() == block::MAX_RECORDS {
            self.flush()?;
        }
        Ok(())
    }

    /// Notes requests that were not recorded; the next block tells of them.
    pub const fn lost(&mut self, requests: u64) {
        self.lost = self.lost.saturating_add(requests);
    }

    /// The output.
    pub const fn get_ref(&self) -> &W {
        &self.out
    }

    /// Number of records that are not written yet.
    #[must_use]
    pub fn pending(&self) -> u64 {
        u64::try_from(self.pending.len()).unwrap_or(u64::MAX)
    }

    /// Writes what is pending as a block, and flushes the output: readers find it from now on.
    ///
    /// # Errors
    /// Those of the output. The records of the block are dropped.
    pub fn flush(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            let bytes = block::encode(&self.pending, self.lost);
            self.pending.clear();
            self.out.write_all(&bytes)?;
            self.lost = 0;
        }
        self.out.flush()
    }

    /// Writes what is pending and the end of the trace.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush()?;
        self.out.write_all(&block::encode(&[], self.lost))?;
        self.out.flush()?;
        Ok(self.out)
    }
}
