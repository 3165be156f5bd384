//! Requests, as they go to the server.

use crate::wire::REQUEST_MAGIC;

/// What is asked for (`NBD_CMD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Command {
    /// Bytes of the export.
    Read,
    /// Bytes for it, which follow the header.
    Write,
    /// The end of the connection; has no reply.
    Disconnect,
    /// Everything that was answered is to be durable.
    Flush,
    /// A range whose content is not needed any more.
    Trim,
    /// A range is to be read into the server's cache.
    Cache,
    /// Zeroes for a range.
    WriteZeroes,
    /// What a range is made of, by the meta contexts that were agreed on.
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
    /// `NBD_CMD_FLAG_FUA`: the answer says that it is durable.
    pub const FUA: Self = Self(1 << 0);
    /// `NBD_CMD_FLAG_NO_HOLE`: zeroes keep their storage.
    pub const NO_HOLE: Self = Self(1 << 1);
    /// `NBD_CMD_FLAG_DF`: a READ is answered in one piece.
    pub const DF: Self = Self(1 << 2);
    /// `NBD_CMD_FLAG_REQ_ONE`: one extent is enough.
    pub const REQ_ONE: Self = Self(1 << 3);
    /// `NBD_CMD_FLAG_FAST_ZERO`: fail with ENOTSUP rather than write zeroes one by one.
    pub const FAST_ZERO: Self = Self(1 << 4);
}

impl std::ops::BitOr for CommandFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A request's header; the data of a WRITE follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is asked for.
    pub command: Command,
    /// How.
    pub flags: CommandFlags,
    /// Comes back with the reply; a second request with it is an error of the caller's while the first is under way.
    pub cookie: u64,
    /// First byte of the range; 0 for FLUSH and the disconnect.
    pub offset: u64,
    /// Bytes of the range; 0 for FLUSH and the disconnect.
    pub len: u32,
}

impl Request {
    /// Bytes of a header.
    pub const LEN: usize = 28;

    /// The header as it is sent.
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
