//! The calls of a handler that only its own lane may make.
//!
//! # Why there is `unsafe` here
//! Both hand the handler a promise that only its lane can give: that it keeps the handler's memory ([`Handler::BACKING`])
//! and leaks it where it ends before the driver, and that a completion is of the handler's own operation.
#![expect(unsafe_code, reason = "what only the handler's own lane may call")]

use ublk_core::Tag;
use ublk_core::iod::Io;

use super::ending::OnUnwind;
use super::{Lane, Panicked};
use crate::handler::Handler;
use crate::memref::MemRef;
use crate::operations::Operation;
use crate::port::{Descriptors, Port};

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    /// Get-data: where the handler wants a WRITE's data, if that has room for it.
    pub(super) fn place_of(&mut self, tag: Tag, io: &Io) -> Option<MemRef<'static>> {
        let guard = OnUnwind::new(&self.panicked, Panicked::Place(tag));
        // SAFETY: the lane keeps the handler's backing (head of this file).
        let place = unsafe { self.handler.place(io) };
        guard.disarm();
        place.filter(|place| u64::try_from(place.len()).is_ok_and(|len| len >= io.len))
    }

    /// Tells the handler that an operation of its own is over.
    pub(crate) fn operation_completed(&mut self, operation: Operation, res: i32, flags: u32) {
        let guard = OnUnwind::new(&self.panicked, Panicked::Operation);
        // SAFETY: by the word of the completion the handler's own: it has lane, life and kind, which `Operations::push`
        // gave it, and the port shows completions of what was pushed only.
        unsafe { self.handler.operation_completed(operation, res, flags) };
        guard.disarm();
    }
}
