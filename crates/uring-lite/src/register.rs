//! Registered files, registered buffers, provided buffer rings, and the probe for operations.
//!
//! # Why there is `unsafe` here
//! `io_uring_register` takes untyped pointers. Each call states the operation's type; the kernel reads all of it during
//! the call, except a buffer ring, whose pages it pins itself.
#![expect(unsafe_code, reason = "untyped arguments of io_uring_register")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::buf_ring::BufRing;
use crate::entry::{CqEntry, SqEntry};
use crate::errno::Errno;
use crate::error::RegisterError;
use crate::ring::Ring;
use crate::sys;
use crate::syscall;

/// The operations that the kernel supports.
#[derive(Clone, Debug)]
pub struct Probe {
    ops: Vec<bool>,
}

impl Probe {
    /// Whether `IORING_OP_*` number `op` exists. Flags of an operation cannot be probed.
    #[must_use]
    pub fn supports(&self, op: u8) -> bool {
        self.ops.get(usize::from(op)).copied().unwrap_or(false)
    }
}

/// The probe's reply, with room for every possible operation.
#[repr(C)]
struct ProbeArg {
    head: sys::io_uring_probe,
    ops: [sys::io_uring_probe_op; 256],
}

static_assertions::const_assert_eq!(memoffset::offset_of!(ProbeArg, ops), 16);

/// The error for an errno of `io_uring_register`.
fn error(errno: Errno, what: &'static str, since: &'static str) -> RegisterError {
    match errno.get() {
        libc::EINVAL | libc::EOPNOTSUPP => RegisterError::Refused { what, since, errno },
        // Pinned buffers count against the user's locked memory limit (L59).
        libc::ENOMEM => RegisterError::NoMemory {
            what,
            memlock: syscall::memlock_limit(),
        },
        libc::EBUSY | libc::EEXIST => RegisterError::Exists { what, errno },
        _ => RegisterError::Call { what, errno },
    }
}

/// Descriptors in the kernel's format; −1 is an empty slot.
fn raw(files: &[Option<BorrowedFd<'_>>]) -> Vec<i32> {
    files
        .iter()
        .map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd()))
        .collect()
}

impl<S: SqEntry, C: CqEntry> Ring<S, C> {
    /// # Safety
    /// `arg` must point to what `opcode` reads and writes, with `nr` in the operation's unit.
    unsafe fn register<T>(
        &self,
        opcode: u32,
        arg: *mut T,
        nr: u32,
        what: &'static str,
        since: &'static str,
    ) -> Result<u32, RegisterError> {
        // SAFETY: the caller's contract.
        let result = unsafe { syscall::register(self.as_fd(), opcode, arg.cast(), nr) };
        result.map_err(|errno| error(errno, what, since))
    }

    /// Registers a file table (`IORING_REGISTER_FILES`, 5.1). Each slot holds a reference until it is updated or the
    /// ring ends: closing the descriptor does not close a registered file.
    ///
    /// # Errors
    /// [`RegisterError::Exists`] if there is a table already, and the other errors.
    pub fn register_files(&mut self, files: &[BorrowedFd<'_>]) -> Result<(), RegisterError> {
        let what = "file table";
        let mut fds: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
        let nr =
            u32::try_from(fds.len()).map_err(|_| error(Errno::new(libc::EINVAL), what, "5.1"))?;
        // SAFETY: REGISTER_FILES reads `nr` descriptors.
        unsafe {
            self.register(
                sys::IORING_REGISTER_FILES,
                fds.as_mut_ptr(),
                nr,
                what,
                "5.1",
            )
        }?;
        Ok(())
    }

    /// Registers a file table of `slots` empty slots (`IORING_REGISTER_FILES2` with `SPARSE`, 5.19).
    ///
    /// # Errors
    /// As for [`register_files`](Self::register_files).
    pub fn register_files_sparse(&mut self, slots: u32) -> Result<(), RegisterError> {
        self.register_sparse(sys::IORING_REGISTER_FILES2, slots, "sparse file table")
    }

    /// Registers a buffer table of `slots` empty slots (`IORING_REGISTER_BUFFERS2` with `SPARSE`, 5.19; at most 16384).
    /// Drivers fill them.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn register_buffers_sparse(&mut self, slots: u32) -> Result<(), RegisterError> {
        self.register_sparse(sys::IORING_REGISTER_BUFFERS2, slots, "sparse buffer table")
    }

