//! Rings of provided buffers: the kernel takes a buffer from the ring when an operation has data for it.
//!
//! # Why there is `unsafe` here
//! The ring is memory that the kernel reads. We write entries and the tail through pointers into our mapping.
#![expect(unsafe_code, reason = "entries and tail in shared memory")]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::errno::Errno;
use crate::error::Full;
use crate::mmap::Mapping;
use crate::sys;

/// The provided buffers of one group: added by the application, taken by the kernel in order.
///
/// The kernel does not publish its head: the CQE that carries a buffer's id ([`buffer_id`](crate::Cqe16::buffer_id))
/// says that the buffer is free again. As long as the caller reports each of them through [`taken`](Self::taken),
/// adding more than `entries` buffers is refused.
///
/// In an incremental ring (6.12) one buffer serves several operations. A CQE with `IORING_CQE_F_BUF_MORE` used the next
/// `res` bytes of it and leaves the rest in the ring: the caller keeps an offset per buffer id. The buffer counts as
/// taken with the CQE that lacks the flag.
///
/// Dropping it only unmaps our view; the kernel has pinned the pages. The group ends with
/// [`unregister_buf_ring`](crate::Ring::unregister_buf_ring) or with the ring.
///
/// # Invariants
/// `bufs` points to `entries` entries in `_map`, `entries` is a power of two, and `tail` to byte 14 of the first.
#[derive(Debug)]
pub struct BufRing {
    bufs: NonNull<sys::io_uring_buf>,
    shared_tail: NonNull<AtomicU16>,
    entries: u16,
    /// The id of the ring that the group is registered with.
    ring: u64,
    bgid: u16,
    tail: u16,
    in_ring: u16,
    _map: Mapping,
}

impl BufRing {
    pub(crate) fn new(ring: u64, bgid: u16, entries: u16) -> Result<Self, Errno> {
        let invalid = Errno::new(libc::EINVAL);
        if !entries.is_power_of_two() || entries > 32768 {
            return Err(invalid);
        }
        let map = Mapping::anonymous(usize::from(entries) * size_of::<sys::io_uring_buf>())?;
        let bufs = map.pointer(0, u32::from(entries)).ok_or(invalid)?;
        let shared_tail = map.pointer(14, 1).ok_or(invalid)?;
        Ok(Self {
            bufs,
            shared_tail,
            entries,
            ring,
            bgid,
            tail: 0,
            in_ring: 0,
            _map: map,
        })
    }

    pub(crate) fn address(&self) -> u64 {
        self.bufs.as_ptr() as u64
    }

    /// Whether the group is registered with the ring of this id.
    pub(crate) const fn is_of(&self, ring: u64) -> bool {
        self.ring == ring
    }

    /// The group's number, for [`buf_index`](crate::Sqe64::buf_index) with `BUFFER_SELECT`.
    #[must_use]
    pub const fn bgid(&self) -> u16 {
        self.bgid
    }

    /// Number of buffers in the ring, published or not.
    #[must_use]
    pub const fn in_ring(&self) -> u16 {
        self.in_ring
    }

    /// Adds a buffer at the tail; the kernel sees it after [`advance`](Self::advance).
    ///
    /// # Safety
    /// `addr` must be valid for writes of `len` bytes until a CQE has handed back `bid`, or the group is unregistered
    /// and no operation that selects from it is in flight. And [`taken`](Self::taken) must have been called only for
    /// CQEs that handed a buffer back: the kernel could read a half-written entry if one is overwritten too early.
    ///
    /// # Errors
    /// [`Full`], with nothing changed.
    pub unsafe fn add(&mut self, addr: NonNull<u8>, len: u32, bid: u16) -> Result<(), Full> {
        if self.in_ring == self.entries {
            return Err(Full);
        }
        let slot = usize::from(self.tail & (self.entries - 1));
        // SAFETY: masked, so below `entries`.
        let buf = unsafe { self.bufs.add(slot) }.as_ptr();
        let entry = sys::io_uring_buf {
            addr: addr.as_ptr() as u64,
            len,
            bid,
            resv: 0,
        };
        // All but the last two bytes: in the first entry they are the tail, which the kernel reads.
        let (from, to) = (std::ptr::from_ref(&entry).cast::<u8>(), buf.cast::<u8>());
        // SAFETY: copies 14 bytes of a local entry to an entry of our mapping, past the tail, where the kernel does not
        // read.
        unsafe { to.copy_from_nonoverlapping(from, 14) };
        self.tail = self.tail.wrapping_add(1);
        self.in_ring += 1;
        Ok(())
    }

    /// Makes the added buffers visible to the kernel.
    pub fn advance(&mut self) {
        // SAFETY: aligned and live by the invariant; an atomic may be shared with the kernel.
        let tail = unsafe { self.shared_tail.as_ref() };
        // Release: pairs with the kernel's acquire of the tail (io_ring_buffer_select); the entries come first.
        tail.store(self.tail, Ordering::Release);
    }

    /// Records that a CQE handed a buffer back, so that there is room for one more.
    pub const fn taken(&mut self) {
        self.in_ring = self.in_ring.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adding_leaves_the_tail_that_lies_in_the_first_entry() {
        let mut ring = BufRing::new(0, 1, 2).expect("memory");
        let mut memory = [0_u8; 8];
        let mut add = |ring: &mut BufRing, bid| {
            // SAFETY: no kernel knows this ring.
            unsafe { ring.add(NonNull::from(&mut memory).cast(), 8, bid) }.expect("room");
        };
        let tail = |ring: &BufRing| {
            // SAFETY: aligned and live by the invariant.
            unsafe { ring.shared_tail.as_ref() }.load(Ordering::Relaxed)
        };
        add(&mut ring, 1);
        add(&mut ring, 2);
        assert_eq!(tail(&ring), 0);
        ring.advance();
        ring.taken();
        // The third one uses the first entry again, next to the tail.
        add(&mut ring, 3);
        assert_eq!(tail(&ring), 2);
        ring.advance();
        assert_eq!((tail(&ring), ring.in_ring()), (3, 2));
    }
}
