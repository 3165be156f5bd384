//! The data buffers of a lane: one mapping with a place per tag. In copy mode, where the driver gets the address with
//! each command, a tag has a fixed place. In other modes a [`BufferPool`] assigns one per request, so that memory grows
//! with the requests in flight and not with the depth.
//!
//! General safety argument. The arena is an anonymous private mapping made by [`Arena::new`] and removed by its `Drop`,
//! so its pages are zero before first use, and an address inside it stays valid as long as the arena lives. The place
//! of a tag is disjoint from every other, pooled or not: a pool holds each place once, and takes it back only when the
//! request has been answered. The tag's protocol decides who may access a place: between the CQE that delivers a
//! request and its commit the server owns it, and exactly one request token exists (which holds the lane's shared part,
//! and with it the arena, alive); from the commit to the next CQE the driver owns it, and no token exists.
#![expect(
    unsafe_code,
    reason = "maps memory and hands out the places of tags as slices"
)]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use ublk_core::{DataMode, Errno, Tag};

use crate::memref::MemRef;

/// Buffers of one queue: `depth` places of `stride` bytes. Clones share the buffers.
///
/// # Invariants
/// `base` is the start of the mapping that `_map` holds, of `len` = depth × stride bytes.
#[derive(Clone)]
pub(crate) struct Arena {
    base: NonNull<u8>,
    len: usize,
    stride: usize,
    pages: Pages,
    /// The place of each tag, if they come from a pool.
    pooled: Option<Arc<[AtomicU16]>>,
    _map: Arc<Mapping>,
}

/// No place is assigned.
const NOWHERE: u16 = u16::MAX;

/// Assigns places of an arena to the tags that have a request; the place that came back last goes first.
pub(crate) struct BufferPool {
    /// Relaxed accesses suffice: only the lane's thread writes it, before it hands the request to another.
    pooled: Arc<[AtomicU16]>,
    free: Vec<u16>,
}

impl BufferPool {
    /// Whether this mode uses a pool: all modes in which the driver learns no address before there is a request (L08).
    pub(crate) const fn is_for(data: DataMode) -> bool {
        matches!(data, DataMode::UserCopy | DataMode::GetData)
    }

    /// Assigns a place to a tag, unless it has one.
    #[inline]
    pub(crate) fn lend(&mut self, tag: Tag) {
        let place = &self.pooled[tag.index()];
        if place.load(Ordering::Relaxed) == NOWHERE
            && let Some(free) = self.free.pop()
        {
            place.store(free, Ordering::Relaxed);
        }
    }

    /// Takes back the place of a tag.
    #[inline]
    pub(crate) fn take_back(&mut self, tag: Tag) {
        let place = &self.pooled[tag.index()];
        let free = place.load(Ordering::Relaxed);
        if free != NOWHERE {
            place.store(NOWHERE, Ordering::Relaxed);
            self.free.push(free);
        }
    }
}

/// Pages that the buffers of a queue are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Pages {
    /// The machine's base pages.
    #[default]
    Small,
    /// Huge pages if the kernel has some available (transparent huge pages).
    Transparent,
    /// Huge pages from the pool that the administrator reserved (`/proc/sys/vm/nr_hugepages`).
    Reserved,
}

impl Pages {
    /// The name for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Small => "small pages",
            Self::Transparent => "transparent huge pages",
            Self::Reserved => "huge pages",
        }
    }
}

/// Size of a huge page on x86-64, and the smallest one on other machines.
const HUGE: usize = 2 << 20;

/// A private anonymous mapping, owned by this value.
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the value and not to a thread; it gives out no reference.
unsafe impl Send for Mapping {}
// SAFETY: `&self` gives nothing.
unsafe impl Sync for Mapping {}

