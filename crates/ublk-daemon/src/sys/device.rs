//! Opens the device that is assigned to a server.

use std::time::Duration;

use ublk_core::{Geometry, OpenDevice};

/// Opens the character device of an assignment.
///
/// The geometry comes over the link from the agent, which is this same program. The agent got it from the driver. By
/// its nonce and lock, the agent keeps the device from being deleted and recreated until the server has armed it.
pub fn open(geometry: &Geometry, within: Duration) -> Result<OpenDevice, ublk_ctrl::Error> {
    let node = ublk_ctrl::nodes::open_char(geometry.dev_id(), within)?;
    // SAFETY: as argued above; the node is the one with the geometry's number.
    Ok(unsafe { OpenDevice::new(node, *geometry) })
}
