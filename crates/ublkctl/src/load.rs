//! `replay` and `bench`: load on a file or block device.

pub mod bench;
mod draw;
mod opened;
pub mod replay;
mod safety;

use std::path::Path;
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
            .hint("choose another --size, --depth, --span or --speed"),
        Error::Ring(_) => Failure::failed(text)
            .hint("`ublkctl doctor` tells whether io_uring may be used here"),
        Error::Failed { errno, .. } => Failure::failed(text)
            .errno(*errno)
            .hint("see the kernel log for the cause; a size below the device's block size fails, too"),
        Error::Trace(e) => Failure::failed(text).hint(e.hint()),
        _ => Failure::failed(text),
    }
}
