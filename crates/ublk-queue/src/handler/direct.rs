//! Handlers for backends whose memory the driver copies to and from.
//!
//! # Why there is `unsafe` here
//! A backend lends a region for a borrow, but the driver uses it for longer: until it has taken the answer. A backend
//! in an `Arc` neither moves nor is accessed through `&mut` while a reference count is held, so memory that it lends
//! through `&self` stays valid that long. The lane holds one ([`Backing`]), and leaks it if the lane ends before the
//! driver is done.
#![expect(
    unsafe_code,
    reason = "names a backend's memory for longer than a borrow"
)]

use std::sync::Arc;

use ublk_core::iod::Io;
use ublk_core::{Backend, Op};

use super::{Handler, answer};
use crate::backing::{Backing, Keeper};
use crate::memref::MemRef;
use crate::request::Request;

/// A backend whose content is memory of this process: the driver can copy to and from it, so that data is copied only
/// once.
pub trait Mapped: Backend {
    /// The memory of a range inside the device.
    fn region(&self, offset: u64, len: usize) -> MemRef<'_>;
}

/// Calls a backend on the queue's own thread, and lets the driver copy data to and from the backend's memory if the
/// plan allows it (user copy and get-data).
#[derive(Debug)]
pub struct Direct<B>(pub Arc<B>);

impl<B: Mapped> Direct<B> {
    pub(super) fn region(&self, offset: u64, len: u64) -> MemRef<'_> {
        self.0.region(offset, usize::try_from(len).unwrap_or(0))
    }

    pub(super) fn keeper(&self) -> Option<Keeper> {
        Some(Arc::clone(&self.0) as Keeper)
    }

    /// # Safety
    /// The lane must keep the backend (head of this file).
    unsafe fn kept_region(&self, offset: u64, len: u64) -> MemRef<'static> {
        // SAFETY: the caller's contract, and the head of this file.
        unsafe { self.region(offset, len).extend() }
    }
}

impl<B: Mapped> Handler for Direct<B> {
    const BACKING: Backing<Self> = Backing::new(Self::keeper);

    #[inline]
    fn handle(&mut self, mut request: Request<'_>) {
        let (offset, len, backed) = (request.offset(), request.len(), request.is_backed());
        let result = match request.op() {
            Op::Read if request.copies_by_driver() => request.push_from(self.region(offset, len)),
            Op::Write if request.copies_by_driver() => request.pull_into(self.region(offset, len)),
            Op::Read if backed && request.takes_any_source() => {
                // SAFETY: the request is backed.
                let region = unsafe { self.kept_region(offset, len) };
                return request.complete_from(region);
            }
            Op::Write if request.was_placed() => Ok(()),
            _ => return answer(&*self.0, request),
        };
        request.complete(result);
    }

    unsafe fn data_address(&mut self, io: &Io) -> Option<MemRef<'static>> {
        // SAFETY: the caller is the handler's lane.
        (io.op == Op::Write).then(|| unsafe { self.kept_region(io.offset, io.len) })
    }
}
