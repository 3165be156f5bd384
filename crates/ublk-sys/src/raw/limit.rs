//! Limits, and the fields of positions in the character device: queue, tag, byte offset.

uapi_consts! {
    /// Position of queue 0's descriptors for mmap.
    pub const UBLKSRV_CMD_BUF_OFFSET: u64 = 0;
    /// Position of the request buffers for user copy. Add it, do not OR it: the bit lies inside the tag's field.
    pub const UBLKSRV_IO_BUF_OFFSET: u64 = 0x8000_0000;

    /// Maximum number of tags per queue.
    pub const UBLK_MAX_QUEUE_DEPTH: u16 = 4096;

    /// Shift of the byte offset in a user-copy position.
    pub const UBLK_IO_BUF_OFF: u32 = 0;
    /// Width of the byte offset: 32 MiB per request.
    pub const UBLK_IO_BUF_BITS: u32 = 25;
    /// Mask of the byte offset.
    pub const UBLK_IO_BUF_BITS_MASK: u64 = (1 << UBLK_IO_BUF_BITS) - 1;

    /// Shift of the tag in a user-copy position.
    pub const UBLK_TAG_OFF: u32 = UBLK_IO_BUF_BITS;
    /// Width of the tag.
    pub const UBLK_TAG_BITS: u32 = 16;
    /// Mask of the tag, before the shift.
    pub const UBLK_TAG_BITS_MASK: u64 = (1 << UBLK_TAG_BITS) - 1;

    /// Shift of the queue in a user-copy position.
    pub const UBLK_QID_OFF: u32 = UBLK_TAG_OFF + UBLK_TAG_BITS;
    /// Width of the queue.
    pub const UBLK_QID_BITS: u32 = 12;
    /// Mask of the queue, before the shift.
    pub const UBLK_QID_BITS_MASK: u64 = (1 << UBLK_QID_BITS) - 1;

    /// Maximum number of queues per device; the kernel also limits it to the number of CPUs.
    pub const UBLK_MAX_NR_QUEUES: u16 = 1 << UBLK_QID_BITS;

    /// Width of queue, tag and byte offset together.
    pub const UBLKSRV_IO_BUF_TOTAL_BITS: u32 = UBLK_QID_OFF + UBLK_QID_BITS;
    /// Size of the space that queue, tag and byte offset span.
    pub const UBLKSRV_IO_BUF_TOTAL_SIZE: u64 = 1 << UBLKSRV_IO_BUF_TOTAL_BITS;

    /// Position of the bit that selects the integrity buffer. Since 7.0.
    pub const UBLK_INTEGRITY_FLAG_OFF: u32 = 62;
    /// Selects a request's integrity buffer in a user-copy position. Since 7.0; 6.12 ignores it and returns data.
    pub const UBLKSRV_IO_INTEGRITY_FLAG: u64 = 1 << UBLK_INTEGRITY_FLAG_OFF;

    /// Smallest `max_segment_size`, and smallest `seg_boundary_mask` plus one.
    pub const UBLK_MIN_SEGMENT_SIZE: u32 = 4096;

    /// Mask of the byte offset in a shared-memory address. Since 7.1.
    pub const UBLK_SHMEM_ZC_OFF_MASK: u64 = 0xffff_ffff;
    /// Shift of the buffer index in a shared-memory address. Since 7.1.
    pub const UBLK_SHMEM_ZC_IDX_OFF: u32 = 32;
    /// Mask of the buffer index in a shared-memory address, before the shift. Since 7.1.
    pub const UBLK_SHMEM_ZC_IDX_MASK: u64 = 0xffff;
}

/// Smallest size of a descriptor in bytes, and its size without [`super::UBLK_F_IO_DESC_SIZE`].
pub const IO_DESC_SIZE_MIN: u16 = 24;
/// Largest `io_desc_size` in bytes that the driver accepts (7.3). Sizes are multiples of 8.
pub const IO_DESC_SIZE_MAX: u16 = 256;
