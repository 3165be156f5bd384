//! Resolves, checks and opens the backend of a device specification.

mod beside;
mod nbd;

use crate::backing;
use crate::failure::{Failure, FailureKind};
use crate::link::message::Opening;
use crate::spec::{AddSpec, BackendSpec};
use crate::state::{Record, Store};
pub(crate) use beside::{Second, side_file, start_protected, start_zoned};
pub(crate) use nbd::not_connected;

use beside::{protected, refuse_stale, zoned};
use nbd::{fit_server, nbd_options, open_nbd};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use ublk_backends::{
    Composed, Created, Faulty, File, FileOptions, Identity, Memory, Null, Protected, ZonedDevice,
};
use ublk_core::{Backend, DataMode, Limits};
use ublk_nbd::Nbd;

/// An opened backend, as specified.
#[derive(Debug)]
pub(crate) enum Opened {
    Null(Arc<Null>),
    Memory(Arc<Memory>),
    Fault(Arc<Faulty<Memory>>),
    File(Arc<File>),
    Composed(Arc<Composed>),
    ZonedMemory(Arc<ZonedDevice<Memory>>),
    ZonedFile(Arc<ZonedDevice<File>>),
    ProtectedNull(Arc<Protected<Null>>),
    ProtectedMemory(Arc<Protected<Memory>>),
    ProtectedFile(Arc<Protected<File>>),
    Nbd(Arc<Nbd>),
}

impl Opened {
    /// Whether the driver serves it in user copy only.
    const fn needs_user_copy(&self) -> bool {
        matches!(
            self,
            Self::ZonedMemory(_)
                | Self::ZonedFile(_)
                | Self::ProtectedNull(_)
                | Self::ProtectedMemory(_)
                | Self::ProtectedFile(_)
        )
    }

    /// The files behind it, in order.
    pub(crate) fn files(&self) -> Vec<&File> {
        match self {
            Self::File(file) => vec![file],
            Self::Composed(composed) => composed.members().iter().collect(),
            Self::ZonedFile(device) => vec![device.data()],
            Self::ProtectedFile(device) => vec![device.data()],
            Self::Null(_)
            | Self::Memory(_)
            | Self::Fault(_)
            | Self::ZonedMemory(_)
            | Self::ProtectedNull(_)
            | Self::ProtectedMemory(_)
            | Self::Nbd(_) => Vec::new(),
        }
    }
}

/// Refuses what no backend could serve, without looking at files and servers.
///
/// # Errors
/// The reason, as a usage failure.
pub fn well_formed(spec: &AddSpec) -> Result<(), Failure> {
    refuse(spec)?;
    match &spec.backend {
        BackendSpec::Nbd { .. } => nbd_options(spec).map(drop),
        _ => Ok(()),
    }
}

/// The limits of a backend, without opening it, for checks before anything is created. A server is waited for until the
/// deadline.
///
/// # Errors
/// The backend refuses the size; it cannot be opened; the deadline.
pub fn limits_of(spec: &AddSpec, until: Instant) -> Result<Limits, Failure> {
    look(spec, until).map(|(_, limits)| limits)
}

/// The export of an NBD device, to see whether it suits. The server is waited for until the deadline.
///
/// # Errors
/// It cannot be reached, or is no block device.
pub(crate) fn look_at_export(spec: &AddSpec, until: Instant) -> Result<Nbd, Failure> {
    open_nbd(spec, Purpose::Look(until))
}

