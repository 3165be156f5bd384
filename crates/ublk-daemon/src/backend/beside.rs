//! Files beside a device's data: write pointers of zones, integrity metadata.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ublk_backends::{File, Identity, Protected, SideFile, ZoneLayout, ZonedDevice};
use ublk_core::Integrity;

use super::{Opened, Purpose, of_file};
use crate::backing;
use crate::failure::{Failure, FailureKind};
use crate::spec::{AddSpec, BackendSpec};

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
    let mut pointers = path.as_os_str().to_owned();
    pointers.push(".zones");
    let pointers = PathBuf::from(pointers);
    let device = match purpose {
        Purpose::Look if !pointers.exists() => ZonedDevice::blank(file, zones),
        Purpose::Make => ZonedDevice::file(file, zones, &pointers),
        // Without them a device that holds data would seem empty.
        Purpose::Look | Purpose::Continue => ZonedDevice::file_again(file, zones, &pointers),
    };
    let device = device.map_err(|e| of_file(&pointers, &e))?;
    Ok(Opened::ZonedFile(Arc::new(device)))
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
    let device = match purpose {
        Purpose::Look => Protected::looked_at(file, integrity, &side.clone().create(true)),
        Purpose::Make => Protected::prepared(file, integrity, &side.clone().create(true)),
        // Without it, a device that has metadata would seem to have none; its size may be about to change.
        Purpose::Continue => Protected::prepared(file, integrity, &side.clone().resize(true)),
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

/// Refuses to write to a file that has integrity metadata beside it without keeping that: it would be that of other data.
pub(super) fn refuse_stale_metadata(spec: &AddSpec, purpose: Purpose) -> Result<(), Failure> {
    if spec.parameters.integrity.is_some() || spec.read_only || purpose == Purpose::Continue {
        return Ok(());
    }
    for member in spec.backend.members() {
        let side = SideFile::beside(&member.path);
        if side.exists() {
            return Err(Failure::failed(format!(
                "{}: the integrity metadata of its blocks is in {}, and would not match what this device writes",
                member.path.display(),
                side.path().display()
            ))
            .hint("add the device with --integrity as before; or remove that file to give the metadata up"));
        }
    }
    Ok(())
}
