//! Calls of blocking backends for devices with metadata.

use std::sync::Arc;

use ublk_core::{Backend, Errno, Integrity, Op};

use super::{Handler, Token, call_for_blocks};
use crate::request::Request;

/// The metadata of one request at a time, between the driver and the backend.
#[derive(Debug)]
pub(super) struct Metadata {
    integrity: Integrity,
    block: u32,
    /// As long as the longest so far.
    scratch: Vec<u8>,
}

impl Metadata {
    /// For a backend that declares metadata.
    pub(super) fn of<B: Backend>(backend: &B) -> Option<Self> {
        let limits = backend.limits();
        limits.integrity.map(|integrity| Self {
            integrity,
            block: limits.logical_block_size,
            scratch: Vec::new(),
        })
    }

    /// Makes the backend call for a request, with its metadata if it has some.
    pub(super) fn call<B: Backend>(
        &mut self,
        backend: &B,
        request: &mut impl Token,
    ) -> Result<(), Errno> {
        let (op, offset, len, flags) = request.parts();
        if !flags.has_metadata() {
            return call_for_blocks(backend, request);
        }
        let bytes = self.integrity.bytes_for(len, self.block);
        let bytes = usize::try_from(bytes).map_err(|_| Errno::EOVERFLOW)?;
        if self.scratch.len() < bytes {
            self.scratch.resize(bytes, 0);
        }
        let metadata = self.scratch.get_mut(..bytes).ok_or(Errno::EIO)?;
        match op {
            Op::Read => {
                backend.read_with_metadata(request.data_mut()?, metadata, offset)?;
                request.push_metadata(metadata)
            }
            Op::Write => {
                request.pull_metadata(metadata)?;
                backend.write_with_metadata(request.data()?, metadata, offset, flags.fua())
            }
            _ => call_for_blocks(backend, request),
        }
    }
}

/// Like [`Inline`](super::Inline), for a backend with [`Limits::integrity`](ublk_core::Limits::integrity).
#[derive(Debug)]
pub struct InlineMetadata<B> {
    backend: Arc<B>,
    /// `None` for a backend without metadata.
    metadata: Option<Metadata>,
}

impl<B: Backend> InlineMetadata<B> {
    /// Creates a handler for this backend.
    pub fn new(backend: Arc<B>) -> Self {
        Self {
            metadata: Metadata::of(&*backend),
            backend,
        }
    }
}

impl<B: Backend> Handler for InlineMetadata<B> {
    fn handle(&mut self, mut request: Request<'_>) {
        let result = match &mut self.metadata {
            Some(metadata) => metadata.call(&*self.backend, &mut request),
            None => call_for_blocks(&*self.backend, &mut request),
        };
        request.complete(result);
    }
}
