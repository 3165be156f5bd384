//! How requests and replies are framed.

/// What the headers of a connection look like, by negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Framing {
    /// Requests of 28 bytes; every reply is simple: 16 bytes, and the data of a READ.
    #[default]
    Simple,
    /// Requests of 28 bytes; READ and BLOCK_STATUS are answered in chunks, each with a header of 20 bytes; other
    /// replies may be simple.
    Structured,
    /// Requests of 32 bytes with lengths of 64 bits; every reply comes in chunks, each with a header of 32 bytes.
    Extended,
}

impl Framing {
    /// Whether a READ is answered in chunks.
    #[must_use]
    pub const fn has_chunks(self) -> bool {
        !matches!(self, Self::Simple)
    }

    /// The longest range of a request without data, in bytes.
    #[must_use]
    pub const fn longest(self) -> u64 {
        match self {
            Self::Simple | Self::Structured => u32::MAX as u64,
            Self::Extended => i64::MAX as u64,
        }
    }
}
