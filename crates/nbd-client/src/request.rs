//! Requests as sent to the server.

use crate::framing::Framing;
use crate::wire::{EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC};

/// A command (`NBD_CMD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Command {
    /// Read a range.
    Read,
    /// Write a range; the data follows the header.
    Write,
    /// Close the connection; has no reply.
    Disconnect,
    /// Make all answered writes durable.
    Flush,
    /// Discard a range.
    Trim,
    /// Read a range into the server's cache.
    Cache,
    /// Write zeroes to a range.
    WriteZeroes,
    /// Report a range's state in the negotiated meta contexts.
    BlockStatus,
}

impl Command {
    const fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::Cache => 5,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
        }
    }
}

/// Flags of a command (`NBD_CMD_FLAG_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CommandFlags(pub u16);

impl CommandFlags {
    /// `NBD_CMD_FLAG_FUA`: the data must be durable before the reply.
    pub const FUA: Self = Self(1 << 0);
    /// `NBD_CMD_FLAG_NO_HOLE`: zeroed ranges stay allocated.
    pub const NO_HOLE: Self = Self(1 << 1);
    /// `NBD_CMD_FLAG_DF`: do not fragment the reply to a READ.
    pub const DF: Self = Self(1 << 2);
    /// `NBD_CMD_FLAG_REQ_ONE`: report one extent only.
    pub const REQ_ONE: Self = Self(1 << 3);
    /// `NBD_CMD_FLAG_FAST_ZERO`: fail with ENOTSUP rather than write zeroes slowly.
    pub const FAST_ZERO: Self = Self(1 << 4);
    /// `NBD_CMD_FLAG_PAYLOAD_LEN`: the length is that of the data behind an extended header. Set where it belongs.
    const PAYLOAD_LEN: Self = Self(1 << 5);
}

impl std::ops::BitOr for CommandFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A request header; a WRITE's data follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The command.
    pub command: Command,
    /// Its flags.
    pub flags: CommandFlags,
    /// Returned in the reply; must be unique among the requests in flight.
    pub cookie: u64,
    /// First byte of the range; 0 for FLUSH and Disconnect.
    pub offset: u64,
    /// Length of the range in bytes; 0 for FLUSH and Disconnect. More than 32 bits have room only in extended headers,
    /// and never for data.
    pub len: u64,
}

impl Request {
    /// Length of the longest header in bytes.
    pub const LONGEST: usize = 32;

    /// Encodes the header and returns its length. The length of a range that has no room in the header is that of the
    /// longest that has: [`Replies::expect`](crate::Replies::expect) refuses such a request.
    pub fn encode(&self, framing: Framing, header: &mut [u8; Self::LONGEST]) -> usize {
        let extended = framing == Framing::Extended;
        let (magic, flags) = match (extended, self.command) {
            (false, _) => (REQUEST_MAGIC, self.flags),
            (true, Command::Write) => (
                EXTENDED_REQUEST_MAGIC,
                self.flags | CommandFlags::PAYLOAD_LEN,
            ),
            (true, _) => (EXTENDED_REQUEST_MAGIC, self.flags),
        };
        let (to, rest) = header.split_at_mut(4);
        to.copy_from_slice(&magic.to_be_bytes());
        let (to, rest) = rest.split_at_mut(2);
        to.copy_from_slice(&flags.0.to_be_bytes());
        let (to, rest) = rest.split_at_mut(2);
        to.copy_from_slice(&self.command.number().to_be_bytes());
        let (to, rest) = rest.split_at_mut(8);
        to.copy_from_slice(&self.cookie.to_be_bytes());
        let (to, rest) = rest.split_at_mut(8);
        to.copy_from_slice(&self.offset.to_be_bytes());
        if extended {
            rest.copy_from_slice(&self.len.to_be_bytes());
            return Self::LONGEST;
        }
        let (to, _) = rest.split_at_mut(4);
        let len = u32::try_from(self.len).unwrap_or(u32::MAX);
        to.copy_from_slice(&len.to_be_bytes());
        Self::LONGEST - 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(request: Request, framing: Framing) -> Vec<u8> {
        let mut header = [0xee; Request::LONGEST];
        let len = request.encode(framing, &mut header);
        header[..len].to_vec()
    }

    #[test]
    fn a_header_is_as_the_protocol_has_it() {
        let request = Request {
            command: Command::WriteZeroes,
            flags: CommandFlags::FUA | CommandFlags::NO_HOLE,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1000,
            len: 512,
        };
        let compact = [
            0x25, 0x60, 0x95, 0x13, 0, 3, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0,
            0, 0, 2, 0,
        ];
        assert_eq!(encoded(request, Framing::Simple), compact);
        assert_eq!(encoded(request, Framing::Structured), compact);
        let long = Request {
            len: 0x0506_0000_0200,
            ..request
        };
        let extended = [
            0x21, 0xe4, 0x1c, 0x71, 0, 3, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0,
            0, 0, 5, 6, 0, 0, 2, 0,
        ];
        assert_eq!(encoded(long, Framing::Extended), extended);
        // Only a WRITE has data behind it, and says so.
        let write = Request {
            command: Command::Write,
            ..request
        };
        assert_eq!(encoded(write, Framing::Extended)[4..8], [0, 0x23, 0, 1]);
        assert_eq!(encoded(write, Framing::Structured)[4..8], [0, 3, 0, 1]);
    }
}
