//! `stats` and `metrics`: what devices do, in numbers.

use crate::output::{is_unread, put};
use crate::show;
use crate::target::Target;
use serde::Serialize;
use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use ublk_core::{DevId, Errno};
use ublk_daemon::failure::Failure;
use ublk_daemon::front::{self, Measured};
use ublk_metrics::{Facts, Level, OpSnapshot, Operation, QueueSnapshot, Snapshot};

/// What `stats` is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// Print each queue, too.
    pub queues: bool,
    /// Pause between two reports; `None` for one report.
    pub interval: Option<Duration>,
    /// Number of reports.
    pub count: Option<u64>,
}

/// A device in an interval.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Its number.
    pub id: u32,
    /// Its name, where it has one.
    pub name: Option<String>,
    /// What answers its requests.
    pub backend: String,
    /// What it measures; `None` where its server does not answer.
    pub level: Option<Level>,
    /// Length of the interval in seconds: since the start of the server, or since the previous report.
    pub seconds: f64,
    /// All queues together; not there where the server does not answer.
    #[serde(flatten, skip_serializing_if = "Work::is_unknown")]
    pub total: Work,
    /// Each queue, or each of its threads.
    pub queues: Vec<Queue>,
    /// Why there are no numbers.
    pub cause: Option<String>,
    /// What to do about it.
    pub next: Option<String>,
}

/// A queue in an interval.
#[derive(Debug, Serialize)]
pub struct Queue {
    /// The queue.
    pub qid: u16,
    /// Which of its threads.
    pub thread: u16,
    /// What it did.
    #[serde(flatten)]
    pub work: Work,
}

/// What was done in an interval.
#[derive(Debug, Serialize)]
pub struct Work {
    /// Nobody answered.
    #[serde(skip)]
    pub unknown: bool,
    /// Kinds of requests that occurred.
    pub ops: Vec<Op>,
    /// Failed requests by errno.
    pub errnos: Vec<Failed>,
    /// Requests taken and not answered, now.
    pub in_flight: u64,
    /// Mean number of requests that a thread found when it woke; with level `counters`.
    pub batch_mean: Option<f64>,
    /// Part of the interval in which the threads worked, per thread; with level `latencies`.
    pub busy: Option<f64>,
    /// Other events.
    pub facts: Facts,
}

/// Requests of one kind.
#[derive(Debug, Serialize)]
pub struct Op {
    /// The kind.
    pub op: Operation,
    /// Requests.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Requests answered with an errno.
    pub errors: u64,
    /// Requests per second.
    pub requests_per_second: f64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// How long they took; with level `latencies`.
    pub latency_ns: Option<Latency>,
}

/// Latencies in nanoseconds.
#[derive(Debug, Serialize)]
pub struct Latency {
    /// Requests that were measured.
    pub count: u64,
    /// The mean.
    pub mean: u64,
    /// Of the mean, the time outside the backend: requests waited for it or, answered, for the end of their batch.
    pub waiting: u64,
    /// Half of the requests took no longer.
    pub p50: u64,
    /// 90 % took no longer.
    pub p90: u64,
    /// 99 % took no longer.
    pub p99: u64,
    /// 99.9 % took no longer.
    #[serde(rename = "p99.9")]
    pub p999: u64,
    /// No request took longer.
    pub max: u64,
}

/// Requests that failed with one errno.
#[derive(Debug, Serialize)]
pub struct Failed {
    /// The errno; 0 for numbers that Linux does not have.
    pub errno: u16,
    /// Its symbol.
    pub name: Option<&'static str>,
    /// Requests.
    pub count: u64,
}

