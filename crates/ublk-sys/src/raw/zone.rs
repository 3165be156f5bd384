//! Zone descriptors of a zone report (`linux/blkzoned.h`). Since 6.6.

uapi_struct! {
    /// A zone. Written by the server in the buffer of [`super::UBLK_IO_OP_REPORT_ZONES`]; an entry with `len` 0 ends a
    /// report that is shorter than requested. Sectors are 512 bytes.
    pub struct blk_zone: 64, align 8 {
        /// First sector.
        start @ 0: u64,
        /// Length in sectors, including the part beyond the capacity.
        len @ 8: u64,
        /// Sector of the write pointer.
        wp @ 16: u64,
        /// `BLK_ZONE_TYPE_*`.
        r#type @ 24: u8,
        /// `BLK_ZONE_COND_*`.
        cond @ 25: u8,
        /// Non-sequential write resources are in use: 0 or 1.
        non_seq @ 26: u8,
        /// A reset of the write pointer is recommended: 0 or 1.
        reset @ 27: u8,
        /// Zero.
        resv @ 28: [u8; 4],
        /// Usable sectors.
        capacity @ 32: u64,
        /// Zero.
        reserved @ 40: [u8; 24],
    }
}

uapi_consts! {
    /// Written in any order.
    pub const BLK_ZONE_TYPE_CONVENTIONAL: u8 = 1;
    /// Written in sequence only.
    pub const BLK_ZONE_TYPE_SEQWRITE_REQ: u8 = 2;
    /// Preferably written in sequence.
    pub const BLK_ZONE_TYPE_SEQWRITE_PREF: u8 = 3;

    /// No write pointer.
    pub const BLK_ZONE_COND_NOT_WP: u8 = 0;
    /// Empty.
    pub const BLK_ZONE_COND_EMPTY: u8 = 1;
    /// Opened by a write.
    pub const BLK_ZONE_COND_IMP_OPEN: u8 = 2;
    /// Opened by command.
    pub const BLK_ZONE_COND_EXP_OPEN: u8 = 3;
    /// Closed, partly written.
    pub const BLK_ZONE_COND_CLOSED: u8 = 4;
    /// Can no longer be written.
    pub const BLK_ZONE_COND_READONLY: u8 = 0xd;
    /// Full.
    pub const BLK_ZONE_COND_FULL: u8 = 0xe;
    /// Can no longer be used.
    pub const BLK_ZONE_COND_OFFLINE: u8 = 0xf;
    /// Active, in a cached report. Since 6.19.
    pub const BLK_ZONE_COND_ACTIVE: u8 = 0xff;
}
