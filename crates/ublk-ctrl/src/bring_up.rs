//! Features requested for a new device, and the check that they were granted, for embedding programs and for the tool.
#![forbid(unsafe_code)]

use crate::{Controller, Error};
use core::time::Duration;
use ublk_core::{CheckedSpec, Features, Geometry, Recovery};

/// The features to request: all of `asked`, and each set of `optional` that this kernel supports completely. A
/// recoverable device also gets QUIESCE (6.16) if the kernel supports it: without it, I/O cannot be held while a server
/// is replaced.
///
/// The kernel's features are queried only if the result depends on them.
///
/// # Errors
/// [`Error::BatchNotRecoverable`] for batch mode with recovery before Linux 7.3, and the errors of GET_FEATURES.
pub fn negotiate<C: Controller + ?Sized>(
    controller: &mut C,
    asked: Features,
    optional: &[Features],
    deadline: Duration,
) -> Result<Features, Error> {
    let recovery = Recovery::of(asked);
    let news = |set: &Features| !set.without(asked).is_empty();
    if !recovery.is_recoverable() && !optional.iter().any(news) {
        return Ok(asked);
    }
    let kernel = controller.features(deadline)?;
    // IO_DESC_SIZE came with the kernel whose batch mode recovers (7.3).
    let batch = asked.contains(Features::BATCH_IO);
    if recovery.is_recoverable() && batch && !kernel.contains(Features::IO_DESC_SIZE) {
        return Err(Error::BatchNotRecoverable { recovery });
    }
    let quiesce = match recovery.is_recoverable() {
        true => Features::QUIESCE,
        false => Features::NONE,
    };
    let had = optional
        .iter()
        .chain([&quiesce])
        .filter(|set| kernel.contains(**set));
    Ok(had.fold(asked, |all, set| all | *set))
}

/// Compares what ADD_DEV granted with what was requested. The driver drops some features without an error: recovery and
/// the modes without a copy for an unprivileged caller, UNPRIVILEGED_DEV for a privileged one.
///
/// # Errors
/// [`Error::NotGranted`]; the device exists, and the caller must delete it.
pub fn granted(asked: &CheckedSpec, geometry: &Geometry) -> Result<(), Error> {
    let refused = asked.refused(geometry);
    if refused.is_empty() {
        return Ok(());
    }
    Err(Error::NotGranted {
        dev: geometry.dev_id(),
        asked: geometry.features() | refused,
        refused,
    })
}

#[cfg(test)]
mod tests;
