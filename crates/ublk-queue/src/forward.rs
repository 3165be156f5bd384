//! What the engine does with a request on its worker's ring, in the handler's stead.

/// Where the engine takes a request instead of answering it from memory: the handler names a file of
/// [`Plan::files`](crate::Plan::files) by its number, the engine pushes the operations and answers the request
/// when they are done. Data goes by the plan's way: through the tag's buffer, or as a registered buffer that nobody
/// looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Forward {
    /// The data of a READ or WRITE, from or to this byte of the file.
    Data {
        /// Number of the file.
        file: u16,
        /// First byte in the file; `u64::MAX` is the file's own position, as the kernel has it.
        offset: u64,
        /// A WRITE is answered only once it is durable (FUA): it shares the next sync.
        durable: bool,
    },
    /// Syncs the file's data (`fdatasync`). Requests that come while a sync runs share the next one, never the
    /// running one, which may have begun before their writes were done (L07).
    Sync {
        /// Number of the file.
        file: u16,
    },
    /// `fallocate` of a range of the file.
    Allocate {
        /// Number of the file.
        file: u16,
        /// `FALLOC_FL_*` (linux/falloc.h).
        mode: u32,
        /// First byte in the file.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}
