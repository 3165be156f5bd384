//! Requests of a memory device with metadata: the driver copies between a request and the device's memory.

#![forbid(unsafe_code)]

use std::sync::Arc;

use ublk_core::{Errno, Op, OpenDevice};
use ublk_queue::{Error, Handler, InlineMetadata, Mapped, MemRef, Plan, Request, Server};

use super::Protected;
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
            let mut metadata = Vec::new();
            let handler: Box<dyn FnMut(Request<'_>)> = Box::new(move |mut request| {
                let copies = request.flags().has_metadata() && request.copies_by_driver();
                let result = match request.op() {
                    Op::Read if copies => protected.read_into(&mut request, &mut metadata),
                    Op::Write if copies => protected.write_from(&mut request, &mut metadata),
                    _ => return others.handle(request),
                };
                request.complete(result);
            });
            handler
        })
    }

    /// The metadata of a request, in memory that grows to the longest so far.
    fn room<'a>(&self, len: u64, memory: &'a mut Vec<u8>) -> Result<&'a mut [u8], Errno> {
        let bytes = usize::try_from(self.place(len)).map_err(|_| Errno::EOVERFLOW)?;
        if memory.len() < bytes {
            memory.resize(bytes, 0);
        }
        memory.get_mut(..bytes).ok_or(Errno::EIO)
    }

    fn region(&self, offset: u64, len: u64) -> MemRef<'_> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        self.data.region(offset, len)
    }

    fn read_into(&self, request: &mut Request<'_>, memory: &mut Vec<u8>) -> Result<(), Errno> {
        let (offset, len) = (request.offset(), request.len());
        let metadata = self.room(len, memory)?;
        let held = self.locks.read(offset, len);
        request.push_from(self.region(offset, len))?;
        self.store
            .load((offset, len), self.place(offset), metadata)?;
        drop(held);
        request.push_metadata(metadata)
    }

    fn write_from(&self, request: &mut Request<'_>, memory: &mut Vec<u8>) -> Result<(), Errno> {
        let (offset, len) = (request.offset(), request.len());
        let metadata = self.room(len, memory)?;
        request.pull_metadata(metadata)?;
        self.change((offset, len), request.flags().fua(), || {
            request.pull_into(self.region(offset, len))?;
            self.store.store(self.place(offset), metadata)
        })
    }
}
