//! Files beside a device's data: write pointers of zones, integrity metadata.
#![forbid(unsafe_code)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ublk_backends::{File, Identity, Protected, SideFile, ZoneLayout, ZonedDevice, ZonesFile};
use ublk_core::Integrity;

use super::{Opened, Purpose, of_file};
use crate::backing;
use crate::failure::{Failure, FailureKind};
use crate::spec::{AddSpec, BackendSpec, Member};

/// A zoned device on a file: its write pointers are beside it.
pub(super) fn zoned(
    file: File,
    path: &Path,
    zones: ZoneLayout,
    purpose: Purpose,
) -> Result<Opened, Failure> {
    if !matches!(file.identity(), Identity::File { .. }) {
        return Err(Failure::new(
            FailureKind::Usage,
            format!(
                "{}: only a regular file can be a zoned device",
                path.display()
            ),
        )
        .hint("its write pointers are in a file beside it"));
    }
    let pointers = ZonesFile::beside(path);
    let device = match purpose {
        Purpose::Look(_) => ZonedDevice::looked_at(file, zones, &pointers.clone().create(true)),
        Purpose::Make => ZonedDevice::prepared(file, zones, &pointers.clone().create(true)),
        // Without them a device that holds data would seem empty.
        Purpose::Continue | Purpose::Accept => {
            let pointers = pointers.clone().same_data(purpose == Purpose::Continue);
            ZonedDevice::prepared(file, zones, &pointers)
        }
    };
    let device = device.map_err(|e| of_file(pointers.path(), &e))?;
    if purpose == Purpose::Make {
        start_zoned(path, &device, backing::PATIENCE)?;
    }
    Ok(Opened::ZonedFile(Arc::new(device)))
}

/// Begins to serve a zoned device on a file, once its previous server has ended.
pub(crate) fn start_zoned(
    path: &Path,
    device: &ZonedDevice<File>,
    wait: Duration,
) -> Result<(), Failure> {
    let started = device.start(wait);
    started.map_err(|e| of_file(ZonesFile::beside(path).path(), &e))
}

/// The file with the integrity metadata of a file device that has some.
pub(crate) fn side_file(spec: &AddSpec) -> Option<SideFile> {
    spec.parameters.integrity?;
    match &spec.backend {
        BackendSpec::File {
            integrity_file: Some(side),
            ..
        } => Some(SideFile::new(side)),
        BackendSpec::File { path, .. } => Some(SideFile::beside(path)),
        _ => None,
    }
}

/// A device with integrity metadata on a file: the metadata is in a file beside it.
pub(super) fn protected(
    file: File,
    spec: &AddSpec,
    integrity: Integrity,
    purpose: Purpose,
) -> Result<Opened, Failure> {
    let side = side_file(spec).ok_or_else(|| Failure::failed("no file of integrity metadata"))?;
    let BackendSpec::File {
        path,
        integrity_file,
        ..
    } = &spec.backend
    else {
        return Err(Failure::failed("not a file device"));
    };
    if integrity_file.is_none() && !matches!(file.identity(), Identity::File { .. }) {
        let text = format!(
            "{}: the integrity metadata of a block device cannot be beside it, in /dev",
            path.display()
        );
        return Err(Failure::new(FailureKind::Usage, text)
            .hint("name a file that outlives the machine's next start: --integrity-file PATH"));
    }
    if let Ok(meta) = std::fs::metadata(side.path())
        && file.identity().matches(&meta)
    {
        let text = format!("{}: that is the file with the data", side.path().display());
        return Err(Failure::new(FailureKind::Usage, text)
            .hint("name another file for the integrity metadata (--integrity-file)"));
    }
    let device = match purpose {
        Purpose::Look(_) => Protected::looked_at(file, integrity, &side.clone().create(true)),
        Purpose::Make => Protected::prepared(file, integrity, &side.clone().create(true)),
        // Without it, a device that has metadata would seem to have none; its size may be about to change.
        Purpose::Continue | Purpose::Accept => {
            let side = side.clone().resize(true);
            let side = side.same_data(purpose == Purpose::Continue);
            Protected::prepared(file, integrity, &side)
        }
    };
    let device = device.map_err(|e| of_file(side.path(), &e))?;
    if purpose == Purpose::Make {
        start_protected(spec, &device, backing::PATIENCE)?;
    }
    Ok(Opened::ProtectedFile(Arc::new(device)))
}

