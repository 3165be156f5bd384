//! An open device: its character device together with its geometry.
#![expect(unsafe_code, reason = "declares an unsafe constructor; runs none")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::Geometry;

/// An open ublk character device with the geometry that the driver reported for it.
///
/// The data plane only accepts this type. The driver writes as many bytes to a tag's buffer as *its* geometry allows,
/// at the addresses in *this* descriptor's commands, so a mismatch would overwrite memory. The control plane creates it
/// (`Controller::open_device`). Clones share the open device; DEL_DEV waits for the last one.
///
/// # Invariants
/// Both belong to the same device: a device number is not reused while its character device is open.
#[derive(Debug, Clone)]
pub struct OpenDevice {
    char_device: Arc<OwnedFd>,
    geometry: Geometry,
}

impl OpenDevice {
    /// Pairs a character device with its geometry.
    ///
    /// # Safety
    /// `char_device` must be `/dev/ublkcN`, opened for reading and writing, and `geometry` the driver's report for that
    /// device, made after the open, or earlier by somebody who has kept the device from being deleted since.
    #[must_use]
    pub unsafe fn new(char_device: OwnedFd, geometry: Geometry) -> Self {
        Self {
            char_device: Arc::new(char_device),
            geometry,
        }
    }

    /// The device's geometry.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The character device, for shared use.
    #[must_use]
    pub const fn char_device(&self) -> &Arc<OwnedFd> {
        &self.char_device
    }
}

impl AsFd for OpenDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.char_device.as_fd()
    }
}
