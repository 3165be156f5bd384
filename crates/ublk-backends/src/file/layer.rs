//! What the backend asks of a file: tests put one of their own there.

#![forbid(unsafe_code)]

use ublk_core::Errno;

/// A file that data is read from and written to, by absolute positions in bytes.
///
/// Reads and writes may be short, as those of the kernel; who calls goes on behind what was done.
pub(crate) trait Layer: Send + Sync + 'static {
    /// Reads into `buf`; 0 at the end of the file.
    fn read(&self, buf: &mut [u8], at: u64) -> Result<usize, Errno>;

    /// Writes from `buf`.
    fn write(&self, buf: &[u8], at: u64) -> Result<usize, Errno>;

    /// Makes every write that completed before durable.
    fn sync(&self) -> Result<(), Errno>;

    /// Gives a range back.
    fn discard(&self, at: u64, len: u64) -> Result<(), Errno>;

    /// Makes a range read as zeroes and gives its storage back. EOPNOTSUPP where that cannot be had.
    fn unmap(&self, at: u64, len: u64) -> Result<(), Errno>;

    /// Makes a range read as zeroes whose storage stays allocated. EOPNOTSUPP where that cannot be had.
    fn zero(&self, at: u64, len: u64) -> Result<(), Errno>;
}
