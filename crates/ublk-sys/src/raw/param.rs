//! Parameters of a device (SET_PARAMS, GET_PARAMS). Written by the server unless noted; sectors are 512 bytes.

uapi_struct! {
    /// Basic parameters of a block device. Mandatory.
    pub struct ublk_param_basic: 32, align 8 {
        /// `UBLK_ATTR_*`.
        attrs @ 0: u32,
        /// log2 of the logical block size in bytes, 9 to log2 of the page size.
        logical_bs_shift @ 4: u8,
        /// log2 of the physical block size in bytes.
        physical_bs_shift @ 5: u8,
        /// log2 of the optimal I/O size in bytes.
        io_opt_shift @ 6: u8,
        /// log2 of the minimal I/O size in bytes.
        io_min_shift @ 7: u8,
        /// Largest request, sectors; at most `max_io_buf_bytes`.
        max_sectors @ 8: u32,
        /// Boundary that requests do not cross, sectors, 0 for none; the zone size when zoned.
        chunk_sectors @ 12: u32,
        /// Capacity, sectors.
        dev_sectors @ 16: u64,
        /// Mask of the boundary between segments, bytes.
        virt_boundary_mask @ 24: u64,
    }
}

uapi_struct! {
    /// Discard and write-zeroes limits. Without them the driver sends neither.
    pub struct ublk_param_discard: 20, align 4 {
        /// Offset of the first discard unit, bytes.
        discard_alignment @ 0: u32,
        /// Discard unit, bytes; not zero.
        discard_granularity @ 4: u32,
        /// Largest discard, sectors; 0 for none.
        max_discard_sectors @ 8: u32,
        /// Largest write-zeroes, sectors; 0 for none.
        max_write_zeroes_sectors @ 12: u32,
        /// Ranges per discard: 1 if discard is supported.
        max_discard_segments @ 16: u16,
        /// Zero.
        reserved0 @ 18: u16,
    }
}

uapi_struct! {
    /// Device numbers, written by the kernel in GET_PARAMS. Clear its type bit before SET_PARAMS.
    pub struct ublk_param_devt: 16, align 4 {
        /// Major number of the character device.
        char_major @ 0: u32,
        /// Minor number of the character device.
        char_minor @ 4: u32,
        /// Major number of the block device, 0 before it is started.
        disk_major @ 8: u32,
        /// Minor number of the block device.
        disk_minor @ 12: u32,
    }
}

uapi_struct! {
    /// Limits of a zoned device. Since 6.6.
    pub struct ublk_param_zoned: 32, align 4 {
        /// Maximum number of open zones, 0 for no limit.
        max_open_zones @ 0: u32,
        /// Maximum number of active zones, 0 for no limit.
        max_active_zones @ 4: u32,
        /// Largest zone append, sectors; not zero.
        max_zone_append_sectors @ 8: u32,
        /// Zero.
        reserved @ 12: [u8; 20],
    }
}

uapi_struct! {
    /// Alignment of the memory of requests. Since 6.15; older kernels ignore it.
    pub struct ublk_param_dma_align: 8, align 4 {
        /// Mask form, bytes minus one: 511 for 512-byte alignment.
        alignment @ 0: u32,
        /// Zero.
        pad @ 4: [u8; 4],
    }
}

uapi_struct! {
    /// Limits for the segments of a request. Since 6.15; older kernels ignore it.
    pub struct ublk_param_segment: 16, align 8 {
        /// Mask of a boundary that segments do not cross, bytes; plus one a power of two, at least
        /// 4096.
        seg_boundary_mask @ 0: u64,
        /// Longest segment, bytes; at least 4096.
        max_segment_size @ 8: u32,
        /// Maximum number of segments.
        max_segments @ 12: u16,
        /// Zero.
        pad @ 14: [u8; 2],
    }
}

