//! A backend that fails on request (feature `fault`, for tests).
//!
//! [`Fault`] wraps another backend. Rules select requests by operation, range and number; a selected request fails with
//! an errno, is held until released, or panics. It counts requests, so that a test can see that a FLUSH reached the
//! backend, and how often.

#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ublk_core::{Backend, Errno, Limits, Op, ZoneAction, ZoneReport, deadline_in};

/// What happens to a selected request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Effect {
    /// It fails with this errno; the wrapped backend is not called.
    Fail(Errno),
    /// It waits for [`Control::release`], for at most this long, then continues to the wrapped backend. After this time
    /// it fails with ETIMEDOUT.
    Hold(Duration),
    /// The call panics.
    Panic,
}

/// Selects requests and what happens to them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// Only this operation; any if `None`.
    pub op: Option<Op>,
    /// Only requests that touch this range of bytes; any if `None`. FLUSH has no range and is never selected by one.
    pub range: Option<Range<u64>>,
    /// Number of other matches to let pass first.
    pub skip: u64,
    /// Number of matches to select after them.
    pub times: u64,
    /// What happens to them.
    pub effect: Effect,
}

impl Rule {
    /// A rule for every request of one operation.
    #[must_use]
    pub const fn every(op: Op, effect: Effect) -> Self {
        Self {
            op: Some(op),
            range: None,
            skip: 0,
            times: u64::MAX,
            effect,
        }
    }

    /// Selects only the `n`th match, counted from 1.
    #[must_use]
    pub const fn nth(mut self, n: u64) -> Self {
        self.skip = n.saturating_sub(1);
        self.times = 1;
        self
    }

    /// Selects only requests that touch these bytes.
    #[must_use]
    pub const fn touching(mut self, range: Range<u64>) -> Self {
        self.range = Some(range);
        self
    }

    /// Whether the rule selects this request; counts the match.
    fn takes(&mut self, op: Op, offset: u64, len: u64) -> bool {
        if self.op.is_some_and(|wanted| wanted != op) {
            return false;
        }
        if let Some(range) = &self.range
            && (len == 0 || offset >= range.end || offset.saturating_add(len) <= range.start)
        {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        if self.times == 0 {
            return false;
        }
        self.times -= 1;
        true
    }
}

/// Number of requests per operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Counts {
    /// READ.
    pub reads: u64,
    /// WRITE.
    pub writes: u64,
    /// WRITE with FUA, also counted in `writes`.
    pub fua_writes: u64,
    /// FLUSH.
    pub flushes: u64,
    /// DISCARD.
    pub discards: u64,
    /// WRITE_ZEROES.
    pub write_zeroes: u64,
    /// WRITE_ZEROES that may not unmap, also counted in `write_zeroes`.
    pub no_unmap: u64,
    /// ZONE_APPEND and other zone operations.
    pub zones: u64,
    /// Requests waiting in [`Effect::Hold`] now.
    pub held: u64,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    counts: Counts,
    /// Grows with each release: those who wait for a greater value continue.
    released: u64,
}

#[derive(Debug, Default)]
struct SharedState {
    state: Mutex<State>,
    changed: Condvar,
}

impl SharedState {
    /// Locks the state, even after a requested panic: every change is complete before the lock is released.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Controls a [`Fault`]: takes rules and returns counts, on any thread.
#[derive(Debug, Clone, Default)]
pub struct Control(Arc<SharedState>);

impl Control {
    /// Adds a rule; if several match a request, the first one applies.
    pub fn add(&self, rule: Rule) {
        self.0.lock().rules.push(rule);
    }

    /// Removes all rules and releases held requests.
    pub fn clear(&self) {
        self.0.lock().rules.clear();
        self.release();
    }

    /// Releases every held request.
    pub fn release(&self) {
        self.0.lock().released += 1;
        self.0.changed.notify_all();
    }

    /// The counts so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.lock().counts
    }

