//! A device that is slow and fails by plan, for testing what is above it.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use ublk_core::{Backend, Errno, Limits, Op};

/// Errors are drawn from a million.
const MILLION: u64 = 1_000_000;

/// What a [`Faulty`] device does to its requests.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FaultPlan {
    /// Added to each selected request, in microseconds.
    pub delay_us: u64,
    /// Selected requests that fail, of a million.
    pub errors_per_million: u32,
    /// The errno of a failed request.
    pub errno: i32,
    /// The operations that are selected: READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES; empty for all.
    pub ops: Vec<FaultOp>,
    /// Only requests that touch this range of bytes are selected; a FLUSH has none and is never selected by one.
    pub range: Option<Range<u64>>,
    /// Decides which requests fail: the same sequence of requests fails in the same places with the same seed.
    pub seed: u64,
}

impl Default for FaultPlan {
    /// Nothing fails.
    fn default() -> Self {
        Self {
            delay_us: 0,
            errors_per_million: 0,
            errno: Errno::EIO.get(),
            ops: Vec::new(),
            range: None,
            seed: 1,
        }
    }
}

/// An operation of a [`FaultPlan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
pub enum FaultOp {
    /// READ.
    Read,
    /// WRITE.
    Write,
    /// FLUSH.
    Flush,
    /// DISCARD.
    Discard,
    /// WRITE_ZEROES.
    WriteZeroes,
}

impl FaultOp {
    const fn is(self, op: Op) -> bool {
        matches!(
            (self, op),
            (Self::Read, Op::Read)
                | (Self::Write, Op::Write)
                | (Self::Flush, Op::Flush)
                | (Self::Discard, Op::Discard)
                | (Self::WriteZeroes, Op::WriteZeroes)
        )
    }
}

/// Wraps a backend: selected requests wait, or fail without reaching it, as a [`FaultPlan`] says.
///
/// A write that fails has written nothing. The device declares a volatile cache, so that FLUSH arrives and can fail, too.
///
/// ```
/// use ublk_backends::{FaultPlan, Faulty, Memory};
/// use ublk_core::{Backend, Errno};
///
/// let plan = FaultPlan {
///     errors_per_million: 500_000,
///     ..FaultPlan::default()
/// };
/// let disk = Faulty::new(Memory::new(1 << 20, 512)?, plan);
/// let failed = (0..100).filter(|_| disk.flush() == Err(Errno::EIO)).count();
/// assert!((20..80).contains(&failed));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Faulty<B> {
    backend: B,
    plan: FaultPlan,
    drawn: AtomicU64,
}

impl<B: Backend> Faulty<B> {
    /// Wraps a backend.
    pub const fn new(backend: B, plan: FaultPlan) -> Self {
        Self {
            backend,
            plan,
            drawn: AtomicU64::new(0),
        }
    }

    fn pass(&self, op: Op, offset: u64, len: u64) -> Result<(), Errno> {
        let plan = &self.plan;
        if !plan.ops.is_empty() && !plan.ops.iter().any(|wanted| wanted.is(op)) {
            return Ok(());
        }
        if let Some(range) = &plan.range
            && (len == 0 || offset >= range.end || offset.saturating_add(len) <= range.start)
        {
            return Ok(());
        }
        if plan.delay_us != 0 {
            thread::sleep(Duration::from_micros(plan.delay_us));
        }
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        match mixed(plan.seed, number) % MILLION < u64::from(plan.errors_per_million) {
            true => Err(Errno::new(plan.errno)),
            false => Ok(()),
        }
    }
}

/// A number that looks random (the finaliser of SplitMix64).
const fn mixed(seed: u64, number: u64) -> u64 {
    let z = seed.wrapping_add(number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl<B: Backend> Backend for Faulty<B> {
    fn limits(&self) -> Limits {
        let limits = self.backend.limits();
        limits
            .volatile_cache(true)
            .quick(limits.quick && self.plan.delay_us == 0)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        self.pass(Op::Read, offset, buf.len() as u64)?;
        self.backend.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        self.pass(Op::Write, offset, buf.len() as u64)?;
        self.backend.write_at(buf, offset, fua)
    }

    fn flush(&self) -> Result<(), Errno> {
        self.pass(Op::Flush, 0, 0)?;
        self.backend.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.pass(Op::Discard, offset, len)?;
        self.backend.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        self.pass(Op::WriteZeroes, offset, len)?;
        self.backend.write_zeroes(offset, len, may_unmap)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Memory;
    use std::time::Instant;

    fn faulty(plan: FaultPlan) -> Faulty<Memory> {
        Faulty::new(Memory::new(1 << 20, 512).expect("valid"), plan)
    }

    fn half() -> FaultPlan {
        FaultPlan {
            errors_per_million: 500_000,
            ..FaultPlan::default()
        }
    }

    /// The same seed fails the same requests, another one others; the rate is kept.
    #[test]
    fn failures_are_drawn_from_the_seed() {
        let run = |plan: &FaultPlan| {
            let disk = faulty(plan.clone());
            (0..1000).map(|_| disk.flush().is_err()).collect::<Vec<_>>()
        };
        let plan = half();
        let first = run(&plan);
        assert_eq!(first, run(&plan));
        let failed = first.iter().filter(|failed| **failed).count();
        assert!((400..600).contains(&failed), "{failed}");
        let other = FaultPlan { seed: 2, ..half() };
        assert_ne!(first, run(&other));
        let never = run(&FaultPlan::default());
        assert!(never.iter().all(|failed| !failed));
        let always = FaultPlan {
            errors_per_million: 1_000_000,
            ..half()
        };
        assert!(run(&always).iter().all(|failed| *failed));
    }

    /// Only the selected operations and ranges fail, with the errno of the plan, and a failed write writes nothing.
    #[test]
    fn only_what_is_selected_fails() {
        let disk = faulty(FaultPlan {
            errors_per_million: 1_000_000,
            errno: Errno::ENOSPC.get(),
            ops: vec![FaultOp::Write, FaultOp::Flush],
            range: Some(4096..8192),
            ..FaultPlan::default()
        });
        assert_eq!(disk.write_at(&[1; 512], 0, false), Ok(()));
        assert_eq!(disk.write_at(&[1; 512], 8192, false), Ok(()));
        assert_eq!(disk.write_at(&[1; 1024], 3584, false), Err(Errno::ENOSPC));
        assert_eq!(disk.flush(), Ok(()), "it has no range");
        assert_eq!(disk.discard(4096, 4096), Ok(()));
        let mut back = [9; 1024];
        disk.read_at(&mut back, 3584)
            .expect("reads are not selected");
        assert_eq!(back, [0; 1024]);
        assert!(disk.limits().volatile_cache && disk.limits().quick);
    }

    /// A delay is at least as long as asked for, and moves the calls off the queue's thread.
    #[test]
    fn delays_are_kept() {
        let disk = faulty(FaultPlan {
            delay_us: 3000,
            ..FaultPlan::default()
        });
        assert!(!disk.limits().quick);
        let begun = Instant::now();
        disk.read_at(&mut [0; 512], 0).expect("only slow");
        assert!(begun.elapsed() >= Duration::from_millis(3));
    }
}
