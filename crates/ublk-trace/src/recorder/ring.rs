//! A bounded ring of records between one thread that pushes and one that pops. All of it is atomics: no record is ever
//! read while it is written, and no `unsafe` is needed to say so.

use crate::record::{Op, Record};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A record in words: time, offset, length, latency (plus one, 0 for none), and the rest.
const WORDS: usize = 5;

#[derive(Debug, Default)]
struct Slot([AtomicU64; WORDS]);

/// An index on a cache line of its own, away from the other thread's.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Index(AtomicU64);

#[derive(Debug)]
struct Ring {
    slots: Box<[Slot]>,
    mask: u64,
    /// Records pushed; written by the tap.
    tail: Index,
    /// Records popped; written by the drain.
    head: Index,
    /// Records lost; written by the tap.
    lost: Index,
}

/// The end that pushes.
#[derive(Debug)]
pub struct Tap {
    ring: Arc<Ring>,
    tail: u64,
    /// The head when it was last looked at: only a ring that seems full asks again.
    head: u64,
    lost: u64,
}

/// The end that pops.
#[derive(Debug)]
pub struct Drain {
    ring: Arc<Ring>,
    head: u64,
}

/// A ring for at least `capacity` records (a power of two from 2 to 1,048,576), 40 bytes each.
#[must_use]
pub fn channel(capacity: u32) -> (Tap, Drain) {
    let capacity = capacity.clamp(2, 1 << 20).next_power_of_two();
    let ring = Arc::new(Ring {
        slots: (0..capacity).map(|_| Slot::default()).collect(),
        mask: u64::from(capacity) - 1,
        tail: Index::default(),
        head: Index::default(),
        lost: Index::default(),
    });
    let tap = Tap {
        ring: Arc::clone(&ring),
        tail: 0,
        head: 0,
        lost: 0,
    };
    (tap, Drain { ring, head: 0 })
}

impl Ring {
    fn slot(&self, index: u64) -> &Slot {
        let place = usize::try_from(index & self.mask).unwrap_or(0);
        // The mask is below the number of slots, a power of two.
        &self.slots[place]
    }
}

impl Tap {
    /// Adds a request, or counts it as lost if the ring is full. Never waits.
    #[inline]
    pub fn push(&mut self, record: &Record) -> bool {
        if self.tail - self.head > self.ring.mask {
            // Acquire: pairs with the drain's release of the head; it has read the slot before.
            self.head = self.ring.head.0.load(Ordering::Acquire);
            if self.tail - self.head > self.ring.mask {
                self.lost += 1;
                self.ring.lost.0.store(self.lost, Ordering::Relaxed);
                return false;
            }
        }
        let words = [
            record.time,
            record.offset,
            record.len,
            record
                .latency
                .map_or(0, |latency| latency.saturating_add(1)),
            u64::from(record.op as u8)
                | u64::from(record.queue) << 16
                | u64::from(record.error.map_or(0, NonZeroU16::get)) << 32,
        ];
        for (place, word) in self.ring.slot(self.tail).0.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        self.tail += 1;
        // Release: pairs with the drain's acquire of the tail; the record is whole before it is seen.
        self.ring.tail.0.store(self.tail, Ordering::Release);
        true
    }
}

impl Drain {
    /// The oldest record.
    pub fn pop(&mut self) -> Option<Record> {
        // Acquire: pairs with the tap's release of the tail.
        if self.head == self.ring.tail.0.load(Ordering::Acquire) {
            return None;
        }
        let slot = self.ring.slot(self.head);
        let [time, offset, len, latency, rest] =
            std::array::from_fn(|n| slot.0.get(n).map_or(0, |word| word.load(Ordering::Relaxed)));
        self.head += 1;
        // Release: pairs with the tap's acquire of the head; the slot has been read before it is written again.
        self.ring.head.0.store(self.head, Ordering::Release);
        let low = |word: u64| u16::try_from(word & 0xffff).unwrap_or(0);
        Some(Record {
            time,
            op: Op::of_number(rest.to_le_bytes()[0]).unwrap_or(Op::Other),
            offset,
            len,
            queue: low(rest >> 16),
            latency: latency.checked_sub(1),
            error: NonZeroU16::new(low(rest >> 32)),
        })
    }

    /// Number of records that were lost because the ring was full.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.ring.lost.0.load(Ordering::Relaxed)
    }

    /// Number of records that the ring has room for.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.ring.mask + 1
    }
}
