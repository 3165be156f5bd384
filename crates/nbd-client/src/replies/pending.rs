//! The requests in flight, by cookie.

use std::collections::HashMap;

use crate::error::{ErrorCode, ProtocolError};
use crate::request::Command;

/// Most disjoint pieces of one READ's data. Servers use few, and data that arrives in order counts as one piece.
pub(super) const MAX_PIECES: usize = 1024;

/// Initial capacity of a range list.
const RANGES: usize = 4;

/// A request in flight.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) cookie: u64,
    pub(super) command: Command,
    pub(super) offset: u64,
    /// More than 32 bits only without data.
    pub(super) len: u64,
    /// All data of a READ has arrived, in one piece.
    whole: bool,
    /// Disjoint ranges of a READ that have arrived otherwise, sorted.
    have: Vec<(u32, u32)>,
    pub(super) error: Option<ErrorCode>,
    /// A chunk has arrived, so a simple reply is no longer valid.
    pub(super) chunked: bool,
    /// The extents of a BLOCK_STATUS have arrived.
    pub(super) extents: bool,
    /// In flight.
    live: bool,
}

impl Pending {
    /// A free one. Memory reclaim may wait for a request, so serving one allocates no list.
    fn free() -> Self {
        Self {
            cookie: 0,
            command: Command::Disconnect,
            offset: 0,
            len: 0,
            whole: false,
            have: Vec::with_capacity(RANGES),
            error: None,
            chunked: false,
            extents: false,
            live: false,
        }
    }

    fn set(&mut self, request: &crate::Request) {
        self.cookie = request.cookie;
        self.command = request.command;
        self.offset = request.offset;
        self.len = request.len;
        self.whole = false;
        self.have.clear();
        self.error = None;
        self.chunked = false;
        self.extents = false;
        self.live = true;
    }

    /// Records a piece of a READ and returns its offset in the range.
    pub(super) fn take(&mut self, offset: u64, len: u32) -> Result<u32, ProtocolError> {
        let cookie = self.cookie;
        let broken = |what| Err(ProtocolError::BrokenReply { cookie, what });
        if offset == self.offset
            && u64::from(len) == self.len
            && len > 0
            && !self.whole
            && self.have.is_empty()
        {
            self.whole = true;
            return Ok(0);
        }
        let at = offset.checked_sub(self.offset).map(u32::try_from);
        let size = self.size();
        let end = |at: u32| at.checked_add(len).filter(|end| *end <= size);
        let (at, end) = match at {
            Some(Ok(at)) if len > 0 => match end(at) {
                Some(end) => (at, end),
                None => return broken("data beyond the request"),
            },
            _ => return broken("data before or beyond the request, or none"),
        };
        let next = self.have.partition_point(|(from, _)| *from < at);
        let before = next.checked_sub(1).map(|n| self.have[n].1);
        let after = self.have.get(next).map(|(from, _)| *from);
        if self.whole || before.is_some_and(|to| to > at) || after.is_some_and(|from| from < end) {
            return broken("the same bytes twice");
        }
        match (before == Some(at), after == Some(end)) {
            (true, true) => {
                self.have[next - 1].1 = self.have[next].1;
                self.have.remove(next);
            }
            (true, false) => self.have[next - 1].1 = end,
            (false, true) => self.have[next].0 = at,
            (false, false) if self.have.len() == MAX_PIECES => return broken("too many pieces"),
            (false, false) => self.have.insert(next, (at, end)),
        }
        Ok(at)
    }

    /// Length of a READ.
    pub(super) fn size(&self) -> u32 {
        u32::try_from(self.len).unwrap_or(u32::MAX)
    }

    /// Whether a READ has all of its bytes.
    pub(super) fn is_whole(&self) -> bool {
        self.whole || self.len == 0 || self.have == [(0, self.size())]
    }
}

/// A request of which nothing has arrived.
#[derive(Debug, Clone, Copy)]
pub(super) enum Untouched {
    /// Length of its data.
    Read(usize),
    /// It gets no data.
    Other,
}

/// Requests by cookie. Those whose cookies end in different bits, as tags do, are found without a search.
#[derive(Debug)]
pub(super) struct Table {
    slots: Box<[Pending]>,
    /// Those whose slot is taken by another.
    others: HashMap<u64, Pending>,
    in_flight: usize,
}

impl Table {
    /// A table with a slot for each of the lowest cookies below `depth`.
    pub(super) fn new(depth: usize) -> Self {
        let slots = depth.max(1).next_power_of_two();
        Self {
            slots: (0..slots).map(|_| Pending::free()).collect(),
            others: HashMap::new(),
            in_flight: 0,
        }
    }

    fn slot(&self, cookie: u64) -> usize {
        // The number of slots is a power of two.
        usize::try_from(cookie & (self.slots.len() as u64 - 1)).unwrap_or(0)
    }

    /// Requests in flight.
    pub(super) const fn len(&self) -> usize {
        self.in_flight
    }

    /// Adds a request. False, and nothing added, if its cookie is in use.
    pub(super) fn add(&mut self, request: &crate::Request) -> bool {
        let slot = self.slot(request.cookie);
        if !self.others.is_empty() && self.others.contains_key(&request.cookie) {
            return false;
        }
        match self.slots.get_mut(slot) {
            Some(pending) if !pending.live => pending.set(request),
            Some(pending) if pending.cookie == request.cookie => return false,
            _ => {
                let mut pending = Pending::free();
                pending.set(request);
                self.others.insert(request.cookie, pending);
            }
        }
        self.in_flight += 1;
        true
    }

    /// The request of a cookie.
    pub(super) fn get(&mut self, cookie: u64) -> Option<&mut Pending> {
        let slot = self.slot(cookie);
        let pending = self.slots.get_mut(slot)?;
        if pending.live && pending.cookie == cookie {
            return Some(pending);
        }
        if self.others.is_empty() {
            return None;
        }
        self.others.get_mut(&cookie)
    }

    /// A request of which nothing has arrived yet, if a reply without data or with all of it may answer it.
    pub(super) fn untouched(&mut self, cookie: u64) -> Option<Untouched> {
        let pending = self.get(cookie)?;
        if pending.chunked || pending.whole || pending.error.is_some() {
            return None;
        }
        match pending.command {
            Command::Read if pending.len > 0 && pending.have.is_empty() => {
                Some(Untouched::Read(usize::try_from(pending.len).ok()?))
            }
            Command::Read | Command::BlockStatus => None,
            _ => Some(Untouched::Other),
        }
    }

    /// Removes a request that is there.
    pub(super) fn remove(&mut self, cookie: u64) {
        let slot = self.slot(cookie);
        match self.slots.get_mut(slot) {
            Some(pending) if pending.live && pending.cookie == cookie => pending.live = false,
            _ => drop(self.others.remove(&cookie)),
        }
        self.in_flight -= 1;
    }
}
