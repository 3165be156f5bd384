//! What a device has done, at one moment.

use std::time::Duration;

use crate::{Batches, Histogram, Level, Operation};

/// Requests of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct OpSnapshot {
    /// The kind.
    pub op: Operation,
    /// Requests that the driver has handed over, answered or not.
    pub requests: u64,
    /// Bytes of their ranges, of discards and zeroes, too.
    pub bytes: u64,
    /// Requests answered with an errno.
    pub errors: u64,
    /// From the batch that brought a request to the submission of its answer; empty unless the level is
    /// [`Level::Latencies`].
    pub latency: Histogram,
    /// Nanoseconds that the requests of `latency` spent in the backend, in sum. For the rest of their time they waited:
    /// for a thread of the pool, for those before them in their batch, or, answered, for the end of a batch.
    #[cfg_attr(feature = "serde", serde(default))]
    pub backend_ns: u64,
}

impl OpSnapshot {
    /// Nothing of this kind.
    #[must_use]
    pub fn new(op: Operation) -> Self {
        Self {
            op,
            requests: 0,
            bytes: 0,
            errors: 0,
            latency: Histogram::default(),
            backend_ns: 0,
        }
    }

    /// Mean time that a request spent in the backend; zero without latencies.
    #[must_use]
    pub fn backend_mean(&self) -> Duration {
        let count = self.latency.count().max(1);
        // A request that is still there may have been counted in part.
        Duration::from_nanos(self.backend_ns / count).min(self.latency.mean())
    }

    /// Mean time that a request waited before and after the backend; zero without latencies.
    #[must_use]
    pub fn waiting_mean(&self) -> Duration {
        self.latency.mean().saturating_sub(self.backend_mean())
    }

    fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.errors = self.errors.saturating_add(other.errors);
        self.latency.add(&other.latency);
        self.backend_ns = self.backend_ns.saturating_add(other.backend_ns);
    }

    fn subtract(&mut self, earlier: &Self) {
        self.requests = self.requests.saturating_sub(earlier.requests);
        self.bytes = self.bytes.saturating_sub(earlier.bytes);
        self.errors = self.errors.saturating_sub(earlier.errors);
        self.latency.subtract(&earlier.latency);
        self.backend_ns = self.backend_ns.saturating_sub(earlier.backend_ns);
    }
}

macro_rules! facts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Events of a queue besides its requests.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "serde", serde(default))]
        #[non_exhaustive]
        pub struct Facts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Facts {
            /// Adds those of another queue.
            pub fn add(&mut self, other: &Self) {
                $(self.$name = self.$name.saturating_add(other.$name);)*
            }

            /// Takes away those of an earlier time.
            pub fn subtract(&mut self, earlier: &Self) {
                $(self.$name = self.$name.saturating_sub(earlier.$name);)*
            }
        }
    };
}

facts! {
    /// Zero copy: requests with data whose pages the driver registered, or the server by plan (manual mode).
    zero_copy_hits,
    /// Automatic zero copy: requests whose pages the driver could not register, so that the server did (6.16).
    zero_copy_fallbacks,
    /// Get-data: NEED_GET_DATA commands, each a round trip more for a WRITE.
    get_data_rounds,
    /// Requests whose data was in memory shared with the client, so that it was not copied (7.1).
    shared_hits,
    /// Requests whose data was not in that memory, on a device that shares memory.
    shared_misses,
    /// Polls that found work, so that the thread did not sleep.
    poll_hits,
    /// Polls that ended in a sleep.
    poll_misses,
    /// Syncs of files; each serves one or more FLUSH and FUA requests.
    syncs,
    /// Contained panics of the backend.
    panics,
    /// Requests dropped without an answer, which failed with EIO.
    dropped,
    /// Requests refused for an invalid descriptor.
    refused,
    /// Completions that belonged to no command in flight.
    stale,
    /// Calls of io_uring_enter.
    enters,
}

