//! Replays a trace: its requests at their times, or as fast as the target takes them.

use crate::bench::nanoseconds;
use crate::engine::{Done, Engine, Io, Kind};
use crate::error::Error;
use crate::pattern::Fill;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use ublk_trace::{Distribution, Op, Record, Sorter, curve, latencies};

/// Records that are held back to be sorted by time.
const SORTED: usize = 1 << 16;

/// How often `watch` is called at most.
const PACE: Duration = Duration::from_millis(100);

/// How fast a trace is replayed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    /// So many times as fast as it was recorded.
    Times(f64),
    /// As fast as the target takes the requests.
    Max,
}

/// How a trace is replayed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Options {
    /// How fast.
    pub speed: Speed,
    /// The most requests in flight.
    pub depth: u32,
    /// Whether requests that change data are sent. Without it only reads are.
    pub write: bool,
    /// What writes write.
    pub fill: Fill,
    /// The size of the target in bytes.
    pub size: u64,
    /// What offsets and lengths must be a multiple of, in bytes.
    pub block: u32,
    /// The longest transfer in bytes, a multiple of `block`: longer requests are sent in parts.
    pub max_len: u32,
}

/// What became of a trace.
#[derive(Debug, Clone, Serialize)]
pub struct Replayed {
    /// Number of requests that were sent.
    pub requests: u64,
    /// Bytes that reads and writes moved.
    pub bytes: u64,
    /// Nanoseconds from the first request to the last completion.
    pub elapsed: u64,
    /// Number of requests that failed, by errno.
    pub failed: BTreeMap<i32, u64>,
    /// Number of requests left out because they change data.
    pub not_written: u64,
    /// Number of requests left out because they lie beyond the end of the target.
    pub beyond: u64,
    /// Number of requests left out because the target cannot take them: unaligned ones, zone operations.
    pub unsupported: u64,
    /// Number of requests whose times were moved, because they were too far out of order.
    pub reordered: u64,
    /// Latencies of reads in nanoseconds; those of parts are counted one by one.
    pub read: Option<Distribution>,
    /// Latencies of writes.
    pub write: Option<Distribution>,
    /// Latencies of flushes, discards and write-zeroes.
    pub other: Option<Distribution>,
    /// The latencies that the trace has for the requests that were sent.
    pub recorded: Option<Distribution>,
    /// How late requests were sent, in nanoseconds; `None` at full speed.
    pub late: Option<Distribution>,
    /// Latencies by percentile, for a picture: of the replay, and of the trace.
    #[serde(skip)]
    pub curves: [Vec<(f64, u64)>; 2],
}

/// The state of a replay.
struct Replay<'a> {
    engine: &'a mut Engine,
    options: Options,
    begun: Instant,
    /// The time of the first record.
    first: Option<u64>,
    done: Vec<Done>,
    replayed: Replayed,
    figures: Figures,
    last: Instant,
}

struct Figures {
    read: Histogram<u64>,
    write: Histogram<u64>,
    other: Histogram<u64>,
    recorded: Histogram<u64>,
    late: Histogram<u64>,
}

/// Replays the records that `next` returns. `watch` hears now and then how many requests were sent, also while the next one is
/// not due yet, and returns false to end the replay: the figures are then those of the requests until then.
///
/// # Errors
/// Those of `next`, which end the replay; those of [`Engine::wait`]. Requests that fail are counted.
pub fn replay(
    engine: &mut Engine,
    next: &mut dyn FnMut() -> Result<Option<Record>, ublk_trace::Error>,
    options: &Options,
    watch: &mut dyn FnMut(u64) -> bool,
) -> Result<Replayed, Error> {
    let mut replay = Replay::new(engine, *options);
    let mut sorter = Sorter::new(SORTED);
    let mut told = Instant::now();
    let mut seen = 0_u64;
    let mut goes_on = true;
    let mut send = |replay: &mut Replay<'_>, record: &Record| {
        seen += 1;
        let mut look = || {
            if told.elapsed() >= PACE {
                told = Instant::now();
                goes_on &= watch(seen);
            }
            goes_on
        };
        match look() {
            true => replay.send(record, &mut look),
            false => Ok(false),
        }
    };
    let mut all = true;
    while all && let Some(record) = next()? {
        if let Some(earliest) = sorter.push(record) {
            all = send(&mut replay, &earliest)?;
        }
    }
    while all && let Some(earliest) = sorter.pop() {
        all = send(&mut replay, &earliest)?;
    }
    replay.replayed.reordered = sorter.late();
    replay.finish()
}

impl<'a> Replay<'a> {
    fn new(engine: &'a mut Engine, options: Options) -> Self {
        let now = Instant::now();
        Self {
            engine,
            options,
            begun: now,
            first: None,
            done: Vec::new(),
            replayed: Replayed {
                requests: 0,
                bytes: 0,
                elapsed: 0,
                failed: BTreeMap::new(),
                not_written: 0,
                beyond: 0,
                unsupported: 0,
                reordered: 0,
                read: None,
                write: None,
                other: None,
                recorded: None,
                late: None,
                curves: [Vec::new(), Vec::new()],
            },
            figures: Figures {
                read: latencies(),
                write: latencies(),
                other: latencies(),
                recorded: latencies(),
                late: latencies(),
            },
            last: now,
        }
    }

