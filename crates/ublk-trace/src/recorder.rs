//! Records requests while they are served: a bounded ring for each queue, drained by one thread into a trace.
//!
//! The queue's thread only ever [pushes](Tap::push): a few stores, no wait, no system call, no allocation. A ring that is
//! full loses the request and counts it. A file that cannot be written to (a full disk, a limit that was reached) ends the
//! writing, never the pushing: rings are drained all the same, and what is drained is counted as lost.

mod ring;
#[cfg(test)]
mod tests;

pub use ring::{Drain, Tap, channel};

use crate::error::Error;
use crate::format::{Header, Writer};
use crate::record::Record;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How often the rings are drained. A ring of 4096 records holds what 80,000 requests per second bring in that time.
const PACE: Duration = Duration::from_millis(50);

/// How often what is pending is written although its block is not full.
const FLUSH: Duration = Duration::from_secs(1);

/// How a recording goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Status {
    /// Number of requests in the trace.
    pub written: u64,
    /// Number of requests that were lost: to a ring that was full, or after the writing ended.
    pub lost: u64,
    /// Why the writing ended before the recording did.
    pub failed: Option<String>,
}

/// A recording that goes on until it is stopped.
#[derive(Debug)]
pub struct Recording {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    status: Mutex<Status>,
}

impl Shared {
    fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Recording {
    /// Begins to write a trace of at most `limit` bytes to `out`: what the rings bring.
    ///
    /// # Errors
    /// The header that cannot be written, or a thread that cannot be started.
    pub fn start(
        out: impl Write + Send + 'static,
        header: &Header,
        drains: Vec<Drain>,
        limit: u64,
    ) -> io::Result<Self> {
        let out = Limited { out, left: limit };
        let writer = Writer::new(out, header)?;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let run = move || Scribe::new(writer, drains).run(&theirs);
        let thread = thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(run)?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// How it goes.
    #[must_use]
    pub fn status(&self) -> Status {
        let status = self.shared.status.lock();
        status.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends it: what was pushed before is written, and the trace gets its end. Waits for the output, not for the queues.
    #[must_use]
    pub fn stop(mut self) -> Status {
        self.end();
        self.status()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            Thread::unpark(thread.thread());
            if thread.join().is_err() {
                self.shared
                    .update(|status| status.failed = Some("the recorder panicked".to_owned()));
            }
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.end();
    }
}

/// The thread's state.
struct Scribe<W: Write> {
    /// None once the writing has ended.
    writer: Option<Writer<W>>,
    drains: Vec<Drain>,
    /// Requests lost in rings that the trace has been told of.
    told: u64,
    /// Requests drained after the writing ended.
    dropped: u64,
    written: u64,
    flushed: Instant,
}

impl<W: Write> Scribe<W> {
    fn new(writer: Writer<W>, drains: Vec<Drain>) -> Self {
        Self {
            writer: Some(writer),
            drains,
            told: 0,
            dropped: 0,
            written: 0,
            flushed: Instant::now(),
        }
    }

    fn run(mut self, shared: &Shared) {
        loop {
            // Before the look at the rings: what was pushed before the stop is in them.
            let last = shared.stop.load(Ordering::Acquire);
            let result = self.turn(last);
            if let Err(e) = result {
                self.writer = None;
                shared.update(|status| status.failed = Some(e.to_string()));
            }
            let lost = self.told.saturating_add(self.dropped);
            let written = self.written;
            shared.update(|status| {
                status.lost = lost;
                status.written = written;
            });
            if last {
                return;
            }
            thread::park_timeout(PACE);
        }
    }

    /// Drains every ring once, and writes.
    fn turn(&mut self, last: bool) -> Result<(), Error> {
        let mut result = Ok(());
        for n in 0..self.drains.len() {
            // At most a ring's worth: a queue that pushes on does not keep this one from the others.
            let room = self.drains.get(n).map_or(0, Drain::capacity);
            for _ in 0..room {
                let Some(record) = self.drains.get_mut(n).and_then(Drain::pop) else {
                    break;
                };
                if result.is_ok() {
                    result = self.push(&record);
                } else {
                    self.dropped += 1;
                }
            }
        }
        let lost = self
            .drains
            .iter()
            .map(Drain::lost)
            .fold(0, u64::saturating_add);
        let news = lost.saturating_sub(std::mem::replace(&mut self.told, lost));
        result?;
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        writer.lost(news);
        if last {
            let pending = writer.pending();
            if let Some(writer) = self.writer.take() {
                writer.finish().inspect_err(|_| self.dropped += pending)?;
                self.written += pending;
            }
        } else if self.flushed.elapsed() >= FLUSH {
            self.flushed = Instant::now();
            let pending = writer.pending();
            writer.flush().inspect_err(|_| self.dropped += pending)?;
            self.written += pending;
        }
        Ok(())
    }

    fn push(&mut self, record: &Record) -> Result<(), Error> {
        let Some(writer) = &mut self.writer else {
            self.dropped += 1;
            return Ok(());
        };
        if !record.is_sound() {
            self.dropped += 1;
            return Ok(());
        }
        let pending = writer.pending() + 1;
        let pushed = writer.push(record);
        match (pushed, writer.pending()) {
            (Ok(()), 0) => self.written += pending,
            (Ok(()), _) => {}
            (Err(e), _) => {
                self.dropped += pending;
                return Err(e);
            }
        }
        Ok(())
    }
}

/// An output that is full after a number of bytes.
struct Limited<W> {
    out: W,
    left: u64,
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        // All or nothing: a block that does not fit is not begun.
        if len > self.left {
            let text = "the limit of the trace's size is reached";
            return Err(io::Error::new(io::ErrorKind::QuotaExceeded, text));
        }
        let written = self.out.write(bytes)?;
        self.left -= u64::try_from(written).unwrap_or(0);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
