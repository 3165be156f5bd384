//! The engine's memory, as the driver accesses it.
#![expect(
    unsafe_code,
    reason = "copies data to and from the engine's buffers, like the driver"
)]

use crate::driver::Memory;

/// Accesses the addresses of the engine's commands like the driver.
pub(crate) struct ServerMemory;

impl Memory for ServerMemory {
    fn write(&self, addr: u64, data: &[u8]) {
        let place = addr as *mut u8;
        // SAFETY: the engine gave `addr` as a buffer of `max_io_bytes` with a command that has not completed
        // (or, for late writes, leaked it on purpose), and `data` is no longer than that.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), place, data.len()) };
    }

    fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let place = addr as *const u8;
        // SAFETY: as above; the request's `len` is at most `max_io_bytes`, and the server has given the
        // buffer back with its commit.
        unsafe { std::slice::from_raw_parts(place, len) }.to_vec()
    }
}
