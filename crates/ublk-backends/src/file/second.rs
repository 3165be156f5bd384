//! A second file of a device, beside that with its data: integrity metadata, write pointers.

#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::usage::lock;

/// The path of a file that belongs to the one at `data`: with `suffix` after its name, or after the name of the file that a
/// link leads to.
pub(crate) fn beside(data: &Path, suffix: &str) -> PathBuf {
    let data = fs::canonicalize(data).unwrap_or_else(|_| data.to_owned());
    let mut path = data.into_os_string();
    path.push(suffix);
    path.into()
}

/// Why a file was not made.
#[derive(Debug)]
pub(crate) enum NotMade {
    /// Another server makes it.
    Busy,
    Io(io::Error),
}

impl From<io::Error> for NotMade {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Makes a file under another name first, so that it has its name only when it is whole, which is when `fill` has synced it.
/// One server at a time: whoever has the lock of the unfinished file may remove or rename it. A server that was faster keeps its
/// file.
pub(crate) fn make_once(
    path: &Path,
    fill: impl FnOnce(&File) -> io::Result<()>,
) -> Result<(), NotMade> {
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    clear_away(&unfinished)?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    let file = match options.mode(0o600).open(&unfinished) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(NotMade::Busy),
        other => other?,
    };
    if !lock(&file, false) || !is_at(&file, &unfinished) {
        return Err(NotMade::Busy);
    }
    if fs::symlink_metadata(path).is_ok() {
        // The lock of the file that is there decides who has it.
        return Ok(fs::remove_file(&unfinished)?);
    }
    if let Err(e) = fill(&file).and_then(|()| fs::rename(&unfinished, path)) {
        // What remains is removed by the next attempt.
        let _ = fs::remove_file(&unfinished);
        return Err(e.into());
    }
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    Ok(File::open(parent)?.sync_all()?)
}

/// Removes what an interrupted attempt left, or somebody's link: it is never written through.
fn clear_away(unfinished: &Path) -> Result<(), NotMade> {
    let left = match existing(unfinished) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.ok(),
    };
    match left {
        Some(left) if !lock(&left, false) => return Err(NotMade::Busy),
        // It has got its name since.
        Some(left) if !is_at(&left, unfinished) => {}
        // A failure is that of making it anew.
        _left => drop(fs::remove_file(unfinished)),
    }
    Ok(())
}

/// Opens what is there, without following a link or waiting for a pipe's other end.
fn existing(path: &Path) -> std::io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    let options = options.read(true);
    options
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

/// Whether a file still has this name.
fn is_at(file: &fs::File, path: &Path) -> bool {
    let (Ok(ours), Ok(there)) = (file.metadata(), fs::symlink_metadata(path)) else {
        return false;
    };
    (ours.dev(), ours.ino()) == (there.dev(), there.ino())
}

/// Whether there is a regular file that begins so. One that cannot be read does not.
pub(crate) fn begins_with(path: &Path, magic: [u8; 8]) -> bool {
    if !fs::metadata(path).is_ok_and(|meta| meta.is_file()) {
        return false;
    }
    let mut bytes = [0; 8];
    let read = fs::File::open(path).and_then(|file| file.read_exact_at(&mut bytes, 0));
    read.is_ok() && bytes == magic
}

/// Removes a file that no server has locked.
pub(crate) fn remove_unused(path: &Path) {
    let Ok(file) = existing(path) else {
        return;
    };
    if lock(&file, false) && is_at(&file, path) {
        // One that stays holds nothing, and fits the next attempt.
        let _ = fs::remove_file(path);
    }
}
