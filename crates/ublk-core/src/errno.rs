//! The error number that answers a request, and the one place that flips its sign.

use core::fmt;

/// A Linux error number, 1 to 4095: what a backend answers when a request fails.
///
/// The block layer keeps ENOSPC, ENOMEM, ETIMEDOUT, EOPNOTSUPP and a few more as they are and turns
/// every other number into EIO (`errno_to_blk_status`, block/blk-core.c).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(from = "i32", into = "i32")
)]
pub struct Errno(u16);

impl From<i32> for Errno {
    fn from(errno: i32) -> Self {
        Self::new(errno)
    }
}

impl From<Errno> for i32 {
    fn from(errno: Errno) -> Self {
        errno.get()
    }
}

macro_rules! errnos {
    ($($name:ident = $value:literal, $what:literal;)*) => {
        impl Errno {
            $(#[doc = $what] pub const $name: Self = Self($value);)*

            /// The symbol of errno.h, where this version knows it: `EBUSY`.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($value => Some(stringify!($name)),)* _ => None }
            }

            const fn what(self) -> &'static str {
                match self.0 { $($value => $what,)* _ => "error" }
            }
        }
    };
}

errnos! {
    EPERM = 1, "operation not permitted";
    ENOENT = 2, "no such file or directory";
    EINTR = 4, "interrupted";
    EIO = 5, "input/output error";
    ENXIO = 6, "no such device or address";
    EBADF = 9, "bad file descriptor";
    EAGAIN = 11, "try again";
    ENOMEM = 12, "out of memory";
    EACCES = 13, "permission denied";
    EFAULT = 14, "bad address";
    EBUSY = 16, "device or resource busy";
    EEXIST = 17, "exists already";
    ENODEV = 19, "no such device";
    EINVAL = 22, "invalid argument";
    ENFILE = 23, "too many open files in the system";
    EMFILE = 24, "too many open files";
    EFBIG = 27, "file too large";
    ENOSPC = 28, "no space left on device";
    EROFS = 30, "read-only";
    ERANGE = 34, "out of range";
    ENOSYS = 38, "function not implemented";
    ETIME = 62, "timer expired";
    EOVERFLOW = 75, "value too large";
    EILSEQ = 84, "data damaged";
    EOPNOTSUPP = 95, "not supported";
    ENOBUFS = 105, "no buffer space";
    ETIMEDOUT = 110, "timed out";
    EALREADY = 114, "already in progress";
    EREMOTEIO = 121, "remote input/output error";
    ECANCELED = 125, "cancelled";
}

impl Errno {
    /// The errno of a positive number; anything outside 1..=4095 becomes EIO.
    #[must_use]
    pub const fn new(errno: i32) -> Self {
        if errno >= 1 && errno <= 4095 {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "1..=4095"
            )]
            return Self(errno as u16);
        }
        Self::EIO
    }

    /// The errno in an I/O error of std; EIO where it has none.
    #[must_use]
    pub fn from_io(error: &std::io::Error) -> Self {
        error.raw_os_error().map_or(Self::EIO, Self::new)
    }

    /// The number, positive.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0 as i32
    }

    /// The number as the kernel reads it in a result: negative. The sign is flipped here only.
    #[must_use]
    pub const fn to_result(self) -> i32 {
        -(self.0 as i32)
    }

    /// A kernel result (`res` of a CQE) as count or errno.
    ///
    /// # Errors
    /// The errno, for a negative result.
    pub const fn from_result(res: i32) -> Result<u32, Self> {
        if res < 0 {
            return Err(Self::new(res.saturating_neg()));
        }
        #[expect(clippy::cast_sign_loss, reason = "not negative")]
        Ok(res as u32)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{} ({name})", self.what()),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

impl std::error::Error for Errno {}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        Self::from_io(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_is_flipped_once_each_way() {
        assert_eq!(Errno::ENOSPC.to_result(), -28);
        assert_eq!(Errno::from_result(-28), Err(Errno::ENOSPC));
        assert_eq!(Errno::from_result(4096), Ok(4096));
        assert_eq!(Errno::from_result(i32::MIN), Err(Errno::EIO));
        assert_eq!(Errno::new(0), Errno::EIO);
        assert_eq!(
            Errno::ENOSPC.to_string(),
            "no space left on device (ENOSPC)"
        );
    }
}
