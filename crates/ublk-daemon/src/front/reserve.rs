//! What is had before a device is made: the run directory, and its name.
#![forbid(unsafe_code)]

use crate::failure::Failure;
use crate::names;
use crate::state::{Lock, Store};
use std::fs::OpenOptions;
use std::io;
use std::time::Instant;
use ublk_core::Errno;
use ublk_ctrl::{Error, Operation};

/// The name of a device that is about to be made: nobody else makes one of that name while the value lives, and the
/// kernel gives it up where its owner is killed.
///
/// # Errors
/// Another command has it up to the deadline; or what the run directory says.
pub(super) fn reserve(name: Option<&str>, until: Instant) -> Result<Option<Lock>, Failure> {
    let Some(name) = name else { return Ok(None) };
    // A name that is none must not become a path.
    names::check(name)?;
    run_directory()?;
    let lock = Store::of_user()?.lock_name(name, until)?;
    let busy = || {
        Failure::timed_out(format!("{name}: another command is bringing it up"))
            .hint("check `ublkctl list`, then try again")
    };
    lock.map(Some).ok_or_else(busy)
}

/// Makes the run directory. A user who has none is first told that there is no permission to make
/// devices, if that is so: the directory would not help.
pub(super) fn run_directory() -> Result<(), Failure> {
    let error = match Store::of_user() {
        Ok(store) => return Ok(store.prepare()?),
        Err(error) => error,
    };
    let node = ublk_ctrl::nodes::Nodes::default().control();
    match OpenOptions::new().read(true).write(true).open(node) {
        Ok(_) => Err(error.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::MissingModule.into()),
        Err(e) => Err(Error::NoPermission {
            operation: Operation::Open,
            dev: None,
            errno: Errno::from_io(&e),
        }
        .into()),
    }
}
