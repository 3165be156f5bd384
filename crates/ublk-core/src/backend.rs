//! The blocking backend trait: about ten lines of safe code make a device.

use crate::{Errno, Limits, ZoneAction, ZoneReport};

/// Answers a device's requests with calls that return when the work is done.
///
/// One value serves all queues, from several threads at once. Offsets and lengths are in bytes; ranges are whole
/// logical blocks inside the device, which the engine has checked. A panic is contained: the request is answered with
/// EIO and counted (L25).
///
/// ```
/// use ublk_core::{Backend, Errno, Limits};
///
/// /// A device full of one letter.
/// struct Letter(u8);
///
/// impl Backend for Letter {
///     fn limits(&self) -> Limits {
///         Limits::new(1 << 20).read_only(true).quick(true)
///     }
///     fn read_at(&self, buf: &mut [u8], _offset: u64) -> Result<(), Errno> {
///         buf.fill(self.0);
///         Ok(())
///     }
/// }
/// ```
pub trait Backend: Send + Sync + 'static {
    /// The limits of the device that this backend can serve. Called before the device is created and while it starts;
    /// must return the same value each time.
    fn limits(&self) -> Limits;

    /// Whether the backend ignores the data. It is then called with empty slices in every mode, so zero copy can serve
    /// it. A constant of the type, so that nothing is tested per request; a trait object is never blind, nor is an
    /// `Arc`.
    #[must_use]
    fn is_blind() -> bool
    where
        Self: Sized,
    {
        false
    }

    /// Fills all of `buf` from `offset`, or fails (L05). On entry `buf` holds zeroes or old data of this device's own
    /// requests.
    ///
    /// # Errors
    /// The errno for the block layer.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno>;

    /// Writes all of `buf` at `offset`, or fails. With `fua` the data is durable on return; it is set only if
    /// [`Limits::fua`] was declared.
    ///
    /// # Errors
    /// The errno for the block layer.
    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        let _ = (buf, offset, fua);
        Err(Errno::EOPNOTSUPP)
    }

    /// Like [`read_at`](Self::read_at), and fills all of `metadata`: the metadata of the range, interval by interval, with
    /// all ones for blocks that have none, which nobody verifies. Called for a device with [`Limits::integrity`], if the
    /// request asks for metadata (Linux 7.0).
    ///
    /// # Errors
    /// The errno for the block layer; EILSEQ if data and metadata do not match.
    fn read_with_metadata(
        &self,
        buf: &mut [u8],
        metadata: &mut [u8],
        offset: u64,
    ) -> Result<(), Errno> {
        let _ = (buf, metadata, offset);
        Err(Errno::EOPNOTSUPP)
    }

    /// Like [`write_at`](Self::write_at), and writes all of `metadata`, which FLUSH and `fua` make durable together with the
    /// data. Called for a device with [`Limits::integrity`], if the request brings metadata (Linux 7.0). A write without
    /// metadata takes from its blocks what they have.
    ///
    /// # Errors
    /// The errno for the block layer; EILSEQ if data and metadata do not match.
    fn write_with_metadata(
        &self,
        buf: &[u8],
        metadata: &[u8],
        offset: u64,
        fua: bool,
    ) -> Result<(), Errno> {
        let _ = (buf, metadata, offset, fua);
        Err(Errno::EOPNOTSUPP)
    }

    /// Makes every write that completed before this call durable (L07). Called only if [`Limits::volatile_cache`] is
    /// set, which is the default.
    ///
    /// # Errors
    /// The errno for the block layer. The default fails, since a FLUSH that succeeds without doing anything would lose
    /// data silently: override it, or clear `volatile_cache`.
    fn flush(&self) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Deallocates the storage of a range. The block layer leaves the content undefined; by convention it reads as
    /// zeroes. Called only if [`Limits::max_discard`] is not 0.
    ///
    /// # Errors
    /// The errno for the block layer.
    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let _ = (offset, len);
        Err(Errno::EOPNOTSUPP)
    }

    /// Makes a range read as zeroes. With `may_unmap` its storage may be deallocated; without, it must stay allocated
    /// (`UBLK_IO_F_NOUNMAP`). Called only if [`Limits::max_write_zeroes`] is not 0.
    ///
    /// # Errors
    /// The errno for the block layer.
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        let _ = (offset, len, may_unmap);
        Err(Errno::EOPNOTSUPP)
    }

    /// Reports zones in order, from the one that begins at `offset` to the last, or until the report has no
    /// [room](ZoneReport::room). Called only if [`Limits::zones`] is set: when the device starts, and whenever the
    /// block layer revalidates its zones.
    ///
    /// # Errors
    /// The errno for the block layer; a device whose zones cannot be reported does not start.
    fn report_zones(&self, offset: u64, report: &mut ZoneReport<'_>) -> Result<(), Errno> {
        let _ = (offset, report);
        Err(Errno::EOPNOTSUPP)
    }

    /// Writes all of `buf` at the write pointer of the zone that begins at `zone`, or fails; returns the offset on the
    /// device at which the data was written. Several appends may be in flight in one zone. Called only if
    /// [`Limits::zones`] is set.
    ///
    /// # Errors
    /// The errno for the block layer; ENOSPC if the zone has no room for all of it.
    fn zone_append(&self, buf: &[u8], zone: u64) -> Result<u64, Errno> {
        let _ = (buf, zone);
        Err(Errno::EOPNOTSUPP)
    }

    /// Opens, closes, finishes or resets the zone that begins at `zone`. Called only if [`Limits::zones`] is set.
    ///
    /// # Errors
    /// The errno for the block layer.
    fn manage_zone(&self, action: ZoneAction, zone: u64) -> Result<(), Errno> {
        let _ = (action, zone);
        Err(Errno::EOPNOTSUPP)
    }

    /// Resets all zones that have a write pointer: they become empty and their data is lost.
    ///
    /// # Errors
    /// The errno for the block layer.
    fn reset_all_zones(&self) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Resizes the backend to `size` bytes (Linux 6.16); the space must exist on return. Called before the block layer
    /// learns of a larger size, and after it has learnt of a smaller one; requests continue meanwhile.
    ///
    /// # Errors
    /// Why the backend cannot grow: the device keeps its size. An error while shrinking is ignored. The default fails.
    fn resize(&self, size: u64) -> Result<(), Errno> {
        let _ = size;
        Err(Errno::EOPNOTSUPP)
    }
}

