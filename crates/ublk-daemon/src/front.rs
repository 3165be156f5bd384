//! The front role: the process that people, scripts and systemd wait for.
//!
//! It owns no ring and issues no control command: an agent creates devices, a helper does the rest.
//! So it can always return: at its deadline it reports what is left behind and exits.

mod add;
mod ask;
mod candidates;
mod gc;
mod logs;
mod look;
mod lookup;
mod measure;
mod nbd;
mod notify;
mod owner;
mod pace;
mod quiesce;
mod record;
mod remove;
mod reserve;
mod resize;
mod silence;
mod up;

pub use add::{Foreground, add, check, recover};
pub use candidates::{Candidate, candidates};
pub use gc::{Found, gc};
pub use logs::{LogPlace, is_there, log_place, set_log_level};
pub use look::{Backing, Features, Info, ListEntry, features, info, list, recoverable};
pub use lookup::{named, target};
pub use measure::{Measured, Unanswered, measure, measured, missing};
pub use nbd::{
    NbdAllocation, NbdChanged, NbdExport, NbdListed, nbd_info, nbd_list, nbd_move, nbd_retry,
};
pub use owner::{Ownership, ownership};
pub use pace::Pace;
pub use quiesce::quiesce;
pub use record::{Fetched, Recording};
pub use remove::{Stop, delete, stop};
pub use resize::{Resized, resize};
pub use up::{Difference, Down, Outcome, Up, Wanted, down, make, up, vet};

use crate::failure::Failure;
use crate::helper::Helper;
use std::path::Path;
use ublk_core::DevId;
use ublk_ctrl::Error;

/// The device that a command is about: its number, and the nonce that distinguishes it from earlier and later devices
/// with that number (`ublksrv_flags`), if the caller knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The number.
    pub id: DevId,
    /// The nonce; `None` for whichever device has the number when the command starts.
    pub nonce: Option<u64>,
}

impl From<DevId> for Target {
    fn from(id: DevId) -> Self {
        Self { id, nonce: None }
    }
}

/// Runs commands in a helper and reaps it. Past the deadline the helper is left behind and reported.
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

/// Whether a helper is stuck in a command.
const fn is_abandoned(error: &Error) -> bool {
    matches!(
        error,
        Error::TimedOut {
            abandoned: true,
            ..
        }
    )
}

/// The failure of a command in which a helper, which is named, is stuck.
fn left_behind(helper: &Helper, error: Error) -> Failure {
    let mut failure = Failure::from(error);
    let pid = helper.pid();
    failure.text = format!(
        "{} (helper process {pid} stays behind with the command)",
        failure.text
    );
    failure
}
