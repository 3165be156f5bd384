//! Bodies of the fuzz targets, also replayed by `cargo test`. Each takes arbitrary bytes and panics if a guarantee is
//! violated.

use crate::{
    Command, CommandFlags, Event, Framing, Handshake, Options, Replies, Request, Simple, Step,
};

/// Feeds arbitrary server bytes to a handshake: every byte is consumed once, an export that is served has valid block
/// sizes, and what the client stores and sends is bounded.
///
/// The first byte selects the options, the second the chunk size in which the remaining bytes arrive.
///
/// # Panics
/// When a guarantee is violated.
pub fn handshake(bytes: &[u8]) {
    let [wanted, step, bytes @ ..] = bytes else {
        return;
    };
    let options = Options {
        export: "disk".to_owned(),
        tls: wanted & 1 != 0,
        structured: wanted & 2 != 0,
        allocation: wanted & 4 != 0,
        list: wanted & 8 != 0,
        extended: wanted & 16 != 0,
        contexts: wanted & 32 != 0,
    };
    let (structured, extended) = (options.structured, options.extended);
    let Ok(mut handshake) = Handshake::new(options) else {
        return;
    };
    let mut held = Vec::new();
    let mut pieces = bytes.chunks(usize::from(*step).max(1));
    loop {
        let Ok((used, next)) = handshake.receive(&held) else {
            return;
        };
        assert!(used <= held.len());
        held.drain(..used);
        assert!(handshake.output().len() < 1 << 10);
        match next {
            Step::Done(export) => {
                assert!(structured || export.framing != Framing::Structured);
                assert!(extended || export.framing != Framing::Extended);
                assert!(export.framing.has_chunks() || export.allocation.is_none());
                assert!(export.contexts.len() <= 1 << 17);
                if let Some(sizes) = export.block_sizes {
                    assert!(sizes.minimum.is_power_of_two() && sizes.minimum <= sizes.maximum);
                }
                return;
            }
            Step::Listed(exports) => {
                assert!(exports.len() <= 1 << 17);
                return;
            }
            Step::StartTls => handshake.tls_started(),
            Step::Receive if used > 0 => {}
            Step::Receive => match pieces.next() {
                Some(more) => held.extend(more),
                None => return,
            },
        }
    }
}

/// Bytes of each request's range.
const LEN: u32 = 16;

/// The requests, whose cookies are their positions.
const COMMANDS: [Command; 6] = [
    Command::Read,
    Command::Read,
    Command::Write,
    Command::Flush,
    Command::BlockStatus,
    Command::Trim,
];

/// What has been told of the requests.
#[derive(Default)]
struct Told {
    /// The bytes of each READ that have come, as bits.
    written: [u32; COMMANDS.len()],
    answered: [bool; COMMANDS.len()],
}

impl Told {
    /// Checks an event against the ones before.
    fn check(&mut self, event: Event) {
        match event {
            Event::Data { cookie, at, len } | Event::Hole { cookie, at, len } => {
                let n = usize::try_from(cookie).unwrap_or(usize::MAX);
                assert!(COMMANDS[n] == Command::Read && !self.answered[n]);
                assert!(len > 0 && at.checked_add(len).is_some_and(|end| end <= LEN));
                let mask = ((1_u64 << len) - 1) << at;
                let mask = u32::try_from(mask).unwrap_or(u32::MAX);
                assert_eq!(self.written[n] & mask, 0, "the same bytes twice");
                self.written[n] |= mask;
            }
            Event::Extents {
                cookie, extents, ..
            } => {
                assert_eq!(cookie, 4);
                assert!(extents.iter().all(|(len, _)| *len > 0));
            }
            Event::Answered { cookie, result } => {
                let n = usize::try_from(cookie).unwrap_or(usize::MAX);
                let before = std::mem::replace(&mut self.answered[n], true);
                assert!(!before, "answered twice");
                if COMMANDS[n] == Command::Read && result.is_ok() {
                    assert_eq!(self.written[n], (1 << LEN) - 1, "bytes are missing");
                }
            }
        }
    }
}

/// Feeds arbitrary server bytes to the replies of six requests: data stays inside its READ's range and never overlaps,
/// a successful READ has received all its bytes, and every request is answered at most once.
///
/// The first byte selects the framing and whether whole READs are taken at once, the second the chunk size in which the remaining bytes arrive.
///
/// # Panics
/// When a guarantee is violated.
pub fn replies(bytes: &[u8]) {
    let [framing, step, bytes @ ..] = bytes else {
        return;
    };
    let at_once = framing & 4 != 0;
    let framing = match framing % 4 {
        0 => Framing::Simple,
        2 => Framing::Extended,
        _ => Framing::Structured,
    };
    let mut replies = Replies::new(framing, COMMANDS.len());
    for (cookie, command) in (0..).zip(COMMANDS) {
        let request = Request {
            command,
            flags: CommandFlags::default(),
            cookie,
            offset: 4096 * cookie,
            len: if command == Command::Flush {
                0
            } else {
                LEN.into()
            },
        };
        assert!(replies.expect(&request));
    }
    let mut told = Told::default();
    let mut held: Vec<u8> = Vec::new();
    let mut pieces = bytes.chunks(usize::from(*step).max(1));
    let mut last = None;
    loop {
        if at_once && let Some((cookie, reply)) = replies.simple(&held) {
            let mut used = Replies::SIMPLE;
            if let Simple::Read(data) = reply {
                let (at, len) = (0, u32::try_from(data.len()).unwrap_or(u32::MAX));
                assert_eq!(len, LEN);
                used += data.len();
                told.check(Event::Data { cookie, at, len });
            }
            held.drain(..used);
            let result = Ok(());
            told.check(Event::Answered { cookie, result });
            continue;
        }
        let (event, used) = match (replies.payload(), held.len()) {
            (0, _) => match replies.next(&held) {
                Ok((used, event)) => (event, used),
                Err(_) => return,
            },
            (_, 0) => (None, 0),
            (payload, have) => {
                let now = payload.min(u32::try_from(have).unwrap_or(u32::MAX));
                match replies.received(now) {
                    Ok(event) => (event, usize::try_from(now).unwrap_or(0)),
                    Err(_) => return,
                }
            }
        };
        assert!(used <= held.len());
        held.drain(..used);
        match event {
            Some(event) => told.check(event),
            None if used > 0 => {}
            None => match pieces.next() {
                Some(more) => held.extend(more),
                None => return,
            },
        }
        // Progress without new bytes is allowed only for the one event that ends a reply.
        let now = (replies.in_flight(), held.len(), told.answered);
        assert!(last.replace(now) != Some(now) || used > 0 || replies.payload() > 0);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn any_handshake() {
        bolero::check!().for_each(super::handshake);
    }

    #[test]
    fn any_replies() {
        bolero::check!().for_each(super::replies);
    }
}
