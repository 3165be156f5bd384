//! Wrappers that declare what kind of device a handler serves.

use ublk_core::iod::Io;

use super::{Closed, Handler, LaneContext};
use crate::backing::{Backing, Keeper};
use crate::forward::Part;
use crate::memref::MemRef;
use crate::operations::{Operation, Operations};
use crate::port::Port;
use crate::request::Request;

/// Defines a wrapper that forwards all calls to the handler inside.
macro_rules! around {
    ($(#[$doc:meta])* $name:ident, zones = $zones:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone)]
        pub struct $name<H>(pub H);

        impl<H: Handler> Handler for $name<H> {
            const OPERATIONS: bool = H::OPERATIONS;
            const FORWARDS: bool = H::FORWARDS;
            const SPLITS: bool = H::SPLITS;
            const CLIENT_MEMORY: bool = true;
            const ZONES: bool = $zones;
            const CLOSED: Closed<Self> = Closed::as_inside(&H::CLOSED);

            #[inline]
            fn handle(&mut self, request: Request<'_>) {
                self.0.handle(request);
            }

            fn part(&mut self, io: &Io, done: u64) -> Part {
                self.0.part(io, done)
            }

            fn attach(&mut self, context: &LaneContext) {
                self.0.attach(context);
            }

            fn turn<P: Port>(&mut self, ring: &mut Operations<'_, P>) -> bool {
                self.0.turn(ring)
            }

            #[expect(unsafe_code, reason = "the lane's call of the handler inside")]
            unsafe fn operation_completed(&mut self, operation: Operation, res: i32, flags: u32) {
                // SAFETY: the caller's contract; all operations were pushed by the handler inside.
                unsafe { self.0.operation_completed(operation, res, flags) };
            }

            fn in_flight(&self) -> usize {
                self.0.in_flight()
            }

            fn is_due(&self) -> bool {
                self.0.is_due()
            }

            fn drain(&mut self) {
                self.0.drain();
            }

            fn leave(&mut self) {
                self.0.leave();
            }

            const BACKING: Backing<Self> = match H::BACKING.is_some() {
                true => Backing::new(Self::keeper),
                false => Backing::NONE,
            };

            #[expect(unsafe_code, reason = "the lane's call of the handler inside")]
            unsafe fn data_address(&mut self, io: &Io) -> Option<MemRef<'static>> {
                // SAFETY: the caller's contract; the backing is that of the handler inside.
                unsafe { self.0.data_address(io) }
            }
        }

        impl<H: Handler> $name<H> {
            fn keeper(&self) -> Option<Keeper> {
                H::BACKING.keeper(&self.0)
            }
        }
    };
}

around! {
    /// Adapts any handler to a device that shares memory with its clients: the lane then looks up where the data of
    /// each request is.
    ClientShared, zones = H::ZONES
}

around! {
    /// Adapts any handler to a zoned device: its lane reports to the driver where appends were written. It supports
    /// memory shared with clients, too, like [`ClientShared`].
    Zoned, zones = true
}