    /// Whether a record can be sent, and as what.
    fn fitting(&mut self, record: &Record) -> Option<Kind> {
        let kind = match record.op {
            Op::Read => Some(Kind::Read),
            Op::Write | Op::ZoneAppend => Some(Kind::Write),
            Op::Flush => Some(Kind::Flush),
            Op::Discard => Some(Kind::Discard),
            Op::WriteZeroes => Some(Kind::WriteZeroes),
            Op::Zone | Op::Other => None,
        };
        let block = u64::from(self.options.block.max(1));
        let unaligned = !(record.offset | record.len).is_multiple_of(block);
        let counter = match kind {
            Some(kind) if kind != Kind::Read && !self.options.write => {
                &mut self.replayed.not_written
            }
            Some(Kind::Flush) => return kind,
            Some(_) if record.end() > self.options.size => &mut self.replayed.beyond,
            Some(_) if !unaligned && record.len > 0 => return kind,
            _ => &mut self.replayed.unsupported,
        };
        *counter += 1;
        None
    }

    /// Sends a record at its time, as soon as there is room. False if `goes_on` says so before.
    fn send(&mut self, record: &Record, goes_on: &mut dyn FnMut() -> bool) -> Result<bool, Error> {
        let Some(kind) = self.fitting(record) else {
            return Ok(true);
        };
        let first = match self.first {
            Some(first) => first,
            None => {
                self.begun = Instant::now();
                *self.first.insert(record.time)
            }
        };
        if let Speed::Times(factor) = self.options.speed {
            let after = Duration::from_nanos(record.time.saturating_sub(first));
            let after = Duration::try_from_secs_f64(after.as_secs_f64() / factor);
            let due = after.ok().and_then(|after| self.begun.checked_add(after));
            let due = due.ok_or_else(|| {
                Error::Plan(format!("the trace is too long at {factor} times its speed"))
            })?;
            loop {
                let now = Instant::now();
                if due <= now {
                    break;
                }
                if !goes_on() {
                    return Ok(false);
                }
                self.engine
                    .wait(0, Some(due.min(now + PACE)), &mut self.done)?;
                self.reap();
            }
            self.room()?;
            let late = Instant::now().saturating_duration_since(due);
            self.figures.late.saturating_record(nanoseconds(late));
        }
        self.replayed.requests += 1;
        if let Some(latency) = record.latency {
            self.figures.recorded.saturating_record(latency);
        }
        let most = match kind {
            Kind::Read | Kind::Write => u64::from(self.options.max_len),
            _ => u64::MAX,
        };
        let mut io = Io {
            kind,
            offset: record.offset,
            len: record.len.min(most),
        };
        loop {
            self.room()?;
            let fill = self.options.fill;
            self.engine.submit(io, |buf| fill.fill(buf, io.offset))?;
            io.offset += io.len;
            io.len = record.end().saturating_sub(io.offset).min(most);
            if io.len == 0 || kind == Kind::Flush {
                return Ok(true);
            }
        }
    }

    /// Waits until one more request may be sent.
    fn room(&mut self) -> Result<(), Error> {
        while !self.engine.has_room() || self.engine.in_flight() >= self.options.depth {
            self.engine.wait(1, None, &mut self.done)?;
            self.reap();
        }
        Ok(())
    }

    /// Takes what came back into account.
    fn reap(&mut self) {
        for done in self.done.drain(..) {
            let took = nanoseconds(done.took);
            self.last = self.last.max(done.begun + done.took);
            match done.check() {
                Ok(()) => {}
                Err(Error::Failed { errno, .. }) => {
                    *self.replayed.failed.entry(errno.get()).or_default() += 1;
                    continue;
                }
                Err(_) => continue,
            }
            let histogram = match done.io.kind {
                Kind::Read => &mut self.figures.read,
                Kind::Write => &mut self.figures.write,
                _ => &mut self.figures.other,
            };
            histogram.saturating_record(took);
            if matches!(done.io.kind, Kind::Read | Kind::Write) {
                self.replayed.bytes = self.replayed.bytes.saturating_add(done.io.len);
            }
        }
    }

