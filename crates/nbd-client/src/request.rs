//! Requests as sent to the server.

use crate::wire::REQUEST_MAGIC;

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
    /// Length of the range in bytes; 0 for FLUSH and Disconnect.
    pub len: u32,
}

impl Request {
    /// Length of a header in bytes.
    pub const LEN: usize = 28;

    /// The encoded header.
    #[must_use]
    pub fn header(&self) -> [u8; Self::LEN] {
        let mut header = [0; Self::LEN];
        let (magic, rest) = header.split_at_mut(4);
        magic.copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        let (flags, rest) = rest.split_at_mut(2);
        flags.copy_from_slice(&self.flags.0.to_be_bytes());
        let (command, rest) = rest.split_at_mut(2);
        command.copy_from_slice(&self.command.number().to_be_bytes());
        let (cookie, rest) = rest.split_at_mut(8);
        cookie.copy_from_slice(&self.cookie.to_be_bytes());
        let (offset, len) = rest.split_at_mut(8);
        offset.copy_from_slice(&self.offset.to_be_bytes());
        len.copy_from_slice(&self.len.to_be_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_as_the_protocol_has_it() {
        let request = Request {
            command: Command::WriteZeroes,
            flags: CommandFlags::FUA | CommandFlags::NO_HOLE,
            cookie: 0x0102_0304_0506_0708,
            offset: 0x1000,
            len: 512,
        };
        assert_eq!(
            request.header(),
            [
                0x25, 0x60, 0x95, 0x13, 0, 3, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10,
                0, 0, 0, 2, 0
            ]
        );
    }
}
