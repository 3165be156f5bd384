//! The kernel's error numbers.

#![forbid(unsafe_code)]

use std::fmt;

/// A positive errno of the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// Creates an errno from a positive number, such as libc's constants.
    #[must_use]
    pub const fn new(errno: i32) -> Self {
        Self(errno)
    }

    /// The positive number.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0
    }

    /// The errno of this thread's last failed system call.
    pub(crate) fn last() -> Self {
        Self(
            std::io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
        )
    }

    /// Splits a CQE's `res` or a raw system call's result: zero and above is a value, below is an errno.
    ///
    /// # Errors
    /// The errno, if `res` is negative.
    #[inline]
    pub const fn check(res: i32) -> Result<u32, Self> {
        if res < 0 {
            Err(Self(res.wrapping_neg()))
        } else {
            Ok(res.cast_unsigned())
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&std::io::Error::from_raw_os_error(self.0), f)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({}: {self})", self.0)
    }
}

impl From<Errno> for std::io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}
