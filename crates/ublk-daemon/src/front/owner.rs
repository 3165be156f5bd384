//! The owner of a device, for udev rules.

use super::by_helper;
use super::look::record;
use std::path::Path;
use std::time::Duration;
use ublk_core::{DevId, Features};
use ublk_ctrl::Controller;

use crate::failure::Failure;

/// What a udev rule needs to know about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ownership {
    /// Created by a user without CAP_SYS_ADMIN, who must own its nodes.
    pub unprivileged: bool,
    /// The user who created it.
    pub uid: u32,
    /// That user's group.
    pub gid: u32,
    /// Its name, if the caller's own records have one.
    pub name: Option<String>,
}

/// The owner of a device, from the kernel, and its name, from the caller's own records; the records of other users are not
/// trusted.
///
/// # Errors
/// No such device, no driver, no permission, a deadline.
pub fn ownership(program: &Path, id: DevId, deadline: Duration) -> Result<Ownership, Failure> {
    let info = by_helper(program, |helper| helper.info(id, deadline))?;
    Ok(Ownership {
        unprivileged: info.features().contains(Features::UNPRIVILEGED_DEV),
        uid: info.owner_uid(),
        gid: info.owner_gid(),
        name: record(&info).and_then(|r| r.spec.name),
    })
}
