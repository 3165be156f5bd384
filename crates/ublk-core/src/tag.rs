//! The protocol of one tag as a state machine without I/O.
//!
//! A tag goes back and forth between driver and server. The state machine takes one [`Input`] and returns the next
//! state and at most one [`Action`]; a real ring, a simulated driver or a fuzzer carries it out. States and results are
//! those of Documentation/block/ublk.rst and drivers/block/ublk_drv.c of Linux 7.3.

use crate::Errno;

/// A request's result in the driver's form: the full byte count, or a negative errno (L11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer(i32);

impl Answer {
    /// Success of a request with `data_len` bytes of data (0 for FLUSH, DISCARD, WRITE_ZEROES).
    ///
    /// A partial result cannot be expressed: a short count is data loss on Linux 7.3 and an endless loop before.
    #[must_use]
    #[inline]
    pub const fn full(data_len: u32) -> Self {
        #[expect(clippy::cast_possible_wrap, reason = "a request is at most 32 MiB")]
        Self((data_len & i32::MAX as u32) as i32)
    }

    /// Failure with an errno.
    #[must_use]
    #[inline]
    pub const fn failed(errno: Errno) -> Self {
        Self(errno.to_result())
    }

    /// The `result` field of the commit command.
    #[must_use]
    #[inline]
    pub const fn result(self) -> i32 {
        self.0
    }
}

/// The state of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TagState {
    /// Never fetched: the driver does not know that the server serves this tag.
    Idle,
    // The three states with a command at the driver are adjacent, so that one comparison tests for them.
    /// The first FETCH is pushed; the driver owns the tag and its buffer.
    Fetching,
    /// A commit-and-fetch is pushed; the driver owns the tag. The answer is kept until the driver has evidently taken
    /// it.
    Committed(Answer),
    /// A get-data command is pushed.
    GettingData,
    /// The server owns a request and its buffer.
    InHand,
    /// The driver waits for a buffer for a WRITE's data (NEED_GET_DATA).
    NeedsData,
    /// The first FETCH failed before the driver took it and must be pushed again later.
    RetryFetch,
    /// A commit failed before the driver took it and must be pushed again later: the request is still in hand.
    RetryCommit(Answer),
    /// The driver aborted the tag: it is never fetched again.
    Gone,
}

/// An event of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// The server is ready for the tag's first request, or to push a failed command again.
    Arm,

    /// The CQE of the tag's command arrived, with this `res`.
    Cqe(i32),
    /// A buffer for a WRITE's data was chosen.
    Buffer,
    /// The request is answered.
    Answer(Answer),
}

/// What the caller has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Push FETCH_REQ.
    Fetch,
    /// Hand the request to the handler.
    Serve,
    /// Push NEED_GET_DATA, once a buffer is chosen.
    GetData,
    /// Push COMMIT_AND_FETCH_REQ with this answer.
    Commit(Answer),
    /// Push the command again when it may succeed (after the next enter).
    RetryLater(Errno),
    /// Nothing: the normal end of the tag (L26).
    Ended,
    /// Fail the queue: the driver refused the command with this errno, a defect of the server or of the driver.
    Fault(Errno),
    /// Ignore the event, which is not of this tag's present generation, and count it (L10, L53).
    Stale,
}

impl TagState {
    /// Returns the next state and the action for an input.
    #[must_use]
    #[inline(always)]
    pub const fn step(self, input: Input) -> (Self, Option<Action>) {
        match (self, input) {
            // The path of a request.
            (Self::Fetching | Self::Committed(_) | Self::GettingData, Input::Cqe(0)) => {
                (Self::InHand, Some(Action::Serve))
            }
            (Self::InHand, Input::Answer(answer)) => {
                (Self::Committed(answer), Some(Action::Commit(answer)))
            }
            (Self::Idle | Self::RetryFetch, Input::Arm) => (Self::Fetching, Some(Action::Fetch)),
            (Self::RetryCommit(answer), Input::Arm) => {
                (Self::Committed(answer), Some(Action::Commit(answer)))
            }
            (Self::Fetching | Self::Committed(_), Input::Cqe(RES_NEED_GET_DATA)) => {
                (Self::NeedsData, Some(Action::GetData))
            }
            (Self::NeedsData, Input::Arm) => (Self::NeedsData, Some(Action::GetData)),
            (Self::NeedsData, Input::Buffer) => (Self::GettingData, None),
            // How a tag ends or fails.
            (Self::Fetching | Self::Committed(_) | Self::GettingData, Input::Cqe(res)) => {
                self.refused(res)
            }
            (state, _) => (state, Some(Action::Stale)),
        }
    }

