//! The server's side of a recording: rings that the queues' threads fill, and a caller that fetches what is in them.

use super::engine::Running;
use crate::link::message::{FromServer, Piece, RecordOrder};
use crate::link::{Link, MAX_MESSAGE};
use crate::recording::{REQUESTS, pack};
use std::time::{Duration, Instant, SystemTime};
use ublk_trace::recorder::Drain;

/// A recording whose caller has not asked for so long has lost it: the device is not recorded for ever.
const LEASE: Duration = Duration::from_secs(10);

/// Requests that one answer has at most; the next one has more.
const MOST: usize = 200 * REQUESTS;

/// The recording that goes on, if one does.
#[derive(Debug, Default)]
pub(super) struct Recordings(Option<Session>);

#[derive(Debug)]
struct Session {
    number: u64,
    began: u64,
    drains: Vec<Drain>,
    /// Requests lost that the caller has been told of.
    told: u64,
    until: Instant,
}

impl Recordings {
    /// When a recording that nobody asks for ends.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.0.as_ref().map(|session| session.until)
    }

    /// Ends a recording that nobody asks for any more.
    pub(super) fn expire(&mut self, running: &dyn Running) {
        if self.0.take_if(|it| Instant::now() >= it.until).is_some() {
            running.end_recording();
            tracing::info!("whoever recorded the device is gone: the recording is over");
        }
    }

    /// Carries out an order.
    pub(super) fn order(&mut self, running: &dyn Running, order: RecordOrder) -> Piece {
        self.expire(running);
        let refused = |why: &str| Piece {
            refused: Some(why.to_owned()),
            ..Piece::default()
        };
        let (number, ends) = match order {
            RecordOrder::Start(_) if self.0.is_some() => {
                return refused("the device is being recorded already");
            }
            RecordOrder::Start(number) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                let began = now.map_or(0, |now| now.as_nanos());
                self.0 = Some(Session {
                    number,
                    began: u64::try_from(began).unwrap_or(0),
                    drains: running.record(),
                    told: 0,
                    until: Instant::now(),
                });
                (number, false)
            }
            RecordOrder::Pull(number) => (number, false),
            RecordOrder::Stop(number) => (number, true),
        };
        let Some(session) = self.0.as_mut().filter(|it| it.number == number) else {
            return refused(
                "the recording is over: nothing was fetched from it for 10 s, or the server is a new one",
            );
        };
        if ends {
            running.end_recording();
        }
        let piece = session.fetch();
        session.until = Instant::now() + LEASE;
        if ends {
            self.0 = None;
        }
        piece
    }
}

impl Session {
    /// What was recorded since the last time.
    fn fetch(&mut self) -> Piece {
        let (mut requests, mut some) = (Vec::new(), Vec::with_capacity(REQUESTS));
        let each = MOST / self.drains.len().max(1);
        for drain in &mut self.drains {
            for _ in 0..each {
                let Some(request) = drain.pop() else { break };
                some.push(request);
                if some.len() == REQUESTS {
                    requests.push(pack(&some));
                    some.clear();
                }
            }
        }
        if !some.is_empty() {
            requests.push(pack(&some));
        }
        let lost = self.drains.iter().map(Drain::lost).sum::<u64>();
        Piece {
            refused: None,
            began: self.began,
            lost: lost - std::mem::replace(&mut self.told, lost),
            requests,
        }
    }
}

/// Sends a piece by the deadline, in as many messages as it takes.
pub(super) fn tell(link: &Link, ticket: u64, mut piece: Piece, deadline: Instant) {
    let mut requests = std::mem::take(&mut piece.requests).into_iter().peekable();
    loop {
        let mut part = piece.clone();
        let mut bytes = 0;
        while let Some(text) = requests.next_if(|text| bytes + text.len() < MAX_MESSAGE * 2 / 3) {
            bytes += text.len();
            part.requests.push(text);
        }
        let more = requests.peek().is_some();
        let message = FromServer::Recorded {
            ticket,
            piece: part,
            more,
        };
        if let Err(e) = link.send_by(&message, deadline) {
            return tracing::warn!("cannot send to the agent: {e}");
        }
        if !more {
            return;
        }
    }
}
