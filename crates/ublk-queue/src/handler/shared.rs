//! Handlers of devices that share memory with their clients.

use std::sync::Arc;

use ublk_core::iod::Io;
use ublk_core::{Backend, Op};

use super::direct::Keeper;
use super::{Backing, Closed, Direct, Handler, Inline, LaneContext, Mapped};
use crate::memref::MemRef;
use crate::operations::{Operation, Operations};
use crate::racing::Copier;
use crate::request::Request;
use crate::seam::Port;
use crate::shmem;

/// Any handler, in a device that shares memory with its clients: the lane then looks where the data of each request is.
#[derive(Debug, Clone)]
pub struct ClientShared<H>(pub H);

impl<H: Handler> Handler for ClientShared<H> {
    const OPERATIONS: bool = H::OPERATIONS;
    const FORWARDS: bool = H::FORWARDS;
    const SHARED: bool = true;
    const CLOSED: Closed = H::CLOSED;

    #[inline]
    fn handle(&mut self, request: Request<'_>) {
        self.0.handle(request);
    }

    fn attach(&mut self, context: &LaneContext) {
        self.0.attach(context);
    }

    fn turn<P: Port>(&mut self, ring: &mut Operations<'_, P>) -> bool {
        self.0.turn(ring)
    }

    #[expect(unsafe_code, reason = "the lane's call of the handler inside")]
    unsafe fn operation_completed(&mut self, operation: Operation, res: i32, flags: u32) {
        // SAFETY: the caller's contract; what this handler has pushed, the one inside has.
        unsafe { self.0.operation_completed(operation, res, flags) };
    }

    fn in_flight(&self) -> usize {
        self.0.in_flight()
    }

    fn leave(&mut self) {
        self.0.leave();
    }

    const BACKING: Backing<Self> = match H::BACKING.is_some() {
        true => Backing::new(Self::keeper),
        false => Backing::NONE,
    };

    #[expect(unsafe_code, reason = "the lane's call of the handler inside")]
    unsafe fn place(&mut self, io: &Io) -> Option<MemRef<'static>> {
        // SAFETY: the caller's contract; the backing is that of the handler inside.
        unsafe { self.0.place(io) }
    }
}

impl<H: Handler> ClientShared<H> {
    fn keeper(&self) -> Option<Keeper> {
        H::BACKING.keeper(&self.0)
    }
}

/// As [`Direct`], in a device that shares memory: one copy, between the backend's memory and the client's.
#[derive(Debug)]
pub struct DirectShared<B> {
    direct: Direct<B>,
    copier: Copier,
}

impl<B: Mapped> DirectShared<B> {
    /// Calls this backend.
    pub fn new(backend: Arc<B>) -> Self {
        Self {
            direct: Direct(backend),
            copier: Copier::detect(),
        }
    }
}

impl<B: Mapped> Handler for DirectShared<B> {
    const SHARED: bool = true;
    const BACKING: Backing<Self> = Backing::new(|handler| handler.direct.keeper());

    #[inline]
    fn handle(&mut self, mut request: Request<'_>) {
        let (op, offset, len) = (request.op(), request.offset(), request.len());
        let Some(client) = request.take_shared() else {
            return self.direct.handle(request);
        };
        let ours = self.direct.region(offset, len);
        let result = match op {
            Op::Read => shmem::copy(self.copier, ours, client),
            _ => shmem::copy(self.copier, client, ours),
        };
        request.complete(result);
    }
}

/// As [`Inline`], in a device that shares memory: a backend that looks at no data is not shown any.
#[derive(Debug)]
pub struct InlineShared<B> {
    inline: Inline<B>,
}

impl<B: Backend> InlineShared<B> {
    /// Calls this backend.
    pub fn new(backend: Arc<B>) -> Self {
        Self {
            inline: Inline::new(backend),
        }
    }
}

impl<B: Backend> Handler for InlineShared<B> {
    const SHARED: bool = true;

    #[inline]
    fn handle(&mut self, mut request: Request<'_>) {
        if B::is_blind() {
            // Whatever is there is the answer.
            let _ = request.take_shared();
        }
        self.inline.handle(request);
    }
}
