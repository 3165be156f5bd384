//! Puts records into the order of their times, with bounded memory.

use crate::record::Record;
use std::collections::BTreeMap;

/// Sorts records that are out of order by at most a number of places: those of a queue's depth, say.
#[derive(Debug)]
pub struct Sorter {
    room: usize,
    held: BTreeMap<(u64, u64), Record>,
    sequence: u64,
    last: u64,
    late: u64,
}

impl Sorter {
    /// Holds at most `room` records back, at least one.
    #[must_use]
    pub fn new(room: usize) -> Self {
        Self {
            room: room.max(1),
            held: BTreeMap::new(),
            sequence: 0,
            last: 0,
            late: 0,
        }
    }

    /// Takes a record in; returns the earliest one if there is no more room.
    pub fn push(&mut self, record: Record) -> Option<Record> {
        self.held.insert((record.time, self.sequence), record);
        self.sequence += 1;
        if self.held.len() > self.room {
            self.pop()
        } else {
            None
        }
    }

    /// The earliest record that is held. One that comes later than a record after it was returned gets its time.
    pub fn pop(&mut self) -> Option<Record> {
        let (_, mut record) = self.held.pop_first()?;
        if record.time < self.last {
            self.late += 1;
            record.time = self.last;
        }
        self.last = record.time;
        Some(record)
    }

    /// Number of records that came too late to be sorted.
    #[must_use]
    pub const fn late(&self) -> u64 {
        self.late
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Op;

    fn sorted(times: &[u64], room: usize) -> (Vec<u64>, u64) {
        let mut sorter = Sorter::new(room);
        let record = |time| Record {
            time,
            op: Op::Read,
            offset: 0,
            len: 0,
            queue: 0,
            latency: None,
            error: None,
        };
        let mut out: Vec<u64> = Vec::new();
        for time in times {
            out.extend(sorter.push(record(*time)).map(|r| r.time));
        }
        while let Some(record) = sorter.pop() {
            out.push(record.time);
        }
        (out, sorter.late())
    }

    #[test]
    fn times_are_sorted_within_the_room() {
        assert_eq!(sorted(&[3, 1, 2, 9, 5], 2), (vec![1, 2, 3, 5, 9], 0));
        // Too late for a room of one: it is taken for one of now.
        assert_eq!(sorted(&[5, 6, 7, 1], 1), (vec![5, 6, 6, 7], 1));
    }
}