    /// Waits until `enough` holds for the counts, for at most `limit`. False on timeout.
    #[must_use]
    pub fn wait(&self, limit: Duration, enough: impl Fn(&Counts) -> bool) -> bool {
        let state = self.0.lock();
        let waited = self
            .0
            .changed
            .wait_timeout_while(state, limit, |state| !enough(&state.counts));
        !waited
            .map_or_else(|e| e.into_inner().1, |w| w.1)
            .timed_out()
    }
}

/// A backend that wraps another and fails on request.
#[derive(Debug)]
pub struct Fault<B> {
    inner: B,
    control: Control,
    limits: Limits,
}

impl<B: Backend> Fault<B> {
    /// Wraps a backend. Its limits stay the same, except that calls are no longer quick: they may be held.
    #[must_use]
    pub fn new(inner: B) -> (Self, Control) {
        let control = Control::default();
        let fault = Self {
            limits: inner.limits().quick(false),
            inner,
            control: control.clone(),
        };
        (fault, control)
    }

    /// Declares limits that differ from the wrapped backend's, for example a volatile cache.
    #[must_use]
    pub const fn declare(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Counts a request and applies the rules.
    fn meet(&self, op: Op, offset: u64, len: u64, flag: bool) -> Result<(), Errno> {
        let shared = &*self.control.0;
        let mut state = shared.lock();
        let counts = &mut state.counts;
        match op {
            Op::Read => counts.reads += 1,
            Op::Write => counts.writes += 1,
            Op::Flush => counts.flushes += 1,
            Op::Discard => counts.discards += 1,
            Op::WriteZeroes => counts.write_zeroes += 1,
            _ => counts.zones += 1,
        }
        counts.fua_writes += u64::from(op == Op::Write && flag);
        counts.no_unmap += u64::from(op == Op::WriteZeroes && flag);
        shared.changed.notify_all();
        let rule = state
            .rules
            .iter_mut()
            .find_map(|r| r.takes(op, offset, len).then_some(r.effect));
        match rule {
            None => Ok(()),
            Some(Effect::Fail(errno)) => Err(errno),
            Some(Effect::Panic) => {
                drop(state);
                panic!("requested panic at {op:?} {offset}+{len}");
            }
            Some(Effect::Hold(limit)) => hold(shared, state, limit),
        }
    }
}

/// Waits for the next release.
fn hold(
    shared: &SharedState,
    mut state: MutexGuard<'_, State>,
    limit: Duration,
) -> Result<(), Errno> {
    let deadline = deadline_in(limit);
    let before = state.released;
    state.counts.held += 1;
    shared.changed.notify_all();
    while state.released == before {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            state.counts.held -= 1;
            return Err(Errno::ETIMEDOUT);
        }
        state = match shared.changed.wait_timeout(state, left) {
            Ok((state, _)) => state,
            Err(poisoned) => poisoned.into_inner().0,
        };
    }
    state.counts.held -= 1;
    Ok(())
}

impl<B: Backend> Backend for Fault<B> {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn is_blind() -> bool {
        B::is_blind()
    }