uapi_struct! {
    /// Integrity metadata. Since 7.0; needs [`super::UBLK_F_INTEGRITY`].
    pub struct ublk_param_integrity: 16, align 4 {
        /// `LBMD_PI_CAP_*`.
        flags @ 0: u32,
        /// Maximum number of integrity segments, 0 for no limit.
        max_integrity_segments @ 4: u16,
        /// log2 of the bytes of data that one metadata tuple covers.
        interval_exp @ 6: u8,
        /// Bytes of metadata per interval; not zero.
        metadata_size @ 7: u8,
        /// Offset of the protection information in the metadata, bytes.
        pi_offset @ 8: u8,
        /// `LBMD_PI_CSUM_*`.
        csum_type @ 9: u8,
        /// Bytes of application tag.
        tag_size @ 10: u8,
        /// Zero.
        pad @ 11: [u8; 5],
    }
}

uapi_struct! {
    /// All parameters. Older kernels know a prefix of 64 (6.1), 112 (6.6), 136 (6.15) or 152 bytes
    /// (7.0); see [`ublk_params::read_prefix`].
    pub struct ublk_params: 152, align 8 {
        /// Number of valid bytes of this struct; set by the caller in both directions.
        len @ 0: u32,
        /// `UBLK_PARAM_TYPE_*`: which of the parts below are valid. The kernel silently drops bits that it does not
        /// know: read them back.
        types @ 4: u32,
        /// [`UBLK_PARAM_TYPE_BASIC`].
        basic @ 8: ublk_param_basic,
        /// [`UBLK_PARAM_TYPE_DISCARD`].
        discard @ 40: ublk_param_discard,
        /// [`UBLK_PARAM_TYPE_DEVT`].
        devt @ 60: ublk_param_devt,
        /// [`UBLK_PARAM_TYPE_ZONED`].
        zoned @ 76: ublk_param_zoned,
        /// [`UBLK_PARAM_TYPE_DMA_ALIGN`].
        dma @ 108: ublk_param_dma_align,
        /// Padding without a name in C. Zero.
        hole0 @ 116: [u8; 4],
        /// [`UBLK_PARAM_TYPE_SEGMENT`].
        seg @ 120: ublk_param_segment,
        /// [`UBLK_PARAM_TYPE_INTEGRITY`].
        integrity @ 136: ublk_param_integrity,
    }
}

uapi_consts! {
    /// The device refuses writes.
    pub const UBLK_ATTR_READ_ONLY: u32 = 1 << 0;
    /// Seeks are expensive.
    pub const UBLK_ATTR_ROTATIONAL: u32 = 1 << 1;
    /// Completed writes may be lost until a flush; without it the driver sends no flush.
    pub const UBLK_ATTR_VOLATILE_CACHE: u32 = 1 << 2;
    /// Individual writes can be made durable; only honoured with [`UBLK_ATTR_VOLATILE_CACHE`].
    pub const UBLK_ATTR_FUA: u32 = 1 << 3;

    /// `basic` is valid.
    pub const UBLK_PARAM_TYPE_BASIC: u32 = 1 << 0;
    /// `discard` is valid.
    pub const UBLK_PARAM_TYPE_DISCARD: u32 = 1 << 1;
    /// `devt` was filled in by the kernel; the server must not set it. Since 6.3.
    pub const UBLK_PARAM_TYPE_DEVT: u32 = 1 << 2;
    /// `zoned` is valid. Since 6.6.
    pub const UBLK_PARAM_TYPE_ZONED: u32 = 1 << 3;
    /// `dma` is valid. Since 6.15.
    pub const UBLK_PARAM_TYPE_DMA_ALIGN: u32 = 1 << 4;
    /// `seg` is valid. Since 6.15.
    pub const UBLK_PARAM_TYPE_SEGMENT: u32 = 1 << 5;
    /// `integrity` is valid. Since 7.0.
    pub const UBLK_PARAM_TYPE_INTEGRITY: u32 = 1 << 6;
}
