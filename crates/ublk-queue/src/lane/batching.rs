//! The lane's side of batch mode: when commands are sent, and what their completions mean for the tags.

use std::sync::atomic::Ordering;

use ublk_core::{Errno, Tag};

use super::{Lane, LaneError};
use crate::batch::Fetch;
use crate::handler::Handler;
use crate::port::{Completion, Descriptors, Full, Port};
use crate::user_data::{Kind, UserData};

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    /// Pushes the batch commands that are due, before an enter. Returns how many of them complete at once: an enter
    /// that sleeps must wait for one completion more.
    #[inline]
    pub(crate) fn flush(&mut self, port: &mut P) -> u32 {
        if self.batched {
            self.flush_batch(port)
        } else {
            0
        }
    }

    fn flush_batch(&mut self, port: &mut P) -> u32 {
        let mut at_once = 0;
        let batch = &mut self.batch;
        let kind = if self.prepared {
            Kind::Commit
        } else {
            Kind::Prep
        };
        if let Some((number, command)) = batch.close(!self.prepared) {
            let word = UserData::batch(self.index, self.generation, kind, number);
            match port.push_batch(self.index, &command, word.pack()) {
                Ok(()) => at_once = 1,
                Err(Full) => batch.reopen(number),
            }
        }
        // The driver takes a FETCH of a device in recovery only once every tag is prepared.
        let unprepared = self.share.unprepared.as_ref();
        let ready = unprepared.is_none_or(|count| count.load(Ordering::Acquire) == 0);
        if self.prepared && batch.fetch == Fetch::Due && ready {
            let pushed = port.push_batch(self.index, &batch.fetch_command(), self.fetch_word);
            if pushed.is_ok() {
                batch.fetch = Fetch::InFlight;
            }
        }
        at_once
    }

    /// True for a completion of the fetch that delivers tags and leaves it armed.
    #[inline(always)]
    pub(crate) fn is_fetch(&self, completion: &Completion) -> bool {
        completion.user_data == self.fetch_word && completion.res > 0 && completion.has_more()
    }

    /// Serves the tags of such a completion.
    #[inline(never)]
    pub(crate) fn tags_fetched(
        &mut self,
        port: &mut P,
        completion: &Completion,
    ) -> Result<(), LaneError> {
        port.take_tags(self.index, completion, &mut self.fetched);
        self.next_fetched = 0;
        self.serve_fetched(port)
    }

    /// Handles the completion of a COMMIT of which the driver took every element. False, with nothing done, for any
    /// other.
    #[inline(always)]
    pub(crate) fn commit_taken(&mut self, completion: &Completion) -> bool {
        let owner = self.owner | (Kind::Commit as u64) << 48;
        match UserData::tag_of(completion.user_data, owner) {
            Some(number) => self.batch.all_taken(number, completion.res, false),
            None => false,
        }
    }

    /// Handles any other completion of the fetch.
    pub(super) fn fetch_completed(
        &mut self,
        port: &mut P,
        completion: &Completion,
    ) -> Result<(), LaneError> {
        if completion.res > 0 {
            port.take_tags(self.index, completion, &mut self.fetched);
            self.next_fetched = 0;
        }
        if completion.has_more() {
            return self.serve_fetched(port);
        }
        let fetch = match Errno::from_result(completion.res) {
            Err(Errno::ENODEV) => Fetch::Ended,
            // Out of buffers, CQ space or memory: no tag is lost, the next fetch delivers it.
            Ok(_) | Err(Errno::ENOBUFS | Errno::ENOMEM | Errno::ECANCELED | Errno::EAGAIN) => {
                Fetch::Due
            }
            Err(errno) => {
                let command = "FETCH_IO_CMDS";
                return Err(LaneError::Refused {
                    qid: self.qid,
                    tag: Tag::ZERO,
                    command,
                    errno,
                });
            }
        };
        self.batch.fetch = fetch;
        if fetch == Fetch::Ended {
            // One abort stands for all tags that the driver has.
            for n in 0..self.tags.len() {
                if self.tags[n].state.with_driver() {
                    self.completed_seldom(
                        port,
                        u16::try_from(n).unwrap_or(u16::MAX),
                        Errno::ENODEV.to_result(),
                    )?;
                }
            }
            self.leaving();
        }
        self.serve_fetched(port)
    }

    /// Serves the tags of the last fetch completion; after a panic of the handler, the rest of them.
    #[inline(always)]
    pub(crate) fn serve_fetched(&mut self, port: &mut P) -> Result<(), LaneError> {
        // Nothing in this loop changes whether the lane is plain.
        let plain = self.quick == self.owner;
        while let Some(&tag) = self.fetched.get(self.next_fetched) {
            self.next_fetched += 1;
            if plain {
                self.dispatch::<true, true>(port, tag, 0)?;
            } else {
                self.completed_seldom(port, tag, 0)?;
            }
        }
        Ok(())
    }

    /// Puts the elements that the driver did not take back in hand, with their answers.
    pub(super) fn elems_completed(
        &mut self,
        port: &mut P,
        prep: bool,
        number: u16,
        res: i32,
    ) -> Result<(), LaneError> {
        let mut result = Ok(());
        let mut known = self.batch.all_taken(number, res, prep);
        if !known {
            let mut batch = std::mem::take(&mut self.batch);
            known = batch.completed(number, res, prep, |tag, why| {
                // An element without an errno of its own was never looked at: it is sent again.
                let errno = why.unwrap_or(Errno::EAGAIN);
                if result.is_ok() {
                    result = self.completed_seldom(port, tag.get(), errno.to_result());
                }
            });
            self.batch = batch;
        }
        if prep && res >= 0 && !self.prepared {
            self.prepared = true;
            if let Some(unprepared) = &self.share.unprepared {
                unprepared.fetch_sub(1, Ordering::Release);
            }
        }
        if !known {
            self.shared.meters.stale.add(1);
        }
        result
    }

    /// True once the driver has all tags.
    pub(crate) fn is_armed(&self) -> bool {
        !self.batched || self.prepared
    }
}
