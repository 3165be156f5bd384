//! The front role: what people, scripts and systemd wait for.
//!
//! It owns no ring and issues no control command: an agent makes devices, a helper does the rest.
//! So it can always return: at its deadline it says what is left behind and goes.

mod add;
mod look;
mod remove;

pub use add::{Foreground, add, check};
pub use look::{Features, Info, ListEntry, features, info, list};
pub use remove::{delete, stop};

use crate::helper::Helper;
use crate::wire::{Failure, FailureKind};
use std::path::Path;
use ublk_ctrl::Error;

fn helper(program: &Path) -> Result<Helper, Failure> {
    Ok(Helper::start(program)?)
}

/// A helper's error as the front tells it: past the deadline it names who is left behind.
fn told(error: Error, helper: &Helper) -> Failure {
    let abandoned = matches!(
        error,
        Error::TimedOut {
            abandoned: true,
            ..
        }
    );
    let mut failure = Failure::from(error);
    if failure.kind == FailureKind::TimedOut && abandoned {
        failure.text = format!(
            "{} (helper process {} is left behind with it)",
            failure.text,
            helper.pid()
        );
    }
    failure
}
