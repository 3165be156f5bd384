//! Bodies of fuzz targets, also replayed by `cargo test`: each takes arbitrary bytes and panics if an invariant is
//! broken.

mod parameters;

use crate::iod::IoBounds;
use crate::tag::{Action, Answer, Input, TagState};
use crate::{Errno, IoDesc, IoFlags, Op};

pub use parameters::parameters;

/// Hostile descriptors: whatever the driver's table contains, an accepted request lies inside the device and inside the
/// tag's buffer. Checked in arithmetic that cannot wrap.
///
/// # Panics
/// If a request is wrongly accepted or refused.
pub fn descriptors(bytes: &[u8]) {
    let Some((head, table)) = bytes.split_first_chunk::<12>() else {
        return;
    };
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *head;
    let bounds = IoBounds::new(
        u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
    );
    let (slots, _) = table.as_chunks::<24>();
    for slot in slots {
        let raw = ublk_sys::ublksrv_io_desc::from_bytes(slot);
        let desc = IoDesc::new(raw.op_flags, raw.start_sector, raw.nr_sectors, raw.addr);
        descriptor(&raw, &desc, &bounds);
    }
}

fn descriptor(raw: &ublk_sys::ublksrv_io_desc, desc: &IoDesc, bounds: &IoBounds) {
    let op = match raw.op() {
        ublk_sys::UBLK_IO_OP_READ => Op::Read,
        ublk_sys::UBLK_IO_OP_WRITE => Op::Write,
        ublk_sys::UBLK_IO_OP_FLUSH => Op::Flush,
        ublk_sys::UBLK_IO_OP_DISCARD => Op::Discard,
        ublk_sys::UBLK_IO_OP_WRITE_ZEROES => Op::WriteZeroes,
        ublk_sys::UBLK_IO_OP_ZONE_OPEN => Op::ZoneOpen,
        ublk_sys::UBLK_IO_OP_ZONE_CLOSE => Op::ZoneClose,
        ublk_sys::UBLK_IO_OP_ZONE_FINISH => Op::ZoneFinish,
        ublk_sys::UBLK_IO_OP_ZONE_APPEND => Op::ZoneAppend,
        ublk_sys::UBLK_IO_OP_ZONE_RESET_ALL => Op::ZoneResetAll,
        ublk_sys::UBLK_IO_OP_ZONE_RESET => Op::ZoneReset,
        ublk_sys::UBLK_IO_OP_REPORT_ZONES => Op::ReportZones,
        _ => {
            assert_eq!(desc.decode(bounds), Err(Errno::EOPNOTSUPP));
            return;
        }
    };
    let no_range = matches!(op, Op::Flush | Op::ZoneResetAll);
    let at = u128::from(raw.start_sector) * 512;
    let (start, len) = match op {
        Op::Flush | Op::ZoneResetAll => (0, 0),
        Op::ZoneOpen | Op::ZoneClose | Op::ZoneFinish | Op::ZoneReset => (at, 0),
        Op::ReportZones => (at, u128::from(raw.nr_zones()) * 64),
        _ => (at, u128::from(raw.nr_sectors) * 512),
    };
    let whole = u128::from(bounds.size) / 512 * 512;
    // The zone of a zone request begins inside the device; a report has no range on it.
    let end = match op {
        Op::Read | Op::Write | Op::Discard | Op::WriteZeroes => start + len,
        Op::ZoneAppend => start + len.max(512),
        _ => start + 512,
    };
    let fits = end <= whole && (!op.has_data() || len <= u128::from(bounds.max_io_bytes));
    match desc.decode(bounds) {
        Ok(io) => {
            assert!(fits || no_range, "let through: {desc:?} of {bounds:?}");
            assert_eq!((io.op, io.flags), (op, IoFlags(raw.flags())));
            assert_eq!((u128::from(io.offset), u128::from(io.len)), (start, len));
        }
        Err(errno) => {
            assert!(!fits && !no_range, "refused: {desc:?} of {bounds:?}");
            assert_eq!(errno, Errno::EIO);
        }
    }
}

/// The command of the tag that the driver holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nothing,
    Fetch,
    Commit(Answer),
    GetData,
}

/// A tag as an outside observer sees it.
struct Tag {
    state: TagState,
    held: Held,
    /// A request is in the server's hands without an answer.
    unanswered: bool,
    /// A write waits for a buffer.
    wants_buffer: bool,
    /// The next command to push when armed, if any.
    due: Option<Held>,
    ended: bool,
}

