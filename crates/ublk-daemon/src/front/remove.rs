//! `stop` and `delete`: by a helper, within a deadline.

use super::by_helper;
use crate::helper::Helper;
use crate::holders::{self, Holders};
use crate::kill_point::kill_point;
use crate::names;
use crate::state::Store;
use crate::wire::{Failure, FailureKind};
use std::path::Path;
use std::time::{Duration, Instant};
use ublk_core::{DevId, DevState, Geometry, Recovery};
use ublk_ctrl::{Controller, Error, wait};

/// How long an opener that is only looking (udev, right after the start) is waited for.
const LOOKING: Duration = Duration::from_secs(2);

/// How a device is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Stop {
    /// What is dirty is written back first; refused where that cannot be done without loss.
    #[default]
    Safe,
    /// What cannot be written back is lost.
    Force,
    /// Only if nobody has the device open (Linux 7.0).
    IfUnused,
}

/// Stops a device: what is dirty is written back, then the block device goes. Its server and agent
/// end; the character device stays until [`delete`].
///
/// # Errors
/// No such device; somebody holds it and would lose data; or the deadline, with the process left behind.
pub fn stop(program: &Path, id: DevId, how: Stop, deadline: Duration) -> Result<(), Failure> {
    let until = Instant::now() + deadline;
    if how == Stop::IfUnused {
        return stop_if_unused(program, id, until);
    }
    secure(program, id, how, until)?;
    by_helper(program, |helper| helper.stop(id, left(until))).map_err(|f| with_holders(f, id))
}

/// Stops a device and removes it: STOP while its server serves, then DEL, which waits until the
/// server has let go. Then its agent's end is awaited and its record removed. With `no_wait` nobody who has
/// it open is waited for; its number is free when they are gone (Linux 6.9).
///
/// # Errors
/// As for [`stop`].
pub fn delete(
    program: &Path,
    id: DevId,
    how: Stop,
    no_wait: bool,
    deadline: Duration,
) -> Result<(), Failure> {
    let until = Instant::now() + deadline;
    if how == Stop::IfUnused {
        stop_if_unused(program, id, until)?;
    } else {
        secure(program, id, how, until)?;
    }
    let removed = by_helper(program, |helper| {
        let info = helper.info(id, left(until))?;
        helper.stop(id, left(until))?;
        kill_point("delete:stopped");
        let deleted = if no_wait {
            helper.delete_async(id, left(until))
        } else {
            helper.delete(id, left(until))
        };
        match deleted {
            // The agent was faster, or somebody else: gone is what was asked for.
            Ok(()) | Err(Error::NoSuchDevice { .. }) => Ok(info),
            Err(e) => Err(e),
        }
    });
    let info = removed.map_err(|f| with_holders(f, id))?;
    kill_point("delete:deleted");
    forget(id, info.server_flags(), until);
    Ok(())
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// A deadline that passed, with those who may be the reason.
fn with_holders(mut failure: Failure, id: DevId) -> Failure {
    let holders = holders::of_device(id.get());
    if failure.kind == FailureKind::TimedOut && !holders.is_empty() {
        failure.text = format!("{}; it is {holders}", failure.text);
    }
    failure
}

/// Sees that a stop loses nothing. Of a device that outlives its server the driver fails the write-back that
/// STOP_DEV itself begins, although the server is healthy: so all that is dirty is written back before.
fn secure(program: &Path, id: DevId, how: Stop, until: Instant) -> Result<(), Failure> {
    let force = how == Stop::Force;
    let info = by_helper(program, |helper| helper.info(id, left(until)))?;
    let holders = holders::of_device(id.get());
    match verdict(&info, &holders, force)? {
        Needs::Nothing => Ok(()),
        Needs::Sync => {
            let synced = by_helper(program, |helper: &mut Helper| helper.sync(id, left(until)));
            match synced {
                Err(failure) if force => {
                    tracing::warn!("what is not written back is lost: {failure}");
                    Ok(())
                }
                Err(failure) => Err(with_holders(failure, id).hint(
                    "nothing was stopped; --force stops it and loses what is not written back",
                )),
                Ok(()) => Ok(()),
            }
        }
    }
}

/// What has to be done before a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Sync,
}

