//! `replay` and `bench`: load on a file or block device.

pub mod bench;
mod draw;
mod opened;
pub mod replay;
mod safety;

use std::io;
use std::path::Path;
use ublk_core::Errno;
use ublk_daemon::failure::{Failure, FailureKind};
use ublk_load::Error;

/// An error of a load, about its target.
fn failure(path: &Path, error: &Error) -> Failure {
    let text = format!("{}: {error}", path.display());
    match error {
        Error::Stuck { .. } => Failure::timed_out(text).hint(
            "see the kernel log and, for a ublk device, `ublkctl info`; --deadline SECONDS waits longer",
        ),
        Error::Plan(_) => Failure::new(FailureKind::Usage, text)
            .hint("give other figures: see --help"),
        Error::Ended => Failure::failed(text),
        Error::Ring(_) => Failure::failed(text)
            .hint("`ublkctl doctor` tells whether io_uring may be used here"),
        Error::Failed { errno, .. } => Failure::failed(text)
            .errno(*errno)
            .hint("see the kernel log for the cause; a size below the device's block size fails, too"),
        Error::Trace(e) => Failure::failed(text).hint(e.hint()),
        _ => Failure::failed(text),
    }
}

/// An error of the file system about a path.
fn file_failure(path: &Path, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => {
            "give the path of a file or block device, or a ublk device by number or name"
        }
        io::ErrorKind::PermissionDenied => "run as root, or as a user who may open it",
        io::ErrorKind::ReadOnlyFilesystem => "a read-only target can only be read",
        _ => "check the path",
    };
    let mut failure = Failure::failed(format!("{}: {error}", path.display())).hint(hint);
    failure.errno = error.raw_os_error().map(|_| Errno::from_io(error));
    failure
}
