//! Requests of a memory device with metadata: the driver copies between a request and the device's memory.

#![forbid(unsafe_code)]

use std::sync::Arc;

use ublk_core::{Errno, Op, OpenDevice};
use ublk_queue::{Error, Handler, InlineMetadata, Mapped, MemRef, Plan, Request, Server};

use super::Protected;
use super::in_memory::Source;
use super::store::Store;
use crate::Memory;

impl Protected<Memory> {
    /// Serves a device: like [`Server::arm`], but data is copied once, between the request and the device's memory.
    ///
    /// # Errors
    /// As for [`Server::arm`].
    pub fn arm(device: OpenDevice, plan: Plan, protected: Arc<Self>) -> Result<Server, Error> {
        Server::arm_with(device, plan, move |_| {
            let protected = Arc::clone(&protected);
            let mut others = InlineMetadata::new(Arc::clone(&protected));
            // As long as the longest so far.
            let mut scratch = Vec::new();
            let handler: Box<dyn FnMut(Request<'_>)> = Box::new(move |mut request| {
                let copies = request.flags().has_metadata() && request.copies_by_driver();
                let result = match request.op() {
                    Op::Read if copies => protected.read_into(&mut request, &mut scratch),
                    Op::Write if copies => protected.write_from(&mut request),
                    _ => return others.handle(request),
                };
                request.complete(result);
            });
            handler
        })
    }

    fn region(&self, offset: u64, len: u64) -> MemRef<'_> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.data.region(offset, len)
    }

    /// Where a request's metadata is kept, and how much it has.
    fn kept(&self, offset: u64, len: u64) -> (u64, usize) {
        let len = usize::try_from(self.place(len)).unwrap_or(usize::MAX);
        (self.place(offset), len)
    }

    fn read_into(&self, request: &mut Request<'_>, scratch: &mut Vec<u8>) -> Result<(), Errno> {
        let (offset, len) = (request.offset(), request.len());
        let (at, bytes) = self.kept(offset, len);
        let _held = self.locks.read(offset, len);
        request.push_from(self.region(offset, len))?;
        match self.store.source(at, bytes)? {
            Source::Here(memory) => request.push_metadata_from(memory),
            Source::Nowhere(ones) => request.push_metadata(ones),
            Source::Mixed => {
                scratch.resize(scratch.len().max(bytes), 0);
                let metadata = scratch.get_mut(..bytes).ok_or(Errno::EIO)?;
                self.store.load((offset, len), at, metadata)?;
                request.push_metadata(metadata)
            }
        }
    }

    fn write_from(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let (offset, len) = (request.offset(), request.len());
        let (at, bytes) = self.kept(offset, len);
        self.change((offset, len), request.flags().fua(), || {
            request.pull_into(self.region(offset, len))?;
            request.pull_metadata_into(self.store.destination(at, bytes)?)
        })
    }
}
