//! A command in the driver's format: opcode, header, payload.
#![forbid(unsafe_code)]

use crate::{Buffer, Operation};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use ublk_core::DevId;
use ublk_sys::ublksrv_ctrl_cmd;

/// `queue_id` of a command without a queue: required by ADD_DEV, ignored by the others.
const NO_QUEUE: u16 = u16::MAX;

/// A control command before it is sent; the typed methods build these too.
///
/// Opcodes are always ioctl-encoded (`UBLK_U_CMD_*`). The legacy numbers are never sent, so no errno is masked by a
/// retry with them (L28).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    operation: Operation,
    cmd_op: u32,
    dev: Option<DevId>,
    data: u64,
    /// Path of the character device with its NUL; empty if not sent.
    path: Vec<u8>,
    payload: Vec<u8>,
}

impl Request {
    /// A command without payload.
    #[must_use]
    pub const fn new(operation: Operation, cmd_op: u32, dev: Option<DevId>) -> Self {
        Self {
            operation,
            cmd_op,
            dev,
            data: 0,
            path: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// A command from the table, without payload. Operations that are not commands have opcode 0, which the driver
    /// refuses.
    pub(crate) const fn of(operation: Operation, dev: Option<DevId>) -> Self {
        let cmd_op = match operation.cmd_op() {
            Some(cmd_op) => cmd_op,
            None => 0,
        };
        Self::new(operation, cmd_op, dev)
    }

    /// Sets `data[0]` of the header.
    #[must_use]
    pub const fn data(mut self, data: u64) -> Self {
        self.data = data;
        self
    }

    /// Sets the payload, which the kernel reads or overwrites: at most 65535 bytes.
    #[must_use]
    pub fn payload(mut self, payload: Vec<u8>) -> Self {
        self.payload = payload;
        self
    }

    /// Adds the path of the device's character node, whose permissions then decide whether the kernel accepts the
    /// command. Required for unprivileged devices and GET_DEV_INFO2, forbidden otherwise. Linux 6.3.
    #[must_use]
    pub fn path(mut self, node: &Path) -> Self {
        self.path = node.as_os_str().as_bytes().to_vec();
        self.path.push(0);
        self
    }

    /// Whether the command carries the path of the character node.
    #[must_use]
    pub const fn has_path(&self) -> bool {
        !self.path.is_empty()
    }

    /// The operation, for errors.
    #[must_use]
    pub const fn operation(&self) -> Operation {
        self.operation
    }

    /// The device, if any.
    #[must_use]
    pub const fn dev(&self) -> Option<DevId> {
        self.dev
    }

    /// The encoded opcode.
    #[must_use]
    pub const fn cmd_op(&self) -> u32 {
        self.cmd_op
    }

    /// The payload in memory for the kernel; `None` if it is too long for the header.
    pub(crate) fn buffer(&self) -> Option<Buffer> {
        if self.path.is_empty() {
            return Buffer::new(&self.payload);
        }
        Buffer::new(&[&self.path[..], &self.payload].concat())
    }

    /// The payload as the kernel left it.
    pub(crate) fn answer(&self, buffer: &Buffer) -> Vec<u8> {
        buffer.read().split_off(self.path.len())
    }

    /// The header.
    pub(crate) fn header(&self, buffer: &Buffer) -> ublksrv_ctrl_cmd {
        ublksrv_ctrl_cmd {
            // -1 without a device, by which ADD_DEV chooses the lowest free number. The other commands then fail with
            // "no such device"; none means all devices (L32).
            dev_id: self.dev.map_or(u32::MAX, DevId::get),
            queue_id: NO_QUEUE,
            len: buffer.len(),
            addr: buffer.addr(),
            data: [self.data],
            // A path that does not fit would not fit the buffer either.
            dev_path_len: u16::try_from(self.path.len()).unwrap_or(0),
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_precedes_the_payload() {
        let request = Request::new(Operation::Info, 7, DevId::new(5).ok());
        let request = request.payload(vec![9; 8]).path(Path::new("/dev/ublkc5"));
        let buffer = request.buffer().unwrap();
        let header = request.header(&buffer);
        assert_eq!((header.dev_path_len, header.len), (12, 20));
        assert_eq!(
            buffer.read(),
            b"/dev/ublkc5\0\x09\x09\x09\x09\x09\x09\x09\x09"
        );
        assert_eq!(request.answer(&buffer), [9; 8]);
    }

    #[test]
    fn header_says_what_was_asked() {
        let id = DevId::new(5).ok();
        let request = Request::new(Operation::Start, 7, id)
            .data(99)
            .payload(vec![1; 64]);
        let buffer = request.buffer().unwrap();
        let header = request.header(&buffer);
        assert_eq!((header.dev_id, header.queue_id), (5, 0xffff));
        assert_eq!((header.len, header.data), (64, [99]));
        assert_eq!(header.addr, buffer.addr());
        let none = Request::new(Operation::Stop, 7, None);
        let header = none.header(&none.buffer().unwrap());
        assert_eq!((header.dev_id, header.addr, header.len), (u32::MAX, 0, 0));
    }
}