    /// Handles a command that came back with an error, depending on the command.
    #[cold]
    const fn refused(self, res: i32) -> (Self, Option<Action>) {
        if res >= 0 {
            return (self, Some(Action::Stale));
        }
        let errno = Errno::new(res.saturating_neg());
        // An abort: what was committed is complete, but the fetch half will never be answered.
        if errno.get() == Errno::ENODEV.get() {
            return (Self::Gone, Some(Action::Ended));
        }
        let kept = match self {
            Self::Committed(answer) => Self::RetryCommit(answer),
            // The WRITE whose data never arrived is still in hand: it is answered with EIO.
            Self::GettingData => Self::RetryCommit(Answer::failed(Errno::EIO)),
            _ => Self::RetryFetch,
        };
        // ECANCELED: a link broke or the ring is being torn down. ENOMEM, EAGAIN, EINTR: io_uring's own errors.
        let transient = matches!(
            errno,
            Errno::ECANCELED | Errno::ENOMEM | Errno::EAGAIN | Errno::EINTR
        );
        match (transient, self) {
            // The command can be pushed again: nothing is lost.
            (true, Self::GettingData) => (Self::NeedsData, Some(Action::RetryLater(errno))),
            (true, _) => (kept, Some(Action::RetryLater(errno))),
            (false, _) => (kept, Some(Action::Fault(errno))),
        }
    }

    /// True while the server holds the request and owes the driver an answer.
    #[must_use]
    pub const fn in_hand(self) -> bool {
        matches!(self, Self::InHand | Self::NeedsData | Self::RetryCommit(_))
    }

    /// True while the driver may access the tag's buffer.
    #[must_use]
    pub const fn with_driver(self) -> bool {
        matches!(
            self,
            Self::Fetching | Self::Committed(_) | Self::GettingData
        )
    }
}

/// `UBLK_IO_RES_NEED_GET_DATA` (linux/ublk_cmd.h): not an error (L26).
const RES_NEED_GET_DATA: i32 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Answer = Answer::full(4096);

    #[test]
    fn a_request_goes_round() {
        let (s, a) = TagState::Idle.step(Input::Arm);
        assert_eq!((s, a), (TagState::Fetching, Some(Action::Fetch)));
        let (s, a) = s.step(Input::Cqe(0));
        assert_eq!((s, a), (TagState::InHand, Some(Action::Serve)));
        let (s, a) = s.step(Input::Answer(OK));
        assert_eq!((s, a), (TagState::Committed(OK), Some(Action::Commit(OK))));
        let (s, a) = s.step(Input::Cqe(0));
        assert_eq!((s, a), (TagState::InHand, Some(Action::Serve)));
    }

    /// L10 A request is answered once: a second answer, or one for a tag not in hand, is ignored.
    #[test]
    fn l10_a_second_answer_commits_nothing() {
        let (s, _) = TagState::InHand.step(Input::Answer(OK));
        assert_eq!(s.step(Input::Answer(OK)), (s, Some(Action::Stale)));
        assert_eq!(
            TagState::Idle.step(Input::Answer(OK)),
            (TagState::Idle, Some(Action::Stale))
        );
        assert_eq!(
            TagState::Gone.step(Input::Answer(OK)),
            (TagState::Gone, Some(Action::Stale))
        );
    }

    /// L11 Success is the full count; nothing else can be expressed.
    #[test]
    fn l11_success_is_the_full_count() {
        assert_eq!(Answer::full(4096).result(), 4096);
        assert_eq!(Answer::full(0).result(), 0);
        assert_eq!(Answer::failed(Errno::ENOSPC).result(), -28);
    }

    /// L26 ENODEV is the normal end, and NEED_GET_DATA is not an error.
    #[test]
    fn l26_abort_is_the_end_and_get_data_is_no_error() {
        let (s, a) = TagState::Fetching.step(Input::Cqe(-19));
        assert_eq!((s, a), (TagState::Gone, Some(Action::Ended)));
        assert_eq!(
            TagState::Committed(OK).step(Input::Cqe(-19)).1,
            Some(Action::Ended)
        );
        assert_eq!(s.step(Input::Arm), (TagState::Gone, Some(Action::Stale)));
        let (s, a) = TagState::Fetching.step(Input::Cqe(1));
        assert_eq!((s, a), (TagState::NeedsData, Some(Action::GetData)));
        let (s, _) = s.step(Input::Buffer);
        assert_eq!(
            s.step(Input::Cqe(0)),
            (TagState::InHand, Some(Action::Serve))
        );
    }

    /// L54 A command that failed leaves the tag recoverable, with its answer.
    #[test]
    fn l54_a_failed_commit_keeps_its_answer() {
        for res in [-125, -12, -11, -4] {
            let (s, a) = TagState::Committed(OK).step(Input::Cqe(res));
            assert!(matches!(a, Some(Action::RetryLater(_))), "{res}: {a:?}");
            assert!(s.in_hand());
            assert_eq!(
                s.step(Input::Arm),
                (TagState::Committed(OK), Some(Action::Commit(OK)))
            );
        }
        let (s, a) = TagState::Committed(OK).step(Input::Cqe(-22));
        assert_eq!(a, Some(Action::Fault(Errno::EINVAL)));
        assert!(s.in_hand());
    }

    /// L53 A CQE of another generation changes nothing.
    #[test]
    fn l53_stale_completions_change_nothing() {
        for state in [
            TagState::Idle,
            TagState::InHand,
            TagState::Gone,
            TagState::NeedsData,
        ] {
            assert_eq!(state.step(Input::Cqe(0)), (state, Some(Action::Stale)));
            assert_eq!(state.step(Input::Cqe(-19)), (state, Some(Action::Stale)));
        }
    }
}
