//! A command as the driver reads it: opcode, header, payload.
#![forbid(unsafe_code)]

use crate::{Buffer, Operation};
use ublk_core::DevId;
use ublk_sys::ublksrv_ctrl_cmd;

/// `queue_id` of a command that is about no queue: ADD_DEV demands it, the others ignore it.
const NO_QUEUE: u16 = u16::MAX;

/// A control command, before it is sent: the generic way that the typed commands take too.
///
/// Only ioctl-encoded opcodes (`UBLK_U_CMD_*`); the legacy numbers are never sent, so no errno is
/// masked by a second try with them (L28).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    operation: Operation,
    cmd_op: u32,
    dev: Option<DevId>,
    data: u64,
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
            payload: Vec::new(),
        }
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

    /// What it is, for errors.
    #[must_use]
    pub const fn operation(&self) -> Operation {
        self.operation
    }

    /// The device it is about.
    #[must_use]
    pub const fn dev(&self) -> Option<DevId> {
        self.dev
    }

    /// The encoded opcode.
    #[must_use]
    pub const fn cmd_op(&self) -> u32 {
        self.cmd_op
    }

    /// The payload in memory for the kernel; `None` where it is too long for the header.
    pub(crate) fn buffer(&self) -> Option<Buffer> {
        Buffer::new(&self.payload)
    }

    /// The header.
    pub(crate) fn header(&self, buffer: &Buffer) -> ublksrv_ctrl_cmd {
        ublksrv_ctrl_cmd {
            // No device named: -1, which asks ADD_DEV for the lowest free number (L32: the other
            // commands then fail with "no such device", none means all).
            dev_id: self.dev.map_or(u32::MAX, DevId::get),
            queue_id: NO_QUEUE,
            len: buffer.len(),
            addr: buffer.addr(),
            data: [self.data],
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
