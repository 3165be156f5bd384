//! Ring creation: the ladder of flags, and a thorough check of the kernel's reply.

#![forbid(unsafe_code)]

use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};

use crate::entry::{CqEntry, SqEntry};
use crate::errno::Errno;
use crate::error::SetupError;
use crate::linux::{Linux, MmapCq, MmapSq, fill_array, read_word};
use crate::mmap::Mapping;
use crate::ring::Ring;
use crate::sys;
use crate::syscall;

/// How completion work reaches the ring's thread; best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Ladder {
    /// Only inside `enter` (`SINGLE_ISSUER` and `DEFER_TASKRUN`, 6.1): no interrupts of the running thread.
    SingleIssuerDefer,
    /// At the thread's next system call (`COOP_TASKRUN` and `TASKRUN_FLAG`, 5.19).
    CoopTaskrun,
    /// By interrupting the thread.
    Plain,
}

/// The set-up that the kernel granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setup {
    /// The rung of the ladder.
    pub ladder: Ladder,
    /// SQ entries, a power of two.
    pub sq_entries: u32,
    /// CQ entries, a power of two.
    pub cq_entries: u32,
    /// `IORING_SETUP_*` in effect.
    pub flags: u32,
    /// `IORING_FEAT_*` of this kernel.
    pub features: u32,
    /// Whether the ring's descriptor is registered with its thread (5.18; a thread has 16 slots).
    pub ring_fd_registered: bool,
}

impl Setup {
    /// Whether a set-up flag (`IORING_SETUP_*`) is in effect.
    #[must_use]
    pub const fn has_flag(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether this kernel has a feature (`IORING_FEAT_*`).
    #[must_use]
    pub const fn has_feature(&self, feature: u32) -> bool {
        self.features & feature != 0
    }
}

/// Options of a ring. Defaults: the best ladder, a CQ twice as large as the SQ, no clamping, the descriptor registered.
#[derive(Clone, Debug)]
#[must_use = "nothing is made before `build`"]
pub struct Builder<S, C> {
    sq_entries: u32,
    cq_entries: Option<u32>,
    ladder: Ladder,
    clamp: bool,
    sq_array: bool,
    register_ring_fd: bool,
    taskrun_flag: bool,
    _entries: PhantomData<(S, C)>,
}

/// `IORING_MAX_ENTRIES` of io_uring/io_uring.c (v6.12).
const MAX_SQ: u32 = 32768;
/// `IORING_MAX_CQ_ENTRIES`.
const MAX_CQ: u32 = 2 * MAX_SQ;

impl<S: SqEntry, C: CqEntry> Builder<S, C> {
    pub(crate) const fn new(sq_entries: u32) -> Self {
        Self {
            sq_entries,
            cq_entries: None,
            ladder: Ladder::SingleIssuerDefer,
            clamp: false,
            sq_array: false,
            register_ring_fd: true,
            taskrun_flag: false,
            _entries: PhantomData,
        }
    }

    /// Sets the number of CQ entries, at least that of SQ entries; rounded up to a power of two.
    pub const fn cq_entries(mut self, entries: u32) -> Self {
        self.cq_entries = Some(entries);
        self
    }

    /// Sets the best rung to try; lower ones are tried if the kernel refuses it.
    pub const fn ladder(mut self, best: Ladder) -> Self {
        self.ladder = best;
        self
    }

    /// Limits sizes to the kernel's maximum (32768 and 65536) instead of failing.
    pub const fn clamp(mut self, clamp: bool) -> Self {
        self.clamp = clamp;
        self
    }

    /// Keeps the SQ index array even if the kernel can do without (`NO_SQARRAY`, 6.6).
    pub const fn sq_array(mut self, keep: bool) -> Self {
        self.sq_array = keep;
        self
    }

    /// Makes the kernel show in the SQ's flags that an [`enter`](Ring::enter) would deliver completions
    /// (`TASKRUN_FLAG`, 5.19), for callers that check before they sleep: [`Ring::has_work`].
    pub const fn taskrun_flag(mut self, show: bool) -> Self {
        self.taskrun_flag = show;
        self
    }

    /// Sets whether to register the ring's descriptor with this thread, if a slot is free.
    pub const fn register_ring_fd(mut self, register: bool) -> Self {
        self.register_ring_fd = register;
        self
    }

    /// Creates the ring, which belongs to the calling thread.
    ///
    /// # Errors
    /// [`SetupError`], which says what to do.
    pub fn build(self) -> Result<Ring<S, C>, SetupError> {
        self.check_sizes()?;
        let (fd, params, ladder) = self.climb_down()?;
        let (port, sq, cq) = map::<S, C>(fd, &params)?;
        let setup = Setup {
            ladder,
            sq_entries: params.sq_entries,
            cq_entries: params.cq_entries,
            flags: params.flags,
            features: params.features,
            ring_fd_registered: false,
        };
        let mut ring = Ring::from_parts(port, sq, cq, setup).ok_or(SetupError::BadLayout {
            what: "queue sizes are powers of two",
        })?;
        if self.register_ring_fd {
            ring.register_own_fd();
        }
        Ok(ring)
    }

