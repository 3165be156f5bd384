//! Values that only their own crates make: fields and constructors are private.

use std::sync::Arc;
use std::time::Duration;

use ublk_core::{Geometry, OpenDevice};
use ublk_ctrl::ControlThread;
use ublk_queue::port::{Descriptors, Port};
use ublk_queue::task::TagBuf;
use ublk_queue::{Backing, Direct, Handler, LaneContext, MemRef, OwnedRequest, RingId, Worker};
use uring_lite::{Cqe16, Fd, Sqe64};

/// Numbers that would name memory, descriptors, rings or devices.
pub fn values(sqe: &mut Sqe64, context: &mut LaneContext, device: &mut OpenDevice) {
    sqe.0.addr = 0; //~ E0616
    context.depth = 1; //~ E0616
    context.buf_base = 1; //~ E0616
    let _ = &mut device.geometry; //~ E0616
    let _ = RingId(0); //~ E0423
    let _ = Sqe64(Default::default()); //~ E0423
}

/// Tokens of requests and of operations.
pub fn makers<P: Port, D: Descriptors, H: Handler>(worker: &mut Worker<P, D, H>, of: &Cqe16) {
    let _ = worker.handler(0); //~ E0624
    let _ = Backing::<Direct<ublk_backends::Memory>>::new(|_| None); //~ E0624
    let _ = ControlThread::with(|| unimplemented!(), Duration::ZERO); //~ E0624
    let _ = MemRef::EMPTY.extend::<'static>(); //~ E0624
    let _ = of;
}

/// None of these has a public field.
pub fn fields(geometry: Geometry, request: &OwnedRequest, buffer: &TagBuf, fd: Fd) {
    let _ = geometry.depth; //~ E0616
    let _ = Arc::clone(&request.lane); //~ E0616
    let _ = buffer.place; //~ E0616
    let _ = fd.number; //~ E0616
}

fn main() {}
