//! `record`: fetches what a device's server records. No control command is sent, and nothing needs a privilege.

use super::ask;
use super::measure::ours;
use crate::failure::Failure;
use crate::link::message::{Piece, RecordOrder};
use crate::recording::unpack;
use crate::state::Store;
use std::time::{Duration, SystemTime};
use ublk_core::DevId;
use ublk_trace::Record;

/// How long an agent may take to answer.
const ASK: Duration = Duration::from_secs(3);

/// A device that is being recorded. Its server ends the recording by itself if nothing is [fetched](Self::fetch) for 10 s.
#[derive(Debug)]
pub struct Recording {
    id: DevId,
    number: u64,
    /// When it began: nanoseconds since 1970.
    pub began: u64,
}

/// What was recorded since it was last fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fetched {
    /// The requests that ended, in that order for each thread of each queue.
    pub requests: Vec<Record>,
    /// Number of requests that were lost.
    pub lost: u64,
}

impl Recording {
    /// Begins to record a device. Only requests that arrive from now on are recorded.
    ///
    /// # Errors
    /// A device that does not exist, is not ours, is being recorded, or whose server does not answer.
    pub fn start(id: DevId) -> Result<Self, Failure> {
        ours(&Store::of_user()?, &[id])?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let number = now.map_or(0, |now| now.as_nanos()) ^ u128::from(std::process::id());
        let number = u64::try_from(number & u128::from(u64::MAX)).unwrap_or(0);
        let mut recording = Self {
            id,
            number,
            began: 0,
        };
        recording.began = recording.ask(RecordOrder::Start(number))?.began;
        Ok(recording)
    }

    /// Fetches what was recorded.
    ///
    /// # Errors
    /// A server that does not answer, for instance because it died; nothing more comes then.
    pub fn fetch(&self) -> Result<Fetched, Failure> {
        self.fetched(RecordOrder::Pull(self.number))
    }

    /// Ends the recording, and fetches the rest. Nothing can be fetched afterwards.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    pub fn end(&self) -> Result<Fetched, Failure> {
        self.fetched(RecordOrder::Stop(self.number))
    }

    fn fetched(&self, order: RecordOrder) -> Result<Fetched, Failure> {
        let piece = self.ask(order)?;
        let mut fetched = Fetched {
            requests: Vec::new(),
            lost: piece.lost,
        };
        for text in &piece.requests {
            let requests = unpack(text).ok_or_else(|| {
                Failure::failed(format!("the server of device {} sent no trace", self.id)).hint(
                    format!(
                        "`ublkctl upgrade {}` starts a server of this version",
                        self.id
                    ),
                )
            })?;
            fetched.requests.extend(requests);
        }
        Ok(fetched)
    }

    fn ask(&self, order: RecordOrder) -> Result<Piece, Failure> {
        let id = self.id;
        let piece = ask::recorded(id, order, ASK).map_err(|silence| silence.failure(id))?;
        match piece.refused {
            None => Ok(piece),
            Some(why) => Err(Failure::failed(format!("device {id}: {why}"))
                .hint("start `ublkctl record` again, after the other one has ended")),
        }
    }
}
