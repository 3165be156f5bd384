//! Handlers that take advantage of memory shared with the device's clients.

use std::sync::Arc;

use ublk_core::{Backend, Op};

use super::{Backing, Direct, Handler, Inline, Mapped};
use crate::data_path;
use crate::racy_copy::Copier;
use crate::request::Request;

/// Like [`Direct`], for a device that shares memory: data is copied once, between the backend's memory and the
/// client's.
#[derive(Debug)]
pub struct DirectShared<B> {
    direct: Direct<B>,
    copier: Copier,
}

impl<B: Mapped> DirectShared<B> {
    /// Creates a handler for this backend.
    pub fn new(backend: Arc<B>) -> Self {
        Self {
            direct: Direct(backend),
            copier: Copier::detect(),
        }
    }
}

impl<B: Mapped> Handler for DirectShared<B> {
    const CLIENT_MEMORY: bool = true;
    const BACKING: Backing<Self> = Backing::new(|handler| handler.direct.keeper());

    #[inline]
    fn handle(&mut self, mut request: Request<'_>) {
        let (op, offset, len) = (request.op(), request.offset(), request.len());
        if !matches!(op, Op::Read | Op::Write) {
            return self.direct.handle(request);
        }
        let Some(client) = request.take_shared() else {
            return self.direct.handle(request);
        };
        let ours = self.direct.region(offset, len);
        let result = match op {
            Op::Read => data_path::copy(self.copier, ours, client),
            _ => data_path::copy(self.copier, client, ours),
        };
        request.complete(result);
    }
}

/// Like [`Inline`], for a device that shares memory: a backend that ignores the data is not shown any.
#[derive(Debug)]
pub struct InlineShared<B> {
    inline: Inline<B>,
}

impl<B: Backend> InlineShared<B> {
    /// Creates a handler for this backend.
    pub fn new(backend: Arc<B>) -> Self {
        Self {
            inline: Inline::new(backend),
        }
    }
}

impl<B: Backend> Handler for InlineShared<B> {
    const CLIENT_MEMORY: bool = true;

    #[inline]
    fn handle(&mut self, mut request: Request<'_>) {
        if B::is_blind() {
            // The memory's present content is the answer.
            let _ = request.take_shared();
        }
        self.inline.handle(request);
    }
}