/// What one queue has done, or one of its threads if it has several.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct QueueSnapshot {
    /// The hw queue.
    pub qid: u16,
    /// Which of its threads.
    pub thread: u16,
    /// Kinds of requests that have occurred.
    pub ops: Vec<OpSnapshot>,
    /// Requests answered with an errno, by errno. Those above 133, the highest of Linux, count as 0.
    pub errnos: Vec<(u16, u64)>,
    /// Requests that have arrived and are not answered, as of the last batch.
    pub in_flight: u64,
    /// Sizes of batches; empty if the level is [`Level::Off`].
    pub batches: Batches,
    /// Nanoseconds that the thread worked, between its sleeps; 0 unless the level is [`Level::Latencies`].
    pub busy_ns: u64,
    /// Other events.
    pub facts: Facts,
}

impl QueueSnapshot {
    /// Nothing, of this queue and thread.
    #[must_use]
    pub fn new(qid: u16, thread: u16) -> Self {
        Self {
            qid,
            thread,
            ..Self::default()
        }
    }

    /// The requests of a kind, if there were any.
    #[must_use]
    pub fn op(&self, op: Operation) -> Option<&OpSnapshot> {
        self.ops.iter().find(|it| it.op == op)
    }

    /// Requests of all kinds.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.ops.iter().map(|op| op.requests).sum()
    }

    /// Requests answered with an errno.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.errnos.iter().map(|(_, n)| n).sum()
    }

    /// The requests of a kind, added if there were none.
    pub fn op_mut(&mut self, op: Operation) -> &mut OpSnapshot {
        let at = match self.ops.iter().position(|it| it.op >= op) {
            Some(at) if self.ops[at].op == op => at,
            at => {
                let at = at.unwrap_or(self.ops.len());
                self.ops.insert(at, OpSnapshot::new(op));
                at
            }
        };
        &mut self.ops[at]
    }

    /// Adds the work of another queue or thread.
    pub fn add(&mut self, other: &Self) {
        for op in &other.ops {
            self.op_mut(op.op).add(op);
        }
        for (errno, n) in &other.errnos {
            match self.errnos.iter_mut().find(|(it, _)| it == errno) {
                Some((_, to)) => *to = to.saturating_add(*n),
                None => self.errnos.push((*errno, *n)),
            }
        }
        self.errnos.sort_unstable();
        self.in_flight = self.in_flight.saturating_add(other.in_flight);
        self.batches.add(&other.batches);
        self.busy_ns = self.busy_ns.saturating_add(other.busy_ns);
        self.facts.add(&other.facts);
    }

    fn subtract(&mut self, earlier: &Self) {
        for op in &earlier.ops {
            self.op_mut(op.op).subtract(op);
        }
        self.ops
            .retain(|op| op.requests + op.errors + op.latency.count() > 0);
        for (errno, n) in &mut self.errnos {
            let before = earlier.errnos.iter().find(|(it, _)| it == errno);
            *n = n.saturating_sub(before.map_or(0, |(_, n)| *n));
        }
        self.errnos.retain(|(_, n)| *n > 0);
        self.batches.subtract(&earlier.batches);
        self.busy_ns = self.busy_ns.saturating_sub(earlier.busy_ns);
        self.facts.subtract(&earlier.facts);
    }
}

/// What a device has done since its server started, or in an interval.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// How much is measured.
    pub level: Level,
    /// When the server started, in nanoseconds since 1970: another value means another server, which counts from 0.
    pub server: u64,
    /// Nanoseconds since then, by a clock that never goes back; of a difference, its length.
    pub elapsed_ns: u64,
    /// Each queue, or each of its threads.
    pub queues: Vec<QueueSnapshot>,
}

impl Snapshot {
    /// An empty snapshot of a server.
    #[must_use]
    pub const fn new(level: Level, server: u64, elapsed_ns: u64) -> Self {
        Self {
            level,
            server,
            elapsed_ns,
            queues: Vec::new(),
        }
    }

