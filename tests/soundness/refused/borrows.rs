//! Memory that outlives its owner, tokens used twice, bytes accessed while they are lent: refused by the borrow
//! checker.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ublk_backends::Memory;
use ublk_core::{QueueId, Tag};
use ublk_queue::port::{CharDevice, Content, UserCopyPort};
use ublk_queue::task::{Ring as TaskRing, SharedFd, TaskRequest};
use ublk_queue::{KeptRequest, Mapped, Request};
use uring_lite::Ring;

/// A region of memory that has been freed.
pub fn outlives(memory: Memory, device: &CharDevice) {
    let region = memory.region(0, 4096);
    drop(memory); //~ E0505
    let _ = device.pull(QueueId::ZERO, Tag::ZERO, Content::Data, region);
}

/// A region that the driver would use after the answer, lent for a shorter time.
pub fn behind_the_answer(request: Request<'_>, memory: &Memory) {
    request.complete_from(memory.region(0, 4096)); //~ E0521
}

/// A request's bytes, written by a system call while a slice of them exists.
pub fn written_while_borrowed(request: &mut KeptRequest, device: &CharDevice) {
    let data = request.data().expect("a write");
    let buffer = request.buffer().expect("a buffer"); //~ E0499
    let _ = device.pull(QueueId::ZERO, Tag::ZERO, Content::Data, buffer);
    assert_eq!(data[0], 0);
}

/// A request's buffer after its answer.
pub fn after_the_answer(mut request: KeptRequest, device: &CharDevice) {
    let buffer = request.buffer().expect("a buffer");
    request.complete(Ok(())); //~ E0505
    let _ = device.pull(QueueId::ZERO, Tag::ZERO, Content::Data, buffer);
}

/// A client's memory after the answer.
pub fn shared_after_the_answer(mut request: Request<'_>, device: &CharDevice) {
    let place = request.take_shared().expect("a hit");
    request.complete(Ok(())); //~ E0505
    let _ = device.pull(QueueId::ZERO, Tag::ZERO, Content::Data, place);
}

/// An answer given twice.
pub fn answered_twice(request: Request<'_>) {
    request.complete(Ok(()));
    request.complete(Ok(())); //~ E0382
}

/// A request kept for longer than its call.
pub fn kept(request: Request<'_>, place: &mut Option<Request<'static>>) {
    *place = Some(request); //~ no code
}

/// A descriptor closed twice.
pub fn closed_twice(ring: &mut Ring, fd: OwnedFd) {
    let _ = ring.push_close(fd, 0);
    let _ = ring.push_close(fd, 0); //~ E0382
}

/// A buffer that an operation owns.
pub async fn given_away(ring: TaskRing, file: SharedFd, buffer: Vec<u8>) {
    let reading = ring.read(&file, buffer, 0);
    assert_eq!(buffer[0], 0); //~ E0382
    let _ = reading.await;
}

/// A request's buffer lent to two operations.
pub async fn lent_twice(ring: TaskRing, file: SharedFd, mut request: TaskRequest) {
    let buffer = request.take_data().expect("data");
    let one = ring.read(&file, buffer, 0);
    let two = ring.read(&file, buffer, 0); //~ E0382
    let _ = (one.await, two.await);
}

/// A slice of a request while its buffer is taken.
pub fn slice_and_buffer(mut request: TaskRequest) {
    let data = request.data().expect("a write");
    let buffer = request.take_data(); //~ E0499
    assert_eq!(data[0], 0);
    drop(buffer);
}

/// A backend's memory through an `Arc` that is dropped.
pub fn arc(memory: Arc<Memory>, device: &CharDevice) {
    let region = memory.region(0, 4096);
    drop(memory); //~ E0505
    let _ = device.push(QueueId::ZERO, Tag::ZERO, Content::Data, region);
}

fn main() {}
