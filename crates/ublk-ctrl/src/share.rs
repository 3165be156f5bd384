//! Registers a memory file that is shared with a device's clients: maps it, registers it, and unmaps it again.
//!
//! # Why there is `unsafe` here
//! mmap and munmap of a mapping that only the kernel ever accesses: it names the pages in REG_BUF and is removed
//! afterwards; the driver keeps the pages pinned.
#![expect(unsafe_code, reason = "a mapping for the length of a command")]

use crate::port::CtrlPort;
use crate::wait::deadline_in;
use crate::{Control, Error, MemoryId, Operation};
use core::ptr::NonNull;
use core::time::Duration;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Instant;
use ublk_core::{DevId, Errno, SharedBuffer};

/// Largest registration, so that an offset in it fits the 32 bits of a descriptor; a multiple of every huge page size
/// up to 1 GiB.
const PART: u64 = 1 << 30;

/// A shared mapping of a part of a file, unmapped when dropped.
///
/// # Invariants
/// `base` is the start of a live mapping of `len` bytes that only this value unmaps.
struct Part {
    base: NonNull<u8>,
    len: usize,
}

impl Part {
    fn new(file: BorrowedFd<'_>, read_only: bool, offset: u64, len: u64) -> Result<Self, Errno> {
        let last = || Errno::from_io(&std::io::Error::last_os_error());
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        let access = match read_only {
            true => libc::PROT_READ,
            false => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice; the result is checked below.
        let base = unsafe {
            libc::mmap(
                core::ptr::null_mut(),
                len,
                access,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(last());
        }
        let base = NonNull::new(base.cast()).ok_or(Errno::ENOMEM)?;
        Ok(Self { base, len })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // SAFETY: only this value owns the mapping, and only a command that has ended had its address.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl<P: CtrlPort> Control<P> {
    /// Registers a whole memory file with a device created with [`Features::SHMEM_ZC`](ublk_core::Features::SHMEM_ZC)
    /// (REG_BUF, Linux 7.1): a memfd, or a file on tmpfs or hugetlbfs, which the device's clients map as well. Requests
    /// with data in it are not copied, and the server finds them by means of the returned table. The pages stay pinned
    /// until the device is deleted.
    ///
    /// A file that is open for reading only is registered for that: WRITE requests with data in it are not copied, READ
    /// requests take the device's mode.
    ///
    /// Freezes the queues of a live device: its server must answer requests meanwhile.
    ///
    /// # Errors
    /// [`Error::Spec`] for an empty file; [`Error::Refused`] if the file is not memory, or the limit of locked memory
    /// is too low; else as [`Control::register_memory`]. Parts registered before the failure are unregistered.
    pub fn share_file(
        &mut self,
        id: DevId,
        file: &File,
        deadline: Duration,
    ) -> Result<Vec<SharedBuffer>, Error> {
        let end = deadline_in(deadline);
        let refused = |errno| Error::Refused {
            operation: Operation::RegisterMemory,
            dev: Some(id),
            errno,
        };
        let size = file
            .metadata()
            .map_err(|e| refused(Errno::from_io(&e)))?
            .len();
        let page = u64::from(crate::page_size());
        let size = size / page * page;
        let read_only = is_read_only(file).map_err(refused)?;
        if size == 0 {
            return Err(Error::Spec {
                message: "a memory file to share must have at least one page".into(),
            });
        }
        let mut shared = Vec::new();
        let mut offset = 0;
        while offset < size {
            let len = PART.min(size - offset);
            let left = end.saturating_duration_since(Instant::now());
            let part = Part::new(file.as_fd(), read_only, offset, len).map_err(refused);
            match part.and_then(|part| self.share_part(id, part, read_only, left)) {
                Ok(memory) => {
                    let buffer = SharedBuffer::new(memory.get(), offset, len);
                    shared.push(buffer.read_only(read_only));
                }
                Err(error) => {
                    for buffer in shared {
                        // Report the first error; deleting the device unregisters the rest.
                        let _ = self.unregister_memory(id, MemoryId::new(buffer.index), deadline);
                    }
                    return Err(error);
                }
            }
            offset += len;
        }
        Ok(shared)
    }

    fn share_part(
        &mut self,
        id: DevId,
        part: Part,
        read_only: bool,
        deadline: Duration,
    ) -> Result<MemoryId, Error> {
        let (base, len) = (part.base, u64::try_from(part.len).unwrap_or(0));
        // SAFETY: the mapping holds no Rust object, and no reference to it exists at any time. Once the command has
        // ended, the driver holds the pages and not the addresses.
        let done = unsafe { self.register_memory(id, base, len, read_only, deadline) };
        if matches!(done, Err(Error::TimedOut { .. })) {
            // The command may still use the addresses.
            core::mem::forget(part);
        }
        done
    }

    /// As `share_file`, for descriptor `fd` of process `pid`, which may be another process.
    pub(crate) fn share_descriptor(
        &mut self,
        id: DevId,
        pid: u32,
        fd: u32,
        deadline: Duration,
    ) -> Result<Vec<SharedBuffer>, Error> {
        let open = || -> std::io::Result<File> {
            let access = access_of(pid, fd)?;
            let mut options = OpenOptions::new();
            options.read(true).write(access != libc::O_RDONLY);
            options.open(format!("/proc/{pid}/fd/{fd}"))
        };
        let file = open().map_err(|e| Error::Refused {
            operation: Operation::RegisterMemory,
            dev: Some(id),
            errno: Errno::from_io(&e),
        })?;
        self.share_file(id, &file, deadline)
    }
}

/// Whether a file is open for reading only.
fn is_read_only(file: &File) -> Result<bool, Errno> {
    // SAFETY: the descriptor is open, and F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    match flags {
        -1 => Err(Errno::from_io(&std::io::Error::last_os_error())),
        flags => Ok(flags & libc::O_ACCMODE == libc::O_RDONLY),
    }
}

/// How a descriptor of a process is open: `O_RDONLY`, `O_WRONLY` or `O_RDWR` (proc_pid_fdinfo(5)).
fn access_of(pid: u32, fd: u32) -> std::io::Result<libc::c_int> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}"))?;
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| libc::c_int::from_str_radix(flags.trim(), 8).ok());
    let flags = flags.ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(flags & libc::O_ACCMODE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Act, FakeKernel};
    use std::sync::{Arc, Mutex};
    use ublk_sys::{Uapi, ublk_shmem_buf_reg};

    const LONG: Duration = Duration::from_secs(7200);

    fn features(buffer: &crate::Buffer) -> Act {
        buffer.fill(&u64::MAX.to_ne_bytes());
        Act::Answer(Ok(0))
    }

    fn sparse(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    #[test]
    fn a_file_is_registered_in_parts_that_descriptors_can_name() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let lens = Arc::clone(&seen);
        let flags_seen = Arc::new(Mutex::new(Vec::new()));
        let flags = Arc::clone(&flags_seen);
        let mut control = Control::with_port(FakeKernel::new(move |op, _, buffer| match op {
            ublk_sys::UBLK_U_CMD_GET_FEATURES => features(buffer),
            _ => {
                let memory = ublk_shmem_buf_reg::read_from(&buffer.read()).unwrap();
                let mut lens = lens.lock().unwrap();
                lens.push(memory.len);
                flags.lock().unwrap().push(memory.flags);
                Act::Answer(Ok(u32::try_from(lens.len()).unwrap() + 4))
            }
        }));
        let id = DevId::new(1).unwrap();
        // An extra half page, which no request of whole blocks needs.
        let file = sparse((2 << 30) + 8192 + 2048);
        let buffer = |index, offset, len| SharedBuffer::new(index, offset, len);
        assert_eq!(
            control.share_file(id, &file, LONG).unwrap(),
            [
                buffer(5, 0, PART),
                buffer(6, PART, PART),
                buffer(7, 2 * PART, 8192)
            ]
        );
        assert_eq!(*seen.lock().unwrap(), [PART, PART, 8192]);
        let (pid, fd) = (std::process::id(), file.as_raw_fd().unsigned_abs());
        let same = control.share_descriptor(id, pid, fd, LONG);
        assert_eq!(same.unwrap().len(), 3);
        // Of a file that is open for reading only, in this process or in another, memory is registered for that.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let only_read = File::open(path).unwrap();
        let fd = only_read.as_raw_fd().unsigned_abs();
        for shared in [
            control.share_file(id, &only_read, LONG),
            control.share_descriptor(id, pid, fd, LONG),
        ] {
            let shared = shared.unwrap();
            assert!(
                shared.len() == 3 && shared.iter().all(|b| b.read_only),
                "{shared:?}"
            );
        }
        assert_eq!(
            *flags_seen.lock().unwrap(),
            [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
        );
        let empty = control.share_file(id, &sparse(100), LONG);
        assert!(matches!(empty, Err(Error::Spec { .. })), "{empty:?}");
    }

    #[test]
    fn what_was_registered_before_a_failure_is_taken_back() {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let back = Arc::clone(&taken);
        let mut count = 0;
        let mut control = Control::with_port(FakeKernel::new(move |op, header, buffer| match op {
            ublk_sys::UBLK_U_CMD_GET_FEATURES => features(buffer),
            ublk_sys::UBLK_U_CMD_REG_BUF => {
                count += 1;
                match count {
                    3 => Act::Answer(Err(Errno::ENOMEM)),
                    n => Act::Answer(Ok(n - 1)),
                }
            }
            _ => {
                back.lock().unwrap().push(header.data[0]);
                Act::Answer(Ok(0))
            }
        }));
        let id = DevId::new(1).unwrap();
        let error = control.share_file(id, &sparse(3 << 30), LONG).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENOMEM));
        assert_eq!(*taken.lock().unwrap(), [0, 1]);
    }
}
