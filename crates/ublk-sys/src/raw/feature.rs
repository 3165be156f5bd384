//! Feature bits of a device and of the driver (`ublksrv_ctrl_dev_info.flags`, GET_FEATURES).

uapi_consts! {
    /// Request buffers can be registered with the ring. Usable since 6.15; older kernels clear it.
    /// Refused (`EINVAL`) for unprivileged devices.
    pub const UBLK_F_SUPPORT_ZERO_COPY: u64 = 1 << 0;
    /// Commands complete in task context. Always reported; requesting it has no effect. Since 6.0.
    pub const UBLK_F_URING_CMD_COMP_IN_TASK: u64 = 1 << 1;
    /// The server fetches a write's data with a separate command. The kernel clears it if a newer data mode is set,
    /// too. Since 6.0.
    pub const UBLK_F_NEED_GET_DATA: u64 = 1 << 2;
    /// The device outlives its server; requests that the server held fail. Since 6.1.
    pub const UBLK_F_USER_RECOVERY: u64 = 1 << 3;
    /// With [`UBLK_F_USER_RECOVERY`]: requests that the dead server held are sent again, perhaps a second time. Since
    /// 6.1.
    pub const UBLK_F_USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// The device belongs to an unprivileged user. Cleared for callers with `CAP_SYS_ADMIN`. Since 6.3.
    pub const UBLK_F_UNPRIVILEGED_DEV: u64 = 1 << 5;
    /// The driver accepts encoded command numbers. Always reported. Since 6.4.
    pub const UBLK_F_CMD_IOCTL_ENCODE: u64 = 1 << 6;
    /// The server transfers data with `pread` and `pwrite` on the character device. Since 6.5.
    pub const UBLK_F_USER_COPY: u64 = 1 << 7;
    /// The device is zoned. Since 6.6; needs a data mode in which the driver does not copy.
    pub const UBLK_F_ZONED: u64 = 1 << 8;
    /// With [`UBLK_F_USER_RECOVERY`]: I/O fails while there is no server. Since 6.13.
    pub const UBLK_F_USER_RECOVERY_FAIL_IO: u64 = 1 << 9;
    /// [`super::UBLK_U_CMD_UPDATE_SIZE`] exists. Since 6.16.
    pub const UBLK_F_UPDATE_SIZE: u64 = 1 << 10;
    /// Request buffers are registered with the ring before they are delivered. Since 6.16.
    pub const UBLK_F_AUTO_BUF_REG: u64 = 1 << 11;
    /// [`super::UBLK_U_CMD_QUIESCE_DEV`] is allowed; needs [`UBLK_F_USER_RECOVERY`]. Since 6.16.
    pub const UBLK_F_QUIESCE: u64 = 1 << 12;
    /// Each tag may have its own daemon thread. Forced on, except with [`UBLK_F_BATCH_IO`]. Since 6.16.
    pub const UBLK_F_PER_IO_DAEMON: u64 = 1 << 13;
    /// Any thread may register and unregister buffers. Forced on. Since 6.17.
    pub const UBLK_F_BUF_REG_OFF_DAEMON: u64 = 1 << 14;
    /// Tags are prepared, fetched and committed in batches. Since 7.0.
    pub const UBLK_F_BATCH_IO: u64 = 1 << 15;
    /// Requests may carry an integrity buffer; needs [`UBLK_F_USER_COPY`]. Since 7.0.
    pub const UBLK_F_INTEGRITY: u64 = 1 << 16;
    /// [`super::UBLK_U_CMD_TRY_STOP_DEV`] exists. Forced on. Since 7.0.
    pub const UBLK_F_SAFE_STOP_DEV: u64 = 1 << 17;
    /// No partition scan when the device starts. Since 7.0.
    pub const UBLK_F_NO_AUTO_PART_SCAN: u64 = 1 << 18;
    /// Memory shared with clients can be registered. Since 7.1.
    pub const UBLK_F_SHMEM_ZC: u64 = 1 << 19;
    /// `io_desc_size` sets the size of a descriptor. Since 7.3.
    pub const UBLK_F_IO_DESC_SIZE: u64 = 1 << 20;
}
