//! The null backend.

#![forbid(unsafe_code)]

use ublk_core::{Backend, Errno, Limits};

use crate::error::{Error, check};

/// A device that accepts everything and stores nothing.
///
/// READ leaves the tag's buffer as it is, like the kernel's null target in `kublk`: a reader gets zeroes (a buffer is
/// zeroed before its first use) or data written earlier to this same device. A tag's buffer never holds data of another
/// device or of the server's memory (L05), but do not mistake the content for what you wrote: the device exists to
/// measure the path to it.
#[derive(Debug, Clone)]
pub struct Null {
    limits: Limits,
}

impl Null {
    /// Creates a null device of `size` bytes with logical blocks of 512 or 4096 bytes.
    ///
    /// # Errors
    /// [`Error::BlockSize`], [`Error::Size`], [`Error::TooLarge`].
    pub const fn new(size: u64, block_size: u32) -> Result<Self, Error> {
        if let Err(error) = check(size, block_size) {
            return Err(error);
        }
        Ok(Self {
            limits: Limits::new(size)
                .block_size(block_size)
                .volatile_cache(false)
                // The kernel raises it to the physical block size: declare it as it will be shown.
                .discard(1 << 30, 4096)
                .write_zeroes(1 << 30)
                .quick(true),
        })
    }

    /// Makes the device refuse writes.
    #[must_use]
    pub const fn read_only(mut self, yes: bool) -> Self {
        self.limits = self.limits.read_only(yes);
        self
    }
}

impl Backend for Null {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn is_blind() -> bool {
        true
    }

    #[inline]
    fn read_at(&self, _buf: &mut [u8], _offset: u64) -> Result<(), Errno> {
        Ok(())
    }

    #[inline]
    fn write_at(&self, _buf: &[u8], _offset: u64, _fua: bool) -> Result<(), Errno> {
        Ok(())
    }

    #[inline]
    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    #[inline]
    fn discard(&self, _offset: u64, _len: u64) -> Result<(), Errno> {
        Ok(())
    }

    #[inline]
    fn write_zeroes(&self, _offset: u64, _len: u64, _may_unmap: bool) -> Result<(), Errno> {
        Ok(())
    }

    fn resize(&self, _size: u64) -> Result<(), Errno> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_everything_and_declares_it() {
        let null = Null::new(1 << 30, 4096).expect("valid");
        let limits = null.limits();
        assert!(limits.quick && !limits.volatile_cache && !limits.read_only);
        assert_eq!(limits.logical_block_size, 4096);
        assert_eq!(limits.discard_granularity, limits.physical_block_size);
        assert!(null.clone().read_only(true).limits().read_only);
        let mut buf = [3; 4096];
        assert_eq!(null.read_at(&mut buf, 0), Ok(()));
        assert_eq!(buf, [3; 4096], "the buffer is left as it was");
        assert_eq!(null.write_at(&buf, 4096, false), Ok(()));
        assert_eq!(null.discard(0, 1 << 30), Ok(()));
        assert_eq!(null.write_zeroes(0, 4096, true), Ok(()));
        assert!(Null::new(100, 512).is_err());
    }
}
