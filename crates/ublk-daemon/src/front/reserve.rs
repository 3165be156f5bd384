//! Reserves what a new device needs first: the run directory and its name.
#![forbid(unsafe_code)]

use crate::failure::Failure;
use crate::names;
use crate::state::{Lock, Store};
use std::fs::OpenOptions;
use std::io;
use std::time::Instant;
use ublk_core::{DevId, Errno};
use ublk_ctrl::{Error, Operation};

/// Reserves the name of a new device: no other process can create a device of that name while the value lives, and the
/// kernel releases the name if its owner is killed.
///
/// # Errors
/// Another command holds the name until the deadline, or an error of the run directory.
pub(super) fn reserve(name: Option<&str>, until: Instant) -> Result<Option<Lock>, Failure> {
    let Some(name) = name else { return Ok(None) };
    // An invalid name must not become a path.
    names::check(name)?;
    run_directory()?;
    let lock = Store::of_user()?.lock_name(name, until)?;
    let busy = || {
        Failure::timed_out(format!("{name}: another command is bringing it up"))
            .hint("check `ublkctl list`, then try again")
    };
    lock.map(Some).ok_or_else(busy)
}

/// Creates the run directory. If a user has none and also lacks permission to create devices, reports the permission:
/// the directory would not help.
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

/// Waits until no other command changes the device, and keeps others away.
pub(super) fn change_alone(id: DevId, until: Instant) -> Result<Lock, Failure> {
    let lock = Store::of_user()?.lock_change(id.get(), until)?;
    lock.ok_or_else(|| {
        Failure::timed_out(format!("device {id}: another command is changing it"))
            .hint("wait until `ublkctl nbd move`, `quiesce` or `resize` ends, then try again")
    })
}
