//! Tracks the commands in the kernel and owns their memory.
#![forbid(unsafe_code)]

use crate::{Buffer, Error, Operation};

/// Slots that only STOP may take, so that it finds room in addition to abandoned commands.
pub(crate) const RESERVE: usize = 2;

/// A command's slot and generation. Only this type packs `user_data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    slot: u16,
    generation: u32,
    cancel: bool,
}

impl Ticket {
    /// Packs the word: slot in bits 0-15, bit 16 set for a cancel request, generation in bits 32-63.
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.cancel) << 16 | u64::from(self.slot)
    }

    /// Unpacks the word; `None` if it is not a ticket.
    pub(crate) fn unpack(word: u64) -> Option<Self> {
        let bytes = word.to_be_bytes();
        let generation = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        let slot = u16::from_be_bytes([bytes[6], bytes[7]]);
        let cancel = match [bytes[4], bytes[5]] {
            [0, 0] => false,
            [0, 1] => true,
            _ => return None,
        };
        Some(Self {
            slot,
            generation,
            cancel,
        })
    }

    /// The ticket of the request that cancels this one.
    pub(crate) fn to_cancel(self) -> Self {
        Self {
            cancel: true,
            ..self
        }
    }
}

#[derive(Debug, Default)]
struct CommandSlot {
    /// Incremented with each use, so that a late completion of an earlier use is recognized (L53).
    generation: u32,
    /// The memory of the command in the kernel; `None` while the slot is free.
    pending: Option<Buffer>,
}

/// A slot for each command that may be in the kernel at once.
///
/// Dropping the table leaks the memory of commands that are still in the kernel: closing the ring is not a barrier, and
/// the kernel may write to the memory at any later time (L09).
pub(crate) struct Slots {
    slots: Vec<CommandSlot>,
}

impl Slots {
    /// Creates at least one slot beyond the reserve.
    pub(crate) fn new(capacity: usize) -> Self {
        let mut slots = Vec::new();
        slots.resize_with(
            capacity.clamp(RESERVE + 1, usize::from(u16::MAX)),
            CommandSlot::default,
        );
        Self { slots }
    }

    /// Number of commands in the kernel.
    pub(crate) fn pending(&self) -> usize {
        self.slots.iter().filter(|s| s.pending.is_some()).count()
    }

    /// Stores a command's memory and returns its ticket.
    pub(crate) fn take(&mut self, operation: Operation, buffer: Buffer) -> Result<Ticket, Error> {
        let pending = self.pending();
        let reserve = if operation.is_stop() { 0 } else { RESERVE };
        let free = self.slots.iter().position(|s| s.pending.is_none());
        let room = free.filter(|_| pending + reserve < self.slots.len());
        let Some((slot, index)) = room.and_then(|i| Some((i, u16::try_from(i).ok()?))) else {
            return Err(Error::Exhausted { operation, pending });
        };
        let slot = &mut self.slots[slot];
        slot.generation = slot.generation.wrapping_add(1);
        slot.pending = Some(buffer);
        Ok(Ticket {
            slot: index,
            generation: slot.generation,
            cancel: false,
        })
    }

    /// The memory of a command in the kernel.
    pub(crate) fn buffer(&self, ticket: Ticket) -> Option<&Buffer> {
        let slot = self.slots.get(usize::from(ticket.slot))?;
        let same = slot.generation == ticket.generation && !ticket.cancel;
        slot.pending.as_ref().filter(|_| same)
    }

    /// Returns the memory after the completion; `None` for a completion of an earlier generation.
    pub(crate) fn release(&mut self, ticket: Ticket) -> Option<Buffer> {
        self.buffer(ticket)?;
        self.slots[usize::from(ticket.slot)].pending.take()
    }
}

impl core::fmt::Debug for Slots {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Slots")
            .field("pending", &self.pending())
            .field("of", &self.slots.len())
            .finish()
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for slot in &mut self.slots {
            // Leaked on purpose; see the type.
            core::mem::forget(slot.pending.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::tests::FREED;

    fn buffer() -> Buffer {
        Buffer::new(&[1; 8]).unwrap()
    }

    #[test]
    fn tickets_go_both_ways() {
        for slot in [0, 1, 63, u16::MAX] {
            for generation in [0, 1, u32::MAX] {
                for cancel in [false, true] {
                    let ticket = Ticket {
                        slot,
                        generation,
                        cancel,
                    };
                    assert_eq!(Ticket::unpack(ticket.pack()), Some(ticket));
                    assert_ne!(ticket.pack(), u64::MAX, "the waker's word");
                }
            }
        }
        assert_eq!(Ticket::unpack(u64::MAX), None);
        assert_eq!(Ticket::unpack(1 << 17), None);
    }

    /// L53 A completion of an earlier generation of the slot frees nothing.
    #[test]
    fn l53_generations_tell_lives_apart() {
        let mut slots = Slots::new(3);
        let old = slots.take(Operation::Info, buffer()).unwrap();
        assert!(slots.release(old).is_some());
        let new = slots.take(Operation::Info, buffer()).unwrap();
        assert_eq!((old.slot, slots.pending()), (new.slot, 1));
        assert!(slots.release(old).is_none());
        assert!(slots.release(new.to_cancel()).is_none());
        assert_eq!(slots.pending(), 1);
        assert!(slots.release(new).is_some() && slots.release(new).is_none());
    }

    /// L27 A STOP finds room in addition to commands that never end; other commands are refused.
    #[test]
    fn l27_room_for_a_stop() {
        let mut slots = Slots::new(4);
        let pending = |n| Error::Exhausted {
            operation: Operation::Start,
            pending: n,
        };
        slots.take(Operation::Start, buffer()).unwrap();
        slots.take(Operation::Start, buffer()).unwrap();
        assert_eq!(slots.take(Operation::Start, buffer()), Err(pending(2)));
        slots.take(Operation::Stop, buffer()).unwrap();
        slots.take(Operation::Stop, buffer()).unwrap();
        assert!(slots.take(Operation::Stop, buffer()).is_err());
    }

    /// L09 Memory that the kernel may still write to is never freed.
    #[test]
    fn l09_pending_memory_outlives_the_table() {
        let mut slots = Slots::new(4);
        let before = FREED.with(std::cell::Cell::get);
        slots.take(Operation::Start, buffer()).unwrap();
        let done = slots.take(Operation::Info, buffer()).unwrap();
        drop(slots.release(done));
        drop(slots);
        assert_eq!(FREED.with(std::cell::Cell::get), before + 1);
    }
}
