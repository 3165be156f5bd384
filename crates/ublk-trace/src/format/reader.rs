//! Reads a trace as a stream.

use super::{HEADER, Header, MAGIC, MAX_HEADER, VERSION, block};
use crate::error::Error;
use crate::record::Record;
use std::fmt;
use std::io::{self, Read};

/// Why a trace was not read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The file just ends, as one whose recorder was killed; else it is not what was written.
    pub is_cut: bool,
    /// Where the block begins that could not be read, in bytes.
    pub at: u64,
    /// What is wrong with it.
    pub what: &'static str,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.is_cut {
            "ends early"
        } else {
            "is damaged"
        };
        write!(f, "the trace {how} at byte {}: {}", self.at, self.what)
    }
}

/// Reads a trace block by block: at most 64 KiB and 1024 records of it are in memory.
#[derive(Debug)]
pub struct Reader<R: Read> {
    input: R,
    header: Header,
    at: u64,
    /// The records of the current block, the next one last.
    records: Vec<Record>,
    lost: u64,
    ended: bool,
    damage: Option<Damage>,
}

impl<R: Read> Reader<R> {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// [`Error::UnknownFormat`] for anything but a trace, [`Error::Version`] for one of a later version,
    /// [`Error::Header`] if it is damaged; those of the input.
    pub fn new(mut input: R) -> Result<Self, Error> {
        let mut bytes = vec![0; HEADER];
        let got = fill(&mut input, &mut bytes)?;
        if !bytes.starts_with(&MAGIC) {
            return Err(Error::UnknownFormat);
        }
        if got < HEADER {
            return Err(Error::Header("it is cut off"));
        }
        let version = u16::from_le_bytes(array(&bytes, 8));
        if version != VERSION {
            return Err(Error::Version {
                format: "ublk trace",
                version: version.into(),
                supported: "1",
            });
        }
        let len = usize::from(u16::from_le_bytes(array(&bytes, 10)));
        if !(HEADER..=MAX_HEADER).contains(&len) {
            return Err(Error::Header("its length is impossible"));
        }
        bytes.resize(len, 0);
        let rest = bytes.get_mut(HEADER..).unwrap_or_default();
        if fill(&mut input, rest)? < rest.len() {
            return Err(Error::Header("it is cut off"));
        }
        let (body, crc) = bytes.split_at(len - 4);
        if crc32fast::hash(body) != u32::from_le_bytes(array(crc, 0)) {
            return Err(Error::Header("its checksum is wrong"));
        }
        let header = Header {
            began: u64::from_le_bytes(array(&bytes, 16)),
            size: u64::from_le_bytes(array(&bytes, 24)),
            block_size: u32::from_le_bytes(array(&bytes, 32)),
        };
        Ok(Self {
            input,
            header,
            at: u64::try_from(len).unwrap_or(0),
            records: Vec::new(),
            lost: 0,
            ended: false,
            damage: None,
        })
    }

    /// What the trace tells of its device.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// Number of requests that were not recorded, as far as the trace has been read.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// After the last record: why there are no more, unless the trace is whole.
    #[must_use]
    pub const fn damage(&self) -> Option<&Damage> {
        self.damage.as_ref()
    }

    /// The next request; `None` at the end of the trace, or where it is damaged.
    ///
    /// # Errors
    /// Those of the input.
    pub fn next_record(&mut self) -> io::Result<Option<Record>> {
        while self.records.is_empty() && !self.ended {
            if let Err((what, is_cut)) = self.next_block()? {
                let at = self.at;
                self.damage = Some(Damage { is_cut, at, what });
                self.ended = true;
                self.records.clear();
            }
        }
        Ok(self.records.pop())
    }

    /// Reads a block, or says what is wrong with it, and whether the file just ends.
    fn next_block(&mut self) -> io::Result<Result<(), (&'static str, bool)>> {
        let mut header = [0; block::HEADER];
        let got = fill(&mut self.input, &mut header)?;
        if got < header.len() {
            let what = match got {
                0 => "there is no end mark; what precedes is whole",
                _ => "a block is cut off",
            };
            return Ok(Err((what, true)));
        }
        let head = match block::Head::parse(&header) {
            Ok(head) => head,
            Err(what) => return Ok(Err((what, false))),
        };
        let mut payload = vec![0; head.payload];
        if fill(&mut self.input, &mut payload)? < payload.len() {
            return Ok(Err(("a block is cut off", true)));
        }
        if !head.is_whole(&header, &payload) {
            return Ok(Err(("the checksum of a block is wrong", false)));
        }
        if let Err(what) = head.decode(&payload, &mut self.records) {
            return Ok(Err((what, false)));
        }
        self.records.reverse();
        self.lost = self.lost.saturating_add(head.lost);
        self.ended = head.end;
        let len = u64::try_from(header.len() + payload.len()).unwrap_or(0);
        self.at = self.at.saturating_add(len);
        if self.ended && fill(&mut self.input, &mut [0])? > 0 {
            let what = "other data follows its end mark";
            self.damage = Some(Damage {
                is_cut: false,
                at: self.at,
                what,
            });
        }
        Ok(Ok(()))
    }
}

/// Reads until the buffer is full or the input ends; the number of bytes.
pub(crate) fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut at = 0;
    while let Some(rest) = buffer.get_mut(at..).filter(|rest| !rest.is_empty()) {
        match input.read(rest) {
            Ok(0) => break,
            Ok(n) => at += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(at)
}

/// `N` bytes at a place; zeroes where they are not there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let found = bytes.get(at..at + N).and_then(|b| b.try_into().ok());
    found.unwrap_or([0; N])
}
