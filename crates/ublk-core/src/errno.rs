//! The error number that answers a request, and the only place that flips its sign.

use core::fmt;

/// A Linux error number, 1 to 4095: the backend's answer to a request that fails.
///
/// The block layer keeps ENOSPC, ENOMEM, ETIMEDOUT, EOPNOTSUPP and a few more, and turns every other number into EIO
/// (`errno_to_blk_status`, block/blk-core.c).
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

            /// The symbol in errno.h, if this library knows it: `EBUSY`.
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
    ESRCH = 3, "no such process";
    EINTR = 4, "interrupted";
    EIO = 5, "input/output error";
    ENXIO = 6, "no such device or address";
    E2BIG = 7, "argument list too long";
    ENOEXEC = 8, "executable format error";
    EBADF = 9, "bad file descriptor";
    ECHILD = 10, "no child processes";
    EAGAIN = 11, "try again";
    ENOMEM = 12, "out of memory";
    EACCES = 13, "permission denied";
    EFAULT = 14, "bad address";
    ENOTBLK = 15, "block device required";
    EBUSY = 16, "device or resource busy";
    EEXIST = 17, "exists already";
    EXDEV = 18, "invalid cross-device link";
    ENODEV = 19, "no such device";
    ENOTDIR = 20, "not a directory";
    EISDIR = 21, "is a directory";
    EINVAL = 22, "invalid argument";
    ENFILE = 23, "too many open files in the system";
    EMFILE = 24, "too many open files";
    ENOTTY = 25, "inappropriate ioctl for device";
    ETXTBSY = 26, "text file busy";
    EFBIG = 27, "file too large";
    ENOSPC = 28, "no space left on device";
    ESPIPE = 29, "illegal seek";
    EROFS = 30, "read-only";
    EMLINK = 31, "too many links";
    EPIPE = 32, "broken pipe";
    EDOM = 33, "numerical argument out of domain";
    ERANGE = 34, "out of range";
    EDEADLK = 35, "resource deadlock avoided";
    ENAMETOOLONG = 36, "file name too long";
    ENOLCK = 37, "no locks available";
    ENOSYS = 38, "function not implemented";
    ENOTEMPTY = 39, "directory not empty";
    ELOOP = 40, "too many levels of symbolic links";
    EBADE = 52, "invalid exchange";
    ENODATA = 61, "no data available";
    ETIME = 62, "timer expired";
    ENONET = 64, "machine is not on the network";
    ENOLINK = 67, "link has been severed";
    ECOMM = 70, "communication error on send";
    EPROTO = 71, "protocol error";
    EBADMSG = 74, "bad message";
    EOVERFLOW = 75, "value too large";
    EILSEQ = 84, "data damaged";
    EUSERS = 87, "too many users";
    ENOTSOCK = 88, "socket operation on non-socket";
    EDESTADDRREQ = 89, "destination address required";
    EMSGSIZE = 90, "message too long";
    EPROTOTYPE = 91, "protocol wrong type for socket";
    ENOPROTOOPT = 92, "protocol not available";
    EPROTONOSUPPORT = 93, "protocol not supported";
    ESOCKTNOSUPPORT = 94, "socket type not supported";
    EOPNOTSUPP = 95, "not supported";
    EPFNOSUPPORT = 96, "protocol family not supported";
    EAFNOSUPPORT = 97, "address family not supported by protocol";
    EADDRINUSE = 98, "address already in use";
    EADDRNOTAVAIL = 99, "cannot assign requested address";
    ENETDOWN = 100, "network is down";
    ENETUNREACH = 101, "network is unreachable";
    ENETRESET = 102, "network dropped connection on reset";
    ECONNABORTED = 103, "software caused connection abort";
    ECONNRESET = 104, "connection reset by peer";
    ENOBUFS = 105, "no buffer space";
    EISCONN = 106, "transport endpoint is already connected";
    ENOTCONN = 107, "transport endpoint is not connected";
    ESHUTDOWN = 108, "cannot send after transport endpoint shutdown";
    ETOOMANYREFS = 109, "too many references: cannot splice";
    ETIMEDOUT = 110, "timed out";
    ECONNREFUSED = 111, "connection refused";
    EHOSTDOWN = 112, "host is down";
    EHOSTUNREACH = 113, "no route to host";
    EALREADY = 114, "already in progress";
    EINPROGRESS = 115, "operation now in progress";
    ESTALE = 116, "stale file handle";
    EUCLEAN = 117, "structure needs cleaning";
    EREMOTEIO = 121, "remote input/output error";
    EDQUOT = 122, "disk quota exceeded";
    ENOMEDIUM = 123, "no medium found";
    EMEDIUMTYPE = 124, "wrong medium type";
    ECANCELED = 125, "cancelled";
    ENOKEY = 126, "required key not available";
    EKEYEXPIRED = 127, "key has expired";
    EKEYREVOKED = 128, "key has been revoked";
    EKEYREJECTED = 129, "key was rejected by service";
    EOWNERDEAD = 130, "owner died";
    ENOTRECOVERABLE = 131, "state not recoverable";
    ERFKILL = 132, "operation not possible due to RF-kill";
}

impl Errno {
    /// Creates an errno from a positive number; numbers outside 1..=4095 become EIO.
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

    /// The errno of a std I/O error; EIO if it has none.
    #[must_use]
    pub fn from_io(error: &std::io::Error) -> Self {
        error.raw_os_error().map_or(Self::EIO, Self::new)
    }

    /// The errno of a name such as `EIO`.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = (1..=133).map(Self::new);
        all.into_iter().find(|errno| errno.name() == Some(name))
    }

    /// The positive number.
    #[must_use]
    pub const fn get(self) -> i32 {
        self.0 as i32
    }

    /// The number as a kernel result: negative. This is the only place that flips the sign.
    #[must_use]
    pub const fn to_result(self) -> i32 {
        -(self.0 as i32)
    }

    /// Splits a kernel result (`res` of a CQE) into count or errno.
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
