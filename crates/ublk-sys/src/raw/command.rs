//! Command numbers: control commands on `/dev/ublk-control`, I/O commands on `/dev/ublkcN`.

use super::{ublk_batch_io, ublksrv_ctrl_cmd, ublksrv_io_cmd};
use crate::ioctl::{ior, iowr};

uapi_consts! {
    /// Legacy number of [`UBLK_U_CMD_GET_QUEUE_AFFINITY`]. Legacy numbers are refused by kernels
    /// built without `CONFIG_BLKDEV_UBLK_LEGACY_OPCODES`; send the encoded ones.
    pub const UBLK_CMD_GET_QUEUE_AFFINITY: u32 = 0x01;
    /// Legacy number of [`UBLK_U_CMD_GET_DEV_INFO`].
    pub const UBLK_CMD_GET_DEV_INFO: u32 = 0x02;
    /// Legacy number of [`UBLK_U_CMD_ADD_DEV`].
    pub const UBLK_CMD_ADD_DEV: u32 = 0x04;
    /// Legacy number of [`UBLK_U_CMD_DEL_DEV`].
    pub const UBLK_CMD_DEL_DEV: u32 = 0x05;
    /// Legacy number of [`UBLK_U_CMD_START_DEV`].
    pub const UBLK_CMD_START_DEV: u32 = 0x06;
    /// Legacy number of [`UBLK_U_CMD_STOP_DEV`].
    pub const UBLK_CMD_STOP_DEV: u32 = 0x07;
    /// Legacy number of [`UBLK_U_CMD_SET_PARAMS`].
    pub const UBLK_CMD_SET_PARAMS: u32 = 0x08;
    /// Legacy number of [`UBLK_U_CMD_GET_PARAMS`].
    pub const UBLK_CMD_GET_PARAMS: u32 = 0x09;
    /// Legacy number of [`UBLK_U_CMD_START_USER_RECOVERY`].
    pub const UBLK_CMD_START_USER_RECOVERY: u32 = 0x10;
    /// Legacy number of [`UBLK_U_CMD_END_USER_RECOVERY`].
    pub const UBLK_CMD_END_USER_RECOVERY: u32 = 0x11;
    /// Legacy number of [`UBLK_U_CMD_GET_DEV_INFO2`].
    pub const UBLK_CMD_GET_DEV_INFO2: u32 = 0x12;

    /// Returns a mask of the CPUs whose requests go to queue `data[0]`. `addr`/`len`: the mask, a multiple of 8 bytes,
    /// at least the kernel's CPU count in bits. Since 6.0.
    pub const UBLK_U_CMD_GET_QUEUE_AFFINITY: u32 = ior::<ublksrv_ctrl_cmd>(b'u', 0x01);
    /// Returns a [`super::ublksrv_ctrl_dev_info`] (`addr`, `len` at least 64). Never waits. Since 6.0.
    pub const UBLK_U_CMD_GET_DEV_INFO: u32 = ior::<ublksrv_ctrl_cmd>(b'u', 0x02);
    /// Adds a device with the parameters in the [`super::ublksrv_ctrl_dev_info`] at `addr`, which the kernel overwrites
    /// with those of the new device. `queue_id` must be 0xffff. Since 6.0.
    pub const UBLK_U_CMD_ADD_DEV: u32 = iowr::<ublksrv_ctrl_cmd>(b'u', 0x04);
    /// Stops and deletes a device, and waits until the last reference to it is gone. Since 6.0.
    pub const UBLK_U_CMD_DEL_DEV: u32 = iowr::<ublksrv_ctrl_cmd>(b'u', 0x05);
    /// Creates the block device, once every tag is fetched. `data[0]`: thread-group id of the process that opened the
    /// character device. Since 6.0.
    pub const UBLK_U_CMD_START_DEV: u32 = iowr::<ublksrv_ctrl_cmd>(b'u', 0x06);
    /// Removes the block device after its requests are finished or failed. Since 6.0.
    pub const UBLK_U_CMD_STOP_DEV: u32 = iowr::<ublksrv_ctrl_cmd>(b'u', 0x07);
    /// Sets parameters, a [`super::ublk_params`] at `addr`. Since 6.0.
    pub const UBLK_U_CMD_SET_PARAMS: u32 = iowr::<ublksrv_ctrl_cmd>(b'u', 0x08);
    /// Returns the parameters in a [`super::ublk_params`] at `addr` whose `len` the caller presets. Since 6.0.
    pub const UBLK_U_CMD_GET_PARAMS: u32 = ior::<ublksrv_ctrl_cmd>(b'u', 0x09);
    /// Begins recovery of a device whose server is gone. Since 6.1.
    pub const UBLK_U_CMD_START_USER_RECOVERY: u32 = iowr::<ublksrv_ctrl_cmd>(b'u', 0x10);
    /// Ends recovery once the new server has fetched every tag. `data[0]`: thread-group id of the
    /// new opener. Since 6.1.
    pub const UBLK_U_CMD_END_USER_RECOVERY: u32 = iowr::<ublksrv_ctrl_cmd>(b'u', 0x11);
    /// Like [`UBLK_U_CMD_GET_DEV_INFO`], with the character device's path before the payload, for unprivileged callers.
    /// Since 6.3.
    pub const UBLK_U_CMD_GET_DEV_INFO2: u32 = ior::<ublksrv_ctrl_cmd>(b'u', 0x12);
    /// Returns a word of the `UBLK_F_*` bits that the driver knows; `len` must be [`super::UBLK_FEATURES_LEN`]. Needs
    /// no device and no privilege. Since 6.5.
    pub const UBLK_U_CMD_GET_FEATURES: u32 = ior::<ublksrv_ctrl_cmd>(b'u', 0x13);
    /// Like [`UBLK_U_CMD_DEL_DEV`] without waiting for references. Since 6.9; refused (`EINVAL`) for unprivileged
    /// devices.
    pub const UBLK_U_CMD_DEL_DEV_ASYNC: u32 = ior::<ublksrv_ctrl_cmd>(b'u', 0x14);
    /// Changes the capacity to `data[0]` sectors of 512 bytes. Since 6.16; only send it to a started
    /// device, older kernels crash otherwise.
    pub const UBLK_U_CMD_UPDATE_SIZE: u32 = iowr::<ublksrv_ctrl_cmd>(b'u', 0x15);
    /// Holds new I/O and aborts idle fetches, to replace the server. `data[0]`: timeout in milliseconds, 0 for none.
    /// Since 6.16.
    pub const UBLK_U_CMD_QUIESCE_DEV: u32 = iowr::<ublksrv_ctrl_cmd>(b'u', 0x16);
    /// Like [`UBLK_U_CMD_STOP_DEV`], but fails with `EBUSY` while the block device is open. Since 7.0.
    pub const UBLK_U_CMD_TRY_STOP_DEV: u32 = iowr::<ublksrv_ctrl_cmd>(b'u', 0x17);
    /// Registers shared memory, a [`super::ublk_shmem_buf_reg`] at `addr`; the result is the buffer's index. Since 7.1.
    pub const UBLK_U_CMD_REG_BUF: u32 = iowr::<ublksrv_ctrl_cmd>(b'u', 0x18);
    /// Unregisters the shared memory with index `data[0]`. Since 7.1.
    pub const UBLK_U_CMD_UNREG_BUF: u32 = iowr::<ublksrv_ctrl_cmd>(b'u', 0x19);

    /// Legacy number of [`UBLK_U_IO_FETCH_REQ`].
    pub const UBLK_IO_FETCH_REQ: u32 = 0x20;
    /// Legacy number of [`UBLK_U_IO_COMMIT_AND_FETCH_REQ`].
    pub const UBLK_IO_COMMIT_AND_FETCH_REQ: u32 = 0x21;
    /// Legacy number of [`UBLK_U_IO_NEED_GET_DATA`].
    pub const UBLK_IO_NEED_GET_DATA: u32 = 0x22;

    /// Arms a tag for the first time; completes when a request arrives. The submitting thread
    /// becomes the tag's daemon. Since 6.0.
    pub const UBLK_U_IO_FETCH_REQ: u32 = iowr::<ublksrv_io_cmd>(b'u', 0x20);
    /// Commits a result and arms the tag again. Since 6.0.
    pub const UBLK_U_IO_COMMIT_AND_FETCH_REQ: u32 = iowr::<ublksrv_io_cmd>(b'u', 0x21);
    /// Requests a write's data after [`super::UBLK_IO_RES_NEED_GET_DATA`]. Since 6.0.
    pub const UBLK_U_IO_NEED_GET_DATA: u32 = iowr::<ublksrv_io_cmd>(b'u', 0x22);
    /// Registers a request's buffer in the ring's buffer table at index `addr`. Since 6.15.
    pub const UBLK_U_IO_REGISTER_IO_BUF: u32 = iowr::<ublksrv_io_cmd>(b'u', 0x23);
    /// Unregisters a request's buffer from the ring's buffer table. Since 6.15.
    pub const UBLK_U_IO_UNREGISTER_IO_BUF: u32 = iowr::<ublksrv_io_cmd>(b'u', 0x24);
    /// Prepares tags in batch mode. All or nothing. Since 7.0.
    pub const UBLK_U_IO_PREP_IO_CMDS: u32 = iowr::<ublk_batch_io>(b'u', 0x25);
    /// Commits results in batch mode; the result is the number of bytes of elements consumed.
    /// Since 7.0.
    pub const UBLK_U_IO_COMMIT_IO_CMDS: u32 = iowr::<ublk_batch_io>(b'u', 0x26);
    /// Fetches tags in batch mode, multishot, into provided buffers of `u16` tags. Since 7.0.
    pub const UBLK_U_IO_FETCH_IO_CMDS: u32 = iowr::<ublk_batch_io>(b'u', 0x27);
}
