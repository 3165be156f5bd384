//! A measurement: a number of requests always in flight, for a time.

use crate::engine::{Done, Engine, Io, Kind};
use crate::error::Error;
use crate::pattern::Fill;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::{Duration, Instant};
use ublk_trace::{Distribution, latencies, units::to_f64};

/// The length of an interval of [`Measured::rates`].
const INTERVAL: Duration = Duration::from_millis(100);

/// Which requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pattern {
    /// Reads at random places.
    RandomRead,
    /// Writes at random places.
    RandomWrite,
    /// Reads and writes at random places: this many of 100 are reads.
    RandomMix(u8),
    /// Reads one after the other.
    Read,
    /// Writes one after the other.
    Write,
}

impl Pattern {
    /// Whether it writes.
    #[must_use]
    pub const fn writes(self) -> bool {
        !matches!(self, Self::RandomRead | Self::Read)
    }
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Which requests.
    pub pattern: Pattern,
    /// Their length in bytes.
    pub len: u32,
    /// How many are in flight.
    pub depth: u32,
    /// Bytes of the target that are used, from its begin.
    pub region: u64,
    /// How long requests are sent before any counts.
    pub warm_up: Duration,
    /// How long is measured.
    pub run: Duration,
    /// What writes write.
    pub fill: Fill,
    /// Where the random places begin: the same for the same places.
    pub seed: u64,
}

/// Requests completed in an interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// Seconds from the begin of the measurement to the end of the interval.
    pub at: f64,
    /// Requests per second.
    pub iops: f64,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Number of requests that completed.
    pub requests: u64,
    /// Bytes they moved.
    pub bytes: u64,
    /// Nanoseconds.
    pub elapsed: u64,
    /// Requests per second.
    pub iops: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Latencies of reads in nanoseconds.
    pub read: Option<Distribution>,
    /// Latencies of writes in nanoseconds.
    pub write: Option<Distribution>,
    /// The standard deviation of the rate over intervals of 100 ms, as a share of its mean: 0 is a steady target.
    pub unsteadiness: f64,
    /// The share of the time that the measuring thread was on a CPU: near 1, it measured itself.
    pub own_cpu: Option<f64>,
    /// The rate over time.
    pub rates: Vec<Rate>,
    /// All latencies.
    #[serde(skip)]
    pub latencies: Histogram<u64>,
    #[serde(skip)]
    reads: Histogram<u64>,
    #[serde(skip)]
    writes: Histogram<u64>,
    #[serde(skip)]
    on_cpu: Option<u64>,
}

impl Measured {
    pub(crate) fn nothing() -> Self {
        Self {
            requests: 0,
            bytes: 0,
            elapsed: 0,
            iops: 0.0,
            bytes_per_second: 0.0,
            read: None,
            write: None,
            unsteadiness: 0.0,
            own_cpu: None,
            rates: Vec::new(),
            latencies: latencies(),
            reads: latencies(),
            writes: latencies(),
            on_cpu: Some(0),
        }
    }

    /// Takes a request that completed into account.
    fn take(&mut self, done: &Done) {
        let took = nanoseconds(done.took);
        self.requests += 1;
        self.bytes += done.io.len;
        self.latencies.saturating_record(took);
        match done.io.kind {
            Kind::Read => self.reads.saturating_record(took),
            _ => self.writes.saturating_record(took),
        }
    }

    /// Adds another measurement, as if it had followed this one.
    pub(crate) fn add(&mut self, other: &Self) {
        let begin = to_f64(self.elapsed) / 1e9;
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.elapsed += other.elapsed;
        let later = |rate: &Rate| Rate {
            at: rate.at + begin,
            iops: rate.iops,
        };
        self.rates.extend(other.rates.iter().map(later));
        // All have the same bounds.
        let _ = self.latencies.add(&other.latencies);
        let _ = self.reads.add(&other.reads);
        let _ = self.writes.add(&other.writes);
        self.on_cpu = self.on_cpu.zip(other.on_cpu).map(|(a, b)| a + b);
        self.summarise();
    }

    /// Computes what follows from the counts.
    fn summarise(&mut self) {
        let elapsed = to_f64(self.elapsed.max(1));
        self.iops = to_f64(self.requests) / (elapsed / 1e9);
        self.bytes_per_second = to_f64(self.bytes) / (elapsed / 1e9);
        self.read = Distribution::of(&self.reads);
        self.write = Distribution::of(&self.writes);
        self.own_cpu = self.on_cpu.map(|on| to_f64(on) / elapsed);
        self.unsteadiness = unsteadiness(&self.rates);
    }
}

