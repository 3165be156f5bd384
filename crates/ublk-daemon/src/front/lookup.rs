//! Our devices by name, according to their records.

use super::look::{DELETING, known};
use super::{ListEntry, Target};
use crate::failure::Failure;
use crate::link::peer::this_program;
use crate::state::{Record, Store};
use std::path::Path;
use std::time::Duration;
use ublk_core::DevId;

/// How long listing the devices may take.
const LOOK: Duration = Duration::from_secs(5);

/// The number of the device with this name, see [`target`].
#[must_use]
pub fn named(name: &str) -> Option<u32> {
    target(name).map(|target| target.id.get())
}

/// The device with this name, according to our records. Its link alone proves nothing: it may be left over from a
/// device whose number another one now has (L42).
#[must_use]
pub fn target(name: &str) -> Option<Target> {
    let store = Store::of_user().ok()?;
    // Only then ask the kernel whether that device still exists.
    let found = store
        .has_name(name)
        .then(|| find(&this_program(), name, LOOK));
    let (entry, record) = found?.ok()??;
    Some(Target {
        id: DevId::new(entry.id).ok()?,
        nonce: Some(record.nonce),
    })
}

/// Our device with this name, and its record; a working one is preferred to a dead one.
pub(super) fn find(
    program: &Path,
    name: &str,
    deadline: Duration,
) -> Result<Option<(ListEntry, Record)>, Failure> {
    let all = known(program, deadline)?;
    let named = all.into_iter().filter_map(|(entry, record)| {
        let record = record.filter(|r| r.spec.name.as_deref() == Some(name))?;
        // A device that is being deleted has released its name.
        (entry.state != DELETING).then_some((entry, record))
    });
    Ok(named.min_by_key(|(entry, _)| entry.state == "dead"))
}
