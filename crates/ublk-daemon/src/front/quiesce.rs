//! `quiesce`: takes a device from its server and holds its I/O.

use super::reserve::change_alone;
use super::{Target, by_helper};
use crate::failure::{Failure, FailureKind};
use crate::policy;
use crate::state::Store;
use std::path::Path;
use std::time::{Duration, Instant};
use ublk_core::{DevState, Features, Recovery, deadline_in};
use ublk_ctrl::{Command, Controller, Error, Operation, wait};

/// Between two QUIESCE_DEV: one does not reach a server whose tags are all busy.
const AGAIN: Duration = Duration::from_millis(500);

/// Whether a device in this state has no server and can get one. Requests fail meanwhile if its policy is so.
const fn waits(state: DevState) -> bool {
    matches!(state, DevState::Quiesced | DevState::FailIo)
}

/// Quiesces one of our live devices (Linux 6.16): the driver holds new requests, the server answers those that it has and
/// ends. `recover` starts the next server. A device that waits already is a success. `allow_errors` permits devices some of
/// whose requests fail meanwhile.
///
/// # Errors
/// A kernel without QUIESCE_DEV, a device without recovery or under supervision, a foreign device, or the deadline, after
/// which the device may still become quiesced.
pub fn quiesce(
    program: &Path,
    device: impl Into<Target>,
    allow_errors: bool,
    deadline: Duration,
) -> Result<(), Failure> {
    let until = deadline_in(deadline);
    let left = || until.saturating_duration_since(Instant::now());
    let Target { id, nonce } = device.into();
    let info = by_helper(program, |helper| helper.info(id, left()))?;
    let nonce = nonce.unwrap_or(info.server_flags());
    let ours = || {
        let record = Store::of_user()?.find(id.get(), nonce)?;
        record.ok_or_else(|| {
            Failure::foreign(id).hint("only devices of ublkctl can be given a new server later")
        })
    };
    ours()?;
    let _lock = change_alone(id, until)?;
    // Now that no other command changes it.
    let record = ours()?;
    if record.spec.supervise {
        let text = format!("device {id} is supervised: it would get a new server at once");
        return Err(Failure::new(FailureKind::Usage, text)
            .hint("`ublkctl upgrade` replaces the server; delete and add the device without --supervise to hold its I/O"));
    }
    let may = policy::may_replace(info.features(), ublk_ctrl::kernel_release().as_ref());
    let recoverable = Recovery::of(info.features()).is_recoverable();
    if !(allow_errors && recoverable) {
        let hint = "create it with --recovery queue or reissue, and without batch commands, to hold its I/O";
        may.map_err(|f| match recoverable {
            true => f.hint(format!("{hint}; --allow-errors proceeds anyway")),
            false => f.hint(hint),
        })?;
    }
    if !info.features().contains(Features::QUIESCE) {
        let text = format!("device {id}: this kernel has no QUIESCE_DEV (Linux 6.16)");
        return Err(Failure::failed(text)
            .hint("`ublkctl upgrade` replaces the server of a device with --recovery reissue"));
    }
    let quiesced = by_helper(program, |helper| {
        loop {
            match helper.info(id, left())?.state() {
                state if waits(state) => return Ok(true),
                DevState::Live => {}
                state => {
                    return Err(Error::WrongState {
                        operation: Operation::Quiesce,
                        dev: id,
                        state,
                    });
                }
            }
            match helper.same(nonce, Command::Quiesce { id }, left()) {
                Ok(()) | Err(Error::Busy { .. }) => {}
                Err(e) => return Err(e),
            }
            let patience = until.min(Instant::now() + AGAIN);
            let done = wait::until(patience, || {
                let waits = waits(helper.info(id, left())?.state());
                Ok::<_, Error>(waits.then_some(()))
            })?;
            if done.is_some() || Instant::now() >= until {
                return Ok(done.is_some());
            }
        }
    })?;
    match quiesced {
        true => Ok(()),
        false => Err(Failure::timed_out(format!(
            "device {id}: its server has not answered all of its requests"
        ))
        .hint(format!(
            "see `ublkctl info {id}`; the device waits for a server once it has"
        ))),
    }
}
