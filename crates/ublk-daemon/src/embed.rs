//! Runs the control commands of a program that embeds ublk in another process.
//!
//! A process with an unfinished control command cannot exit, and a server that stops its own device and is then killed
//! can hang until the next boot. So a program that serves devices itself lets a helper process issue the commands. One
//! call at the top of `main` starts it:
//!
//! ```no_run
//! // First thing in main: no thread and no ring exists yet.
//! let mut controller = ublk_daemon::embed::start_early()?;
//! // From here on as usual; `controller` is a `ublk_ctrl::Controller`.
//! # let _ = &mut controller;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use crate::helper::{self, Helper};
use crate::link::peer::{Peer, Role};
use crate::link::{Link, LinkError};
use crate::sys::process::{self, Forked, Stream};
use crate::sys::title;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use ublk_ctrl::Error;

/// Starts the helper by forking this process, which must still have one thread. The child never returns from this call:
/// it serves until this process ends. Its standard streams are `/dev/null`; it keeps files that are already open.
///
/// # Errors
/// [`LinkError::Io`] of kind `Unsupported` if there are several threads: use [`start_program`], or call earlier.
pub fn start_early() -> Result<Helper, LinkError> {
    fork_helper(()).map(|(helper, ())| helper)
}

/// As [`start_early`]; `ours` is dropped in the child, so that it does not keep our links open.
pub(crate) fn fork_helper<T>(ours: T) -> Result<(Helper, T), LinkError> {
    let (near, far) = Link::pair()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    match process::fork_single_threaded()? {
        Forked::Child => {
            drop(near);
            drop(ours);
            for stream in [Stream::In, Stream::Out, Stream::Err] {
                let _ = process::redirect(null.as_fd(), stream);
            }
            let _ = process::new_session();
            title::set(Role::Helper.name(), None);
            std::process::exit(helper::run(&far, helper::control));
        }
        Forked::Parent(pid) => {
            drop(far);
            Ok((Helper::new(Peer::forked(pid, near)?), ours))
        }
    }
}

/// Starts the helper from the `ublkctl` program at `path`, at any time: it shares nothing with this
/// process.
///
/// # Errors
/// [`Error::ControllerGone`] when it cannot be started.
pub fn start_program(path: &Path) -> Result<Helper, Error> {
    Helper::start(path)
}