impl<B: Backend + ?Sized> Backend for std::sync::Arc<B> {
    fn limits(&self) -> Limits {
        (**self).limits()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        (**self).read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        (**self).write_at(buf, offset, fua)
    }
    fn read_with_metadata(
        &self,
        buf: &mut [u8],
        metadata: &mut [u8],
        offset: u64,
    ) -> Result<(), Errno> {
        (**self).read_with_metadata(buf, metadata, offset)
    }
    fn write_with_metadata(
        &self,
        buf: &[u8],
        metadata: &[u8],
        offset: u64,
        fua: bool,
    ) -> Result<(), Errno> {
        (**self).write_with_metadata(buf, metadata, offset, fua)
    }
    fn flush(&self) -> Result<(), Errno> {
        (**self).flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        (**self).discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        (**self).write_zeroes(offset, len, may_unmap)
    }
    fn report_zones(&self, offset: u64, report: &mut ZoneReport<'_>) -> Result<(), Errno> {
        (**self).report_zones(offset, report)
    }
    fn zone_append(&self, buf: &[u8], zone: u64) -> Result<u64, Errno> {
        (**self).zone_append(buf, zone)
    }
    fn manage_zone(&self, action: ZoneAction, zone: u64) -> Result<(), Errno> {
        (**self).manage_zone(action, zone)
    }
    fn reset_all_zones(&self) -> Result<(), Errno> {
        (**self).reset_all_zones()
    }
    fn resize(&self, size: u64) -> Result<(), Errno> {
        (**self).resize(size)
    }
}
