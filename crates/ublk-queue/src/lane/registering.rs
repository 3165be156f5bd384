//! Registers the pages of a request in the ring's buffer table if the fetch has not: in manual zero copy always, in
//! automatic zero copy if the driver says so (`UBLK_IO_F_NEED_REG_BUF`).
//!
//! A forwarded request has REGISTER linked before its operation (`forward.rs`). A handler with operations of its own
//! may use the buffer in any way, so its request is registered before the handler sees it.
//!
//! # Why there is `unsafe` here
//! REGISTER and UNREGISTER are commands with a raw payload. They name a slot of the ring's table, no memory of ours.
#![expect(unsafe_code, reason = "commands by raw payload")]

use ublk_core::iod::Io;
use ublk_core::{Answer, DataMode, Errno, Tag, TagState};
use ublk_sys::{UBLK_U_IO_REGISTER_IO_BUF, UBLK_U_IO_UNREGISTER_IO_BUF, ublksrv_io_cmd};
use uring_lite::Sqe64;
use uring_lite::op::{self, Fd, SqeFlags};

use super::forward::make_room;
use super::{Lane, LaneError};
use crate::handler::Handler;
use crate::port::{Descriptors, Port};
use crate::user_data::{Kind, UserData};

/// Registration state of a tag's request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Step {
    /// Not registered by the server.
    #[default]
    No,
    /// REGISTER could not be pushed.
    Stalled,
    /// REGISTER is with the kernel.
    Pushed,
    /// Registered until the request is answered.
    Done,
}

/// Requests that the server registers; empty for lanes that never do.
#[derive(Debug, Default)]
pub(super) struct Registrations {
    tags: Box<[Step]>,
    /// Register every request, not only those that the driver could not.
    always: bool,
    stalled: u32,
    /// Number of tags whose pages are registered.
    registered: u32,
}

impl Registrations {
    pub(super) fn new(depth: u16, data: DataMode) -> Self {
        match data {
            DataMode::ZeroCopy | DataMode::ZeroCopyManual => Self {
                tags: vec![Step::No; usize::from(depth)].into_boxed_slice(),
                always: data == DataMode::ZeroCopyManual,
                ..Self::default()
            },
            _ => Self::default(),
        }
    }

    /// Whether a request's pages still have to be registered before its handler sees it.
    #[inline(always)]
    pub(super) fn wants(&self, tag: Tag, io: &Io) -> bool {
        (self.always || io.flags.needs_registration())
            && io.op.has_data()
            && !io.flags.in_shared_memory()
            && !self.is_done(tag)
    }

    /// True if a REGISTER could not be pushed.
    pub(super) const fn is_stalled(&self) -> bool {
        self.stalled > 0
    }

    /// Records that the pages are registered, as the completion of an operation on them shows.
    pub(super) fn done(&mut self, tag: Tag) {
        self.set(tag, Step::Done);
    }

    /// Whether the server has registered the tag's pages.
    #[inline(always)]
    pub(super) fn is_done(&self, tag: Tag) -> bool {
        // The first test is enough for most devices.
        self.registered > 0 && self.tags.get(tag.index()) == Some(&Step::Done)
    }

    fn set(&mut self, tag: Tag, step: Step) {
        if let Some(place) = self.tags.get_mut(tag.index()) {
            self.stalled -= u32::from(*place == Step::Stalled);
            self.stalled += u32::from(step == Step::Stalled);
            self.registered -= u32::from(*place == Step::Done);
            self.registered += u32::from(step == Step::Done);
            *place = step;
        }
    }
}

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    /// Registers the pages of a request in the tag's slot; the handler then gets it.
    #[cold]
    pub(super) fn register_first(&mut self, port: &mut P, tag: Tag) {
        if self.registrations.tags.is_empty() {
            // Without zero copy no driver asks for it.
            return self.refuse(port, tag, Errno::EIO);
        }
        self.tags[tag.index()].state = TagState::InHand;
        self.away += 1;
        if !self.registrations.always {
            self.shared.meters.zero_copy_fallbacks.add(1);
        }
        self.push_register(port, tag);
    }

    fn push_register(&mut self, port: &mut P, tag: Tag) {
        let word = UserData::batch(self.index, self.generation, Kind::Forward, tag.get());
        let register = self.buffer_command(UBLK_U_IO_REGISTER_IO_BUF, word, tag);
        let pushed = make_room(port, 1) && port.push_operation(&register).is_ok();
        let step = if pushed { Step::Pushed } else { Step::Stalled };
        self.registrations.set(tag, step);
    }

    /// Handles the completion of a REGISTER: calls the handler, or fails the request.
    #[cold]
    pub(super) fn register_completed(
        &mut self,
        port: &mut P,
        number: u16,
        res: i32,
    ) -> Result<(), LaneError> {
        let step = self.registrations.tags.get(usize::from(number));
        let (Some(Step::Pushed), Ok(tag)) = (step, Tag::new(number)) else {
            self.stale();
            return Ok(());
        };
        self.away -= 1;
        if let Err(errno) = Errno::from_result(res) {
            self.registrations.set(tag, Step::No);
            self.drop_stamp(tag);
            self.answered_from(port, tag, Answer::failed(errno), 0);
            return Ok(());
        }
        self.registrations.set(tag, Step::Done);
        // As when the driver's completion, which has been counted, arrived.
        self.tags[tag.index()].state = TagState::Fetching;
        self.completed_seldom(port, number, 0)
    }

    /// Pushes REGISTER commands that could not be pushed before.
    #[cold]
    pub(super) fn push_stalled_registers(&mut self, port: &mut P) {
        for number in 0..self.registrations.tags.len() {
            let tag = u16::try_from(number).ok().and_then(|n| Tag::new(n).ok());
            if let Some(tag) = tag
                && self.registrations.tags[number] == Step::Stalled
            {
                self.push_register(port, tag);
            }
        }
    }

    /// Unregisters the pages of a request before its commit, if the server registered them: until Linux 6.17 the driver
    /// only accepts UNREGISTER while the server has the request, which would otherwise never complete. False if the
    /// ring has no room now.
    #[inline(always)]
    pub(super) fn unregister(&mut self, port: &mut P, tag: Tag) -> bool {
        !self.registrations.is_done(tag) || self.push_unregister(port, tag)
    }

    #[cold]
    fn push_unregister(&mut self, port: &mut P, tag: Tag) -> bool {
        let word = UserData::batch(self.index, self.generation, Kind::Unregister, tag.get());
        let unregister = self
            .buffer_command(UBLK_U_IO_UNREGISTER_IO_BUF, word, tag)
            .flags(SqeFlags::CQE_SKIP_SUCCESS);
        let pushed = make_room(port, 1) && port.push_operation(&unregister).is_ok();
        if pushed {
            self.registrations.set(tag, Step::No);
        }
        pushed
    }

    /// Builds a command for the tag's slot of the ring's buffer table.
    pub(super) fn buffer_command(&self, cmd_op: u32, word: UserData, tag: Tag) -> Sqe64 {
        let payload = ublksrv_io_cmd {
            q_id: self.qid.get(),
            tag: tag.get(),
            result: 0,
            addr: u64::from(self.buf_base + tag.get()),
        };
        let fd = Fd::registered(u32::from(self.index));
        // SAFETY: the command names a slot of the ring's table, no memory of ours.
        let sqe = unsafe { op::uring_cmd(fd, cmd_op, &payload.to_bytes()) };
        sqe.user_data(word.pack())
    }
}
