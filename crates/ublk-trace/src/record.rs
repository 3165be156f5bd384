//! One request of a trace.

use std::num::NonZeroU16;

/// The largest time and latency in nanoseconds: 146 years, so that a sum of the two cannot overflow.
pub const MAX_TIME: u64 = u64::MAX >> 2;

/// The largest end of a request in bytes: that of the largest device.
pub const MAX_END: u64 = u64::MAX >> 1;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Op {
    /// Reads data.
    Read = 0,
    /// Writes data.
    Write = 1,
    /// Makes completed writes durable.
    Flush = 2,
    /// Deallocates storage.
    Discard = 3,
    /// Makes a range read as zeroes.
    WriteZeroes = 4,
    /// Writes data at a zone's write pointer.
    ZoneAppend = 5,
    /// Opens, closes, finishes or resets a zone, or reports zones.
    Zone = 6,
    /// Anything else.
    Other = 7,
}

impl Op {
    /// Every kind, in the order of the numbers.
    pub const ALL: [Self; 8] = [
        Self::Read,
        Self::Write,
        Self::Flush,
        Self::Discard,
        Self::WriteZeroes,
        Self::ZoneAppend,
        Self::Zone,
        Self::Other,
    ];

    /// The kind of a number in a trace.
    pub(crate) fn of_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// The place in [`Op::ALL`].
    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// The name, as `--json` shows it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
            Self::ZoneAppend => "zone-append",
            Self::Zone => "zone",
            Self::Other => "other",
        }
    }

    /// Whether data moves: reads, writes and zone appends.
    #[must_use]
    pub const fn moves_data(self) -> bool {
        matches!(self, Self::Read | Self::Write | Self::ZoneAppend)
    }
}

/// One request: when it began, what it was, how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// When the request was submitted: nanoseconds since the trace began, at most [`MAX_TIME`].
    pub time: u64,
    /// What it does.
    pub op: Op,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is, in bytes. `offset + len` is at most [`MAX_END`].
    pub len: u64,
    /// The hardware queue or CPU it came by; 0 where the source does not tell.
    pub queue: u16,
    /// Nanoseconds from submission to completion, at most [`MAX_TIME`]; `None` where the source does not tell.
    pub latency: Option<u64>,
    /// The errno it failed with.
    pub error: Option<NonZeroU16>,
}

impl Record {
    /// The first byte behind the request.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// When the request was completed, in nanoseconds since the trace began; its begin where that is not known.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.time.saturating_add(self.latency.unwrap_or(0))
    }

    /// Whether every number is inside its limit.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.time <= MAX_TIME
            && self.latency.is_none_or(|latency| latency <= MAX_TIME)
            && self
                .offset
                .checked_add(self.len)
                .is_some_and(|end| end <= MAX_END)
    }
}
