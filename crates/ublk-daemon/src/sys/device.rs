//! The device that a server is assigned.

use std::time::Duration;

use ublk_core::{Geometry, OpenDevice};

/// Opens the character device of an assignment.
///
/// The geometry comes over the link from the agent, which is this very program: it had it from the driver, and keeps
/// the device, by its nonce and lock, from being deleted and made anew until the server has armed.
pub fn open(geometry: &Geometry, within: Duration) -> Result<OpenDevice, ublk_ctrl::Error> {
    let node = ublk_ctrl::nodes::open_char(geometry.dev_id(), within)?;
    // SAFETY: as said above; the node is that of the geometry's number.
    Ok(unsafe { OpenDevice::new(node, *geometry) })
}
