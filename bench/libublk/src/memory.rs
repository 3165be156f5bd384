//! The memory of a mem target.

use std::cell::UnsafeCell;

/// Bytes that several queues read and write at once, like those of a disk.
///
/// # Invariants
/// Only [`Memory::read`] and [`Memory::write`] access the bytes, through raw pointers; no reference to them is ever
/// made after construction.
#[derive(Debug)]
pub struct Memory {
    bytes: Box<[UnsafeCell<u8>]>,
}

// SAFETY: access is by copies through raw pointers only (see the invariant). Overlapping requests race as on any disk;
// they copy bytes, for which every pattern is valid.
unsafe impl Sync for Memory {}

impl Memory {
    /// Creates zeroed memory.
    pub fn new(bytes: u64) -> Self {
        let length = usize::try_from(bytes).expect("64-bit sizes");
        let zeroes = vec![0_u8; length].into_boxed_slice();
        let raw = Box::into_raw(zeroes) as *mut [UnsafeCell<u8>];
        // SAFETY: `raw` comes from `Box::into_raw` just above, and `UnsafeCell<u8>` has the layout
        // of `u8`, so that size and alignment of the allocation are the same.
        let bytes = unsafe { Box::from_raw(raw) };
        Self { bytes }
    }

    /// Copies bytes at an offset to `buffer`; `None` if they are not all inside.
    pub fn read(&self, offset: usize, buffer: &mut [u8]) -> Option<()> {
        let from = self.bytes.get(offset..offset.checked_add(buffer.len())?)?;
        let from = from.as_ptr().cast::<u8>();
        // SAFETY: `from` is valid for the length of `buffer`, which the range above was made of;
        // `buffer` is a unique borrow of other memory.
        unsafe { from.copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len()) };
        Some(())
    }

    /// Copies `buffer` to an offset; `None` if it does not fit.
    pub fn write(&self, offset: usize, buffer: &[u8]) -> Option<()> {
        let to = self.bytes.get(offset..offset.checked_add(buffer.len())?)?;
        let to = UnsafeCell::raw_get(to.as_ptr());
        // SAFETY: as in `read`, and the cells allow writing through a shared reference.
        unsafe { to.copy_from_nonoverlapping(buffer.as_ptr(), buffer.len()) };
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::Memory;

    #[test]
    fn what_was_written_is_read() {
        let memory = Memory::new(16);
        memory.write(4, b"abcd").unwrap();
        let mut buffer = [0; 6];
        memory.read(3, &mut buffer).unwrap();
        assert_eq!(&buffer, b"\0abcd\0");
        assert!(memory.write(13, b"abcd").is_none());
        assert!(memory.read(usize::MAX, &mut buffer).is_none());
    }
}
