//! The blocking backend trait: about ten lines of safe code make a device.

use crate::{Errno, Limits, ZoneAction, ZoneReport};

/// What answers a device's requests, by calls that return when the work is done.
///
/// One value serves all queues, from several threads at once. Offsets and lengths are bytes, whole
/// logical blocks, and inside the device: the engine has checked them. A panic is contained: the
/// request is answered with EIO and counted (L25).
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
    /// The device this backend can serve. Asked before the device is made and while it starts; gives the same each time.
    fn limits(&self) -> Limits;

    /// Whether the backend looks at no data. It is then called with empty slices, whatever the plan, so zero copy
    /// can serve it. Known when the program is built, so that nothing of it is asked for each request; a trait object
    /// is never blind, nor an `Arc`.
    #[must_use]
    fn is_blind() -> bool
    where
        Self: Sized,
    {
        false
    }

    /// Fills the whole of `buf` from `offset`, or fails (L05). `buf` holds zeroes or old data of
    /// this device's own requests at entry.
    ///
    /// # Errors
    /// The errno the block layer shall see.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno>;

    /// Writes the whole of `buf` at `offset`, or fails. With `fua` the data is durable on return;
    /// it is set only where [`Limits::fua`] was declared.
    ///
    /// # Errors
    /// The errno the block layer shall see.
    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        let _ = (buf, offset, fua);
        Err(Errno::EOPNOTSUPP)
    }

    /// Makes every write that completed before this call durable (L07). Sent only where
    /// [`Limits::volatile_cache`] holds, which is the default.
    ///
    /// # Errors
    /// The errno the block layer shall see. The default refuses, since a FLUSH answered without
    /// work would lose data without a sign: override it, or renounce the volatile cache.
    fn flush(&self) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Gives back the storage of a range; what is read there afterwards is undefined by the block
    /// layer, zeroes by good custom. Sent only where [`Limits::max_discard`] is not 0.
    ///
    /// # Errors
    /// The errno the block layer shall see.
    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        let _ = (offset, len);
        Err(Errno::EOPNOTSUPP)
    }

    /// Makes a range read as zeroes. With `may_unmap` its storage may be given back; without, it
    /// must stay allocated (`UBLK_IO_F_NOUNMAP`). Sent only where [`Limits::max_write_zeroes`] is
    /// not 0.
    ///
    /// # Errors
    /// The errno the block layer shall see.
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        let _ = (offset, len, may_unmap);
        Err(Errno::EOPNOTSUPP)
    }

    /// Reports zones, in their order, from the one that begins at `offset` on, until the last or until the report has no
    /// [room](ZoneReport::room). Sent only where [`Limits::zones`] are declared: when the device starts, and whenever the
    /// block layer has lost sight of them.
    ///
    /// # Errors
    /// The errno the block layer shall see; a device whose zones cannot be reported does not start.
    fn report_zones(&self, offset: u64, report: &mut ZoneReport<'_>) -> Result<(), Errno> {
        let _ = (offset, report);
        Err(Errno::EOPNOTSUPP)
    }

    /// Writes the whole of `buf` at the write pointer of the zone that begins at `zone`, or fails; gives the byte of the
    /// device where it landed. Several may be under way in a zone. Sent only where [`Limits::zones`] are declared.
    ///
    /// # Errors
    /// The errno the block layer shall see; ENOSPC where the zone has no room for all of it.
    fn zone_append(&self, buf: &[u8], zone: u64) -> Result<u64, Errno> {
        let _ = (buf, zone);
        Err(Errno::EOPNOTSUPP)
    }

    /// Does something to the zone that begins at `zone`. Sent only where [`Limits::zones`] are declared.
    ///
    /// # Errors
    /// The errno the block layer shall see.
    fn manage_zone(&self, action: ZoneAction, zone: u64) -> Result<(), Errno> {
        let _ = (action, zone);
        Err(Errno::EOPNOTSUPP)
    }

    /// Resets all zones that have a write pointer: they are empty, and their data gone.
    ///
    /// # Errors
    /// The errno the block layer shall see.
    fn reset_all_zones(&self) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// The device is to have `size` bytes (Linux 6.16): room for them is there when this returns. Called before the
    /// block layer hears of a larger size, and after it has heard of a smaller one; requests go on meanwhile.
    ///
    /// # Errors
    /// Why the backend cannot: the device grows no larger. Of a smaller one it is not heard. The default refuses.
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
