//! The memory file that a device shares with its clients, and the check that it is still the same file.
#![forbid(unsafe_code)]

use crate::failure::{Failure, FailureKind};
use crate::spec::{AddSpec, Registered};
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use ublk_core::{DataMode, Features, SharedBuffer, SharedTable};
use ublk_queue::SharedMemory;

fn failed(path: &Path, why: &dyn std::fmt::Display) -> Failure {
    Failure::failed(format!("--shm {}: {why}", path.display()))
}

/// Refuses a file that cannot be shared, before anything is created.
///
/// # Errors
/// A usage failure with the reason, or the error of opening the file.
pub fn check(spec: &AddSpec) -> Result<(), Failure> {
    if spec.serving.shm.is_none() {
        return Ok(());
    }
    if spec.mode.data == DataMode::GetData {
        return Err(Failure::new(
            FailureKind::Usage,
            "--shm cannot be used with --data get-data: the command that names a write's buffer would hide the place of the client's data",
        )
        .hint("use another --data"));
    }
    open(spec).map(drop)
}

/// The features of a device that shares memory.
#[must_use]
pub const fn features(spec: &AddSpec) -> Features {
    match spec.serving.shm {
        Some(_) => Features::SHMEM_ZC,
        None => Features::NONE,
    }
}

/// Opens the file, if the device shares one: for reading only if it shall be registered so.
///
/// # Errors
/// It cannot be opened, or is not a regular file.
pub fn open(spec: &AddSpec) -> Result<Option<File>, Failure> {
    let Some(path) = &spec.serving.shm else {
        return Ok(None);
    };
    let mut options = OpenOptions::new();
    let file = options.read(true).write(!spec.serving.shm_read_only);
    let file = file.open(path).map_err(|e| failed(path, &e))?;
    let kind = file.metadata().map_err(|e| failed(path, &e))?;
    if !kind.is_file() || kind.len() == 0 {
        let why =
            "not a file in memory; give a file on hugetlbfs or tmpfs, or /proc/PID/fd/N of a memfd";
        return Err(failed(path, &why));
    }
    Ok(Some(file))
}

/// The record of a registered file.
///
/// # Errors
/// The error of stat.
pub fn registered(
    path: &Path,
    file: &File,
    buffers: Vec<SharedBuffer>,
) -> Result<Registered, Failure> {
    let of = file.metadata().map_err(|e| failed(path, &e))?;
    Ok(Registered {
        device: of.dev(),
        inode: of.ino(),
        buffers,
    })
}

/// Maps the memory of a device from its open file, which must be the registered file, because requests only carry
/// offsets in it.
///
/// # Errors
/// Another file of that name, or the error of mmap.
pub fn map(path: &Path, file: &File, registered: &Registered) -> Result<SharedMemory, Failure> {
    let of = file.metadata().map_err(|e| failed(path, &e))?;
    if (of.dev(), of.ino()) != (registered.device, registered.inode) {
        let failure = failed(path, &"not the file that was registered with the device");
        return Err(failure.hint("restore that file, or delete the device and add it again"));
    }
    let table = SharedTable::new(&registered.buffers);
    SharedMemory::map(file.as_fd(), table).map_err(|e| failed(path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes;
    use ublk_core::Mode;

    fn spec(path: &Path) -> AddSpec {
        let mut spec = fakes::spec();
        spec.serving.shm = Some(path.to_owned());
        spec
    }

    /// L34 A server that takes over a device maps the registered memory, not another file of the same name.
    #[test]
    fn l34_only_the_registered_file_is_mapped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("memory");
        assert!(check(&spec(&path)).is_err());
        std::fs::write(&path, [1; 8192]).unwrap();
        assert!(check(&spec(&path)).is_ok());
        assert_eq!(features(&spec(&path)), Features::SHMEM_ZC);
        let buffers = vec![SharedBuffer::new(0, 0, 8192)];
        let open = || open(&spec(&path)).unwrap().unwrap();
        let known = registered(&path, &open(), buffers).unwrap();
        assert_eq!(map(&path, &open(), &known).unwrap().len(), 8192);
        let other = directory.path().join("other");
        std::fs::write(&other, [1; 8192]).unwrap();
        std::fs::rename(&other, &path).unwrap();
        let failure = map(&path, &open(), &known).unwrap_err();
        assert!(failure.text.contains("not the file"), "{failure:?}");
    }

    #[test]
    fn get_data_and_what_is_no_memory_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let failure = check(&spec(directory.path())).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Failed);
        let path = directory.path().join("memory");
        std::fs::write(&path, [1; 8192]).unwrap();
        let mut spec = spec(&path);
        spec.mode = Mode::new(DataMode::GetData);
        assert_eq!(check(&spec).unwrap_err().kind, FailureKind::Usage);
        spec.serving.shm = None;
        assert!(check(&spec).is_ok());
    }
}
