//! `stop` and `delete`: by a helper, within a deadline, without data loss, and only of the intended device.
//!
//! The helper claims the disk before any decision and holds it until the driver has removed it. So no other process can
//! mount it, or put swap or another device on it meanwhile, and its number cannot be reused between the check of its nonce
//! and the command (L42). Processes that open it for writing without a claim are looked for twice: before the write-back,
//! and after it.

mod verdict;
mod watch;

use super::{Target, is_abandoned, left_behind, nbd};
use crate::failure::{Failure, FailureKind};
use crate::helper::Helper;
use crate::in_use::holders::Holders;
use crate::kill_point::kill_point;
use crate::names;
use crate::state::{Lock, Record, Store};
use std::path::Path;
use std::time::{Duration, Instant};
use ublk_core::deadline_in;
use ublk_core::{DevId, DevState, Geometry};
use ublk_ctrl::{Command, Controller, Error, wait};
use verdict::{Needs, Unwritten, unwritten, verdict};
use watch::Watch;

/// How long to wait for a short-lived opener (udev, right after the start), and for a claim without a known holder, such
/// as that of `mkfs` at its end.
const LOOKING: Duration = Duration::from_secs(2);

/// How long the disk may take to open.
const OPEN: Duration = Duration::from_secs(5);

/// How a device is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Stop {
    /// Write back dirty data first; refuse if data would be lost.
    #[default]
    Safe,
    /// Data that cannot be written back is lost.
    Force,
    /// Only if the device is not open (Linux 7.0).
    IfUnused,
}

/// Stops a device: writes back its dirty data, then removes the block device. Its server and agent end; the character
/// device stays until [`delete`].
///
/// # Errors
/// No such device; a user of the device would lose data; some data could not be written back; or the deadline passed,
/// with the process left behind.
pub fn stop(
    program: &Path,
    device: impl Into<Target>,
    how: Stop,
    deadline: Duration,
) -> Result<(), Failure> {
    let until = deadline_in(deadline);
    let mut removal = Removal::begin(program, device.into(), how, until)?;
    let done = removal.stop();
    removal.end(done, "stopped")
}

/// Stops a device and removes it: STOP while its server serves, then DEL, which waits until the
/// server has released it. Then it waits for the agent's end and removes the record. With `no_wait` it does not wait until
/// the device is closed; its number is free after that (Linux 6.9).
///
/// # Errors
/// As for [`stop`].
pub fn delete(
    program: &Path,
    device: impl Into<Target>,
    how: Stop,
    no_wait: bool,
    deadline: Duration,
) -> Result<(), Failure> {
    let until = deadline_in(deadline);
    let mut removal = Removal::begin(program, device.into(), how, until)?;
    let done = removal.stop().and_then(|()| {
        kill_point("delete:stopped");
        removal.delete(no_wait)?;
        kill_point("delete:deleted");
        removal.forget();
        Ok(())
    });
    removal.end(done, "deleted")
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

/// A device that is being removed.
struct Removal<'a> {
    program: &'a Path,
    how: Stop,
    until: Instant,
    id: DevId,
    /// The nonce, which distinguishes it from other devices with its number.
    nonce: u64,
    info: Geometry,
    record: Option<Record>,
    helper: Helper,
    /// The users before the stop; afterwards the disk is no longer in sysfs.
    holders: Holders,
    /// What could not be written back.
    lost: Vec<String>,
    /// Only one command at a time removes a device.
    _lock: Option<Lock>,
}