    fn register_sparse(
        &mut self,
        opcode: u32,
        nr: u32,
        what: &'static str,
    ) -> Result<(), RegisterError> {
        let flags = sys::IORING_RSRC_REGISTER_SPARSE;
        let mut arg = sys::io_uring_rsrc_register {
            nr,
            flags,
            ..Default::default()
        };
        let size = size_of_u32::<sys::io_uring_rsrc_register>();
        // SAFETY: the operation reads one io_uring_rsrc_register, and `nr` is its size.
        unsafe { self.register(opcode, &raw mut arg, size, what, "5.19") }?;
        Ok(())
    }

    /// Registers buffers (`IORING_REGISTER_BUFFERS2`, 5.13): the kernel pins them, which counts against the locked
    /// memory limit (L59).
    ///
    /// # Safety
    /// Each range must be valid for what later operations with its index do, until
    /// [`unregister_buffers`](Self::unregister_buffers) and the last CQE of an operation that used it.
    ///
    /// # Errors
    /// [`RegisterError::NoMemory`], which names the limit, and the other errors.
    pub unsafe fn register_buffers(
        &mut self,
        buffers: &[(*mut u8, usize)],
    ) -> Result<(), RegisterError> {
        let what = "buffer table";
        let iovecs: Vec<libc::iovec> = buffers
            .iter()
            .map(|(base, len)| libc::iovec {
                iov_base: base.cast(),
                iov_len: *len,
            })
            .collect();
        let nr = u32::try_from(iovecs.len())
            .map_err(|_| error(Errno::new(libc::EINVAL), what, "5.13"))?;
        let mut arg = sys::io_uring_rsrc_register {
            nr,
            data: iovecs.as_ptr() as u64,
            ..Default::default()
        };
        let size = size_of_u32::<sys::io_uring_rsrc_register>();
        // SAFETY: the operation reads one io_uring_rsrc_register of `size` bytes and through it `nr` iovecs; the
        // memory behind them is the caller's contract.
        unsafe {
            self.register(
                sys::IORING_REGISTER_BUFFERS2,
                &raw mut arg,
                size,
                what,
                "5.13",
            )
        }?;
        Ok(())
    }

