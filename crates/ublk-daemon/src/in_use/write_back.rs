//! Writes back all dirty data of a device, in a helper, which can wait for it.
#![forbid(unsafe_code)]

use crate::in_use::layers::Layers;
use crate::in_use::mounts;
use crate::state::Store;
use crate::sys::file::sync_file_system;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::path::Path;
use ublk_core::{DevId, Errno};

/// Something that could not be written back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unwritten {
    /// The mount point or the node.
    pub what: String,
    /// Why.
    pub errno: Errno,
}

impl std::fmt::Display for Unwritten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.errno)
    }
}

/// Writes back file systems on the device, then the caches of the devices on top of it from the top down, then those of
/// its partitions and of the disk. Each is tried; those that failed.
pub fn write_back(id: DevId) -> Vec<Unwritten> {
    let layers = Layers::of_device(id.get());
    let mut failed = Vec::new();
    let mut note = |what: String, result: io::Result<()>| {
        if let Err(e) = result {
            let errno = Errno::from_io(&e);
            tracing::warn!("cannot write back {what}: {e}");
            failed.push(Unwritten { what, errno });
        }
    };
    for mount in mounts::of_layers(&layers) {
        let result = sync_file_system(&mount.reach());
        note(mount.point.display().to_string(), result);
    }
    for layer in layers.upper.iter().rev() {
        // One that does not open has no cache of its own that anybody could write to.
        if let Ok(device) = File::open(layer.node()) {
            note(layer.name.clone(), device.sync_all());
        }
    }
    let (disk, parts) = layers
        .own
        .split_first()
        .map_or((None, &[][..]), |(d, p)| (Some(d), p));
    // A partition has a cache of its own, which an fsync of the disk does not reach.
    for part in parts {
        match File::open(part.node()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            opened => note(part.name.clone(), opened.and_then(|p| p.sync_all())),
        }
    }
    if let Some(disk) = disk {
        let node = disk.node();
        note(node.display().to_string(), sync(&node));
    }
    failed
}

/// Records that a write-back failed, so that a later stop reports it, too.
pub fn note_unwritten(nonce: u64) {
    let noted = Store::of_user().and_then(|store| store.note_unwritten(nonce));
    if let Err(e) = noted {
        tracing::warn!("cannot record that data was not written back: {e}");
    }
}

fn sync(node: &Path) -> io::Result<()> {
    File::open(node)?.sync_all()
}