/// The limits for an existing device: those of the backing store that it was created with, wherever that is now.
///
/// # Errors
/// The path leads to another store, unless that is accepted; errors of the file.
pub(crate) fn limits_again(
    record: &Record,
    spec: &AddSpec,
    accept: bool,
    until: Instant,
) -> Result<Limits, Failure> {
    let BackendSpec::File { path, .. } = &spec.backend else {
        return limits_of(spec, until);
    };
    let (opening, passed) = backing::next_opening(record, &[], accept);
    // A link of /proc leads to the open file itself, whatever it is named now.
    let link = passed.into_iter().next().map(|fd| {
        (
            PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())),
            fd,
        )
    });
    let link = link.as_ref().map(|(link, _)| link.as_path());
    let path_to_open = link.or(opening.instead.as_deref()).unwrap_or(path);
    let file = options(spec, 0, path_to_open).claim(false).open();
    let file = file.map_err(|e| of_file(path, &e))?;
    if let Some(was) = opening.backing.first() {
        backing::check(path, was, &file.identity())?;
    }
    Ok(file.limits())
}

/// Records in the specification what was left to the backend: the data mode, and for a file its size and block size, so
/// that the device is the same whenever it is served again. Returns the backend's limits.
///
/// # Errors
/// Errors of the file.
pub fn resolve(spec: &mut AddSpec, until: Instant) -> Result<Limits, Failure> {
    let (opened, limits) = look(spec, until)?;
    // The driver does not permit zero copy for unprivileged servers.
    let user = spec.unprivileged;
    spec.auto = spec.auto.map(|_| match user {
        true => DataMode::Copy,
        false => pays(&opened),
    });
    if opened.needs_user_copy() && spec.auto.take().is_some() {
        // The only mode there is, so the device is checked with it.
        spec.mode.data = DataMode::UserCopy;
    }
    if let Opened::Nbd(nbd) = &opened {
        fit_server(spec, nbd);
    }
    if matches!(
        spec.backend,
        BackendSpec::Null { .. } | BackendSpec::Mem { .. } | BackendSpec::Fault { .. }
    ) {
        return Ok(limits);
    }
    spec.block_size = limits.logical_block_size;
    if let (Some(files), Opened::Composed(composed)) = (spec.backend.files_mut(), &opened) {
        files.bytes = limits.size;
        for (member, file) in files.files.iter_mut().zip(composed.members()) {
            member.length = Some(file.limits().size);
            for choice in file.choices() {
                tracing::warn!("{}: {choice}", member.path.display());
            }
        }
    }
    if let BackendSpec::Nbd { length, .. } = &mut spec.backend {
        *length = Some(limits.size);
    }
    if let BackendSpec::File { length, path, .. } = &mut spec.backend {
        *length = Some(limits.size);
        if let Opened::File(file) = &opened {
            for choice in file.choices() {
                tracing::warn!("{}: {choice}", path.display());
            }
        }
    }
    Ok(limits)
}

/// The cheapest data mode without side effects (docs/tuning.md has the figures).
fn pays(opened: &Opened) -> DataMode {
    match opened {
        // In zero copy nothing would fill the pages of a READ, and their old contents must not reach the reader.
        Opened::Null(_) => DataMode::Copy,
        Opened::File(file) => file.favoured_data(),
        Opened::Composed(composed) => composed.favoured_data(),
        Opened::Memory(_) | Opened::Fault(_) | Opened::Nbd(_) => DataMode::Copy,
        // The driver copies no data of a zoned device, and no metadata.
        Opened::ZonedMemory(_)
        | Opened::ZonedFile(_)
        | Opened::ProtectedNull(_)
        | Opened::ProtectedMemory(_)
        | Opened::ProtectedFile(_) => DataMode::UserCopy,
    }
}

/// Creates the sparse file of a new device. Dropping the returned value removes the file, unless it is told to keep it.
///
/// # Errors
/// The file already exists, the size is invalid, or errors of the file system.
pub fn create_file(path: &Path, size: u64) -> Result<Created, Failure> {
    Created::new(path, size).map_err(|e| of_file(path, &e))
}

/// A file's failure, with its path.
fn of_file(path: &Path, error: &ublk_backends::Error) -> Failure {
    let mut failure = not_opened(error);
    failure.text = format!("{}: {}", path.display(), failure.text);
    failure
}