    /// Time since the server started; of a difference, its length.
    #[must_use]
    pub const fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.elapsed_ns)
    }

    /// The sum over all queues.
    #[must_use]
    pub fn total(&self) -> QueueSnapshot {
        let mut total = QueueSnapshot::default();
        for queue in &self.queues {
            total.add(queue);
        }
        total
    }

    /// What was done since an earlier snapshot of the device. If its server was replaced in between, that is what the
    /// present one has done.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = self.clone();
        if self.server != earlier.server {
            return difference;
        }
        difference.elapsed_ns = self.elapsed_ns.saturating_sub(earlier.elapsed_ns);
        for queue in &mut difference.queues {
            let same = |it: &&QueueSnapshot| (it.qid, it.thread) == (queue.qid, queue.thread);
            if let Some(before) = earlier.queues.iter().find(same) {
                queue.subtract(before);
            }
        }
        difference
    }

    /// Adds the work of another device, or of another interval of this one: queue by queue.
    pub fn add(&mut self, other: &Self) {
        self.elapsed_ns = self.elapsed_ns.max(other.elapsed_ns);
        self.level = self.level.max(other.level);
        for queue in &other.queues {
            let same = |it: &&mut QueueSnapshot| (it.qid, it.thread) == (queue.qid, queue.thread);
            match self.queues.iter_mut().find(same) {
                Some(to) => to.add(queue),
                None => self.queues.push(queue.clone()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(reads: u64, errors: u64) -> Snapshot {
        let mut queue = QueueSnapshot::new(0, 0);
        let op = queue.op_mut(Operation::Read);
        (op.requests, op.bytes, op.errors) = (reads, reads * 4096, errors);
        for n in 0..reads {
            op.latency.record(Duration::from_micros(n + 1));
        }
        queue.errnos = vec![(5, errors)];
        queue.facts.syncs = reads;
        queue.batches.counts[0] = reads;
        let mut snapshot = Snapshot::new(Level::Latencies, 7, reads * 1000);
        snapshot.queues.push(queue);
        snapshot
    }

    #[test]
    fn a_difference_is_the_work_of_the_interval() {
        let (before, after) = (snapshot(10, 1), snapshot(25, 4));
        let between = after.since(&before);
        let total = between.total();
        assert_eq!(total.requests(), 15);
        assert_eq!(total.errnos, [(5, 3)]);
        assert_eq!(
            total.op(Operation::Read).map(|op| op.latency.count()),
            Some(15)
        );
        assert_eq!(between.elapsed(), Duration::from_micros(15));
        let mut again = before.clone();
        again.add(&between);
        assert_eq!(again.queues, after.queues);
        // Nothing happened: no kinds and no errors are listed.
        let idle = after.since(&after).total();
        assert_eq!((idle.ops.len(), idle.errnos.len()), (0, 0));
    }

    /// A server that replaced another counts from 0; its counts are not taken for negative ones.
    #[test]
    fn a_new_server_is_not_subtracted_from() {
        let before = snapshot(25, 4);
        let after = Snapshot {
            server: 8,
            ..snapshot(3, 0)
        };
        assert_eq!(after.since(&before), after);
    }

    #[test]
    fn kinds_stay_in_order() {
        let mut queue = QueueSnapshot::default();
        for op in [
            Operation::Discard,
            Operation::Read,
            Operation::ZoneAction,
            Operation::Read,
        ] {
            queue.op_mut(op).requests += 1;
        }
        let kinds: Vec<_> = queue.ops.iter().map(|op| (op.op, op.requests)).collect();
        let wanted = [
            (Operation::Read, 2),
            (Operation::Discard, 1),
            (Operation::ZoneAction, 1),
        ];
        assert_eq!(kinds, wanted);
    }

    #[cfg(feature = "serde")]
    #[test]
    fn json_is_read_as_written() {
        let snapshot = snapshot(4, 1);
        let text = serde_json::to_string(&snapshot).expect("JSON");
        assert_eq!(
            serde_json::from_str::<Snapshot>(&text).expect("the same"),
            snapshot
        );
        // A fact that an earlier server does not know is 0.
        let older = text.replace("\"stale\":0,", "");
        assert_ne!(older, text);
        assert_eq!(
            serde_json::from_str::<Snapshot>(&older).expect("an older one"),
            snapshot
        );
    }
}