/// The standard deviation of rates as a share of their mean.
fn unsteadiness(rates: &[Rate]) -> f64 {
    let n = to_f64(u64::try_from(rates.len()).unwrap_or(1).max(1));
    let mean = rates.iter().map(|r| r.iops).sum::<f64>() / n;
    let variance = rates.iter().map(|r| (r.iops - mean).powi(2)).sum::<f64>() / n;
    if mean > 0.0 {
        variance.sqrt() / mean
    } else {
        0.0
    }
}

/// Where the next request goes.
pub(crate) struct Places {
    plan: Plan,
    blocks: u64,
    next: u64,
    random: u64,
}

impl Places {
    pub fn new(plan: &Plan) -> Result<Self, Error> {
        let blocks = plan.region / u64::from(plan.len.max(1));
        if blocks == 0 || plan.len == 0 {
            let text = format!(
                "requests of {} bytes do not fit into {} bytes",
                plan.len, plan.region
            );
            return Err(Error::Plan(text));
        }
        Ok(Self {
            plan: *plan,
            blocks,
            next: 0,
            random: plan.seed | 1,
        })
    }

    /// xorshift64*
    fn random(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    fn next(&mut self) -> Io {
        let (kind, block) = match self.plan.pattern {
            Pattern::RandomRead => (Kind::Read, self.random() % self.blocks),
            Pattern::RandomWrite => (Kind::Write, self.random() % self.blocks),
            Pattern::RandomMix(reads) => {
                let read = self.random() % 100 < u64::from(reads);
                let kind = if read { Kind::Read } else { Kind::Write };
                (kind, self.random() % self.blocks)
            }
            Pattern::Read => (Kind::Read, self.sequential()),
            Pattern::Write => (Kind::Write, self.sequential()),
        };
        Io {
            kind,
            offset: block * u64::from(self.plan.len),
            len: self.plan.len.into(),
        }
    }

    fn sequential(&mut self) -> u64 {
        let block = self.next;
        self.next = (block + 1) % self.blocks;
        block
    }
}

/// Measures. The engine must have room for the plan's depth and length; `watch` hears now and then how much of the time is
/// over, from 0 to 1, and returns false to end it: the figures are then those of the time until then.
///
/// # Errors
/// [`Error::Ended`] if `watch` ends it while the target warms up;
/// [`Error::Plan`] for requests that do not fit into the region; [`Error::Failed`] for the first one that fails, and what
/// [`Engine::wait`] returns.
pub fn measure(
    engine: &mut Engine,
    plan: &Plan,
    watch: &mut dyn FnMut(f64) -> bool,
) -> Result<Measured, Error> {
    let mut places = Places::new(plan)?;
    let measured = run(engine, plan, &mut places, watch);
    let mut done = Vec::new();
    let drained = engine.drain(&mut done);
    let measured = measured?;
    drained?;
    Ok(measured)
}

/// The same with places that go on, and with requests left in flight.
pub(crate) fn run(
    engine: &mut Engine,
    plan: &Plan,
    places: &mut Places,
    watch: &mut dyn FnMut(f64) -> bool,
) -> Result<Measured, Error> {
    let mut measured = Measured::nothing();
    let begun = Instant::now();
    let from = begun + plan.warm_up;
    let until = from + plan.run;
    let mut on_cpu = None;
    let mut warm = plan.warm_up.is_zero();
    let mut interval = (from + INTERVAL, 0_u64);
    let mut done = Vec::new();
    let mut look = begun + INTERVAL;
    if warm {
        on_cpu = time_on_cpu();
    }
    loop {
        while engine.has_room() && engine.in_flight() < plan.depth {
            let io = places.next();
            engine.submit(io, |buf| plan.fill.fill(buf, io.offset))?;
        }
        done.clear();
        engine.wait(1, Some(until), &mut done)?;
        let now = Instant::now();
        if !warm && now >= from {
            warm = true;
            on_cpu = time_on_cpu();
        }
        for done in &done {
            done.check()?;
            let end = done.begun + done.took;
            if end >= from && end < until {
                measured.take(done);
                interval.1 += 1;
            }
        }
        while now >= interval.0 && interval.0 <= until {
            measured.rates.push(Rate {
                at: interval.0.saturating_duration_since(from).as_secs_f64(),
                iops: to_f64(std::mem::take(&mut interval.1)) / INTERVAL.as_secs_f64(),
            });
            interval.0 += INTERVAL;
        }
        if now >= until {
            measured.elapsed = nanoseconds(plan.run);
            break;
        }
        if now >= look {
            look = now + INTERVAL;
            let whole = plan.warm_up + plan.run;
            let over = now.saturating_duration_since(begun);
            if !watch((over.as_secs_f64() / whole.as_secs_f64()).min(1.0)) {
                if measured.latencies.is_empty() {
                    return Err(Error::Ended);
                }
                measured.elapsed = nanoseconds(now.saturating_duration_since(from));
                break;
            }
        }
    }
    measured.on_cpu = on_cpu.zip(time_on_cpu()).map(|(a, b)| b.saturating_sub(a));
    measured.summarise();
    Ok(measured)
}

/// Nanoseconds that this thread has been on a CPU; `None` if the kernel does not count them.
fn time_on_cpu() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// A time in nanoseconds.
pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::is_ours;
    use std::fs::File;
    use std::io::Read;

