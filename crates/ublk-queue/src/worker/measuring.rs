//! Measurement, from the worker's side: when rounds begin and end, and changes of the level.

use std::sync::atomic::Ordering;

use ublk_metrics::Level;

use super::Worker;
use crate::handler::Handler;
use crate::measure::{ThreadFlags, nanos_since};
use crate::port::{Descriptors, Port};

impl<P: Port, D: Descriptors, H: Handler> Worker<P, D, H> {
    /// Begins a round on the slow path: takes a level that was asked for, and the time if latencies are measured.
    pub(super) fn round_begins(&mut self) {
        let wanted = self.flags.wanted();
        if wanted != self.wanted {
            self.wanted = wanted;
            self.level = ThreadFlags::level_of(wanted);
            for lane in &mut self.lanes {
                lane.measure(self.level, self.begun);
            }
        }
        match self.level {
            Level::Latencies => {
                let now = nanos_since(self.begun);
                for lane in &mut self.lanes {
                    lane.round_begins(now);
                }
            }
            Level::Counters => {}
            _ if self.starting || self.lanes.len() > 1 => {}
            _ if self.flags.watchful.load(Ordering::Relaxed) => self.flags.calm(wanted),
            _ => {}
        }
    }

    /// Ends a round on the slow path, before its answers are submitted.
    pub(super) fn round_ends(&mut self) {
        if self.flags.has_errands() {
            self.do_errands();
        }
        if self.level == Level::Off {
            return;
        }
        let now = match self.level {
            Level::Latencies => nanos_since(self.begun),
            _ => 0,
        };
        let polls = self.port.polls();
        for (n, lane) in self.lanes.iter_mut().enumerate() {
            lane.round_ends(now, polls, n == 0);
        }
    }

    /// Does what others have asked for once.
    #[cold]
    fn do_errands(&mut self) {
        if self.flags.do_errands() {
            let now = nanos_since(self.begun);
            for lane in &mut self.lanes {
                lane.note_in_hand(now);
            }
        }
    }
}
