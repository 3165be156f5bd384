//! Operations that the engine carries out on the worker's ring for a handler.

/// What to do with a request that the handler forwards to a file instead of answering it from memory. The handler names
/// a file of [`Plan::files`](crate::Plan::files) by its index; the engine pushes the operations and answers the request
/// when they complete. Data takes the path of the plan: through the tag's buffer, or as a registered buffer that no
/// code here accesses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Forward {
    /// Transfers the data of a READ or WRITE from or to this offset of the file.
    Data {
        /// Index of the file.
        file: u16,
        /// Offset in the file; `u64::MAX` is the file's own position, as for the kernel.
        offset: u64,
        /// Answers a WRITE only once it is durable (FUA): it shares the next sync.
        durable: bool,
    },
    /// Syncs the file's data (`fdatasync`). Requests that arrive while a sync runs share the next one, never the
    /// running one, which may have begun before their writes completed (L07).
    Sync {
        /// Index of the file.
        file: u16,
    },
    /// Transfers the data of a READ or WRITE that several files hold. The engine asks [`Handler::part`] for each part,
    /// has several of them in flight, and answers when all are done; the first failure is the answer. Only for handlers
    /// with [`Handler::SPLITS`].
    ///
    /// [`Handler::part`]: crate::Handler::part
    /// [`Handler::SPLITS`]: crate::Handler::SPLITS
    Parts {
        /// Answers a WRITE only once it is durable (FUA): it shares the next sync of every file.
        durable: bool,
    },
    /// Syncs the data of every file of the plan, as [`Forward::Sync`] does for one. Only for handlers with
    /// [`Handler::SPLITS`](crate::Handler::SPLITS).
    SyncAll,
    /// `fallocate` of a range of the file.
    Allocate {
        /// Index of the file.
        file: u16,
        /// `FALLOC_FL_*` (linux/falloc.h).
        mode: u32,
        /// Offset in the file.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// A part of a request's data, in one file of [`Plan::files`](crate::Plan::files).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Index of the file.
    pub file: u16,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Length in bytes, not 0 and not beyond the end of the request.
    pub len: u64,
}