fn verdict(info: &Geometry, holders: &Holders, force: bool) -> Result<Needs, Failure> {
    let (id, state) = (info.dev_id(), info.state());
    let policy = Recovery::of(info.features());
    match state {
        DevState::Live if policy.stop_loses_dirty_data() => {
            if !holders.mounts.is_empty() && !force {
                return Err(Failure::failed(format!(
                    "device {id} is {holders}: a stop would fail what the file system writes from then on"
                ))
                .hint("unmount it first; --force writes back what is dirty now and stops it all the same"));
            }
            Ok(Needs::Sync)
        }
        _ if state.is_recoverable() && !holders.is_empty() && !force => Err(Failure::failed(format!(
            "device {id} waits for a server and is {holders}: what they have not written yet would be lost"
        ))
        .hint(format!(
            "`ublkctl recover {id}` gives it one; --force stops it all the same"
        ))),
        _ => Ok(Needs::Nothing),
    }
}

fn stop_if_unused(program: &Path, id: DevId, until: Instant) -> Result<(), Failure> {
    let stopped = by_helper(program, |helper| {
        let mut busy = None;
        let tries = until.min(Instant::now() + LOOKING);
        let stopped = wait::until(tries, || match helper.try_stop(id, left(until)) {
            Ok(()) => Ok(Some(())),
            Err(e @ Error::Busy { .. }) => {
                busy = Some(e);
                Ok(None)
            }
            Err(e) => Err(e),
        })?;
        match (stopped, busy) {
            (None, Some(busy)) => Err(busy),
            _ => Ok(()),
        }
    });
    stopped.map_err(|mut failure| {
        let holders = holders::of_device(id.get());
        if !holders.is_empty() {
            failure.text = format!("{}; it is {holders}", failure.text);
        }
        failure
    })
}

/// Waits for the agent to leave and removes what was kept of the device. The device is gone: what
/// fails here is litter, and said as such.
fn forget(id: DevId, nonce: u64, until: Instant) {
    let store = match Store::of_user() {
        Ok(store) => store,
        Err(e) => return tracing::debug!("{e}"),
    };
    let record = match store.find(id.get(), nonce) {
        Ok(Some(record)) => record,
        Ok(None) => return,
        Err(e) => return tracing::warn!("{e}"),
    };
    let gone = || !store.has_agent(&record) && !store.has_server(&record);
    let gone = wait::until(until, || Ok::<_, Error>(gone().then_some(())));
    if !matches!(gone, Ok(Some(()))) {
        let pids = [record.agent, record.server].into_iter().flatten();
        let pids: Vec<String> = pids.map(|p| p.pid.to_string()).collect();
        let pids = pids.join(" and ");
        tracing::warn!("of the processes {pids} of device {id} not all have ended yet");
    }
    names::unlink(record.spec.name.as_deref(), id);
    if let Err(e) = store.remove(id.get(), nonce) {
        tracing::warn!("{e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::geometry_in;
    use crate::holders::Holder;
    use ublk_core::Features;

    /// L22 A stop of a device that outlives its server syncs first and spares mounted file systems; what waits for
    /// a server is stopped only where nobody loses by it; `--force` does it all.
    #[test]
    fn l22_stops_lose_nothing_unless_forced() {
        let mut mounted = Holders::default();
        mounted.mounts.push("/mnt".to_owned());
        let mut open = Holders::default();
        open.processes.push(Holder {
            pid: 9,
            name: "dd".to_owned(),
            descriptors: vec![3],
        });
        let free = Holders::default();
        let (live, quiesced, dead, fail_io) = (1, 2, 0, 3);
        let of = |policy: Recovery| policy.features();
        let refused = None;
        let (nothing, sync) = (Some(Needs::Nothing), Some(Needs::Sync));
        type Row<'a> = (u16, Features, &'a Holders, Option<Needs>, Option<Needs>);
        let table: [Row<'_>; 12] = [
            (live, of(Recovery::None), &mounted, nothing, nothing),
            (live, of(Recovery::Fail), &mounted, nothing, nothing),
            (live, of(Recovery::Queue), &mounted, refused, sync),
            (live, of(Recovery::Reissue), &mounted, refused, sync),
            (live, of(Recovery::Queue), &open, sync, sync),
            (live, of(Recovery::Reissue), &free, sync, sync),
            (quiesced, of(Recovery::Queue), &free, nothing, nothing),
            (quiesced, of(Recovery::Queue), &open, refused, nothing),
            (quiesced, of(Recovery::Reissue), &mounted, refused, nothing),
            (fail_io, of(Recovery::Fail), &mounted, refused, nothing),
            (dead, of(Recovery::Queue), &open, nothing, nothing),
            (dead, of(Recovery::None), &free, nothing, nothing),
        ];
        for (state, features, holders, safe, forced) in table {
            let info = geometry_in(state, 1, features);
            let got = |force| verdict(&info, holders, force).ok();
            assert_eq!((got(false), got(true)), (safe, forced), "{state} {holders}");
        }
    }
}