/// Refuses modes that this backend cannot be served in, with the reason; a mode is never replaced silently.
fn refuse(spec: &AddSpec) -> Result<(), Failure> {
    let usage = |text: &str, hint: &str| {
        let failure = Failure::new(FailureKind::Usage, format!("{}: {text}", spec.mode));
        Err(failure.hint(hint))
    };
    if let Some(why) = spec.mode.impossible() {
        return usage(why, "choose one of --batch on and --data get-data");
    }
    if spec.parameters.zones.is_some() {
        match (&spec.backend, spec.mode.data) {
            (BackendSpec::Mem { .. } | BackendSpec::File { .. }, DataMode::UserCopy) => {}
            // Left open, and settled before the device is made.
            (BackendSpec::Mem { .. } | BackendSpec::File { .. }, _) if spec.auto.is_some() => {}
            (BackendSpec::Mem { .. } | BackendSpec::File { .. }, _) => {
                return usage(
                    "the driver copies no data of a zoned device, and its writes go to the backend in order",
                    "use --data user-copy",
                );
            }
            _ => {
                let text = "only memory and file devices can be zoned";
                return Err(Failure::new(FailureKind::Usage, text).hint("omit --zone-size"));
            }
        }
    }
    if spec.parameters.integrity.is_some() {
        refuse_integrity(spec)?;
    }
    match (spec.mode.data, &spec.backend) {
        (DataMode::ZeroCopy | DataMode::ZeroCopyManual, BackendSpec::Fault { .. }) => usage(
            "a fault device keeps its data in the server's memory",
            "use --data copy, get-data or user-copy",
        ),
        (DataMode::ZeroCopy | DataMode::ZeroCopyManual, BackendSpec::Mem { .. }) => usage(
            "a memory device has no file to forward requests to",
            "use --data user-copy or get-data: the driver then copies to and from the device's memory",
        ),
        (_, BackendSpec::Nbd { .. }) if spec.serving.options.threads_per_queue > 1 => usage(
            "several threads of a queue would share one connection",
            "use --queues for more connections, without --threads",
        ),
        _ => Ok(()),
    }
}

/// Refuses what does not go together with integrity metadata.
fn refuse_integrity(spec: &AddSpec) -> Result<(), Failure> {
    let keeps = matches!(
        spec.backend,
        BackendSpec::Null { .. } | BackendSpec::Mem { .. } | BackendSpec::File { .. }
    );
    let (text, hint) = if !keeps {
        (
            "only null, memory and file devices have integrity metadata",
            "omit --integrity, or serve a backend of your own (docs/backends.md)",
        )
    } else if spec.parameters.zones.is_some() {
        (
            "a zoned device has no integrity metadata",
            "omit --integrity or --zone-size",
        )
    } else if spec.auto.is_none() && spec.mode.data != DataMode::UserCopy {
        (
            "the driver passes integrity metadata in user copy only",
            "use --data user-copy",
        )
    } else {
        return Ok(());
    };
    Err(Failure::new(FailureKind::Usage, text).hint(hint))
}

/// The failure of a backend that could not be created. Only numbers that are invalid on every machine are usage errors.
fn not_opened(error: &ublk_backends::Error) -> Failure {
    let kind = if error.is_usage() {
        FailureKind::Usage
    } else {
        FailureKind::Failed
    };
    let mut failure = Failure::new(kind, error.to_string());
    if let ublk_backends::Error::File { errno, .. } | ublk_backends::Error::Reserve { errno, .. } =
        error
    {
        failure.errno = Some(*errno);
    }
    failure
}