impl Latency {
    fn of(op: &OpSnapshot) -> Option<Self> {
        let histogram = &op.latency;
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let percentile = |share| nanos(histogram.percentile(share));
        (histogram.count() != 0).then(|| Self {
            count: histogram.count(),
            mean: nanos(histogram.mean()),
            waiting: nanos(op.waiting_mean()),
            p50: percentile(0.5),
            p90: percentile(0.9),
            p99: percentile(0.99),
            p999: percentile(0.999),
            max: nanos(histogram.max()),
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "rates for people")]
fn per(n: u64, seconds: f64) -> f64 {
    match seconds > 0.0 {
        true => n as f64 / seconds,
        false => 0.0,
    }
}

impl Work {
    fn is_unknown(&self) -> bool {
        self.unknown
    }

    fn of(queue: &QueueSnapshot, level: Level, seconds: f64, threads: usize) -> Self {
        let op = |op: &OpSnapshot| Op {
            op: op.op,
            requests: op.requests,
            bytes: op.bytes,
            errors: op.errors,
            requests_per_second: per(op.requests, seconds),
            bytes_per_second: per(op.bytes, seconds),
            latency_ns: Latency::of(op),
        };
        let failed = |(errno, count): &(u16, u64)| Failed {
            errno: *errno,
            name: Errno::new(i32::from(*errno)).name(),
            count: *count,
        };
        let threads = u64::try_from(threads.max(1)).unwrap_or(1);
        Self {
            unknown: false,
            ops: queue.ops.iter().map(op).collect(),
            errnos: queue.errnos.iter().map(failed).collect(),
            in_flight: queue.in_flight,
            batch_mean: (queue.batches.count() != 0).then(|| queue.batches.mean()),
            busy: (level == Level::Latencies)
                .then(|| per(queue.busy_ns / threads, seconds * 1e9).min(1.0)),
            facts: queue.facts,
        }
    }
}

impl Report {
    /// What a device did in an interval; `None` where it does not answer.
    pub fn of(device: &Measured, interval: Option<&Snapshot>) -> Self {
        let none = Snapshot::default();
        let snapshot = interval.unwrap_or(&none);
        let seconds = snapshot.elapsed().as_secs_f64();
        let threads = snapshot.queues.len();
        let queue = |queue: &QueueSnapshot| Queue {
            qid: queue.qid,
            thread: queue.thread,
            work: Work::of(queue, snapshot.level, seconds, 1),
        };
        let mut total = Work::of(&snapshot.total(), snapshot.level, seconds, threads);
        total.unknown = interval.is_none();
        Self {
            id: device.id,
            name: device.name.clone(),
            backend: device.backend.clone(),
            level: interval.map(|it| it.level),
            seconds,
            total,
            queues: snapshot.queues.iter().map(queue).collect(),
            cause: device.unanswered.as_ref().map(|it| it.cause.clone()),
            next: device.unanswered.as_ref().and_then(|it| it.next.clone()),
        }
    }
}

/// Prints what devices have done since their servers started, and then what they do in each interval.
///
/// # Errors
/// A named device that does not exist or is not ours; output that cannot be written.
pub fn stats(devices: &[Target], wanted: Wanted, json: bool) -> Result<ExitCode, Failure> {
    let ids = devices.iter().map(|it| it.resolve().map(|found| found.id));
    let ids: Vec<DevId> = ids.collect::<Result<_, _>>()?;
    let mut before: HashMap<u32, Snapshot> = HashMap::new();
    let mut next = Instant::now();
    for n in 0.. {
        let measured = front::measured(&ids, false)?;
        let reports: Vec<Report> = measured
            .iter()
            .map(|device| {
                let now = device.snapshot.as_ref();
                let interval = now.map(|now| match before.get(&device.id) {
                    Some(before) => now.since(before),
                    None => now.clone(),
                });
                Report::of(device, interval.as_ref())
            })
            .collect();
        let text = || show::stats(&reports, wanted.queues, n > 0);
        let shown = match (ids.len(), reports.first()) {
            (1, Some(report)) => put(json, report, text),
            _ => put(json, &reports, text),
        };
        if n > 0 && shown.as_ref().is_err_and(is_unread) {
            break;
        }
        shown?;
        let Some(interval) = wanted.interval else {
            break;
        };
        if wanted.count.is_some_and(|count| n + 1 >= count) {
            break;
        }
        before = measured
            .into_iter()
            .filter_map(|device| Some((device.id, device.snapshot?)))
            .collect();
        next += interval;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    Ok(ExitCode::SUCCESS)
}

/// What `metrics` says.
#[derive(Debug, Serialize)]
pub struct Changed {
    /// The device.
    id: u32,
    /// What it measures now.
    metrics: Level,
}

/// Changes what a device measures.
///
/// # Errors
/// As of [`front::measure`].
pub fn metrics(
    device: front::Target,
    level: Level,
    deadline: Duration,
) -> Result<Changed, Failure> {
    Ok(Changed {
        id: device.id.get(),
        metrics: front::measure(device.id, level, deadline)?,
    })
}