    // Calls of a blind backend have no data: they match a rule by their offset.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        self.meet(Op::Read, offset, buf.len().max(1) as u64, false)?;
        self.inner.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        self.meet(Op::Write, offset, buf.len().max(1) as u64, fua)?;
        self.inner.write_at(buf, offset, fua)
    }

    fn flush(&self) -> Result<(), Errno> {
        self.meet(Op::Flush, 0, 0, false)?;
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.meet(Op::Discard, offset, len, false)?;
        self.inner.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        self.meet(Op::WriteZeroes, offset, len, !may_unmap)?;
        self.inner.write_zeroes(offset, len, may_unmap)
    }

    fn report_zones(&self, offset: u64, report: &mut ZoneReport<'_>) -> Result<(), Errno> {
        self.meet(Op::ReportZones, offset, 0, false)?;
        self.inner.report_zones(offset, report)
    }

    fn zone_append(&self, buf: &[u8], zone: u64) -> Result<u64, Errno> {
        self.meet(Op::ZoneAppend, zone, buf.len() as u64, false)?;
        self.inner.zone_append(buf, zone)
    }

    fn manage_zone(&self, action: ZoneAction, zone: u64) -> Result<(), Errno> {
        let op = match action {
            ZoneAction::Open => Op::ZoneOpen,
            ZoneAction::Close => Op::ZoneClose,
            ZoneAction::Finish => Op::ZoneFinish,
            _ => Op::ZoneReset,
        };
        self.meet(op, zone, 0, false)?;
        self.inner.manage_zone(action, zone)
    }

    fn reset_all_zones(&self) -> Result<(), Errno> {
        self.meet(Op::ZoneResetAll, 0, 0, false)?;
        self.inner.reset_all_zones()
    }

    fn resize(&self, size: u64) -> Result<(), Errno> {
        self.inner.resize(size)
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::Memory;

    const LONG: Duration = Duration::from_secs(20);

    fn fault() -> (Fault<Memory>, Control) {
        Fault::new(Memory::new(1 << 20, 512).expect("valid"))
    }

    #[test]
    fn rules_choose_by_operation_range_and_number() {
        let (fault, control) = fault();
        let enospc = Effect::Fail(Errno::ENOSPC);
        control.add(Rule::every(Op::Write, enospc).touching(4096..8192).nth(2));
        let buf = [1; 512];
        assert_eq!(fault.write_at(&buf, 4096, false), Ok(()), "the first match");
        assert_eq!(fault.write_at(&buf, 0, false), Ok(()), "outside the range");
        assert_eq!(fault.read_at(&mut [0; 512], 4096), Ok(()), "a read");
        assert_eq!(fault.write_at(&buf, 8192, false), Ok(()), "just behind");
        assert_eq!(fault.write_at(&buf, 7680, true), Err(Errno::ENOSPC));
        assert_eq!(fault.write_at(&buf, 7680, false), Ok(()), "once only");
        control.add(Rule::every(Op::Flush, Effect::Fail(Errno::EIO)));
        assert_eq!(fault.flush(), Err(Errno::EIO));
        control.clear();
        assert_eq!(fault.flush(), Ok(()));
        assert_eq!(fault.write_zeroes(0, 512, false), Ok(()));
        assert_eq!(fault.discard(0, 512), Ok(()));
        let counts = Counts {
            reads: 1,
            writes: 5,
            fua_writes: 1,
            flushes: 2,
            discards: 1,
            write_zeroes: 1,
            no_unmap: 1,
            zones: 0,
            held: 0,
        };
        assert_eq!(control.counts(), counts);
    }

    #[test]
    fn a_held_request_waits_for_its_release() {
        let (fault, control) = fault();
        control.add(Rule::every(Op::Read, Effect::Hold(LONG)));
        std::thread::scope(|scope| {
            let held = scope.spawn(|| fault.read_at(&mut [0; 512], 0));
            assert!(control.wait(LONG, |c| c.held == 1));
            assert!(!held.is_finished());
            control.release();
            assert_eq!(held.join().expect("no panic"), Ok(()));
        });
        assert_eq!(control.counts().held, 0);
        control.clear();
        control.add(Rule::every(
            Op::Read,
            Effect::Hold(Duration::from_millis(1)),
        ));
        let timed_out = fault.read_at(&mut [0; 512], 0);
        assert_eq!(timed_out, Err(Errno::ETIMEDOUT));
        assert!(!control.wait(Duration::from_millis(1), |c| c.held == 1));
    }

    /// L25 A requested panic, as the engine's tests need it; the backend is usable afterwards.
    #[test]
    fn l25_panics_on_order_and_goes_on() {
        let (fault, control) = fault();
        control.add(Rule::every(Op::Write, Effect::Panic).nth(1));
        let panicked = catch_unwind(AssertUnwindSafe(|| fault.write_at(&[0; 512], 0, false)));
        assert!(panicked.is_err());
        assert_eq!(fault.write_at(&[0; 512], 0, false), Ok(()));
        assert_eq!(control.counts().writes, 2);
        assert!(!fault.limits().quick, "it may be held");
    }
}
