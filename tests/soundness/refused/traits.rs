//! Traits that the engine trusts are unsafe to implement, and types stay on their threads.

use std::future::Ready;
use std::time::Duration;

use ublk_core::Errno;
use ublk_ctrl::{Buffer, Command, Controller, Error, Reply};
use ublk_ctrl::port::{self, CtrlPort};
use ublk_queue::port::{Completion, Full, IoCommand, Port, Wake};
use ublk_queue::handler::{Closed, Handler};
use ublk_queue::task::{Async, IoBuf, IoBufMut, BufferLocation, TagBuf, TaskRequest};
use ublk_queue::worker::Share;
use ublk_queue::{KeptRequest, MemRef, RawQueue, Request};
use uring_lite::Ring;

struct Forger;

#[derive(Clone)]
struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

impl Port for Forger { //~ E0200
    type Wake = NoWake;
    type Command = ();
    fn prepare(&self, _: u16, _: &IoCommand, _: u64) {}
    fn push(&mut self, _: &(), _: i32, _: u64) -> Result<(), Full> {
        Ok(())
    }
    fn space(&mut self) -> u32 {
        1
    }
    fn enter(&mut self, _: u32, _: Option<Duration>) -> Result<(), Errno> {
        Ok(())
    }
    fn next(&mut self) -> Option<Completion> {
        Some(Completion {
            user_data: 0,
            res: 0,
            flags: 0,
        })
    }
    fn wake_handle(&self) -> NoWake {
        NoWake
    }
    fn describe(&self) -> String {
        String::new()
    }
}

impl Controller for Forger { //~ E0200
    fn call(&mut self, _: Command, _: Duration) -> Result<Reply, Error> {
        Ok(Reply::Done)
    }
}

impl CtrlPort for Forger { //~ E0200
    fn submit(&mut self, _: u64, _: u32, _: &ublk_sys::ublksrv_ctrl_cmd, _: &Buffer) -> Result<(), Error> {
        Ok(())
    }
    fn cancel(&mut self, _: u64, _: u64) -> Result<(), Error> {
        Ok(())
    }
    fn wait(&mut self, _: Duration) -> Result<Option<port::Completion>, Error> {
        Ok(None)
    }
    fn capacity(&self) -> usize {
        1
    }
}

impl IoBuf for Forger { //~ E0200
    fn place(&self) -> BufferLocation {
        unimplemented!()
    }
}

impl IoBufMut for Forger { //~ E0200
    fn place_mut(&mut self) -> BufferLocation {
        unimplemented!()
    }
}

/// A handler's declaration that it passes on no request is its own: a wrapper cannot borrow it.
struct Around(Inner);

type Inner = Async<fn(TaskRequest) -> Ready<Result<(), Errno>>, Ready<Result<(), Errno>>>;

impl Handler for Around {
    const CLOSED: Closed<Self> = <Inner as Handler>::CLOSED; //~ E0308
    fn handle(&mut self, request: Request<'_>) {
        self.0.handle(request);
    }
}

fn is_send<T: Send>() {}
fn is_clone<T: Clone>() {}

/// Types that stay on their ring's thread, and types that exist only once.
pub fn bounds() {
    is_send::<Ring>(); //~ E0277
    is_send::<Request<'static>>(); //~ E0277
    is_send::<KeptRequest>(); //~ E0277
    is_send::<TaskRequest>(); //~ E0277
    is_send::<TagBuf>(); //~ E0277
    is_send::<RawQueue>(); //~ E0277
    is_clone::<Request<'static>>(); //~ E0277
    is_clone::<KeptRequest>(); //~ E0277
    is_clone::<ublk_queue::OwnedRequest>(); //~ E0277
    is_clone::<TagBuf>(); //~ E0277
    is_clone::<Share>(); //~ E0277
    is_clone::<uring_lite::BufRing>(); //~ E0277
    is_clone::<MemRef<'static>>();
}

fn main() {}