// SAFETY: the mapping belongs to the value and not to a thread; the tokens (see the head of this file), not `&self`,
// decide who may access its bytes.
unsafe impl Send for Arena {}
// SAFETY: `&self` only gives addresses; making a slice is unsafe and decided by the tokens, as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps places for `depth` tags of at least `max_io_bytes`. Pages are populated on first touch, on the NUMA node of
    /// the touching thread.
    pub(crate) fn new(depth: u16, max_io_bytes: u32) -> Result<Self, Errno> {
        Self::with(depth, max_io_bytes, false)
    }

    /// Like `new`, in huge pages if `huge` is set and they are available: reserved ones first, then transparent ones.
    /// The first byte touched takes a whole huge page.
    pub(crate) fn with(depth: u16, max_io_bytes: u32, huge: bool) -> Result<Self, Errno> {
        let page = page_size();
        let stride = usize::try_from(max_io_bytes)
            .ok()
            .and_then(|bytes| bytes.max(1).checked_next_multiple_of(page))
            .ok_or(Errno::ENOMEM)?;
        let len = stride
            .checked_mul(usize::from(depth.max(1)))
            .ok_or(Errno::ENOMEM)?;
        // A smaller arena would only waste one.
        let huge = huge && len >= HUGE;
        let len = if huge {
            len.checked_next_multiple_of(HUGE).ok_or(Errno::ENOMEM)?
        } else {
            len
        };
        // Reserved here and now: with NORESERVE, touching a page that is not available kills the process.
        let reserved = huge.then(|| map(len, libc::MAP_HUGETLB).ok()).flatten();
        let (map, pages) = match reserved {
            Some(map) => (map, Pages::Reserved),
            None => (map(len, libc::MAP_NORESERVE)?, Pages::Small),
        };
        let (base, addr) = (map.base, map.base.as_ptr().cast());
        let map = Arc::new(map);
        let mut pages = pages;
        if pages == Pages::Small {
            // Where the system uses huge pages for all memory, one small request would take 2 MiB.
            let advice = match huge {
                true => libc::MADV_HUGEPAGE,
                false => libc::MADV_NOHUGEPAGE,
            };
            // SAFETY: the range is the mapping just made. A kernel without huge pages refuses, and uses base pages.
            let res = unsafe { libc::madvise(addr, len, advice) };
            if huge && res == 0 {
                pages = Pages::Transparent;
            }
        }
        // SAFETY: the range is the mapping just made. A child must not share pages that the driver fills.
        let res = unsafe { libc::madvise(addr, len, libc::MADV_DONTFORK) };
        if res != 0 {
            return Err(Errno::from_io(&std::io::Error::last_os_error()));
        }
        Ok(Self {
            base,
            len,
            stride,
            pages,
            pooled: None,
            _map: map,
        })
    }

    /// Switches to a pool of places. There must be no clone yet.
    pub(crate) fn pool(&mut self, depth: u16) -> BufferPool {
        let pooled: Arc<[_]> = (0..depth).map(|_| AtomicU16::new(NOWHERE)).collect();
        self.pooled = Some(Arc::clone(&pooled));
        BufferPool {
            pooled,
            free: (0..depth).rev().collect(),
        }
    }

    /// Whether a place holds that many bytes.
    pub(crate) fn holds(&self, max_io_bytes: u32) -> bool {
        usize::try_from(max_io_bytes).is_ok_and(|bytes| bytes <= self.stride)
    }

    /// Bytes mapped, and the kind of pages.
    pub(crate) const fn extent(&self) -> (usize, Pages) {
        (self.len, self.pages)
    }

    /// True if another lane of the queue, or a request, still has these buffers.
    #[cfg(test)]
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self._map) > 1
    }

    /// Address of a tag's place, for the `addr` of its commands.
    #[inline]
    pub(crate) fn addr(&self, tag: Tag) -> u64 {
        self.place(tag).as_ptr() as u64
    }

    #[inline]
    fn place(&self, tag: Tag) -> NonNull<u8> {
        let place = match &self.pooled {
            None => tag.index(),
            Some(pooled) => usize::from(pooled[tag.index()].load(Ordering::Relaxed)),
        };
        let offset = place * self.stride;
        if offset >= self.len {
            beyond(tag);
        }
        // SAFETY: offset < len, so the address is inside the mapping (invariant of the type).
        unsafe { self.base.add(offset) }
    }

    /// The first `len` bytes of a tag's place, to be named to the kernel.
    pub(crate) fn mem(&self, tag: Tag, len: usize) -> MemRef<'_> {
        if len > self.stride {
            too_long(len);
        }
        // SAFETY: the range is inside the mapping, which lives as long as the borrowed arena. Only the holder of the
        // tag's token makes slices of it; it names the range for the length of a call in which it holds none, or lends
        // it out for a mutable borrow of the token, during which it cannot make one.
        unsafe { MemRef::new(self.place(tag), len) }
    }

    /// The first `len` bytes of a tag's place.
    ///
    /// # Safety
    /// The caller must hold the tag's only request token for the whole life of the slice, and the slice must not
    /// outlive the arena.
    #[inline]
    pub(crate) unsafe fn slice<'a>(&self, tag: Tag, len: usize) -> &'a [u8] {
        if len > self.stride {
            too_long(len);
        }
        // SAFETY: the place is `stride` ≥ `len` initialised bytes inside the mapping; by contract
        // nobody writes to it while the slice lives.
        unsafe { std::slice::from_raw_parts(self.place(tag).as_ptr(), len) }
    }

    /// The first `len` bytes of a tag's place, mutable.
    ///
    /// # Safety
    /// As for [`Arena::slice`], and the token must be borrowed exclusively.
    #[inline]
    pub(crate) unsafe fn slice_mut<'a>(&self, tag: Tag, len: usize) -> &'a mut [u8] {
        if len > self.stride {
            too_long(len);
        }
        // SAFETY: as in `slice`; the exclusive borrow of the only token makes this the only
        // reference to the place.
        unsafe { std::slice::from_raw_parts_mut(self.place(tag).as_ptr(), len) }
    }
}

/// A new private mapping.
fn map(len: usize, flag: libc::c_int) -> Result<Mapping, Errno> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory of
    // ours; the result is checked below.
    let addr = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flag,
            -1,
            0,
        )
    };
    if addr == libc::MAP_FAILED {
        return Err(Errno::from_io(&std::io::Error::last_os_error()));
    }
    let base = NonNull::new(addr.cast::<u8>()).ok_or(Errno::ENOMEM)?;
    Ok(Mapping { base, len })
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours; tokens hold the arena alive, so none is left, and
        // a worker that leaves tags with the driver leaks the arena instead of dropping it (L09).
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

// Out of line, so that callers keep nothing in memory for the message.
#[cold]
#[inline(never)]
fn beyond(tag: Tag) -> ! {
    panic!("tag {tag} is beyond the arena")
}

#[cold]
#[inline(never)]
fn too_long(len: usize) -> ! {
    panic!("{len} bytes are more than a tag's buffer")
}

/// The page size of this machine.
pub(crate) fn page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).expect("the page size is positive")
}

#[cfg(test)]
mod tests;
