//! The protocol of one tag as a machine without I/O.
//!
//! The driver and the server hand a tag to and fro. The machine takes one [`Input`] and gives the
//! next state and at most one [`Action`]; who carries the action out (a real ring, a simulated
//! driver, a fuzzer) is not its concern. States and results are those of Documentation/block/ublk.rst
//! and drivers/block/ublk_drv.c of Linux 7.3.

use crate::Errno;

/// A request's result as the driver wants it: the full byte count, or a negative errno (L11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer(i32);

impl Answer {
    /// Success of a request of `data_len` bytes of data (0 for FLUSH, DISCARD, WRITE_ZEROES).
    ///
    /// There is no way to say "a part": a short result is data loss on Linux 7.3 and an endless
    /// loop before.
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

/// Where a tag is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TagState {
    /// Never fetched: the driver does not know that the server serves this tag.
    Idle,
    // The three in which a command is with the driver stand together: one comparison tells them.
    /// The first FETCH is pushed; the driver owns the tag and its buffer.
    Fetching,
    /// A commit-and-fetch is pushed; the driver owns the tag. The answer is kept until the driver
    /// has shown that it took it.
    Committed(Answer),
    /// A get-data command is pushed.
    GettingData,
    /// A request is in the server's hands, and its buffer with it.
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

/// What happens to a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Input {
    /// The server wants the tag's first request, or to push a failed command again.
    Arm,

    /// The CQE of the tag's command arrived, with this `res`.
    Cqe(i32),
    /// A buffer for a WRITE's data is chosen.
    Buffer,
    /// The request is answered.
    Answer(Answer),
}

/// What is to be done.
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
    /// Push the command again when there is a reason to hope (after the next enter).
    RetryLater(Errno),
    /// The normal end of the tag (L26).
    Ended,
    /// The driver refuses the command: a defect of ours or of the driver, told with its errno. The
    /// queue cannot go on.
    Fault(Errno),
    /// Not an event of this tag's life: ignore it and count it (L10, L53).
    Stale,
}

impl TagState {
    /// The next state and what is to be done now.
    #[must_use]
    #[inline(always)]
    pub const fn step(self, input: Input) -> (Self, Option<Action>) {
        match (self, input) {
            // The ways a request goes.
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
            // The ways it ends or fails.
            (Self::Fetching | Self::Committed(_) | Self::GettingData, Input::Cqe(res)) => {
                self.refused(res)
            }
            (state, _) => (state, Some(Action::Stale)),
        }
    }

    /// A command came back with an error: what that means depends on what it was.
    #[cold]
    const fn refused(self, res: i32) -> (Self, Option<Action>) {
        if res >= 0 {
            return (self, Some(Action::Stale));
        }
        let errno = Errno::new(res.saturating_neg());
        // An abort: what was committed is complete, the fetch half is not going to be answered.
        if errno.get() == Errno::ENODEV.get() {
            return (Self::Gone, Some(Action::Ended));
        }
        let kept = match self {
            Self::Committed(answer) => Self::RetryCommit(answer),
            // The WRITE whose data never came is still in hand: it is answered with EIO.
            Self::GettingData => Self::RetryCommit(Answer::failed(Errno::EIO)),
            _ => Self::RetryFetch,
        };
        // ECANCELED: a link broke or the ring is dying. ENOMEM, EAGAIN, EINTR: io_uring's own errors.
        let transient = matches!(
            errno,
            Errno::ECANCELED | Errno::ENOMEM | Errno::EAGAIN | Errno::EINTR
        );
        match (transient, self) {
            // The command can be pushed again: nothing has been lost.
            (true, Self::GettingData) => (Self::NeedsData, Some(Action::RetryLater(errno))),
            (true, _) => (kept, Some(Action::RetryLater(errno))),
            (false, _) => (kept, Some(Action::Fault(errno))),
        }
    }

    /// True while the server owes the driver an answer: the request is in its hands.
    #[must_use]
    pub const fn in_hand(self) -> bool {
        matches!(self, Self::InHand | Self::NeedsData | Self::RetryCommit(_))
    }

    /// True while the driver may write to or read from the tag's buffer.
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

    /// L10 A request is answered once: a second answer, or one for a tag not in hand, does nothing.
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

    /// L11 Success is the full count, and nothing else can be said.
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

    /// L54 A command that failed leaves the tag recoverable, its answer kept.
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

    /// L53 A CQE that is not of this tag's present life changes nothing.
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
