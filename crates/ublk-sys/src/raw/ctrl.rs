//! Structs of control commands: the command itself, device information, shared memory.

uapi_struct! {
    /// A control command, in the command area of a 128-byte SQE. Written by the server, read by the driver.
    pub struct ublksrv_ctrl_cmd: 32, align 8 {
        /// Device number; `u32::MAX` in ADD_DEV requests the lowest free one. Ignored by GET_FEATURES.
        dev_id @ 0: u32,
        /// 0xffff for every command (a queue is named in `data`).
        queue_id @ 4: u16,
        /// Size of the buffer at `addr` in bytes, including a path.
        len @ 6: u16,
        /// Address of the command's buffer, read or written by the driver, or 0.
        addr @ 8: u64,
        /// The command's inline argument.
        data @ 16: [u64; 1],
        /// Length of the character device's path before the payload at `addr`, including its NUL; 0 for none.
        /// Unprivileged devices and GET_DEV_INFO2 need it. Since 6.3.
        dev_path_len @ 24: u16,
        /// Zero.
        pad @ 26: u16,
        /// Zero.
        reserved @ 28: u32,
    }
}

uapi_struct! {
    /// Device information: requested in ADD_DEV, granted in the reply. Use the kernel's reply, not the request.
    pub struct ublksrv_ctrl_dev_info: 64, align 8 {
        /// Number of hardware queues; the kernel limits it to the CPU count.
        nr_hw_queues @ 0: u16,
        /// Tags per queue, 1 to 4096.
        queue_depth @ 2: u16,
        /// `UBLK_S_DEV_*`, written by the kernel.
        state @ 4: u16,
        /// Size of an I/O descriptor in bytes; valid only with [`super::UBLK_F_IO_DESC_SIZE`] (7.3), 24 otherwise.
        /// Padding before 7.3, which older kernels echo.
        io_desc_size @ 6: u16,
        /// Largest request in bytes; the kernel rounds it down to whole pages.
        max_io_buf_bytes @ 8: u32,
        /// Device number; `u32::MAX` in ADD_DEV requests the lowest free one.
        dev_id @ 12: u32,
        /// Thread-group id of the server, -1 before it exists. Written by the kernel.
        ublksrv_pid @ 16: i32,
        /// Zero.
        pad1 @ 20: u32,
        /// `UBLK_F_*`: requested in ADD_DEV, in effect in the reply. The kernel drops unknown bits.
        flags @ 24: u64,
        /// For the server's own use; the driver only stores it.
        ublksrv_flags @ 32: u64,
        /// User id of the creator, written by the kernel. Since 6.3.
        owner_uid @ 40: u32,
        /// Group id of the creator, written by the kernel. Since 6.3.
        owner_gid @ 44: u32,
        /// Zero.
        reserved1 @ 48: u64,
        /// Zero.
        reserved2 @ 56: u64,
    }
}

uapi_struct! {
    /// Shared memory to register with [`super::UBLK_U_CMD_REG_BUF`]. Written by the server. Since 7.1.
    pub struct ublk_shmem_buf_reg: 24, align 8 {
        /// Address in the calling process, page aligned.
        addr @ 0: u64,
        /// Length in bytes, page aligned, one page to 4 GiB.
        len @ 8: u64,
        /// `UBLK_SHMEM_BUF_*`.
        flags @ 16: u32,
        /// Zero.
        reserved @ 20: u32,
    }
}

uapi_consts! {
    /// The block device does not exist: not started yet, or stopped.
    pub const UBLK_S_DEV_DEAD: u16 = 0;
    /// The block device exists and has a server.
    pub const UBLK_S_DEV_LIVE: u16 = 1;
    /// The server is gone, I/O is held until another one recovers the device. Since 6.1.
    pub const UBLK_S_DEV_QUIESCED: u16 = 2;
    /// The server is gone, I/O fails until another one recovers the device. Since 6.13.
    pub const UBLK_S_DEV_FAIL_IO: u16 = 3;

    /// Size of the word that [`super::UBLK_U_CMD_GET_FEATURES`] returns, in bytes.
    pub const UBLK_FEATURES_LEN: u16 = 8;

    /// Pin the pages for reading only; such a buffer matches writes only. Since 7.1.
    pub const UBLK_SHMEM_BUF_READ_ONLY: u32 = 1 << 0;
}