    /// Updates slots of the file table, starting with `first` (`IORING_REGISTER_FILES_UPDATE2`, 5.13); `None` empties
    /// one. Returns how many were changed, which may be fewer.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing changed.
    pub fn update_files(
        &mut self,
        first: u32,
        files: &[Option<BorrowedFd<'_>>],
    ) -> Result<u32, RegisterError> {
        let what = "file table update";
        let fds = raw(files);
        let nr =
            u32::try_from(fds.len()).map_err(|_| error(Errno::new(libc::EINVAL), what, "5.13"))?;
        let mut arg = sys::io_uring_rsrc_update2 {
            offset: first,
            data: fds.as_ptr() as u64,
            nr,
            ..Default::default()
        };
        let size = size_of_u32::<sys::io_uring_rsrc_update2>();
        // SAFETY: the operation reads one io_uring_rsrc_update2 of `size` bytes and through it `nr` descriptors.
        unsafe {
            self.register(
                sys::IORING_REGISTER_FILES_UPDATE2,
                &raw mut arg,
                size,
                what,
                "5.13",
            )
        }
    }

    /// Unregisters all files.
    ///
    /// # Errors
    /// [`RegisterError::Call`] with `ENXIO` if there is no table.
    pub fn unregister_files(&mut self) -> Result<(), RegisterError> {
        let none: *mut u8 = std::ptr::null_mut();
        // SAFETY: no argument.
        unsafe {
            self.register(
                sys::IORING_UNREGISTER_FILES,
                none,
                0,
                "unregistering the file table",
                "5.1",
            )
        }?;
        Ok(())
    }

    /// Unregisters all buffers; operations in flight keep theirs.
    ///
    /// # Errors
    /// [`RegisterError::Call`] with `ENXIO` if there is no table.
    pub fn unregister_buffers(&mut self) -> Result<(), RegisterError> {
        let none: *mut u8 = std::ptr::null_mut();
        // SAFETY: no argument.
        unsafe {
            self.register(
                sys::IORING_UNREGISTER_BUFFERS,
                none,
                0,
                "unregistering the buffer table",
                "5.1",
            )
        }?;
        Ok(())
    }

    /// Registers a ring of provided buffers as group `bgid` (`IORING_REGISTER_PBUF_RING`, 5.19). `entries` must be a
    /// power of two up to 32768. With `incremental` (`IOU_PBUF_RING_INC`, 6.12) an operation consumes only as much of a
    /// buffer as it fills; see [`BufRing`].
    ///
    /// # Errors
    /// [`RegisterError::Exists`] if the group is taken, and the other errors.
    pub fn register_buf_ring(
        &mut self,
        bgid: u16,
        entries: u16,
        incremental: bool,
    ) -> Result<BufRing, RegisterError> {
        let what = "buffer ring";
        let since = if incremental { "6.12" } else { "5.19" };
        let ring =
            BufRing::new(self.id(), bgid, entries).map_err(|errno| error(errno, what, since))?;
        let mut arg = sys::io_uring_buf_reg {
            ring_addr: ring.address(),
            ring_entries: u32::from(entries),
            bgid,
            flags: if incremental {
                sys::IOU_PBUF_RING_INC
            } else {
                0
            },
            resv: [0; 3],
        };
        // SAFETY: reads one io_uring_buf_reg. The kernel pins the ring's pages, so they stay its own even after
        // `ring` has unmapped them.
        unsafe { self.register(sys::IORING_REGISTER_PBUF_RING, &raw mut arg, 1, what, since) }?;
        Ok(ring)
    }

    /// Unregisters a group. Operations in flight that took a buffer keep it until their CQE.
    ///
    /// # Errors
    /// [`RegisterError`], with ENOENT if it is not a group of this ring. The mapping is removed even then.
    pub fn unregister_buf_ring(&mut self, ring: BufRing) -> Result<(), RegisterError> {
        let (what, since) = ("unregistering a buffer ring", "5.19");
        // Another ring may have a group of the same number, whose buffers the kernel would keep using.
        if !ring.is_of(self.id()) {
            return Err(error(Errno::new(libc::ENOENT), what, since));
        }
        let mut arg = sys::io_uring_buf_reg {
            bgid: ring.bgid(),
            ..Default::default()
        };
        // SAFETY: reads one io_uring_buf_reg.
        unsafe {
            self.register(
                sys::IORING_UNREGISTER_PBUF_RING,
                &raw mut arg,
                1,
                what,
                since,
            )
        }?;
        drop(ring);
        Ok(())
    }

    /// Allows blocking operations of this thread up to `bounded` kernel workers (`IORING_REGISTER_IOWQ_MAX_WORKERS`,
    /// 5.15). The default is four per CPU; workers for sockets and pipes are unbounded.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn allow_workers(&mut self, bounded: u32) -> Result<(), RegisterError> {
        // 0 keeps the second limit, for sockets and pipes. The kernel writes the old values here.
        let mut limits = [bounded, 0];
        // SAFETY: the operation reads and writes two words.
        unsafe {
            self.register(
                sys::IORING_REGISTER_IOWQ_MAX_WORKERS,
                limits.as_mut_ptr(),
                2,
                "kernel worker limit",
                "5.15",
            )
        }?;
        Ok(())
    }

    /// Asks the kernel which operations it supports (`IORING_REGISTER_PROBE`, 5.6).
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn probe(&self) -> Result<Probe, RegisterError> {
        let mut arg = ProbeArg {
            head: Default::default(),
            ops: [Default::default(); 256],
        };
        // SAFETY: writes a head and up to 256 entries, which is what ProbeArg is.
        unsafe {
            self.register(
                sys::IORING_REGISTER_PROBE,
                &raw mut arg,
                256,
                "probe",
                "5.6",
            )
        }?;
        let known = usize::from(arg.head.ops_len).min(256);
        Ok(Probe {
            ops: arg.ops[..known]
                .iter()
                .map(|op| op.flags & sys::IO_URING_OP_SUPPORTED != 0)
                .collect(),
        })
    }
}

/// Size of a small structure as `u32`.
const fn size_of_u32<T>() -> u32 {
    assert!(size_of::<T>() < 256);
    #[expect(clippy::cast_possible_truncation, reason = "below 256")]
    {
        size_of::<T>() as u32
    }
}