/// How a file of a device is opened; `number` counts its files from 0.
fn options(spec: &AddSpec, number: usize, path: &Path) -> FileOptions {
    let options = File::options(path).read_only(spec.read_only);
    let options = options.block_size((spec.block_size != 0).then_some(spec.block_size));
    match &spec.backend {
        BackendSpec::Linear { files } | BackendSpec::Stripe { files, .. } => {
            let member = files.files.get(number);
            options
                .offset(member.map_or(0, |member| member.offset))
                .length(member.and_then(|member| member.length))
                .buffered(files.buffered)
                .discard(files.discard)
        }
        BackendSpec::File {
            path: _,
            offset,
            length,
            buffered,
            discard,
            force: _,
            integrity_file: _,
        } => options
            .offset(*offset)
            .length(*length)
            .buffered(*buffered)
            .discard(*discard),
        BackendSpec::Null { .. }
        | BackendSpec::Mem { .. }
        | BackendSpec::Fault { .. }
        | BackendSpec::Nbd { .. } => options,
    }
}

/// Opens a backend to inspect it, without disturbing other users of its file.
fn look(spec: &AddSpec, until: Instant) -> Result<(Opened, Limits), Failure> {
    open(spec, Purpose::Look(until), |number, path, block| {
        let options = options(spec, number, path).claim(false);
        let options = match block {
            Some(_) => options.block_size(block),
            None => options,
        };
        options.open().map_err(|e| {
            let failure = of_file(path, &e);
            match e {
                ublk_backends::Error::File {
                    errno: ublk_core::Errno::ENOENT,
                    ..
                } if !path.is_symlink() && matches!(spec.backend, BackendSpec::File { .. }) => {
                    failure.hint("or add `--create --size SIZE`, which creates a sparse file")
                }
                _ => failure,
            }
        })
    })
}

/// Opens a backend; its files, if it has some, by `open_file`: number, path, and the block size if it is not that of the
/// specification.
pub(crate) fn open(
    spec: &AddSpec,
    purpose: Purpose,
    mut open_file: impl FnMut(usize, &Path, Option<u32>) -> Result<File, Failure>,
) -> Result<(Opened, Limits), Failure> {
    refuse(spec)?;
    let (block, yes) = (spec.block_size, spec.read_only);
    let opened = match &spec.backend {
        BackendSpec::Null { size } => {
            let null = Null::new(*size, block).map_err(|e| not_opened(&e))?;
            let null = null.read_only(yes);
            match spec.parameters.integrity {
                Some(integrity) => {
                    let device = Protected::null(null, integrity);
                    Opened::ProtectedNull(Arc::new(device.map_err(|e| not_opened(&e))?))
                }
                None => Opened::Null(Arc::new(null)),
            }
        }
        BackendSpec::Mem { size } => {
            let memory = Memory::new(*size, block).map_err(|e| not_opened(&e))?;
            let memory = memory.read_only(yes);
            match (spec.parameters.zones, spec.parameters.integrity) {
                (Some(zones), _) => {
                    let device = ZonedDevice::memory(memory, zones).map_err(|e| not_opened(&e))?;
                    Opened::ZonedMemory(Arc::new(device))
                }
                (None, Some(integrity)) => {
                    let device = Protected::memory(memory, integrity);
                    Opened::ProtectedMemory(Arc::new(device.map_err(|e| not_opened(&e))?))
                }
                (None, None) => Opened::Memory(Arc::new(memory)),
            }
        }
        BackendSpec::Fault { size, plan } => {
            if let Some(range) = plan.range.as_ref().filter(|range| range.end > *size) {
                let text = format!(
                    "the range {}:{} ends behind the device, which has {size} bytes",
                    range.start,
                    range.end.saturating_sub(range.start)
                );
                return Err(Failure::new(FailureKind::Usage, text)
                    .hint("give --range OFFSET:LENGTH inside the device"));
            }
            let memory = Memory::new(*size, block).map_err(|e| not_opened(&e))?;
            let faulty = Faulty::new(memory.read_only(yes), plan.clone());
            Opened::Fault(Arc::new(faulty))
        }
        BackendSpec::File { path, .. } => {
            refuse_stale(spec, purpose)?;
            let file = open_file(0, path, None)?;
            match (spec.parameters.zones, spec.parameters.integrity) {
                (Some(zones), _) => zoned(file, path, zones, purpose)?,
                (None, Some(integrity)) => protected(file, spec, integrity, purpose)?,
                (None, None) => Opened::File(Arc::new(file)),
            }
        }
        BackendSpec::Linear { .. } | BackendSpec::Stripe { .. } => {
            refuse_stale(spec, purpose)?;
            Opened::Composed(Arc::new(compose(spec, open_file)?))
        }
        BackendSpec::Nbd { .. } => Opened::Nbd(Arc::new(open_nbd(spec, purpose)?)),
    };
    let limits = match &opened {
        Opened::Null(null) => null.limits(),
        Opened::Memory(memory) => memory.limits(),
        Opened::Fault(faulty) => faulty.limits(),
        Opened::File(file) => file.limits(),
        Opened::Composed(composed) => composed.limits(),
        Opened::ZonedMemory(device) => device.limits(),
        Opened::ZonedFile(device) => device.limits(),
        Opened::ProtectedNull(device) => device.limits(),
        Opened::ProtectedMemory(device) => device.limits(),
        Opened::ProtectedFile(device) => device.limits(),
        Opened::Nbd(nbd) => nbd.limits(),
    };
    Ok((opened, limits))
}