    /// Checks what the kernel would refuse on every rung with a bare EINVAL.
    fn check_sizes(&self) -> Result<(), SetupError> {
        let invalid = |what| Err(SetupError::InvalidArgument { what });
        if self.sq_entries == 0 || self.cq_entries == Some(0) {
            return invalid("a queue needs at least one entry");
        }
        if !self.clamp && self.sq_entries > MAX_SQ {
            return invalid("the submission queue has at most 32768 entries (or ask to clamp)");
        }
        if !self.clamp && self.cq_entries.is_some_and(|n| n > MAX_CQ) {
            return invalid("the completion queue has at most 65536 entries (or ask to clamp)");
        }
        let sq = self.sq_entries.min(MAX_SQ).next_power_of_two();
        if self
            .cq_entries
            .is_some_and(|n| n.min(MAX_CQ).next_power_of_two() < sq)
        {
            return invalid(
                "the completion queue has at least as many entries as the submission queue",
            );
        }
        Ok(())
    }

    /// Flag sets to try, best first. Each step down drops flags that an older release lacks: NO_SQARRAY 6.6,
    /// DEFER_TASKRUN 6.1, COOP_TASKRUN 5.19, SUBMIT_ALL 5.18.
    fn attempts(&self) -> Vec<(Ladder, u32)> {
        let mut defer = sys::IORING_SETUP_SINGLE_ISSUER | sys::IORING_SETUP_DEFER_TASKRUN;
        if self.taskrun_flag {
            defer |= sys::IORING_SETUP_TASKRUN_FLAG;
        }
        let coop = sys::IORING_SETUP_COOP_TASKRUN | sys::IORING_SETUP_TASKRUN_FLAG;
        let rungs = [
            (Ladder::SingleIssuerDefer, defer),
            (Ladder::CoopTaskrun, coop),
            (Ladder::Plain, 0),
        ];
        let mut attempts = Vec::new();
        for (rung, flags) in rungs.into_iter().filter(|(rung, _)| *rung >= self.ladder) {
            if !self.sq_array {
                attempts.push((
                    rung,
                    flags | sys::IORING_SETUP_SUBMIT_ALL | sys::IORING_SETUP_NO_SQARRAY,
                ));
            }
            attempts.push((rung, flags | sys::IORING_SETUP_SUBMIT_ALL));
        }
        attempts.push((Ladder::Plain, 0));
        attempts
    }

    fn climb_down(&self) -> Result<(OwnedFd, sys::io_uring_params, Ladder), SetupError> {
        let mut always = S::SETUP_FLAG | C::SETUP_FLAG;
        if self.clamp {
            always |= sys::IORING_SETUP_CLAMP;
        }
        if self.cq_entries.is_some() {
            always |= sys::IORING_SETUP_CQSIZE;
        }
        for (rung, flags) in self.attempts() {
            let mut params = sys::io_uring_params {
                flags: flags | always,
                cq_entries: self.cq_entries.unwrap_or(0),
                ..Default::default()
            };
            match syscall::setup(self.sq_entries, &mut params) {
                Ok(fd) => return Ok((fd, params, rung)),
                // EINVAL: a flag that this kernel does not know. Try fewer.
                Err(errno) if errno.get() == libc::EINVAL => {}
                Err(errno) => return Err(self.setup_error(errno)),
            }
        }
        // The sizes were checked, so only the entry sizes remain.
        if always & (sys::IORING_SETUP_SQE128 | sys::IORING_SETUP_CQE32) != 0 {
            return Err(SetupError::Missing {
                what: "IORING_SETUP_SQE128 or IORING_SETUP_CQE32",
                since: "5.19",
            });
        }
        Err(SetupError::InvalidArgument {
            what: "the kernel refuses these sizes with every set of flags",
        })
    }

