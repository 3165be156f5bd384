//! Structs of I/O commands: descriptors, commands, batches, automatic buffer registration.

uapi_struct! {
    /// An I/O descriptor: the request of a tag. Written by the driver before it completes the fetch; copy it out of the
    /// mapping before use. Valid until the tag is committed.
    #[doc(alias = "iod")]
    pub struct ublksrv_io_desc: 24, align 8 {
        /// Operation in bits 0 to 7, `UBLK_IO_F_*` in their absolute positions above.
        op_flags @ 0: u32,
        /// Length in sectors of 512 bytes; number of zones in a zone report.
        #[doc(alias = "nr_zones")]
        nr_sectors | nr_zones @ 4: u32,
        /// First sector of 512 bytes; all ones in a flush.
        start_sector @ 8: u64,
        /// Position of the data: the tag's buffer, the registration word, or a position in shared memory, depending on
        /// the data mode and on [`UBLK_IO_F_SHMEM_ZC`].
        addr @ 16: u64,
    }
}

uapi_struct! {
    /// An I/O command, in the command area of an SQE. Written by the server.
    pub struct ublksrv_io_cmd: 16, align 8 {
        /// Queue.
        q_id @ 0: u16,
        /// Tag.
        tag @ 2: u16,
        /// Result to commit: the full byte count, 0 for requests without data, or a negative errno.
        result @ 4: i32,
        /// Address of the tag's buffer, index of a buffer table slot, or the absolute sector at which a zone append was
        /// written, depending on the command and the data mode.
        #[doc(alias = "zone_append_lba")]
        addr | zone_append_lba @ 8: u64,
    }
}

uapi_struct! {
    /// Slot in which to register the buffer of the tag's next request; its packed form is passed in `sqe.addr`, see
    /// [`crate::word`]. Since 6.16.
    pub struct ublk_auto_buf_reg: 8, align 4 {
        /// Slot in the ring's buffer table.
        index @ 0: u16,
        /// `UBLK_AUTO_BUF_REG_*`.
        flags @ 2: u8,
        /// Zero.
        reserved0 @ 3: u8,
        /// Zero.
        reserved1 @ 4: u32,
    }
}

uapi_struct! {
    /// The fixed part of a batch element; optional words follow, see [`crate::batch`]. Written by the server. Since
    /// 7.0.
    pub struct ublk_elem_header: 8, align 4 {
        /// Tag.
        tag @ 0: u16,
        /// Slot in the ring's buffer table for the tag's next request.
        buf_index @ 2: u16,
        /// Result to commit, as in [`ublksrv_io_cmd`]; ignored when preparing.
        result @ 4: i32,
    }
}

uapi_struct! {
    /// A batch command, in the command area of an SQE. Written by the server. Since 7.0.
    pub struct ublk_batch_io: 16, align 8 {
        /// Queue.
        q_id @ 0: u16,
        /// `UBLK_BATCH_F_*`.
        flags @ 2: u16,
        /// Number of elements at `sqe.addr`.
        nr_elem @ 4: u16,
        /// Size of an element in bytes, as implied by the flags; 2 for a fetch.
        elem_bytes @ 6: u8,
        /// Zero.
        reserved @ 7: u8,
        /// Zero.
        reserved2 @ 8: u64,
    }
}

const ENODEV: i32 = 19;

