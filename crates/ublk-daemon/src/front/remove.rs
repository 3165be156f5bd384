//! `stop` and `delete`: by a helper, within a deadline.

use super::by_helper;
use crate::kill_point::kill_point;
use crate::state::Store;
use crate::sys::{poll, process};
use crate::wire::Failure;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};
use ublk_core::DevId;
use ublk_ctrl::{Controller, Error};

/// Stops a device: what is dirty is written back, then the block device goes. Its server and agent
/// end; the character device stays until [`delete`].
///
/// # Errors
/// No such device, or the deadline, with the process left behind.
pub fn stop(program: &Path, id: DevId, deadline: Duration) -> Result<(), Failure> {
    by_helper(program, |helper| helper.stop(id, deadline))
}

/// Stops a device and removes it: STOP while its server serves, then DEL, which waits until the
/// server has let go. Then its agent's end is awaited and its record removed.
///
/// # Errors
/// No such device, or the deadline, with the process left behind.
pub fn delete(program: &Path, id: DevId, deadline: Duration) -> Result<(), Failure> {
    let until = Instant::now() + deadline;
    let left = || until.saturating_duration_since(Instant::now());
    let info = by_helper(program, |helper| {
        let info = helper.info(id, left())?;
        helper.stop(id, left())?;
        kill_point("delete:stopped");
        match helper.delete(id, left()) {
            // The agent was faster, or somebody else: gone is what was asked for.
            Ok(()) | Err(Error::NoSuchDevice { .. }) => Ok(info),
            Err(e) => Err(e),
        }
    })?;
    kill_point("delete:deleted");
    forget(id, info.server_flags(), until);
    Ok(())
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
    for role in [record.agent, record.server].into_iter().flatten() {
        // Opened first, checked second: what is checked is then what is waited for.
        if let Ok(pidfd) = process::pidfd(role.pid)
            && role.runs()
        {
            let gone = poll::readable(&[pidfd.as_fd()], Some(until));
            if !matches!(gone.as_deref(), Ok([true])) {
                tracing::warn!("process {} of device {id} has not ended yet", role.pid);
            }
        }
    }
    if let Err(e) = store.remove(id.get(), nonce) {
        tracing::warn!("{e}");
    }
}
