//! What a lane measures, at the end of each round and for requests that outlive theirs.
//!
//! A request that is answered in the round that brought it costs nothing here: at the end of the round those are the
//! requests that were counted and not taken along, and they all took as long as the round. Others are stamped. Both
//! kinds of latency run from the beginning of the round that brings the request to the end of the one that answers it.

use std::time::Instant;

use ublk_core::{Answer, Errno, Op, Tag, TagState};
use ublk_metrics::{Batches, Level, Operation};

use super::Lane;
use crate::handler::Handler;
use crate::measure::{KINDS, Latencies, Stamp, kind_of};
use crate::port::{Descriptors, Port};
use crate::recording::Recorded;
use crate::shared::ANYWHERE;
use crate::user_data::{Kind, NO_OWNER};

/// The counts of a lane at the beginning of a round, and what is known of the round.
#[derive(Debug)]
pub(super) struct Round {
    /// Requests by op.
    before: [u64; Op::NUMBERS],
    /// Requests of this round that are not answered in it or arrived earlier, by kind.
    elsewhere: [u64; Operation::COUNT],
    /// When it began.
    began: u64,
}

impl Round {
    pub(super) const NONE: Self = Self {
        before: [0; Op::NUMBERS],
        elsewhere: [0; Operation::COUNT],
        began: 0,
    };
}

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    /// Changes what is measured, and who records, between two rounds. `clock`: the zero of the thread's clock.
    #[cold]
    pub(crate) fn measure(&mut self, level: Level, clock: Instant) {
        if self.shared.recorder.take(&mut self.recorder)
            && let Some(recorder) = &mut self.recorder
        {
            let in_hand = |state| {
                use TagState::{GettingData, InHand, NeedsData};
                matches!(state, InHand | GettingData | NeedsData)
            };
            recorder.begin(clock, self.tags.iter().map(|slot| in_hand(slot.state)));
        }
        let latencies = self.shared.latencies.get();
        let timed = level == Level::Latencies && latencies.is_some();
        if timed
            && !self.timed
            && let Some(latencies) = latencies
        {
            latencies.forget_all();
        }
        self.timed = timed;
        self.choose_paths();
        self.round.elsewhere = [0; Operation::COUNT];
        for (before, op) in self.round.before.iter_mut().zip(&self.shared.meters.ops) {
            *before = op.get();
        }
    }

    /// Requests that may outlive their round leave the fast paths, which know no stamps. Those that are noted only leave
    /// the fast path of their answers.
    fn choose_paths(&mut self) {
        self.watched = self.timed || self.noted != 0;
        self.before_commit = self.watched || self.buffers.is_some();
        self.quick = match self.timed || self.leaving {
            true => NO_OWNER,
            false => self.plain_owner,
        };
        self.forward_word = match self.watched {
            true => NO_OWNER,
            false => self.owner | (Kind::Forward as u64) << 48,
        };
    }

    /// Notes which requests are in hand, at the end of a round.
    pub(crate) fn note_in_hand(&mut self, now: u64) {
        let Some(notes) = self.shared.notes.get() else {
            return;
        };
        let latencies = self.shared.latencies.get().filter(|_| self.timed);
        for slot in self.tags.iter().filter(|it| it.state == TagState::InHand) {
            let stamp = latencies.and_then(|latencies| latencies.stamp(slot.tag));
            let since = stamp.map_or(now, Stamp::nanos);
            self.noted += u32::from(notes.note(slot.tag, since));
        }
        notes.are_made(self.shared.meters.taken());
        self.choose_paths();
    }

    /// Removes the note of a request that is answered now.
    #[cold]
    fn remove_note(&mut self, tag: Tag) {
        let notes = self.shared.notes.get();
        if notes.is_some_and(|notes| notes.remove(tag)) {
            self.noted = self.noted.saturating_sub(1);
            if self.noted == 0 {
                self.choose_paths();
            }
        }
    }

    /// Begins a round, at this time.
    pub(crate) const fn round_begins(&mut self, now: u64) {
        self.round.began = now;
    }

    /// Counts a round that ends now, and records its latencies. `polls`: hits and misses of the thread so far. `busy`:
    /// the thread's time is this lane's.
    pub(crate) fn round_ends(&mut self, now: u64, polls: (u64, u64), busy: bool) {
        let meters = &self.shared.meters;
        let mut by_kind = [0_u64; Operation::COUNT];
        let mut requests = 0;
        let ops = meters.ops.iter().zip(&mut self.round.before);
        for ((op, before), kind) in ops.zip(KINDS) {
            let count = op.get();
            let new = count.wrapping_sub(std::mem::replace(before, count));
            if new != 0 {
                requests += new;
                by_kind[kind as usize] += new;
            }
        }
        if requests != 0 {
            meters.batches[Batches::index_of(requests)].add(1);
            meters.batched.add(requests);
        }
        meters.poll_hits.set(polls.0);
        meters.poll_misses.set(polls.1);
        if !self.timed {
            return;
        }
        let Some(latencies) = self.shared.latencies.get() else {
            return;
        };
        let length = now.saturating_sub(self.round.began);
        if busy {
            meters.busy.add(length);
        }
        let mut at_once = 0;
        for (requests, elsewhere) in by_kind.iter_mut().zip(&mut self.round.elsewhere) {
            *requests = requests.saturating_sub(std::mem::take(elsewhere));
            at_once += *requests;
        }
        for (kind, requests) in by_kind.into_iter().enumerate() {
            if requests != 0 {
                latencies.record_at_once(kind, length, requests, at_once);
            }
        }
        latencies.record_kept(now);
        // Rounds that end twice, after a panic, take no time in between.
        self.round.began = now;
    }

    /// Stamps a request that has arrived and will be counted in a later round.
    #[cold]
    pub(super) fn stamp_early(&self, tag: Tag, op: Op) {
        if self.timed
            && let Some(latencies) = self.shared.latencies.get()
        {
            let stamp = Stamp::new(self.round.began, kind_of(op));
            latencies.set_stamp(tag, Some(stamp));
        }
    }

    /// Stamps a request that was counted in this round and outlives it.
    #[inline(never)]
    pub(super) fn stamp(&mut self, tag: Tag, op: Op) {
        let Some(latencies) = self.shared.latencies.get() else {
            return;
        };
        let known = latencies.stamp(tag).filter(|stamp| !stamp.is_counted());
        let stamp = known.unwrap_or_else(|| Stamp::new(self.round.began, kind_of(op)));
        latencies.set_stamp(tag, Some(stamp.counted()));
        self.round.elsewhere[stamp.kind()] += 1;
    }

    /// Takes the stamp and the note of a request that is answered now, the stamp for the end of the round, and records the
    /// request.
    #[inline(never)]
    pub(super) fn take_stamp(&mut self, tag: Tag, answer: Answer) {
        if self.noted != 0 {
            self.remove_note(tag);
        }
        if !self.timed {
            return;
        }
        let taken = |latencies: &Latencies| {
            let stamp = latencies.stamp(tag)?;
            latencies.set_stamp(tag, None);
            latencies.keep(stamp);
            Some(stamp)
        };
        let stamp = self.shared.latencies.get().and_then(taken);
        if self.recorder.is_some() {
            self.record(tag, answer, stamp);
        }
        if let Some(stamp) = stamp.filter(|stamp| !stamp.is_counted()) {
            // Counted in this round, but it arrived earlier.
            self.round.elsewhere[stamp.kind()] += 1;
        }
    }

    /// Records a request that is answered now, unless it arrived before the recorder, or makes no sense.
    #[cold]
    fn record(&mut self, tag: Tag, answer: Answer, stamp: Option<Stamp>) {
        let in_hand = self.tags[tag.index()].state == TagState::InHand;
        let Some(recorder) = self.recorder.as_mut().filter(|_| in_hand) else {
            return;
        };
        // The driver has not been told of the answer: the descriptor is still that of the request.
        let io = self.descriptors.load(tag).decode(&ANYWHERE);
        let (before, Ok(io)) = (recorder.came_before(tag.index()), io) else {
            return;
        };
        if before {
            return;
        }
        let request = Recorded {
            qid: self.qid,
            op: io.op,
            offset: io.offset,
            len: io.len,
            began: 0,
            took: 0,
            errno: Errno::from_result(answer.result()).err(),
        };
        recorder.record(request, stamp.map_or(self.round.began, Stamp::nanos));
    }

    /// Drops the stamp of a request that fails without being counted.
    #[cold]
    pub(super) fn drop_stamp(&self, tag: Tag) {
        if let Some(latencies) = self.shared.latencies.get() {
            latencies.set_stamp(tag, None);
        }
    }
}