impl<'a> Removal<'a> {
    fn begin(
        program: &'a Path,
        device: Target,
        how: Stop,
        until: Instant,
    ) -> Result<Self, Failure> {
        let id = device.id;
        let patience = match how {
            // With --force another command may be hanging.
            Stop::Force => until.min(Instant::now() + LOOKING),
            _ => until,
        };
        let mut helper = Helper::start(program)?;
        let info = match helper.info(id, left(until)) {
            Ok(info) => info,
            Err(e) if is_abandoned(&e) => return Err(left_behind(&helper, e)),
            Err(e) => {
                helper.finish();
                return Err(e.into());
            }
        };
        let nonce = device.nonce.unwrap_or(info.server_flags());
        let lock = lock(id, patience);
        if lock.is_none() && how != Stop::Force && left(until).is_zero() {
            return Err(Failure::timed_out(format!(
                "device {id}: another command is stopping or deleting it"
            ))
            .hint(format!("check `ublkctl info {id}`, then try again")));
        }
        let mut removal = Self {
            program,
            how,
            until,
            id,
            nonce,
            record: super::look::record(&info),
            info,
            helper,
            holders: Holders::default(),
            lost: Vec::new(),
            _lock: lock,
        };
        // While we waited for the lock, the device may have been replaced by another.
        removal.refresh()?;
        Ok(removal)
    }

    fn is_forced(&self) -> bool {
        self.how == Stop::Force
    }

    /// Re-reads the device from the driver.
    fn refresh(&mut self) -> Result<(), Failure> {
        let within = left(self.until);
        let info = self.helper.info(self.id, within);
        self.info = info.map_err(|e| self.failure(e))?;
        if self.info.server_flags() == self.nonce {
            return Ok(());
        }
        Err(Failure::new(
            FailureKind::NoSuchDevice,
            format!(
                "the device is gone: number {} now belongs to another device",
                self.id
            ),
        )
        .hint("list the devices"))
    }

    /// Handles an error of the helper; one that is stuck is left behind and replaced.
    fn failure(&mut self, error: Error) -> Failure {
        if !is_abandoned(&error) {
            return error.into();
        }
        let failure = left_behind(&self.helper, error);
        if let Ok(helper) = Helper::start(self.program) {
            self.helper = helper;
        }
        failure
    }

    /// Sends STOP_DEV, once no data can be lost, or if forced.
    fn stop(&mut self) -> Result<(), Failure> {
        if self.how == Stop::IfUnused {
            self.stop_if_unused()?;
        } else {
            self.secure()?;
            let stop = Command::Stop { id: self.id };
            let within = left(self.until);
            let stopped = self.helper.same(self.nonce, stop, within);
            stopped.map_err(|e| {
                let failure = self.failure(e);
                self.with_holders(failure)
            })?;
        }
        // Free the name, so that it does not lead to another device.
        if let Some(record) = &self.record {
            names::unlink(record.spec.name.as_deref(), self.id);
        }
        Ok(())
    }

    /// Sends DEL_DEV. A device that is already gone counts as success.
    fn delete(&mut self, no_wait: bool) -> Result<(), Failure> {
        let id = self.id;
        let command = match no_wait {
            true => Command::DeleteAsync { id },
            false => Command::Delete { id },
        };
        match self.helper.same(self.nonce, command, left(self.until)) {
            Ok(()) | Err(Error::NoSuchDevice { .. }) => Ok(()),
            Err(e) => {
                let failure = self.failure(e);
                Err(self.with_holders(failure))
            }
        }
    }

