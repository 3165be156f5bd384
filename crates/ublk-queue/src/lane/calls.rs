//! The handler's methods that only its own lane may call.
//!
//! # Why there is `unsafe` here
//! Both rely on facts that only the lane can guarantee: it keeps the handler's memory ([`Handler::BACKING`]) and leaks
//! it if the lane ends before the driver is done, and a completion is that of an operation of this handler.
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
    /// Get-data: the handler's memory for a WRITE's data, if it is large enough.
    pub(super) fn data_address(&mut self, tag: Tag, io: &Io) -> Option<MemRef<'static>> {
        let guard = OnUnwind::new(&self.panicked, Panicked::DataAddress(tag));
        // SAFETY: the lane keeps the handler's backing (head of this file).
        let memory = unsafe { self.handler.data_address(io) };
        guard.disarm();
        memory.filter(|memory| u64::try_from(memory.len()).is_ok_and(|len| len >= io.len))
    }

    /// Notifies the handler that one of its operations has completed.
    pub(crate) fn operation_completed(&mut self, operation: Operation, res: i32, flags: u32) {
        let guard = OnUnwind::new(&self.panicked, Panicked::Operation);
        // SAFETY: the operation is the handler's own by the `user_data` of the completion, which has the lane,
        // generation and kind that `Operations::push` put there; and the port only delivers completions of pushed
        // entries.
        unsafe { self.handler.operation_completed(operation, res, flags) };
        guard.disarm();
    }
}
