//! What a backend says of itself before the device is made.

use crate::Zones;

/// The device a backend can serve: its size and what it is able to do.
///
/// Rust cannot see whether a default method was overridden, so a backend declares; what it does not
/// declare fails safe: the write cache is reported as volatile (the kernel then sends FLUSH),
/// discard and write-zeroes are not offered, and calls run on a pool of threads. The parameters
/// sent to the driver follow from these limits alone (L06).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Limits {
    /// Size of the device in bytes: a multiple of the logical block size, not zero.
    pub size: u64,
    /// Logical block size in bytes: a power of two, 512 up to the page size. Requests are whole blocks.
    pub logical_block_size: u32,
    /// Physical block size in bytes: a power of two, not below the logical one.
    pub physical_block_size: u32,
    /// Preferred I/O size in bytes, a power of two, or 0 for none.
    pub optimal_io_size: u32,
    /// The device refuses writes.
    pub read_only: bool,
    /// Completed writes may sit in a cache that a FLUSH must empty. Renounce it only if every
    /// completed write is as durable as this backend ever makes it.
    pub volatile_cache: bool,
    /// Writes with FUA are durable when they complete, without a FLUSH. Only with `volatile_cache`.
    pub fua: bool,
    /// Seek times matter (a spinning disk).
    pub rotational: bool,
    /// Largest DISCARD in bytes, 0 for no discard.
    pub max_discard: u64,
    /// Granularity of DISCARD in bytes (a multiple of the logical block size); 0 means one block.
    pub discard_granularity: u32,
    /// Largest WRITE_ZEROES in bytes, 0 for none: the block layer then writes zeroes as data.
    pub max_write_zeroes: u64,
    /// The calls return quickly and never block on I/O, so the queue's thread may make them itself.
    pub quick: bool,
    /// Alignment in bytes that the memory of a request must have where it is given to a file as it is (zero copy):
    /// a power of two up to the page size, or 0 for the block layer's own 4. Sent to the driver in the modes of
    /// zero copy only; since Linux 6.15, older kernels ignore it (`ublk_param_dma_align`).
    pub dma_alignment: u32,
    /// Most segments of a request in zero copy, 0 for the block layer's own (128). Since Linux 6.15
    /// (`ublk_param_segment`).
    pub max_segments: u16,
    /// Longest segment of a request in bytes in zero copy, at least 4096, or 0 for no limit. Since Linux 6.15
    /// (`ublk_param_segment`).
    pub max_segment_size: u32,
    /// Segments of a request in zero copy do not cross a multiple of this many bytes: a power of two from 4096 on, or 0
    /// for no such boundary. Since Linux 6.15 (`ublk_param_segment`).
    #[cfg_attr(feature = "serde", serde(default))]
    pub segment_boundary: u64,
    /// The four limits of memory above are sent in every mode, not in those of zero copy only: requests are then cut, and
    /// clients' memory is refused, although the driver copies.
    #[cfg_attr(feature = "serde", serde(default))]
    pub memory_in_every_mode: bool,
    /// Smallest preferred I/O in bytes (`io_min`): a power of two, not below the logical block, or 0 for the physical
    /// block size.
    #[cfg_attr(feature = "serde", serde(default))]
    pub minimum_io_size: u32,
    /// Requests do not cross a multiple of this many bytes: whole blocks, or 0 for no such boundary (`chunk_sectors`).
    #[cfg_attr(feature = "serde", serde(default))]
    pub chunk_size: u32,
    /// Segments but for the first begin, and but for the last end, at multiples of this many bytes: a power of two, or 0
    /// for no such rule (`virt_boundary_mask`). Not together with `max_segment_size`.
    #[cfg_attr(feature = "serde", serde(default))]
    pub virtual_boundary: u32,
    /// First byte of the first whole unit of discard: whole blocks below the granularity (`discard_alignment`).
    #[cfg_attr(feature = "serde", serde(default))]
    pub discard_alignment: u32,
    /// The zones of a zoned device, or `None` for an ordinary one. The features then have
    /// [`Features::ZONED`](crate::Features::ZONED) and a data mode without copies by the driver.
    #[cfg_attr(feature = "serde", serde(default))]
    pub zones: Option<Zones>,
}

impl Limits {
    /// Limits of a device of `size` bytes, all else safe: 512-byte blocks, a volatile write cache,
    /// no discard, calls on a pool.
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
        }
    }

    /// Sets the logical block size, and raises the physical one to at least it.
    #[must_use]
    pub const fn block_size(mut self, bytes: u32) -> Self {
        self.logical_block_size = bytes;
        if self.physical_block_size < bytes {
            self.physical_block_size = bytes;
        }
        self
    }

    /// Makes the device read-only.
    #[must_use]
    pub const fn read_only(mut self, yes: bool) -> Self {
        self.read_only = yes;
        self
    }

    /// Says whether completed writes may still need a FLUSH.
    #[must_use]
    pub const fn volatile_cache(mut self, yes: bool) -> Self {
        self.volatile_cache = yes;
        self
    }

    /// Says that FUA writes are durable when they complete.
    #[must_use]
    pub const fn fua(mut self, yes: bool) -> Self {
        self.fua = yes;
        self
    }

    /// Offers DISCARD of up to `max` bytes a request, in units of `granularity` bytes.
    #[must_use]
    pub const fn discard(mut self, max: u64, granularity: u32) -> Self {
        self.max_discard = max;
        self.discard_granularity = granularity;
        self
    }

    /// Offers WRITE_ZEROES of up to `max` bytes a request.
    #[must_use]
    pub const fn write_zeroes(mut self, max: u64) -> Self {
        self.max_write_zeroes = max;
        self
    }

    /// Says that calls are quick, so that the queue's own thread makes them.
    #[must_use]
    pub const fn quick(mut self, yes: bool) -> Self {
        self.quick = yes;
        self
    }

    /// Makes the device a zoned one.
    #[must_use]
    pub const fn zones(mut self, zones: Zones) -> Self {
        self.zones = Some(zones);
        self
    }

    /// Says what memory a request may come in where it is given to a file as it is: alignment in bytes, most
    /// segments, bytes of the longest one. 0 leaves each to the block layer.
    #[must_use]
    pub const fn memory(mut self, alignment: u32, segments: u16, segment_size: u32) -> Self {
        self.dma_alignment = alignment;
        self.max_segments = segments;
        self.max_segment_size = segment_size;
        self
    }
}
