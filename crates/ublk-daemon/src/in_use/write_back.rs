//! Writes back all dirty data of a device, in a helper process that may block.
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

/// A file system or device that could not be written back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unwritten {
    /// The mount point or the node.
    pub what: String,
    /// The error.
    pub errno: Errno,
}

impl std::fmt::Display for Unwritten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.errno)
    }
}

/// Writes back the file systems on the device, then the page caches of stacked devices from the top down, then those of
/// its partitions and of the disk. Tries all and returns those that failed.
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
        // A device that cannot be opened has no page cache that anybody could have written to.
        if let Ok(device) = File::open(layer.node()) {
            note(layer.name.clone(), device.sync_all());
        }
    }
    let (disk, parts) = layers
        .own
        .split_first()
        .map_or((None, &[][..]), |(d, p)| (Some(d), p));
    // A partition has its own page cache, which an fsync of the disk does not write back.
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

/// Records a failed write-back, so that a later stop reports it, too.
pub fn note_unwritten(nonce: u64) {
    let noted = Store::of_user().and_then(|store| store.note_unwritten(nonce));
    if let Err(e) = noted {
        tracing::warn!("cannot record that data was not written back: {e}");
    }
}

fn sync(node: &Path) -> io::Result<()> {
    File::open(node)?.sync_all()
}
