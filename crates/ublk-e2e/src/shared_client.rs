//! A client whose buffers are memory shared with the device's server.
//!
//! # Why there is `unsafe` here
//! The memory is a shared mapping: it is accessed by address only, and the calls here complete before it is unmapped.
#![expect(
    unsafe_code,
    reason = "direct I/O from a mapping that others write, too"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

use anyhow::{Context, Result, ensure};

/// A mapped file of memory; unmapped on drop.
///
/// # Invariants
/// `base` is the start of a live mapping of `len` bytes, readable and writable, owned by this value.
#[derive(Debug)]
pub struct SharedBuffers {
    base: NonNull<u8>,
    len: usize,
}

impl SharedBuffers {
    /// Maps the whole file.
    pub fn map(file: &File) -> Result<Self> {
        let len = usize::try_from(file.metadata()?.len())?;
        // SAFETY: a new mapping at an address of the kernel's choice; the result is checked below.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("map the memory");
        }
        let base = NonNull::new(base.cast()).context("a mapping at 0")?;
        Ok(Self { base, len })
    }

    fn at(&self, at: usize, len: usize) -> Result<*mut u8> {
        ensure!(
            at <= self.len && len <= self.len - at,
            "{at}+{len} is outside"
        );
        // SAFETY: inside the mapping, by the check above.
        Ok(unsafe { self.base.as_ptr().add(at) })
    }

    /// Copies bytes into the memory.
    pub fn put(&self, at: usize, bytes: &[u8]) -> Result<()> {
        let place = self.at(at, bytes.len())?;
        // SAFETY: the range is that long; none of our I/O is in flight, and no slice is part of the mapping.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        Ok(())
    }

    /// Copies bytes out of the memory.
    pub fn get(&self, at: usize, len: usize) -> Result<Vec<u8>> {
        let place = self.at(at, len)?;
        let mut bytes = vec![0; len];
        // SAFETY: as in `put`.
        unsafe { std::ptr::copy_nonoverlapping(place, bytes.as_mut_ptr(), len) };
        Ok(bytes)
    }

    /// Writes memory to a device in one call.
    pub fn write(&self, device: &File, at: usize, len: usize, offset: u64) -> Result<()> {
        let (place, offset) = (self.at(at, len)?, libc::off_t::try_from(offset)?);
        // SAFETY: `len` readable bytes for the duration of the call.
        let done = unsafe { libc::pwrite(device.as_raw_fd(), place.cast(), len, offset) };
        whole(done, len).context("write from shared memory")
    }

    /// Reads a device into memory in one call.
    pub fn read(&self, device: &File, at: usize, len: usize, offset: u64) -> Result<()> {
        let (place, offset) = (self.at(at, len)?, libc::off_t::try_from(offset)?);
        // SAFETY: `len` writable bytes for the duration of the call, to which no reference exists.
        let done = unsafe { libc::pread(device.as_raw_fd(), place.cast(), len, offset) };
        whole(done, len).context("read into shared memory")
    }
}

fn whole(done: isize, len: usize) -> Result<()> {
    if done < 0 {
        return Err(io::Error::last_os_error().into());
    }
    ensure!(usize::try_from(done)? == len, "{done} bytes of {len}");
    Ok(())
}

impl Drop for SharedBuffers {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours (invariant), and no address of it outlives this value.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