/// Begins to serve a device with metadata in a file, once its previous server has ended.
pub(crate) fn start_protected(
    spec: &AddSpec,
    device: &Protected<File>,
    wait: Duration,
) -> Result<(), Failure> {
    let side = side_file(spec).unwrap_or_else(|| SideFile::new(""));
    let path = side.path();
    let checked = device.start(wait).map_err(|e| of_file(path, &e))?;
    if checked.regions != 0 {
        tracing::info!(
            "{}: the last server did not end cleanly; in {} regions {} intervals match their integrity metadata, {} did not and \
             have none now",
            path.display(),
            checked.regions,
            checked.kept,
            checked.dropped
        );
    }
    Ok(())
}

/// Refuses to write to a file that has integrity metadata or write pointers beside it without keeping these: they would be
/// those of other data.
pub(super) fn refuse_stale(spec: &AddSpec, purpose: Purpose) -> Result<(), Failure> {
    if spec.read_only || purpose.continues() {
        return Ok(());
    }
    for Member { path, .. } in spec.backend.members() {
        let (side, pointers) = (SideFile::beside(&path), ZonesFile::beside(&path));
        let (what, at, option) = if spec.parameters.integrity.is_none() && side.exists() {
            (
                "the integrity metadata of its blocks is",
                side.path(),
                "--integrity",
            )
        } else if spec.parameters.zones.is_none() && pointers.exists() {
            (
                "the write pointers of its zones are",
                pointers.path(),
                "--zone-size",
            )
        } else {
            continue;
        };
        return Err(Failure::failed(format!(
            "{}: {what} in {}, and would not match what this device writes",
            path.display(),
            at.display()
        ))
        .hint(format!(
            "add the device with {option} as before; or remove that file to give up what it says"
        )));
    }
    Ok(())
}

/// The second file of a file device.
#[derive(Debug)]
pub(crate) enum Second {
    /// Integrity metadata.
    Metadata(SideFile),
    /// Write pointers.
    Pointers(ZonesFile),
}

impl Second {
    /// That of a device, if it has one.
    pub(crate) fn of(spec: &AddSpec) -> Option<Self> {
        match &spec.backend {
            BackendSpec::File { path, .. } if spec.parameters.zones.is_some() => {
                Some(Self::Pointers(ZonesFile::beside(path)))
            }
            _ => side_file(spec).map(Self::Metadata),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Metadata(side) => side.path(),
            Self::Pointers(pointers) => pointers.path(),
        }
    }

    /// Whether something has its name.
    pub(crate) fn is_there(&self) -> bool {
        std::fs::symlink_metadata(self.path()).is_ok()
    }

    /// Removes it, unless a server has it: for a device that failed after it was made.
    pub(crate) fn remove_unused(&self) {
        match self {
            Self::Metadata(side) => side.remove_unused(),
            Self::Pointers(pointers) => pointers.remove_unused(),
        }
    }

    /// Refuses one that is there already for a file that is to be created: it would be of other data.
    pub(crate) fn refuse_old(&self) -> Result<(), Failure> {
        if !self.is_there() {
            return Ok(());
        }
        let (what, hint) = match self {
            Self::Metadata(_) => (
                "is integrity metadata",
                "move it away, or name another file (--integrity-file)",
            ),
            Self::Pointers(_) => ("are write pointers", "move them away"),
        };
        let text = format!(
            "{}: there {what} already, of another file than the one to be created",
            self.path().display()
        );
        Err(Failure::failed(text).hint(hint))
    }
}
