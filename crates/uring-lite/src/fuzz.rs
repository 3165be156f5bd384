//! Bodies of fuzz targets, also replayed by `cargo test`.

#![forbid(unsafe_code)]

use std::collections::VecDeque;

use crate::cq::Cq;
use crate::error::{ChainError, Full};
use crate::heap;
use crate::sq::Sq;

/// Reads bytes of the input; zero beyond its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn or_zero(&mut self) -> u8 {
        self.byte().unwrap_or(0)
    }

    /// A start index: half of them close enough to 2^32 that a short run wraps.
    fn start(&mut self) -> u32 {
        let bytes = [
            self.or_zero(),
            self.or_zero(),
            self.or_zero(),
            self.or_zero(),
        ];
        if bytes[0] & 1 == 0 {
            0_u32.wrapping_sub(u32::from(bytes[1] >> 2))
        } else {
            u32::from_le_bytes(bytes)
        }
    }
}

/// Tests ring index arithmetic against an oracle of queues without indices: sizes (1 to 64 entries) and start indices
/// come from the input, then each byte is one operation on either side of either queue.
///
/// # Panics
/// If the rings and the oracle disagree.
pub fn ring_index(input: &[u8]) {
    let mut input = Input(input);
    submission(&mut input);
    completion(&mut input);
}

fn submission(input: &mut Input<'_>) {
    let entries = 1_u32 << (input.or_zero() % 7);
    let (memory, mut kernel) = heap::sq::<u64>(entries, input.start(), u64::MAX);
    let mut sq = Sq::new(memory).expect("a power of two");
    // Written but not published; published but not taken.
    let (mut local, mut visible) = (VecDeque::new(), VecDeque::new());
    let mut next = 0_u64;
    let steps = usize::from(input.or_zero()) + 1;
    for _ in 0..steps {
        let Some(byte) = input.byte() else { break };
        let used = local.len() + visible.len();
        let room = entries as usize - used;
        match byte % 6 {
            0 | 1 => {
                let pushed = sq.push(&next);
                assert_eq!(
                    pushed,
                    if room == 0 { Err(Full) } else { Ok(()) },
                    "push with {room} free"
                );
                if pushed.is_ok() {
                    local.push_back(next);
                    next += 1;
                }
            }
            2 => {
                let chain: Vec<u64> = (next..next + u64::from(byte >> 4)).collect();
                let expected = if chain.len() > entries as usize {
                    Err(ChainError::TooLong {
                        len: chain.len(),
                        entries,
                    })
                } else if chain.len() > room {
                    Err(ChainError::Full)
                } else {
                    Ok(())
                };
                assert_eq!(
                    sq.push_linked(&chain),
                    expected,
                    "chain of {} with {room} free",
                    chain.len()
                );
                if expected.is_ok() {
                    next += u64::from(byte >> 4);
                    local.extend(chain);
                }
            }
            3 => {
                sq.publish();
                visible.append(&mut local);
            }
            4 => {
                for _ in 0..=(byte >> 5) {
                    assert_eq!(
                        kernel.take(),
                        visible.pop_front(),
                        "the kernel takes in order, published only"
                    );
                }
            }
            _ => {
                assert_eq!(sq.space() as usize, room, "space");
                assert_eq!(sq.pending() as usize, used, "pending");
            }
        }
    }
}

fn completion(input: &mut Input<'_>) {
    let entries = 1_u32 << (input.or_zero() % 7);
    let (memory, mut kernel) = heap::cq::<u64>(entries, input.start(), u64::MAX);
    let mut cq = Cq::new(memory).expect("a power of two");
    // Posted but not popped; popped but not given back.
    let mut posted = VecDeque::new();
    let mut popped = 0_usize;
    let mut next = 0_u64;
    while let Some(byte) = input.byte() {
        match byte % 5 {
            0 | 1 => {
                for _ in 0..=(byte >> 5) {
                    let room = entries as usize - posted.len() - popped;
                    assert_eq!(kernel.post(next), room > 0, "post with {room} free");
                    if room > 0 {
                        posted.push_back(next);
                        next += 1;
                    }
                }
            }
            2 => {
                for _ in 0..=(byte >> 5) {
                    let expected = posted.pop_front();
                    popped += usize::from(expected.is_some());
                    assert_eq!(cq.pop(), expected, "pop in order, posted only");
                }
            }
            3 => {
                cq.release();
                popped = 0;
            }
            _ => assert_eq!(cq.ready() as usize, posted.len(), "ready"),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    /// L51 free-running indices: wrap-around at 2^32 and every start, against the oracle.
    #[test]
    fn l51_ring_index_against_oracle() {
        bolero::check!()
            .with_iterations(20_000)
            .with_max_len(300)
            .for_each(super::ring_index);
    }
}
