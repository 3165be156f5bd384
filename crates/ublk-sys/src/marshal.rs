//! Conversion of structs to bytes and back: native byte order, length checked, safe code.
//!
//! The kernel reads and writes these structs in buffers with an explicit length; a length that does not fit is an
//! [`Error::Size`], never a short copy. Every byte pattern is a valid value of every struct, and unknown bits survive.

use crate::{Error, table};

/// A struct of the driver's userspace API.
///
/// Implemented for every struct of [`crate::raw`], by the macro that defines them.
pub trait Uapi: Plain + Copy {
    /// Length in bytes, the C `sizeof`.
    const SIZE: usize = Self::LEN;
    /// The C name.
    const NAME: &'static str;
    /// Size, alignment and fields, for comparison with the C header.
    const LAYOUT: table::Struct;

    /// Writes the struct to `out`, which must be exactly [`Uapi::SIZE`] bytes long.
    ///
    /// # Errors
    /// [`Error::Size`] if `out` has another length; nothing is written then.
    #[inline]
    fn write_to(&self, out: &mut [u8]) -> Result<(), Error> {
        if out.len() != Self::SIZE {
            return Err(Error::Size {
                what: Self::NAME,
                want: Self::SIZE,
                got: out.len(),
            });
        }
        self.put(out);
        Ok(())
    }

    /// Reads the struct from `bytes`, which must be exactly [`Uapi::SIZE`] bytes long.
    ///
    /// # Errors
    /// [`Error::Size`] if `bytes` has another length.
    #[inline]
    fn read_from(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() != Self::SIZE {
            return Err(Error::Size {
                what: Self::NAME,
                want: Self::SIZE,
                got: bytes.len(),
            });
        }
        Ok(Self::get(bytes))
    }

    /// Writes the struct to the start of `out` and returns the rest.
    ///
    /// # Errors
    /// [`Error::Size`] if `out` is too short; nothing is written then.
    #[inline]
    fn write_head<'a>(&self, out: &'a mut [u8]) -> Result<&'a mut [u8], Error> {
        let got = out.len();
        let Some((head, rest)) = out.split_at_mut_checked(Self::SIZE) else {
            return Err(Error::Size {
                what: Self::NAME,
                want: Self::SIZE,
                got,
            });
        };
        self.put(head);
        Ok(rest)
    }

    /// Reads the struct from the start of `bytes` and returns the rest. Use it for I/O descriptors longer than 24 bytes
    /// (`io_desc_size`).
    ///
    /// # Errors
    /// [`Error::Size`] if `bytes` is too short.
    #[inline]
    fn read_head(bytes: &[u8]) -> Result<(Self, &[u8]), Error> {
        let Some((head, rest)) = bytes.split_at_checked(Self::SIZE) else {
            return Err(Error::Size {
                what: Self::NAME,
                want: Self::SIZE,
                got: bytes.len(),
            });
        };
        Ok((Self::get(head), rest))
    }
}

/// The building blocks of structs: integers and structs without padding, and arrays of them.
///
/// Use [`Uapi`], which checks lengths. Slices must have length [`Plain::LEN`], which the defining macro guarantees.
pub trait Plain: Sized + sealed::Sealed {
    /// Length in bytes.
    #[doc(hidden)]
    const LEN: usize;
    /// All bytes zero.
    #[doc(hidden)]
    const ZERO: Self;
    /// Writes to a slice of [`Plain::LEN`] bytes.
    #[doc(hidden)]
    fn put(&self, out: &mut [u8]);
    /// Reads from a slice of [`Plain::LEN`] bytes.
    #[doc(hidden)]
    fn get(bytes: &[u8]) -> Self;
}

pub(crate) mod sealed {
    /// Seals [`Plain`](super::Plain): only types of this crate and integers implement it.
    pub trait Sealed {}
    impl<T: super::Plain, const N: usize> Sealed for [T; N] {}
}

macro_rules! integers {
    ($($int:ty),+) => { $(
        impl sealed::Sealed for $int {}
        impl Plain for $int {
            const LEN: usize = size_of::<$int>();
            const ZERO: Self = 0;
            #[inline]
            fn put(&self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_ne_bytes());
            }
            #[inline]
            fn get(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<$int>()];
                own.copy_from_slice(bytes);
                Self::from_ne_bytes(own)
            }
        }
    )+ };
}
integers!(u8, u16, u32, u64, i32);

impl<T: Plain + Copy, const N: usize> Plain for [T; N] {
    const LEN: usize = T::LEN * N;
    const ZERO: Self = [T::ZERO; N];
    #[inline]
    fn put(&self, out: &mut [u8]) {
        for (value, place) in self.iter().zip(out.chunks_exact_mut(T::LEN)) {
            value.put(place);
        }
    }
    #[inline]
    fn get(bytes: &[u8]) -> Self {
        let mut values = Self::ZERO;
        for (value, place) in values.iter_mut().zip(bytes.chunks_exact(T::LEN)) {
            *value = T::get(place);
        }
        values
    }
}

/// Checks that `bytes` survive the conversion to `T` and back, and that wrong lengths are refused.
///
/// A harness for tests and fuzz targets: `bytes` may have any length.
///
/// # Panics
/// If a round trip loses or moves a byte, or a wrong length is accepted.
pub fn round_trip<T: Uapi>(bytes: &[u8]) {
    if bytes.len() != T::SIZE {
        let size = Error::Size {
            what: T::NAME,
            want: T::SIZE,
            got: bytes.len(),
        };
        assert_eq!(T::read_from(bytes).err(), Some(size));
    }
    let Some((head, rest)) = bytes.split_at_checked(T::SIZE) else {
        assert!(
            T::read_head(bytes).is_err(),
            "{} read from too few bytes",
            T::NAME
        );
        return;
    };
    let value = T::get(head);
    assert_eq!(
        T::read_from(head).map(|value| value.put(&mut [0; 256][..T::SIZE])),
        Ok(())
    );
    // Prefilled with a pattern, so that an unwritten byte shows.
    for beneath in [0x00, 0xff] {
        let blank = [beneath; 256];
        let mut out = blank;
        assert!(value.write_to(&mut out[..T::SIZE + 1]).is_err());
        assert!(value.write_to(&mut out[..T::SIZE - 1]).is_err());
        assert_eq!(out, blank, "{} half written", T::NAME);
        let left = value.write_head(&mut out).map(|rest| rest.len());
        assert_eq!(left, Ok(256 - T::SIZE));
        assert_eq!(&out[..T::SIZE], head, "{} changed on its way", T::NAME);
        assert_eq!(out[T::SIZE..], blank[T::SIZE..], "{} too long", T::NAME);
    }
    for field in T::LAYOUT.fields {
        // One field alone: its bytes reach its own position in the struct and no other.
        let mut one = [0_u8; 256];
        let place = field.offset..field.offset + field.size;
        one[place.clone()].copy_from_slice(&head[place]);
        let mut out = [0_u8; 256];
        T::get(&one[..T::SIZE]).put(&mut out[..T::SIZE]);
        assert_eq!(one, out, "{}.{} changed on its way", T::NAME, field.name);
    }
    let after = T::read_head(bytes).map(|(_, rest)| rest.len());
    assert_eq!(after, Ok(rest.len()));
}