    fn plan(pattern: Pattern) -> Plan {
        Plan {
            pattern,
            len: 4096,
            depth: 4,
            region: 64 * 4096 + 100,
            warm_up: Duration::from_millis(50),
            run: Duration::from_millis(250),
            fill: Fill::Pattern,
            seed: 7,
        }
    }

    fn engine(file: &File) -> Engine {
        let file = file.try_clone().unwrap();
        Engine::new(file, 4, 4096, Duration::from_secs(20)).unwrap()
    }

    #[test]
    fn every_pattern_is_measured() {
        let mut file = tempfile::tempfile().unwrap();
        file.set_len(65 * 4096).unwrap();
        for pattern in [
            Pattern::RandomRead,
            Pattern::Read,
            Pattern::Write,
            Pattern::RandomWrite,
            Pattern::RandomMix(50),
        ] {
            let mut heard = 0.0;
            let watch = &mut |part| {
                heard = part;
                true
            };
            let found = measure(&mut engine(&file), &plan(pattern), watch).unwrap();
            assert!(found.requests > 10 && found.bytes == found.requests * 4096);
            assert_eq!(found.latencies.len(), found.requests);
            assert_eq!(found.write.is_some(), pattern.writes());
            assert_eq!(found.elapsed, 250_000_000);
            assert!((2..=3).contains(&found.rates.len()), "{:?}", found.rates);
            assert!(heard > 0.5, "{heard}");
        }
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert!(is_ours(&content, 0));
        assert!(
            content[64 * 4096..].iter().all(|b| *b == 0),
            "outside the region"
        );
    }

    /// What was measured until the caller ended it counts; before the measurement there is nothing.
    #[test]
    fn the_caller_ends_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(65 * 4096).unwrap();
        let long = Plan {
            warm_up: Duration::ZERO,
            run: Duration::from_secs(60),
            ..plan(Pattern::Read)
        };
        let begun = Instant::now();
        let found = measure(&mut engine(&file), &long, &mut |_| false).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(20) && found.requests > 0);
        assert!(found.elapsed >= 100_000_000 && found.elapsed < 20_000_000_000);
        let warming = Plan {
            warm_up: Duration::from_secs(60),
            ..long
        };
        let ended = measure(&mut engine(&file), &warming, &mut |_| false);
        assert!(matches!(ended, Err(Error::Ended)), "{ended:?}");
    }

    #[test]
    fn requests_that_fail_or_do_not_fit_end_it() {
        let file = tempfile::tempfile().unwrap();
        let failed = measure(&mut engine(&file), &plan(Pattern::RandomRead), &mut |_| {
            true
        });
        assert!(matches!(failed, Err(Error::Failed { .. })), "{failed:?}");
        let mut small = plan(Pattern::Read);
        small.region = 4095;
        let refused = measure(&mut engine(&file), &small, &mut |_| true);
        assert!(matches!(refused, Err(Error::Plan(_))), "{refused:?}");
    }

    #[test]
    fn a_steady_rate_is_steady() {
        let rate = |iops| Rate { at: 0.0, iops };
        assert_eq!(unsteadiness(&[rate(10.0), rate(10.0)]), 0.0);
        assert!((unsteadiness(&[rate(5.0), rate(15.0)]) - 0.5).abs() < 1e-9);
        assert_eq!(unsteadiness(&[]), 0.0);
    }
}