/// Hostile completions and late answers: any results in any order, checked against a model of who holds the tag. At
/// most one command is with the driver, each request is served once and committed once, an answer is never lost or
/// changed, and nothing follows the end.
///
/// # Panics
/// If the tag's state machine and the model disagree.
pub fn completions(bytes: &[u8]) {
    let mut tag = Tag {
        state: TagState::Idle,
        held: Held::Nothing,
        unanswered: false,
        wants_buffer: false,
        due: Some(Held::Fetch),
        ended: false,
    };
    let (steps, _) = bytes.as_chunks::<3>();
    for [kind, low, high] in steps {
        let number = i16::from_ne_bytes([*low, *high]);
        match kind % 8 {
            0 | 1 => tag.arm(),
            2 => tag.buffer(),
            3 => tag.answer(Answer::full(u32::from(number.unsigned_abs()) * 512)),
            4 => tag.answer(Answer::failed(Errno::EIO)),
            5 => tag.cqe(0),
            6 => tag.cqe([1, -19, -125, -12, -11, -4, -22, -16][usize::from(low % 8)]),
            _ => tag.cqe(if *high == 0x80 {
                i32::MIN
            } else {
                i32::from(number)
            }),
        }
        tag.check();
    }
}

impl Tag {
    fn step(&mut self, input: Input) -> Option<Action> {
        let (state, action) = self.state.step(input);
        if action == Some(Action::Stale) {
            assert_eq!(
                state, self.state,
                "an event of another life changed the tag"
            );
        }
        assert!(
            !self.ended || action == Some(Action::Stale),
            "{action:?} after the end"
        );
        self.state = state;
        action
    }

    fn arm(&mut self) {
        let action = self.step(Input::Arm);
        match self.due.take() {
            Some(Held::Fetch) => {
                assert_eq!(action, Some(Action::Fetch));
                self.held = Held::Fetch;
            }
            Some(Held::Commit(answer)) => {
                assert_eq!(
                    action,
                    Some(Action::Commit(answer)),
                    "another answer than was given"
                );
                self.held = Held::Commit(answer);
            }
            _ if self.wants_buffer => assert_eq!(action, Some(Action::GetData)),
            _ => assert_eq!(action, Some(Action::Stale)),
        }
    }

    fn buffer(&mut self) {
        let action = self.step(Input::Buffer);
        if self.wants_buffer {
            assert_eq!(action, None);
            (self.wants_buffer, self.held) = (false, Held::GetData);
        } else {
            assert_eq!(action, Some(Action::Stale));
        }
    }

    fn answer(&mut self, answer: Answer) {
        let action = self.step(Input::Answer(answer));
        if self.unanswered {
            assert_eq!(action, Some(Action::Commit(answer)));
            (self.unanswered, self.held) = (false, Held::Commit(answer));
        } else {
            assert_eq!(action, Some(Action::Stale), "answered without a request");
        }
    }

    fn cqe(&mut self, res: i32) {
        let action = self.step(Input::Cqe(res));
        let held = self.held;
        if held == Held::Nothing || res > 1 || (res == 1 && held == Held::GetData) {
            assert_eq!(action, Some(Action::Stale));
            return;
        }
        self.held = Held::Nothing;
        match res {
            0 => {
                assert_eq!(action, Some(Action::Serve));
                self.unanswered = true;
            }
            1 => {
                assert_eq!(action, Some(Action::GetData));
                self.wants_buffer = true;
            }
            -19 => {
                assert_eq!(action, Some(Action::Ended));
                self.ended = true;
            }
            _ => {
                let told = matches!(action, Some(Action::RetryLater(_) | Action::Fault(_)));
                assert!(told, "{res} led to {action:?}");
                match (held, action) {
                    // Nothing is lost: a buffer can be named again.
                    (Held::GetData, Some(Action::RetryLater(_))) => self.wants_buffer = true,
                    (Held::GetData, _) => self.due = Some(Held::Commit(Answer::failed(Errno::EIO))),
                    (held, _) => self.due = Some(held),
                }
            }
        }
    }

    fn check(&self) {
        assert_eq!(self.state.with_driver(), self.held != Held::Nothing);
        let owed =
            self.unanswered || self.wants_buffer || matches!(self.due, Some(Held::Commit(_)));
        assert_eq!(self.state.in_hand(), owed, "who holds the request?");
        assert!(!(self.state.in_hand() && self.state.with_driver()));
    }
}

#[cfg(test)]
mod tests {
    /// L13 No range wraps: whatever the sectors, an accepted request lies inside the device.
    #[test]
    fn l13_descriptors_of_any_kind() {
        bolero::check!()
            .with_max_len(300)
            .for_each(super::descriptors);
    }

    /// L06 Limits of any numbers become parameters that the driver accepts, or are refused.
    #[test]
    fn l06_parameters_of_any_kind() {
        bolero::check!()
            .with_max_len(300)
            .for_each(super::parameters);
    }

    /// L10 Each request is served once and committed once, whatever completes in which order.
    #[test]
    fn l10_completions_of_any_kind() {
        bolero::check!()
            .with_max_len(300)
            .for_each(super::completions);
    }
}
