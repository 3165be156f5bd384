//! The limits that a backend declares before the device is created.

use crate::{Integrity, Zones};

/// Size and capabilities of the device that a backend can serve.
///
/// Rust cannot see whether a default method was overridden, so the backend declares what it supports, and defaults are
/// safe: the write cache is reported as volatile (the kernel then sends FLUSH), discard and write-zeroes are not
/// offered, and calls run on a pool of threads. The parameters sent to the driver are derived only from these limits
/// (L06).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Limits {
    /// Size of the device in bytes: a multiple of the logical block size, not zero.
    pub size: u64,
    /// Logical block size in bytes: a power of two from 512 to the page size. Requests are whole blocks.
    pub logical_block_size: u32,
    /// Physical block size in bytes: a power of two, at least the logical block size.
    pub physical_block_size: u32,
    /// Preferred I/O size in bytes, a power of two, or 0 for none.
    pub optimal_io_size: u32,
    /// The device refuses writes.
    pub read_only: bool,
    /// Completed writes may be in a cache that a FLUSH must empty. Clear it only if every completed write is as durable
    /// as this backend can make it.
    pub volatile_cache: bool,
    /// Writes with FUA are durable when they complete, without a FLUSH. Only with `volatile_cache`.
    pub fua: bool,
    /// Seeks are expensive (a spinning disk).
    pub rotational: bool,
    /// Largest DISCARD in bytes, 0 for none.
    pub max_discard: u64,
    /// Granularity of DISCARD in bytes (a multiple of the logical block size); 0 means one block.
    pub discard_granularity: u32,
    /// Largest WRITE_ZEROES in bytes, 0 for none: the block layer then writes zeroes as data.
    pub max_write_zeroes: u64,
    /// Calls return quickly and never block on I/O, so the queue's thread may make them itself.
    pub quick: bool,
    /// Required alignment in bytes of a request's memory if it is passed on to a file (zero copy): a power of two up to
    /// the page size, or 0 for the block layer's default of 4. Sent to the driver in the zero-copy modes only; since
    /// Linux 6.15, older kernels ignore it (`ublk_param_dma_align`).
    pub dma_alignment: u32,
    /// Maximum number of segments of a request in zero copy, 0 for the block layer's default (128). Since Linux 6.15
    /// (`ublk_param_segment`).
    pub max_segments: u16,
    /// Maximum length of a segment in bytes in zero copy, at least 4096, or 0 for no limit. Since Linux 6.15
    /// (`ublk_param_segment`).
    pub max_segment_size: u32,
    /// Segments in zero copy do not cross a multiple of this many bytes: a power of two, at least 4096, or 0 for no
    /// boundary. Since Linux 6.15 (`ublk_param_segment`).
    #[cfg_attr(feature = "serde", serde(default))]
    pub segment_boundary: u64,
    /// Sends the four memory limits above in every mode, not only in zero copy: requests are then split, and misaligned
    /// client memory is refused, although the driver copies.
    #[cfg_attr(feature = "serde", serde(default))]
    pub memory_in_every_mode: bool,
    /// Smallest preferred I/O in bytes (`io_min`): a power of two, at least the logical block size, or 0 for the
    /// physical block size.
    #[cfg_attr(feature = "serde", serde(default))]
    pub minimum_io_size: u32,
    /// Requests do not cross a multiple of this many bytes: whole blocks, or 0 for no boundary (`chunk_sectors`).
    #[cfg_attr(feature = "serde", serde(default))]
    pub chunk_size: u32,
    /// All segments but the first begin, and all but the last end, at multiples of this many bytes: a power of two, or
    /// 0 for no rule (`virt_boundary_mask`). Not together with `max_segment_size`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub virtual_boundary: u32,
    /// Offset of the first whole discard unit: whole blocks, below the granularity (`discard_alignment`).
    #[cfg_attr(feature = "serde", serde(default))]
    pub discard_alignment: u32,
    /// The zones of a zoned device, or `None` for an ordinary one. A zoned device needs
    /// [`Features::ZONED`](crate::Features::ZONED) and a data mode in which the driver does not copy.
    #[cfg_attr(feature = "serde", serde(default))]
    pub zones: Option<Zones>,
    /// The metadata that the backend keeps beside its data, or `None` for an ordinary device. Such a device needs
    /// [`Features::INTEGRITY`](crate::Features::INTEGRITY) and user copy; it cannot be zoned.
    #[cfg_attr(feature = "serde", serde(default))]
    pub integrity: Option<Integrity>,
}

impl Limits {
    /// Limits of a device of `size` bytes with safe defaults: 512-byte blocks, a volatile write cache, no discard,
    /// calls on a pool.
    #[must_use]
    pub const fn new(size: u64) -> Self {
        Self {
            size,
            logical_block_size: 512,
            physical_block_size: 4096,
            optimal_io_size: 0,
            read_only: false,
            volatile_cache: true,
            fua: false,
            rotational: false,
            max_discard: 0,
            discard_granularity: 0,
            max_write_zeroes: 0,
            quick: false,
            dma_alignment: 0,
            max_segments: 0,
            max_segment_size: 0,
            segment_boundary: 0,
            memory_in_every_mode: false,
            minimum_io_size: 0,
            chunk_size: 0,
            virtual_boundary: 0,
            discard_alignment: 0,
            zones: None,
            integrity: None,
        }
    }

    /// Sets the logical block size, and raises the physical one if it is smaller.
    #[must_use]
    pub const fn block_size(mut self, bytes: u32) -> Self {
        self.logical_block_size = bytes;
        if self.physical_block_size < bytes {
            self.physical_block_size = bytes;
        }
        self
    }

    /// Sets whether the device is read-only.
    #[must_use]
    pub const fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Sets whether completed writes may still need a FLUSH.
    #[must_use]
    pub const fn volatile_cache(mut self, yes: bool) -> Self {
        self.volatile_cache = yes;
        self
    }

    /// Sets whether FUA writes are durable when they complete.
    #[must_use]
    pub const fn fua(mut self, yes: bool) -> Self {
        self.fua = yes;
        self
    }

    /// Declares the metadata that the backend keeps ([`Backend::write_with_metadata`](crate::Backend::write_with_metadata)).
    #[must_use]
    pub const fn integrity(mut self, integrity: Integrity) -> Self {
        self.integrity = Some(integrity);
        self
    }

    /// Offers DISCARD of up to `max` bytes per request, in units of `granularity` bytes.
    #[must_use]
    pub const fn discard(mut self, max: u64, granularity: u32) -> Self {
        self.max_discard = max;
        self.discard_granularity = granularity;
        self
    }

    /// Offers WRITE_ZEROES of up to `max` bytes per request.
    #[must_use]
    pub const fn write_zeroes(mut self, max: u64) -> Self {
        self.max_write_zeroes = max;
        self
    }

    /// Sets whether calls are quick, so that the queue's own thread makes them.
    #[must_use]
    pub const fn quick(mut self, yes: bool) -> Self {
        self.quick = yes;
        self
    }

    /// Makes the device zoned.
    #[must_use]
    pub const fn zones(mut self, zones: Zones) -> Self {
        self.zones = Some(zones);
        self
    }

    /// Sets the memory limits for requests that are passed on to a file: alignment in bytes, number of segments, length
    /// of a segment in bytes. 0 keeps the block layer's default.
    #[must_use]
    pub const fn memory(mut self, alignment: u32, segments: u16, segment_size: u32) -> Self {
        self.dma_alignment = alignment;
        self.max_segments = segments;
        self.max_segment_size = segment_size;
        self
    }
}
