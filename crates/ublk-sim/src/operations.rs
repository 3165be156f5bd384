//! Simulates io_uring's operations on the file.

use std::ops::Range;

use ublk_core::{Errno, Tag};
use ublk_queue::port::Completion;
use uring_lite::Sqe64;

use crate::driver::Memory;
use crate::memory::ServerMemory;
use crate::model::{Lent, Model};

/// `IORING_OP_*` (linux/io_uring.h).
const FSYNC: u8 = 3;
const READ_FIXED: u8 = 4;
const WRITE_FIXED: u8 = 5;
const FALLOCATE: u8 = 17;
const READ: u8 = 22;
const WRITE: u8 = 23;
const URING_CMD: u8 = 46;
/// `IOSQE_*`.
const LINK: u8 = 1 << 2;
const HARDLINK: u8 = 1 << 3;
const CQE_SKIP_SUCCESS: u8 = 1 << 6;

impl Model {
    /// Carries out an operation; its completion becomes visible at some later time.
    pub(crate) fn operation(&mut self, sqe: &Sqe64) {
        let raw = sqe.as_raw();
        let linked = raw.flags & (LINK | HARDLINK) != 0;
        if std::mem::take(&mut self.chain_failed) {
            // Cancelled silently, since the failed entry had CQE_SKIP_SUCCESS.
            self.chain_failed = linked;
            return;
        }
        let result = self.carry_out(sqe);
        let wanted = usize::try_from(raw.len).unwrap_or(0);
        let res = match result {
            Ok(bytes) => i32::try_from(bytes).unwrap_or(i32::MAX),
            Err(errno) => errno.to_result(),
        };
        let skip = raw.flags & CQE_SKIP_SUCCESS != 0;
        self.chain_failed = result.is_err() && raw.flags & LINK != 0 && skip;
        if !(skip && result.is_ok()) {
            if raw.opcode == READ {
                let lent = Lent {
                    addr: raw.addr,
                    len: wanted,
                    elements: None,
                };
                self.ring().lent.insert(raw.user_data, lent);
            }
            self.complete(Completion {
                user_data: raw.user_data,
                res,
                flags: 0,
            });
        }
    }

    fn carry_out(&mut self, sqe: &Sqe64) -> Result<usize, Errno> {
        let raw = sqe.as_raw();
        if raw.opcode == URING_CMD {
            return self.registration(sqe);
        }
        let faults = self.config.faults;
        if self.rng.chance(faults.interrupted_io) {
            let errnos = [Errno::EINTR, Errno::EAGAIN];
            return Err(errnos[self.rng.below(2)]);
        }
        if self.rng.chance(faults.failed_io) {
            return Err(Errno::EIO);
        }
        let short = self.rng.chance(faults.short_io);
        let part = self.rng.below(8);
        let Some(disk) = &mut self.client.disk else {
            self.report
                .violations
                .push("an operation without a file".to_owned());
            return Err(Errno::EBADF);
        };
        disk.operations += 1;
        if raw.opcode == FSYNC {
            disk.sync();
            return Ok(0);
        }
        let start = usize::try_from(raw.off).map_err(|_| Errno::EINVAL)?;
        if raw.opcode == FALLOCATE {
            let len = usize::try_from(raw.addr).map_err(|_| Errno::EINVAL)?;
            let range = bounded(start, len, disk.bytes.len())?;
            disk.bytes[range.clone()].fill(0);
            disk.changed(raw.user_data, range);
            return Ok(0);
        }
        let mut len = usize::try_from(raw.len).map_err(|_| Errno::EINVAL)?;
        if short && len > 8 {
            len = len * (part + 1) / 9;
        }
        let range = bounded(start, len, disk.bytes.len())?;
        match raw.opcode {
            READ => ServerMemory.write(raw.addr, &disk.bytes[range]),
            WRITE => {
                let data = ServerMemory.read(raw.addr, len);
                disk.bytes[range.clone()].copy_from_slice(&data);
                disk.changed(raw.user_data, range);
            }
            READ_FIXED | WRITE_FIXED => return self.fixed(sqe, range),
            _ => return Err(Errno::EINVAL),
        }
        Ok(len)
    }

    /// An operation on a registered buffer: the pages of a request that the server has.
    fn fixed(&mut self, sqe: &Sqe64, range: Range<usize>) -> Result<usize, Errno> {
        let raw = sqe.as_raw();
        let (lane, tag) = self.slot(raw.buf_index)?;
        if self.queues[lane].is_unregistered(tag) && !self.registered.contains(&raw.buf_index) {
            return Err(Errno::EFAULT);
        }
        let from = usize::try_from(raw.addr).map_err(|_| Errno::EFAULT)?;
        let buffer = from..from + range.len();
        let disk = self.client.disk.as_mut().ok_or(Errno::EBADF)?;
        let queue = &mut self.queues[lane];
        if raw.opcode == READ_FIXED {
            let pages = queue.push(tag, buffer).map_err(|_| Errno::EFAULT)?;
            pages.copy_from_slice(&disk.bytes[range.clone()]);
        } else {
            let pages = queue.pull(tag, buffer).map_err(|_| Errno::EFAULT)?;
            disk.bytes[range.clone()].copy_from_slice(pages);
            disk.changed(raw.user_data, range.clone());
        }
        Ok(range.len())
    }

    /// REGISTER_IO_BUF and UNREGISTER_IO_BUF.
    fn registration(&mut self, sqe: &Sqe64) -> Result<usize, Errno> {
        let (raw, cmd_op) = (sqe.as_raw(), u32::try_from(sqe.as_raw().off));
        let index = raw
            .cmd
            .last_chunk::<8>()
            .map_or(0, |word| u64::from_ne_bytes(*word));
        let index = u16::try_from(index).map_err(|_| Errno::EINVAL)?;
        let (lane, tag) = self.slot(index)?;
        if !self.queues[lane].is_unregistered(tag) {
            let text = format!("slot {index} is the driver's own");
            self.report.violations.push(text);
        }
        let failed = self.rng.chance(self.config.faults.failed_io);
        if cmd_op == Ok(ublk_sys::UBLK_U_IO_UNREGISTER_IO_BUF) {
            if !self.registered.remove(&index) {
                self.report
                    .violations
                    .push(format!("slot {index} is not registered"));
            }
        } else if failed {
            return Err(Errno::ENOMEM);
        } else if !self.registered.insert(index) {
            self.report
                .violations
                .push(format!("slot {index} is registered twice"));
        }
        Ok(0)
    }

    /// The request of a slot: the slots of lane `n` start at `n` times the depth.
    fn slot(&self, index: u16) -> Result<(usize, Tag), Errno> {
        let lane = usize::from(index / self.config.depth);
        let tag = Tag::new(index % self.config.depth).map_err(|_| Errno::EINVAL)?;
        if lane < self.queues.len() {
            Ok((lane, tag))
        } else {
            Err(Errno::EINVAL)
        }
    }
}

fn bounded(start: usize, len: usize, size: usize) -> Result<Range<usize>, Errno> {
    let end = start.checked_add(len).filter(|end| *end <= size);
    end.map(|end| start..end).ok_or(Errno::EINVAL)
}
