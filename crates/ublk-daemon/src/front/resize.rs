//! `resize`: changes the size of a device in use.

use super::add::replace;
use super::by_helper;
use super::reserve::change_alone;
use crate::backend;
use crate::failure::{Failure, FailureKind};
use crate::helper::Helper;
use crate::in_use::holders::Holders;
use crate::spec::BackendSpec;
use crate::state::{Record, Store};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use ublk_core::deadline_in;
use ublk_core::{DevId, DevState, Geometry, Recovery};
use ublk_ctrl::{Command, Controller, Error, Operation, wait};

/// How long to wait for processes that only inspect the device.
const LOOKING: Duration = Duration::from_secs(2);

/// The result of `resize`, as printed as JSON.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Resized {
    /// The device.
    pub id: u32,
    /// Its block device.
    pub path: PathBuf,
    /// Previous size in bytes.
    pub before: u64,
    /// New size in bytes.
    pub size: u64,
    /// How long I/O was held, in microseconds, if the server was replaced.
    pub pause_us: Option<u64>,
}

/// Resizes one of our live devices, in bytes; `None` for the current size of its file. To grow, a new server that knows
/// the size starts before the driver learns it (Linux 6.16).
///
/// # Errors
/// A kernel that cannot, a device that is not live or not ours, a backend that has no room, a smaller size for a
/// device that somebody holds, or the deadline.
pub fn resize(
    program: &Path,
    id: DevId,
    size: Option<u64>,
    force: bool,
    accept_backing: bool,
    deadline: Duration,
) -> Result<Resized, Failure> {
    let until = deadline_in(deadline);
    let left = || until.saturating_duration_since(Instant::now());
    let look = |helper: &mut Helper| {
        let info = helper.info(id, left())?;
        let kernel = helper.features(left())?;
        ublk_core::require_features(ublk_core::Features::UPDATE_SIZE, kernel)?;
        let state = info.state();
        let operation = Operation::UpdateSize;
        let dev = id;
        let wrong = Error::WrongState {
            operation,
            dev,
            state,
        };
        if state != DevState::Live {
            return Err(wrong);
        }
        let params = helper.get_params(id, left())?;
        Ok((info, params.ok_or(wrong)?.size))
    };
    let record = |info: &Geometry| {
        let record = Store::of_user()?.find(id.get(), info.server_flags())?;
        record.ok_or_else(|| {
            Failure::foreign(id)
                .hint("only the program that serves the device knows the size of its backend")
        })
    };
    record(&by_helper(program, look)?.0)?;
    let _lock = change_alone(id, until)?;
    // Now that no other command changes it.
    let (info, before) = by_helper(program, look)?;
    let record = record(&info)?;
    let size = room(&record, size, accept_backing, until)?;
    let mut resized = Resized {
        id: id.get(),
        path: PathBuf::from(format!("/dev/ublkb{id}")),
        before,
        size,
        pause_us: None,
    };
    if size < before {
        shrink(program, &record, size, before, force, until)?;
    } else if size > before {
        if !Recovery::of(info.features()).is_recoverable() {
            return Err(Failure::failed(format!(
                "device {id} was created without recovery: growing it needs a new server, and no other server can take it over"
            ))
            .hint("delete it and add it again with --recovery reissue"));
        }
        let added = replace(program, id, size, accept_backing, left())?;
        if added.size != size {
            return Err(Failure::failed(format!(
                "device {id} has a new server, but still {} bytes: see its log",
                added.size
            )));
        }
        resized.pause_us = added.pause_us;
    }
    Ok(resized)
}

/// The size that the backend can have; for `None` the current size of the file.
fn room(
    record: &Record,
    size: Option<u64>,
    accept_backing: bool,
    until: Instant,
) -> Result<u64, Failure> {
    let block = u64::from(record.spec.block_size);
    if let Some(size) = size.filter(|size| *size == 0 || !size.is_multiple_of(block)) {
        let text = format!("a device cannot have {size} bytes: its block size is {block}");
        let least = size.max(1).next_multiple_of(block);
        return Err(Failure::new(FailureKind::Usage, text).hint(format!(
            "give a multiple of the block size, for example {least} bytes"
        )));
    }
    let mut spec = record.spec.clone();
    if spec.parameters.zones.is_some() {
        return Err(Failure::new(
            FailureKind::Usage,
            "a zoned device cannot be resized: the driver keeps its zones",
        )
        .hint("delete it and create it with another size"));
    }
    match (&mut spec.backend, size) {
        (BackendSpec::Mem { .. } | BackendSpec::Fault { .. }, _) => {
            return Err(Failure::new(
                FailureKind::Usage,
                "a memory device cannot be resized: its address space was reserved when it was created",
            )
            .hint("use a file device on tmpfs if the device has to grow"));
        }
        (BackendSpec::Linear { .. } | BackendSpec::Stripe { .. }, _) => {
            return Err(Failure::new(
                FailureKind::Usage,
                "a device over several files cannot be resized: its members decide where its data is",
            )
            .hint("delete it and create it with other members, or use LVM where devices grow"));
        }
        (BackendSpec::File { length, .. } | BackendSpec::Nbd { length, .. }, size) => {
            *length = size
        }
        (_, Some(size)) => spec.backend.set_size(size),
        (_, None) => {
            return Err(Failure::new(
                FailureKind::Usage,
                "--fill is for file and NBD devices: the backend of this device has no size of its own",
            )
            .hint("give a size"));
        }
    }
    let limits =
        backend::limits_again(record, &spec, accept_backing, until).map_err(|f| {
            match (&f.hint, &spec.backend) {
                (None, BackendSpec::File { .. }) => f.hint("grow the file first (`truncate -s`)"),
                (None, BackendSpec::Nbd { .. }) if f.kind != FailureKind::TimedOut => {
                    f.hint("grow the export first, where its server has it")
                }
                _ => f,
            }
        })?;
    Ok(limits.size)
}

/// Shrinks a device unless it is in use. No other process can claim it meanwhile.
fn shrink(
    program: &Path,
    record: &Record,
    size: u64,
    before: u64,
    force: bool,
    until: Instant,
) -> Result<(), Failure> {
    let id = record.id.and_then(|id| DevId::new(id).ok());
    let id = id.ok_or_else(|| Failure::failed("a device without a number"))?;
    let left = || until.saturating_duration_since(Instant::now());
    let ours = [record.agent, record.server].into_iter().flatten();
    let ours: Vec<u32> = ours.map(|role| role.pid).collect();
    let mut holders = Holders::default();
    by_helper(program, |helper| {
        if !force {
            // Wait for processes that only inspect it, such as udev.
            wait::until(until.min(Instant::now() + LOOKING), || {
                holders = helper.claim(id, left())?.without(&ours);
                let lasting = !holders.losing().is_empty() && holders.is_explained();
                Ok::<_, Error>((holders.is_empty() || lasting).then_some(()))
            })?;
            if !holders.is_empty() {
                return Ok(());
            }
        }
        helper.same(record.nonce, Command::UpdateSize { id, size }, left())
    })?;
    if holders.is_empty() {
        super::nbd::shrunk(record, id, size);
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::Busy,
        format!(
            "device {id} would lose its last {} bytes and is {holders}",
            before - size
        ),
    )
    .hint("shrink its contents first, and close it; --force truncates the device anyway"))
}
