//! The file interface that the backend uses, so that tests can provide a fake.

#![forbid(unsafe_code)]

use ublk_core::Errno;

/// A file that is read and written at absolute positions in bytes.
///
/// Reads and writes may be short, like the kernel's; the caller continues.
pub(crate) trait Layer: Send + Sync + 'static {
    /// Reads into `buf`; 0 at the end of the file.
    fn read(&self, buf: &mut [u8], at: u64) -> Result<usize, Errno>;

    /// Writes from `buf`.
    fn write(&self, buf: &[u8], at: u64) -> Result<usize, Errno>;

    /// Makes every write that completed before durable.
    fn sync(&self) -> Result<(), Errno>;

    /// Discards a range.
    fn discard(&self, at: u64, len: u64) -> Result<(), Errno>;

    /// Makes a range read as zeroes and deallocates its storage. EOPNOTSUPP if that is not supported.
    fn unmap(&self, at: u64, len: u64) -> Result<(), Errno>;

    /// Makes a range read as zeroes and keeps its storage allocated. EOPNOTSUPP if that is not supported.
    fn zero(&self, at: u64, len: u64) -> Result<(), Errno>;
}