/// What a backend is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To look at it until then: nothing is made.
    Look(Instant),
    /// To serve a new device.
    Make,
    /// To serve a device that had a server before.
    Continue,
    /// The same, on whatever its paths lead to now.
    Accept,
}

impl Purpose {
    /// Whether the device had a server before.
    pub(crate) const fn continues(self) -> bool {
        matches!(self, Self::Continue | Self::Accept)
    }
}

/// Opens the members of a device over several files.
fn compose(
    spec: &AddSpec,
    mut open_file: impl FnMut(usize, &Path, Option<u32>) -> Result<File, Failure>,
) -> Result<Composed, Failure> {
    let Some((layout, files)) = spec.backend.composition() else {
        return Err(Failure::failed("not a device over several files"));
    };
    let mut members = Vec::with_capacity(files.files.len());
    for (number, member) in files.files.iter().enumerate() {
        members.push(open_file(number, &member.path, None)?);
    }
    // All have the largest block.
    let block = members.iter().map(|m| m.limits().logical_block_size).max();
    for (number, member) in files.files.iter().enumerate() {
        if Some(members[number].limits().logical_block_size) != block {
            members[number] = open_file(number, &member.path, block)?;
        }
    }
    Composed::new(layout, members).map_err(|e| not_opened(&e))
}

/// Opens a file of a device to serve it: `number` counts them from 0, `before` are those that are open.
pub(crate) fn open_to_serve(
    spec: &AddSpec,
    (number, path): (usize, &Path),
    before: &[Identity],
    opening: &Opening,
    passed: &[OwnedFd],
) -> Result<File, Failure> {
    let path_to_open = opening.instead.as_deref().unwrap_or(path);
    let options = options(spec, number, path_to_open);
    let store = Store::of_user().ok();
    let of = backing::Opened {
        spec,
        path,
        number,
        before,
    };
    backing::opened(of, opening, store.as_ref(), || {
        let copy = passed.get(number).and_then(|fd| fd.try_clone().ok());
        let file = match copy {
            Some(copy) => options.open_passed(copy),
            None => options.open(),
        };
        file.map_err(|e| of_file(path, &e))
    })
}

/// Reports notes about the file to the user.
pub(crate) fn log_notes(path: &Path, file: &File) {
    for note in file.notes() {
        tracing::warn!("{}: {note}", path.display());
    }
    let (memory, position) = file.alignment();
    tracing::debug!(
        "{}: direct {}, memory by {memory}, positions by {position}, in memory {}",
        path.display(),
        file.is_direct(),
        file.is_in_memory()
    );
}

#[cfg(test)]
mod tests;
