//! Contracts that only `unsafe` can promise: every call is refused.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::time::Duration;

use ublk_core::iod::Io;
use ublk_core::{DevId, Geometry, OpenDevice};
use ublk_ctrl::Control;
use ublk_queue::racy_copy::Copier;
use ublk_queue::port::{RingNeeds, RingPort};
use ublk_queue::{Handler, MemRef, Operation};
use ublk_sim::{Config, Sim};
use uring_lite::op::{self, Fd};
use uring_lite::{BufRing, Ring, Sqe64};

/// Entries that name memory, descriptors, or completions of other rings.
pub fn entries(file: &File, mut sqe: Sqe64, byte: &mut u8) {
    let fd = Fd::registered(0);
    let _ = Fd::raw(file.as_fd()); //~ E0133
    let _ = op::msg_ring(fd, 7, 0); //~ E0133
    let _ = op::close(2); //~ E0133
    let _ = op::read(fd, byte, 1, 0); //~ E0133
    let _ = op::write(fd, byte, 1, 0); //~ E0133
    let _ = op::read_fixed(fd, 0, 0, 1, 0); //~ E0133
    let _ = op::write_fixed(fd, 0, 0, 1, 0); //~ E0133
    let _ = op::recv(fd, byte, 1, 0); //~ E0133
    let _ = op::send(fd, byte, 1, 0); //~ E0133
    let _ = op::send_zc(fd, byte, 1, 0); //~ E0133
    let _ = op::send_zc_fixed(fd, 0, 0, 1, 0); //~ E0133
    let _ = op::accept(fd, std::ptr::null_mut(), std::ptr::null_mut(), 0); //~ E0133
    let _ = op::connect(fd, std::ptr::null(), 0); //~ E0133
    let _ = op::timeout(std::ptr::null(), 0); //~ E0133
    let _ = op::link_timeout(std::ptr::null()); //~ E0133
    let _ = op::uring_cmd(fd, 0, &[0; 16]); //~ E0133
    let _ = op::uring_cmd128(fd, 0, &[0; 80]); //~ E0133
    let _ = sqe.addr(0); //~ E0133
    let _ = sqe.len(1); //~ E0133
    let _ = sqe.buf_index(1); //~ E0133
    let _ = sqe.cmd_flags(1); //~ E0133
    let _ = sqe.with_payload([0; 2]); //~ E0133
    let _ = sqe.set_range(0, 1); //~ E0133
}

/// Memory given to a ring.
pub fn registered(ring: &mut Ring, group: &mut BufRing, byte: &mut u8) {
    let _ = ring.register_buffers(&[(byte, 1)]); //~ E0133
    let _ = group.add(NonNull::from(byte), 1, 0); //~ E0133
}

/// Memory named to the driver, and copied by accesses that race.
pub fn memory(byte: &mut u8, copier: Copier, slice: &mut [u8]) {
    let place = NonNull::from(byte);
    let _ = MemRef::new(place, 1); //~ E0133
    copier.load(place, slice); //~ E0133
    copier.store(slice, place); //~ E0133
    copier.zero(place, 512); //~ E0133
    copier.transfer(place, place, 512); //~ E0133
}

/// The kernel's port, and the calls that only a lane may make to its handler.
pub fn port<H: Handler>(handler: &mut H, operation: Operation, io: &Io, file: &File) {
    let _ = RingPort::new(&RingNeeds::default(), &[file.as_fd()]); //~ E0133
    let _ = Sim::new(Config::new(0)).port(); //~ E0133
    handler.operation_completed(operation, 0, 0); //~ E0133
    let _ = handler.data_address(io); //~ E0133
}

/// A device that differs from its geometry.
pub fn device(file: OwnedFd, geometry: Geometry, control: &mut Control, id: DevId) {
    let _ = OpenDevice::new(file, geometry); //~ E0133
    let place = NonNull::dangling();
    let _ = control.register_memory(id, place, 4096, false, Duration::ZERO); //~ E0133
}

fn main() {}
