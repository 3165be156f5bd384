//! The front role: the process that people, scripts and systemd wait for.
//!
//! It owns no ring and issues no control command: an agent creates devices, a helper does the rest.
//! So it can always return: at its deadline it reports what is left behind and exits.

mod add;
mod gc;
mod look;
mod nbd;
mod notify;
mod owner;
mod pace;
mod remove;
mod reserve;
mod resize;
mod up;
mod words;

pub use add::{Foreground, add, check, recover};
pub use gc::{Found, gc};
pub use look::{Backing, Features, Info, ListEntry, features, info, list, recoverable};
pub use nbd::{NbdChanged, NbdExport, NbdListed, nbd_info, nbd_list, nbd_move, nbd_retry};
pub use owner::{Ownership, ownership};
pub use pace::Pace;
pub use remove::{Stop, delete, stop};
pub use resize::{Resized, resize};
pub use up::{Difference, Down, Outcome, Up, Wanted, down, make, named, target, up, vet};
pub use words::{Word, words};

use crate::failure::Failure;
use crate::helper::Helper;
use std::path::Path;
use ublk_core::DevId;
use ublk_ctrl::Error;

/// A device that a command is about: a number, and the word that tells it from earlier and later devices of that
/// number (`ublksrv_flags`), where the caller has seen it already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The number.
    pub id: DevId,
    /// The word; `None` for whichever device has the number when the command begins.
    pub nonce: Option<u64>,
}

impl From<DevId> for Target {
    fn from(id: DevId) -> Self {
        Self { id, nonce: None }
    }
}

/// Runs commands by a helper and collects it; past the deadline it is left behind, and named.
fn by_helper<T>(
    program: &Path,
    commands: impl FnOnce(&mut Helper) -> Result<T, Error>,
) -> Result<T, Failure> {
    let mut helper = Helper::start(program)?;
    let result = commands(&mut helper);
    if let Err(error) = &result
        && is_abandoned(error)
    {
        return Err(left_behind(&helper, error.clone()));
    }
    helper.finish();
    Ok(result?)
}

/// Whether a helper is stuck in what it was asked.
const fn is_abandoned(error: &Error) -> bool {
    matches!(
        error,
        Error::TimedOut {
            abandoned: true,
            ..
        }
    )
}

/// The failure of a command that a helper is stuck in, which is named.
fn left_behind(helper: &Helper, error: Error) -> Failure {
    let mut failure = Failure::from(error);
    let pid = helper.pid();
    failure.text = format!(
        "{} (helper process {pid} stays behind with the command)",
        failure.text
    );
    failure
}
