//! Buffers that are moved into operations and come back with the result.
//!
//! From submission to completion the kernel holds a mutable borrow that no lifetime can express, since a future may be
//! dropped or leaked at any time. So an operation owns its buffer: the buffer comes back with the result or, if the
//! future is gone, stays with the operation until the kernel is done.
#![expect(unsafe_code, reason = "contracts for memory that the kernel uses")]

use std::rc::Rc;
use std::sync::Arc;

use crate::operations::RingId;

/// Location of a buffer's bytes, for the kernel.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum BufferLocation {
    /// Memory of this process.
    Memory {
        /// First byte.
        ptr: *mut u8,
        /// Length in bytes.
        len: u32,
    },
    /// A buffer in the ring's table, whose bytes only the kernel accesses: a request's data in zero-copy mode.
    Registered {
        /// The ring of that table; operations of other rings are refused.
        ring: RingId,
        /// Index in the table.
        index: u16,
        /// Offset in the buffer.
        offset: u32,
        /// Length in bytes.
        len: u32,
    },
}

impl BufferLocation {
    /// Length in bytes.
    #[must_use]
    pub const fn len(&self) -> u32 {
        match self {
            Self::Memory { len, .. } | Self::Registered { len, .. } => *len,
        }
    }

    /// Whether operations of a ring can use it.
    pub(super) fn is_for(&self, own: RingId) -> bool {
        match self {
            Self::Memory { .. } => true,
            Self::Registered { ring, .. } => *ring == own,
        }
    }

    /// True if it is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn of(bytes: &[u8]) -> Self {
        Self::Memory {
            ptr: bytes.as_ptr().cast_mut(),
            // Longer vectors are truncated; the rest needs another operation.
            len: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        }
    }

    /// A part of it; empty if the range is not inside.
    fn part(self, from: u32, bytes: u32) -> Self {
        let from = from.min(self.len());
        let bytes = bytes.min(self.len() - from);
        match self {
            Self::Memory { ptr, .. } => Self::Memory {
                ptr: ptr.wrapping_add(from as usize),
                len: bytes,
            },
            Self::Registered {
                ring,
                index,
                offset,
                ..
            } => Self::Registered {
                ring,
                index,
                offset: offset + from,
                len: bytes,
            },
        }
    }
}

/// A buffer whose bytes an operation reads.
///
/// # Safety
/// While the value lives, wherever it is moved to, or if it is leaked: [`place`](Self::place) names the same bytes;
/// they are initialised and readable; and nobody writes to them except through the value.
pub unsafe trait IoBuf: 'static {
    /// The location of its bytes.
    fn place(&self) -> BufferLocation;

    /// The part from byte `from`, of at most `len` bytes, as a buffer. [`Slice::into_inner`] returns the whole buffer.
    fn slice(self, from: u32, len: u32) -> Slice<Self>
    where
        Self: Sized,
    {
        Slice {
            whole: self,
            from,
            len,
        }
    }
}

/// A buffer whose bytes an operation writes.
///
/// # Safety
/// As [`IoBuf`]; and the bytes of [`place_mut`](Self::place_mut) are writable with any value, and nobody reads or
/// writes them except through the value.
pub unsafe trait IoBufMut: IoBuf {
    /// The location of its bytes.
    fn place_mut(&mut self) -> BufferLocation;
}

// SAFETY: the heap memory of a vector stays where it is when the vector is moved or leaked; its first `len` bytes are
// initialised; the vector owns its bytes.
unsafe impl IoBuf for Vec<u8> {
    fn place(&self) -> BufferLocation {
        BufferLocation::of(self)
    }
}

// SAFETY: as above; the pointer comes from `&mut self`, so writes through it are valid.
unsafe impl IoBufMut for Vec<u8> {
    fn place_mut(&mut self) -> BufferLocation {
        BufferLocation::Memory {
            ptr: self.as_mut_ptr(),
            len: u32::try_from(self.len()).unwrap_or(u32::MAX),
        }
    }
}

// SAFETY: bytes that live for ever and that nobody writes.
unsafe impl IoBuf for &'static [u8] {
    fn place(&self) -> BufferLocation {
        BufferLocation::of(self)
    }
}

// SAFETY: bytes that live for ever and that nobody writes.
unsafe impl<const N: usize> IoBuf for &'static [u8; N] {
    fn place(&self) -> BufferLocation {
        BufferLocation::of(self.as_slice())
    }
}

// SAFETY: shared bytes stay where they are while a reference count is held. Nobody writes to them while the operation
// holds one: `Arc::get_mut` refuses.
unsafe impl IoBuf for Arc<[u8]> {
    fn place(&self) -> BufferLocation {
        BufferLocation::of(self)
    }
}

// SAFETY: as for `Arc`.
unsafe impl IoBuf for Rc<[u8]> {
    fn place(&self) -> BufferLocation {
        BufferLocation::of(self)
    }
}

/// A part of a buffer.
#[derive(Debug)]
pub struct Slice<B> {
    whole: B,
    from: u32,
    len: u32,
}

impl<B> Slice<B> {
    /// Returns the whole buffer.
    pub fn into_inner(self) -> B {
        self.whole
    }
}

// SAFETY: a part of the bytes that the inner buffer's implementation vouches for.
unsafe impl<B: IoBuf> IoBuf for Slice<B> {
    fn place(&self) -> BufferLocation {
        self.whole.place().part(self.from, self.len)
    }
}

// SAFETY: a part of the bytes that the inner buffer's implementation vouches for.
unsafe impl<B: IoBufMut> IoBufMut for Slice<B> {
    fn place_mut(&mut self) -> BufferLocation {
        self.whole.place_mut().part(self.from, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(place: BufferLocation) -> (usize, u32) {
        match place {
            BufferLocation::Memory { ptr, len } => (ptr.addr(), len),
            BufferLocation::Registered { .. } => panic!("memory"),
        }
    }

    #[test]
    fn a_slice_is_inside_its_whole() {
        let buf = vec![0_u8; 100];
        let start = buf.as_ptr().addr();
        let cases = [
            ((0, 100), (0, 100)),
            ((10, 20), (10, 20)),
            ((90, 20), (90, 10)),
            ((200, 1), (100, 0)),
        ];
        let mut buf = Some(buf);
        for ((from, len), (at, bytes)) in cases {
            let mut slice = buf.take().expect("given back").slice(from, len);
            assert_eq!(address(slice.place()), (start + at, bytes));
            assert_eq!(address(slice.place_mut()), (start + at, bytes));
            buf = Some(slice.into_inner());
        }
    }

    #[test]
    fn a_part_of_a_registered_buffer_counts_from_its_beginning() {
        let whole = BufferLocation::Registered {
            ring: RingId::next(),
            index: 3,
            offset: 512,
            len: 1024,
        };
        let BufferLocation::Registered {
            index, offset, len, ..
        } = whole.part(100, 2000)
        else {
            panic!("registered");
        };
        assert_eq!((index, offset, len), (3, 612, 924));
    }
}
