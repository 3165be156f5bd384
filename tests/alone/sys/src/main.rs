//! ublk-sys alone: the bytes that a program with its own ring needs to add a device.

#![forbid(unsafe_code)]

use ublk_sys::{Uapi, ublksrv_ctrl_cmd, ublksrv_ctrl_dev_info, ublksrv_io_desc};

fn main() -> Result<(), ublk_sys::Error> {
    let info = ublksrv_ctrl_dev_info {
        nr_hw_queues: 4,
        queue_depth: 128,
        max_io_buf_bytes: 512 << 10,
        dev_id: u32::MAX,
        // A flag without a name in this version survives.
        flags: 1 << 63 | ublk_sys::UBLK_F_USER_COPY,
        ..ublksrv_ctrl_dev_info::ZERO
    };
    let bytes = info.to_bytes();
    // linux/ublk_cmd.h: queues at 0, depth at 2, buffer at 8, id at 12, flags at 24.
    assert_eq!(bytes.as_ref().len(), 64);
    assert_eq!(bytes.as_ref()[..4], [4, 0, 128, 0]);
    assert_eq!(bytes.as_ref()[8..16], [0, 0, 8, 0, 255, 255, 255, 255]);
    assert_eq!(bytes.as_ref()[24..32], [128, 0, 0, 0, 0, 0, 0, 128]);
    assert_eq!(ublksrv_ctrl_dev_info::read_from(bytes.as_ref())?, info);

    let command = ublksrv_ctrl_cmd {
        dev_id: u32::MAX,
        queue_id: u16::MAX,
        len: 64,
        ..ublksrv_ctrl_cmd::ZERO
    };
    assert_eq!(
        command.to_bytes().as_ref()[..8],
        [255, 255, 255, 255, 255, 255, 64, 0]
    );
    assert_eq!(ublk_sys::UBLK_U_CMD_ADD_DEV, 0xc020_7504);

    // Too few bytes are an error, not a panic.
    assert!(ublksrv_io_desc::read_from(&[0; 23]).is_err());
    println!(
        "ublk-sys: ADD_DEV is {:#x} with {} bytes",
        ublk_sys::UBLK_U_CMD_ADD_DEV,
        bytes.as_ref().len()
    );
    Ok(())
}