    /// Ends the command and its claim. Lost data makes the command fail, whatever else it did.
    fn end(self, result: Result<(), Failure>, done: &str) -> Result<(), Failure> {
        self.helper.finish();
        result?;
        if self.lost.is_empty() {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "device {} is {done}, but some data was not written back: {}",
            self.id,
            self.lost.join("; ")
        ))
        .hint("that data is lost; see `dmesg`"))
    }

    /// Adds the current or former holders, who may be the cause, to the failure of a deadline.
    fn with_holders(&mut self, mut failure: Failure) -> Failure {
        if failure.kind != FailureKind::TimedOut {
            return failure;
        }
        let now = self.helper.look(self.id, LOOKING).unwrap_or_default();
        let ours = self.ours();
        let now = now.without(&ours);
        let holders = if now.is_empty() { &self.holders } else { &now };
        if !holders.is_empty() {
            failure.text = format!("{}; it is {holders}", failure.text);
        }
        failure
    }

    /// Our own processes, which never count as users.
    fn ours(&self) -> Vec<u32> {
        let record = self.record.as_ref();
        let roles = record.map(|r| [r.agent, r.server]).unwrap_or_default();
        roles.into_iter().flatten().map(|role| role.pid).collect()
    }

    /// Ensures that a stop loses no data, or reports what it would lose.
    fn secure(&mut self) -> Result<(), Failure> {
        if self.is_forced()
            && let Some(record) = &self.record
        {
            nbd::give_up(record, self.id);
        }
        let unknown = self.ask()?;
        if self.is_forced() {
            let unwritten = unwritten(&self.info, &self.holders, unknown.as_ref());
            self.lost.extend(unwritten.map(Unwritten::lost));
        }
        let needs = verdict(&self.info, &self.holders, unknown, self.is_forced())?;
        if self.is_forced() && !self.holders.losing().is_empty() {
            let state = self.info.state();
            let lost = match state.is_recoverable() {
                true => "unwritten data is lost",
                false => "new writes are lost",
            };
            tracing::warn!("device {} is {}: {lost}", self.id, self.holders);
        }
        if needs == Needs::Nothing {
            return self.allow_for_unwritten();
        }
        self.write_back()?;
        if self.is_forced() || self.info.state() != DevState::Live {
            return Ok(());
        }
        // Users without a claim that opened the device during the write-back.
        let found = self.helper.look(self.id, left(self.until).max(LOOKING));
        let found = found.map_err(|e| self.failure(e))?;
        self.holders = found.without(&self.ours());
        verdict(&self.info, &self.holders, None, false).map(drop)
    }

    /// Finds the users of the device and claims it; returns the reason if they cannot be determined.
    fn ask(&mut self) -> Result<Option<Failure>, Failure> {
        let patience = Instant::now() + LOOKING;
        loop {
            let within = left(self.until);
            let found = if self.info.state() == DevState::Dead {
                self.helper.look(self.id, OPEN.min(within))
            } else {
                self.helper.claim(self.id, OPEN.min(within / 2))
            };
            match found {
                Ok(holders) => self.holders = holders.without(&self.ours()),
                Err(e) => {
                    let failure = self.failure(e);
                    // The disk may just have disappeared.
                    self.refresh()?;
                    if self.info.state() == DevState::Dead {
                        return Ok(None);
                    }
                    return Ok(Some(failure));
                }
            }
            let looking = !self.is_forced() && !self.holders.is_explained();
            if !looking || Instant::now() >= patience.min(self.until) {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Writes back all dirty data. On a recoverable device the driver fails the write-back that STOP_DEV itself starts,
    /// although the server is healthy; on other devices it does not report write-back errors.
    fn write_back(&mut self) -> Result<(), Failure> {
        let within = left(self.until);
        // Leave time for the forced stop.
        let within = if self.is_forced() { within / 2 } else { within };
        let mut watch = Watch::new(self.program, self.id, self.record.clone());
        // Use a separate helper: if it gets stuck, it must not hold the claim.
        let mut writer = Helper::start(self.program)?;
        let written = writer.write_back(self.id, self.nonce, within, &mut || watch.is_dead());
        let why = match written {
            Ok(failed) if failed.is_empty() => {
                writer.finish();
                return self.allow_for_unwritten();
            }
            Ok(failed) => {
                writer.finish();
                let failed: Vec<String> = failed.iter().map(ToString::to_string).collect();
                let failed = failed.join("; ");
                Failure::failed(format!(
                    "device {}: write-back failed, and the kernel does not retry it: {failed}",
                    self.id
                ))
            }
            Err(_) if watch.dead => Failure::failed(format!(
                "the server of device {} is dead: dirty data cannot be written back",
                self.id
            )),
            Err(e) => self.with_holders(match is_abandoned(&e) {
                true => left_behind(&writer, e),
                false => e.into(),
            }),
        };
        self.refresh()?;
        if self.info.state() == DevState::Dead {
            // Its server died, and the disk with it: a stop cannot lose any more data.
            tracing::warn!("{why}");
            return Ok(());
        }
        if self.is_forced() {
            self.lost.push(why.text);
            return Ok(());
        }
        let id = self.id;
        let hint = match self.info.state() {
            DevState::Live if !watch.dead => {
                "nothing was stopped; --force stops the device and loses unwritten data".to_owned()
            }
            _ => format!(
                "nothing was stopped; `ublkctl recover {id}` starts a new server, --force stops the device and \
                 loses unwritten data"
            ),
        };
        Err(why.hint(hint))
    }

    /// L22 A stop loses data that an earlier write-back could not write, although nothing is dirty any more.
    fn allow_for_unwritten(&mut self) -> Result<(), Failure> {
        let noted = Store::of_user().is_ok_and(|store| store.is_unwritten(self.nonce));
        if !noted || self.info.state() == DevState::Dead {
            return Ok(());
        }
        let why = "an earlier write-back failed, and the kernel does not retry it";
        if self.is_forced() {
            self.lost.push(why.to_owned());
            return Ok(());
        }
        Err(Failure::failed(format!(
            "device {} is not fully written back: {why}",
            self.id
        ))
        .hint(
            "nothing was stopped; repeat the writes since the last successful sync, then stop with --force, which writes \
             back dirty data first",
        ))
    }

    fn stop_if_unused(&mut self) -> Result<(), Failure> {
        self.allow_for_unwritten()?;
        let (nonce, until) = (self.nonce, self.until);
        let command = Command::TryStop { id: self.id };
        let mut busy = None;
        let helper = &mut self.helper;
        let tries = until.min(Instant::now() + LOOKING);
        let stopped = wait::until(tries, || match helper.same(nonce, command, left(until)) {
            Ok(()) => Ok(Some(())),
            Err(e @ Error::Busy { .. }) => {
                busy = Some(e);
                Ok(None)
            }
            Err(e) => Err(e),
        });
        let error = match (stopped, busy) {
            (Ok(Some(())), _) | (Ok(None), None) => return Ok(()),
            (Ok(None), Some(busy)) => busy,
            (Err(e), _) => e,
        };
        let mut failure = self.failure(error);
        let holders = self.helper.look(self.id, LOOKING).unwrap_or_default();
        let holders = holders.without(&self.ours());
        if !holders.is_empty() {
            failure.text = format!("{}; it is {holders}", failure.text);
        }
        Err(failure)
    }

    /// Waits for the agent to exit and removes the device's files. The device is gone: a failure here leaves only files
    /// behind, and is reported as such.
    fn forget(&self) {
        let store = match Store::of_user() {
            Ok(store) => store,
            Err(e) => return tracing::debug!("{e}"),
        };
        let record = match store.find(self.id.get(), self.nonce) {
            Ok(Some(record)) => record,
            Ok(None) => return,
            Err(e) => return tracing::warn!("{e}"),
        };
        let gone = || !store.has_agent(&record) && !store.has_server(&record);
        let gone = wait::until(self.until, || Ok::<_, Error>(gone().then_some(())));
        if !matches!(gone, Ok(Some(()))) {
            let pids = [record.agent, record.server].into_iter().flatten();
            let pids: Vec<String> = pids.map(|p| p.pid.to_string()).collect();
            let (pids, id) = (pids.join(" and "), self.id);
            tracing::warn!("some of the processes {pids} of device {id} have not exited yet");
        }
        names::unlink(record.spec.name.as_deref(), self.id);
        if let Err(e) = store.remove(self.id.get(), self.nonce) {
            tracing::warn!("{e}");
        }
    }
}

/// Takes the lock for removing a device. If there is no run directory, or it is full, continues without the lock: the
/// nonce is compared again anyway.
fn lock(id: DevId, patience: Instant) -> Option<Lock> {
    let store = Store::of_user().ok()?;
    match store.lock_removal(id.get(), patience) {
        Ok(lock) => lock,
        Err(e) => {
            tracing::debug!("{e}");
            None
        }
    }
}
