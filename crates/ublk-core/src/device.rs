//! A device that can be served: its character device and its geometry, which belong together.
#![expect(unsafe_code, reason = "declares an unsafe constructor; runs none")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::Geometry;

/// The character device of a ublk device, open, with the geometry that the driver reported of it while it was.
///
/// The data plane takes nothing else: the driver writes as many bytes to a tag's buffer as *its* geometry allows, at
/// the addresses of *this* descriptor's commands, so that a pair that does not belong together is memory overwritten.
/// The control plane gives it (`Controller::open_device`). Clones are the same open device; DEL_DEV waits for the last.
///
/// # Invariants
/// Both are of one device: a number is not given again while its character device is open.
#[derive(Debug, Clone)]
pub struct OpenDevice {
    char_device: Arc<OwnedFd>,
    geometry: Geometry,
}

impl OpenDevice {
    /// The pair of both.
    ///
    /// # Safety
    /// `char_device` is `/dev/ublkcN` as opened for reading and writing, and `geometry` is what the driver says of that
    /// device: reported after the open, or before by whoever has kept the device from being deleted since.
    #[must_use]
    pub unsafe fn new(char_device: OwnedFd, geometry: Geometry) -> Self {
        Self {
            char_device: Arc::new(char_device),
            geometry,
        }
    }

    /// What the device is.
    #[must_use]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The character device, for those who share it.
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