    fn setup_error(&self, errno: Errno) -> SetupError {
        match errno.get() {
            libc::EPERM | libc::EACCES => SetupError::Disabled {
                sysctl: read_disabled(),
            },
            libc::ENOSYS => SetupError::NotSupported,
            libc::ENOMEM => SetupError::NoMemory {
                sq_entries: self.sq_entries,
                memlock: syscall::memlock_limit(),
            },
            libc::EMFILE | libc::ENFILE => SetupError::TooManyFiles { errno },
            _ => SetupError::Call {
                call: "io_uring_setup",
                errno,
            },
        }
    }
}

/// Reads the sysctl; 1 limits io_uring to a group, 2 disables it (6.6).
fn read_disabled() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Sizes of the two mappings in bytes, computed from checked parameters.
#[derive(Debug, PartialEq, Eq)]
struct Sizes {
    ring: usize,
    sqes: usize,
}

/// Checks the kernel's reply once: features, sizes, and that all offsets lie inside what we will map.
fn check_params<S: SqEntry, C: CqEntry>(
    params: &sys::io_uring_params,
) -> Result<Sizes, SetupError> {
    for (feature, what, since) in [
        (
            sys::IORING_FEAT_SINGLE_MMAP,
            "IORING_FEAT_SINGLE_MMAP",
            "5.4",
        ),
        (sys::IORING_FEAT_NODROP, "IORING_FEAT_NODROP", "5.5"),
        (
            sys::IORING_FEAT_SUBMIT_STABLE,
            "IORING_FEAT_SUBMIT_STABLE",
            "5.5",
        ),
        (sys::IORING_FEAT_EXT_ARG, "IORING_FEAT_EXT_ARG", "5.11"),
    ] {
        if params.features & feature == 0 {
            return Err(SetupError::Missing { what, since });
        }
    }
    let bad = |what| Err(SetupError::BadLayout { what });
    if !params.sq_entries.is_power_of_two() || params.sq_entries > MAX_SQ {
        return bad("sq_entries is a power of two up to 32768");
    }
    if !params.cq_entries.is_power_of_two() || params.cq_entries > MAX_CQ {
        return bad("cq_entries is a power of two up to 65536");
    }
    if params.flags & (S::SETUP_FLAG | C::SETUP_FLAG) != S::SETUP_FLAG | C::SETUP_FLAG {
        return bad("the entry sizes asked for are the ones granted");
    }
    // Entries are few and offsets are u32, so u64 does not overflow here.
    let cq_end =
        u64::from(params.cq_off.cqes) + u64::from(params.cq_entries) * size_of::<C>() as u64;
    let mut ring = cq_end;
    if params.flags & sys::IORING_SETUP_NO_SQARRAY == 0 {
        ring = ring.max(u64::from(params.sq_off.array) + u64::from(params.sq_entries) * 4);
    }
    // More than the largest ring needs: the offset is garbage.
    if ring > 16 << 20 {
        return bad("the ring ends within 16 MiB");
    }
    if !u64::from(params.cq_off.cqes).is_multiple_of(align_of::<C>() as u64) {
        return bad("the CQEs are aligned");
    }
    let sqes = u64::from(params.sq_entries) * size_of::<S>() as u64;
    match (usize::try_from(ring), usize::try_from(sqes)) {
        (Ok(ring), Ok(sqes)) => Ok(Sizes { ring, sqes }),
        _ => bad("the ring fits the address space"),
    }
}

type Mapped<S, C> = (Linux, MmapSq<S>, MmapCq<C>);

fn map<S: SqEntry, C: CqEntry>(
    fd: OwnedFd,
    params: &sys::io_uring_params,
) -> Result<Mapped<S, C>, SetupError> {
    let sizes = check_params::<S, C>(params)?;
    let call = |errno| SetupError::Call {
        call: "mmap of the ring",
        errno,
    };
    let ring = Mapping::ring(fd.as_fd(), sys::IORING_OFF_SQ_RING, sizes.ring).map_err(call)?;
    let sqes = Mapping::ring(fd.as_fd(), sys::IORING_OFF_SQES, sizes.sqes).map_err(call)?;
    for (mask, entries, of) in [
        (
            params.sq_off.ring_mask,
            params.sq_off.ring_entries,
            params.sq_entries,
        ),
        (
            params.cq_off.ring_mask,
            params.cq_off.ring_entries,
            params.cq_entries,
        ),
    ] {
        let found = (read_word(&ring, mask), read_word(&ring, entries));
        if found != (Some(of - 1), Some(of)) {
            return Err(SetupError::BadLayout {
                what: "ring_mask and ring_entries agree with the parameters",
            });
        }
    }
    if params.flags & sys::IORING_SETUP_NO_SQARRAY == 0 {
        fill_array(&ring, params.sq_off.array, params.sq_entries).ok_or(SetupError::BadLayout {
            what: "the index array lies inside the ring",
        })?;
    }
    let outside = SetupError::BadLayout {
        what: "the ring's fields lie inside its mapping",
    };
    let sq = MmapSq::new(&ring, &sqes, params).ok_or(outside.clone())?;
    let cq = MmapCq::new(&ring, params).ok_or(outside)?;
    Ok((Linux::new(ring, sqes, fd), sq, cq))
}

#[cfg(test)]
mod tests;