uapi_consts! {
    /// A request has arrived; its descriptor is valid.
    pub const UBLK_IO_RES_OK: i32 = 0;
    /// A write has arrived whose data must be requested.
    pub const UBLK_IO_RES_NEED_GET_DATA: i32 = 1;
    /// The fetch ended without a request (`-ENODEV`): do not fetch this tag again.
    pub const UBLK_IO_RES_ABORT: i32 = -ENODEV;

    /// Read. Success is the full byte count.
    pub const UBLK_IO_OP_READ: u8 = 0;
    /// Write. Success is the full byte count.
    pub const UBLK_IO_OP_WRITE: u8 = 1;
    /// Make completed writes durable. Success is 0.
    pub const UBLK_IO_OP_FLUSH: u8 = 2;
    /// Contents are no longer needed. Success is 0.
    pub const UBLK_IO_OP_DISCARD: u8 = 3;
    /// Never sent by the driver.
    pub const UBLK_IO_OP_WRITE_SAME: u8 = 4;
    /// Make the range read as zeros. Success is 0.
    pub const UBLK_IO_OP_WRITE_ZEROES: u8 = 5;
    /// Open a zone. Since 6.6.
    pub const UBLK_IO_OP_ZONE_OPEN: u8 = 10;
    /// Close a zone. Since 6.6.
    pub const UBLK_IO_OP_ZONE_CLOSE: u8 = 11;
    /// Finish a zone. Since 6.6.
    pub const UBLK_IO_OP_ZONE_FINISH: u8 = 12;
    /// Append to a zone; success is the byte count, plus the position. Since 6.6.
    pub const UBLK_IO_OP_ZONE_APPEND: u8 = 13;
    /// Reset all zones. Since 6.6.
    pub const UBLK_IO_OP_ZONE_RESET_ALL: u8 = 14;
    /// Reset a zone. Since 6.6.
    pub const UBLK_IO_OP_ZONE_RESET: u8 = 15;
    /// Report zones as an array of [`super::blk_zone`]; success is the full byte count of the
    /// array. Since 6.6.
    pub const UBLK_IO_OP_REPORT_ZONES: u8 = 18;

    /// Do not retry on device errors (a hint). Bit of `op_flags`.
    pub const UBLK_IO_F_FAILFAST_DEV: u32 = 1 << 8;
    /// Do not retry on transport errors (a hint). Bit of `op_flags`.
    pub const UBLK_IO_F_FAILFAST_TRANSPORT: u32 = 1 << 9;
    /// Do not retry on driver errors (a hint). Bit of `op_flags`.
    pub const UBLK_IO_F_FAILFAST_DRIVER: u32 = 1 << 10;
    /// File system metadata (a hint). Bit of `op_flags`.
    pub const UBLK_IO_F_META: u32 = 1 << 11;
    /// The write must be durable before it is committed. Bit of `op_flags`.
    pub const UBLK_IO_F_FUA: u32 = 1 << 13;
    /// Write zeroes must keep the blocks allocated. Bit of `op_flags`.
    pub const UBLK_IO_F_NOUNMAP: u32 = 1 << 15;
    /// Swap I/O (a hint). Bit of `op_flags`.
    pub const UBLK_IO_F_SWAP: u32 = 1 << 16;
    /// Automatic registration failed: register the buffer with a command. Bit of `op_flags`. Since 6.16.
    pub const UBLK_IO_F_NEED_REG_BUF: u32 = 1 << 17;
    /// The request has an integrity buffer. Bit of `op_flags`. Since 7.0.
    pub const UBLK_IO_F_INTEGRITY: u32 = 1 << 18;
    /// The data is in registered shared memory, at the position in `addr`. Bit of `op_flags`. Since 7.1.
    pub const UBLK_IO_F_SHMEM_ZC: u32 = 1 << 19;

    /// If the slot is in use, deliver the request with [`UBLK_IO_F_NEED_REG_BUF`] instead of failing it. Since 6.16.
    pub const UBLK_AUTO_BUF_REG_FALLBACK: u8 = 1 << 0;
    /// Every valid bit of `ublk_auto_buf_reg.flags`.
    pub const UBLK_AUTO_BUF_REG_F_MASK: u8 = UBLK_AUTO_BUF_REG_FALLBACK;

    /// Elements carry the sector at which a zone append was written. Since 7.0.
    pub const UBLK_BATCH_F_HAS_ZONE_LBA: u16 = 1 << 0;
    /// Elements carry a buffer address. Since 7.0.
    pub const UBLK_BATCH_F_HAS_BUF_ADDR: u16 = 1 << 1;
    /// [`UBLK_AUTO_BUF_REG_FALLBACK`] for all elements. Since 7.0.
    pub const UBLK_BATCH_F_AUTO_BUF_REG_FALLBACK: u16 = 1 << 2;
}