    fn finish(mut self) -> Result<Replayed, Error> {
        self.engine.drain(&mut self.done)?;
        self.reap();
        let figures = &self.figures;
        let mut all = figures.read.clone();
        // All have the same bounds.
        let _ = all.add(&figures.write);
        let _ = all.add(&figures.other);
        Ok(Replayed {
            elapsed: nanoseconds(self.last.saturating_duration_since(self.begun)),
            read: Distribution::of(&figures.read),
            write: Distribution::of(&figures.write),
            other: Distribution::of(&figures.other),
            recorded: Distribution::of(&figures.recorded),
            late: Distribution::of(&figures.late),
            curves: [curve(&all), curve(&figures.recorded)],
            ..self.replayed
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::is_ours;
    use std::fs::File;
    use std::io::Read;

    const OPTIONS: Options = Options {
        speed: Speed::Max,
        depth: 4,
        write: true,
        fill: Fill::Pattern,
        size: 1 << 20,
        block: 512,
        max_len: 8192,
    };

    fn record(time: u64, op: Op, offset: u64, len: u64) -> Record {
        Record {
            time,
            op,
            offset,
            len,
            queue: 0,
            latency: Some(1000),
            error: None,
        }
    }

    fn replayed(file: &File, records: &[Record], options: Options) -> Replayed {
        let file = file.try_clone().unwrap();
        let mut engine = Engine::new(file, 4, 8192, Duration::from_secs(20)).unwrap();
        let mut records = records.iter().copied();
        let next = &mut || Ok(records.next());
        replay(&mut engine, next, &options, &mut |_| true).unwrap()
    }

    fn file() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file
    }

    #[test]
    fn requests_reach_the_target_in_parts() {
        let mut file = file();
        let records = [
            record(0, Op::Write, 4096, 100 * 1024),
            record(10, Op::Flush, 0, 0),
            record(20, Op::Read, 0, 4096),
        ];
        let found = replayed(&file, &records, OPTIONS);
        assert_eq!((found.requests, found.bytes), (3, 100 * 1024 + 4096));
        assert!(found.failed.is_empty() && found.late.is_none());
        assert_eq!(found.recorded.unwrap().p50, 1000);
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert!(is_ours(&content, 0) && content[4096 + 102_399] != 0);
        assert!(content[4096 + 102_400..].iter().all(|b| *b == 0));
    }

    #[test]
    fn what_must_not_or_cannot_be_sent_is_counted() {
        let mut file = file();
        let records = [
            record(0, Op::Write, 0, 4096),
            record(0, Op::Discard, 0, 4096),
            record(0, Op::Read, 1 << 20, 512),
            record(0, Op::Read, 100, 512),
            record(0, Op::Zone, 0, 0),
            record(0, Op::Read, 0, u64::MAX >> 1),
            record(0, Op::Read, 512, 512),
        ];
        let options = Options {
            write: false,
            ..OPTIONS
        };
        let found = replayed(&file, &records, options);
        assert_eq!((found.requests, found.not_written), (1, 2));
        assert_eq!((found.beyond, found.unsupported), (2, 2));
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert!(content.iter().all(|b| *b == 0));
    }

    /// Times are kept, or scaled; records out of order are sent in order.
    #[test]
    fn times_are_kept() {
        let file = file();
        let ms = 1_000_000;
        let records = [
            record(500 * ms, Op::Read, 0, 512),
            record(900 * ms, Op::Read, 0, 512),
            record(600 * ms, Op::Read, 0, 512),
        ];
        for (factor, least) in [(2.0, 200), (10.0, 40)] {
            let options = Options {
                speed: Speed::Times(factor),
                ..OPTIONS
            };
            let begun = Instant::now();
            let found = replayed(&file, &records, options);
            let took = begun.elapsed();
            assert!(took >= Duration::from_millis(least), "{factor}: {took:?}");
            assert!(found.late.is_some() && found.elapsed >= least * ms);
        }
    }

    /// A gap of an hour does not keep the caller from ending it.
    #[test]
    fn the_caller_ends_it_between_requests() {
        let (file, hour) = (file(), 3_600_000_000_000);
        let mut engine = Engine::new(file, 4, 8192, Duration::from_secs(20)).unwrap();
        let mut records = [0, hour].map(|at| record(at, Op::Read, 0, 512)).into_iter();
        let next = &mut || Ok(records.next());
        let options = Options {
            speed: Speed::Times(1.0),
            ..OPTIONS
        };
        let found = replay(&mut engine, next, &options, &mut |_| false).unwrap();
        assert_eq!((found.requests, found.bytes), (1, 512));
    }

    #[test]
    fn failures_are_counted_and_a_bad_trace_ends_it() {
        let read_only = tempfile::NamedTempFile::new().unwrap();
        read_only.as_file().set_len(1 << 20).unwrap();
        let file = File::open(read_only.path()).unwrap();
        let found = replayed(&file, &[record(0, Op::Write, 0, 512)], OPTIONS);
        assert_eq!(found.failed, BTreeMap::from([(libc::EBADF, 1)]));
        let mut engine = Engine::new(file, 1, 8192, Duration::from_secs(20)).unwrap();
        let next = &mut || Err(ublk_trace::Error::UnknownFormat);
        assert!(matches!(
            replay(&mut engine, next, &OPTIONS, &mut |_| true),
            Err(Error::Trace(_))
        ));
    }
}
