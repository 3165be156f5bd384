//! What `top` shows: devices with their recent past, and what the keys have chosen.

use super::heat::{Column, column};
use crate::stats::Report;
use std::cmp::Ordering;
use std::collections::VecDeque;
use std::time::Duration;
use ublk_daemon::failure::Failure;
use ublk_daemon::front::Measured;
use ublk_daemon::problems::STALLED;
use ublk_daemon::report::{Health, ProblemKind};
use ublk_metrics::{Level, QueueSnapshot, Snapshot};

/// Intervals that are remembered: the width of the widest heat map.
const PAST: usize = 512;

/// A device in the latest interval, and its past.
#[derive(Debug)]
pub struct Device {
    /// The work of the interval.
    pub report: Report,
    /// All queues together, with the sizes of batches.
    pub total: QueueSnapshot,
    /// Its state in a word or two.
    pub state: String,
    /// What to do about it, if anything.
    pub next: Option<String>,
    /// Latencies of each interval, the latest last.
    pub past: VecDeque<Column>,
    last: Option<Snapshot>,
    quiet: Duration,
}

/// What the devices are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// Their numbers.
    Device,
    /// Requests per second.
    Requests,
    /// Bytes per second.
    Bytes,
    /// The slowest percent of requests.
    Latency,
    /// Errors.
    Errors,
    /// How busy the threads are.
    Busy,
}

impl Sort {
    const ALL: [Self; 6] = [
        Self::Device,
        Self::Requests,
        Self::Bytes,
        Self::Latency,
        Self::Errors,
        Self::Busy,
    ];

    /// Its name for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::Requests => "requests",
            Self::Bytes => "bytes",
            Self::Latency => "P99",
            Self::Errors => "errors",
            Self::Busy => "busy",
        }
    }
}

/// What fills the screen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// All devices, one on a line.
    Devices,
    /// The chosen device.
    Detail,
    /// The keys.
    Keys,
}

/// What a key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// End.
    Quit,
    /// Choose another line: down or up by so many.
    Move(i32),
    /// Sort by the next field.
    Sort,
    /// Turn the order round.
    Reverse,
    /// Stop or resume the picture.
    Pause,
    /// Show one device, or all again.
    Detail,
    /// Back to all devices.
    Back,
    /// Show the keys, or not.
    Keys,
}

/// Everything that is drawn.
#[derive(Debug)]
pub struct Model {
    /// The devices, in the order of the screen.
    pub devices: Vec<Device>,
    /// What fills the screen.
    pub view: View,
    /// The order.
    pub sort: Sort,
    /// Whether the order is turned round.
    pub reversed: bool,
    /// The number of the chosen device.
    pub chosen: Option<u32>,
    /// Whether the picture is stopped.
    pub paused: bool,
    /// Why the latest look at the devices failed.
    pub failure: Option<String>,
    /// Whether the devices have been looked at.
    pub looked: bool,
    /// Time between two looks.
    pub interval: Duration,
}

impl Model {
    /// Nothing yet.
    pub const fn new(interval: Duration) -> Self {
        Self {
            devices: Vec::new(),
            view: View::Devices,
            sort: Sort::Device,
            reversed: false,
            chosen: None,
            paused: false,
            failure: None,
            looked: false,
            interval,
        }
    }

    /// Takes what a look at the devices found, or why it failed.
    pub fn take(&mut self, look: Result<Vec<Measured>, Failure>) {
        match look {
            Ok(measured) => self.look(measured),
            Err(failure) => {
                let hint = failure.hint.map(|hint| format!(": {hint}"));
                self.failure = Some(failure.text + &hint.unwrap_or_default());
            }
        }
    }

    /// Devices that are gone leave the screen.
    fn look(&mut self, measured: Vec<Measured>) {
        (self.looked, self.failure) = (true, None);
        if self.paused {
            return;
        }
        let mut before = std::mem::take(&mut self.devices);
        for device in measured {
            let at = before.iter().position(|it| it.report.id == device.id);
            let before = at.map(|at| before.swap_remove(at));
            self.devices.push(Device::next(device, before));
        }
        self.arrange();
    }

    /// The chosen device and its line.
    pub fn choice(&self) -> Option<(usize, &Device)> {
        let at = self
            .devices
            .iter()
            .position(|it| Some(it.report.id) == self.chosen)?;
        Some((at, &self.devices[at]))
    }

    /// Does what a key says; `false` to end.
    pub fn act(&mut self, action: Action) -> bool {
        match action {
            Action::Quit => return false,
            Action::Move(by) => {
                let at = self.choice().map_or(0, |(at, _)| at);
                let step = usize::try_from(by.unsigned_abs()).unwrap_or(usize::MAX);
                let to = match by < 0 {
                    true => at.saturating_sub(step),
                    false => at.saturating_add(step),
                };
                let to = to.min(self.devices.len().saturating_sub(1));
                self.chosen = self.devices.get(to).map(|it| it.report.id);
            }
            Action::Sort => {
                let at = Sort::ALL.iter().position(|it| *it == self.sort);
                self.sort = Sort::ALL[at.map_or(0, |at| (at + 1) % Sort::ALL.len())];
                self.arrange();
            }
            Action::Reverse => {
                self.reversed = !self.reversed;
                self.arrange();
            }
            Action::Pause => self.paused = !self.paused,
            Action::Detail => self.toggle(View::Detail),
            Action::Keys => self.toggle(View::Keys),
            Action::Back => self.view = View::Devices,
        }
        true
    }

    fn toggle(&mut self, view: View) {
        self.view = match self.view == view {
            true => View::Devices,
            false => view,
        };
    }

    /// Sorts the devices: numbers upwards, everything else downwards; a device that left the screen is no longer chosen.
    fn arrange(&mut self) {
        let (sort, reversed) = (self.sort, self.reversed);
        self.devices.sort_by(|a, b| {
            let downwards = match sort {
                Sort::Device => Ordering::Equal,
                _ => b.key(sort).total_cmp(&a.key(sort)),
            };
            let order = downwards.then(a.report.id.cmp(&b.report.id));
            if reversed { order.reverse() } else { order }
        });
        if self.choice().is_none() {
            self.chosen = self.devices.first().map(|it| it.report.id);
            if self.view == View::Detail {
                self.view = View::Devices;
            }
        }
    }
}

impl Device {
    fn next(now: Measured, before: Option<Self>) -> Self {
        let (mut past, last, quiet) = match before {
            Some(it) => (it.past, it.last, it.quiet),
            None => (VecDeque::new(), None, Duration::ZERO),
        };
        // The first look has no interval: its numbers since the server's start would not fit those that follow.
        let interval = match (&now.snapshot, &last) {
            (Some(now), Some(last)) => Some(now.since(last)),
            (Some(now), None) => Some(now.since(now)),
            (None, _) => None,
        };
        let report = Report::of(&now, interval.as_ref());
        let total = interval.as_ref().map(Snapshot::total).unwrap_or_default();
        let moved = total.requests() > 0 || total.in_flight == 0;
        let quiet = match &interval {
            Some(it) if !moved => quiet + it.elapsed(),
            _ => Duration::ZERO,
        };
        if last.is_some() {
            past.push_back(column(&total));
        }
        while past.len() > PAST {
            past.pop_front();
        }
        let (state, next) = state(&now, &report, quiet);
        Self {
            report,
            total,
            state,
            next,
            past,
            last: now.snapshot.or(last),
            quiet,
        }
    }

    /// Requests of all kinds per second.
    pub fn requests(&self) -> f64 {
        let ops = self.report.total.ops.iter();
        // The empty sum of floats is -0.
        ops.fold(0.0, |sum, op| sum + op.requests_per_second)
    }

    /// Bytes per second.
    pub fn bytes(&self) -> f64 {
        let ops = self.report.total.ops.iter();
        ops.fold(0.0, |sum, op| sum + op.bytes_per_second)
    }

    /// Errors in the interval.
    pub fn errors(&self) -> u64 {
        self.report.total.ops.iter().map(|op| op.errors).sum()
    }

    /// The latency, in nanoseconds, that this share of all requests does not exceed.
    pub fn percentile(&self, share: f64) -> Option<u64> {
        let mut all = ublk_metrics::Histogram::default();
        for op in &self.total.ops {
            all.add(&op.latency);
        }
        let time = (all.count() > 0).then(|| all.percentile(share))?;
        u64::try_from(time.as_nanos()).ok()
    }

    /// Whether latencies are measured.
    pub fn has_latencies(&self) -> bool {
        self.report.level == Some(Level::Latencies)
    }

    #[expect(clippy::cast_precision_loss, reason = "an order for people")]
    fn key(&self, sort: Sort) -> f64 {
        match sort {
            Sort::Device => 0.0,
            Sort::Requests => self.requests(),
            Sort::Bytes => self.bytes(),
            Sort::Latency => self.percentile(0.99).unwrap_or(0) as f64,
            Sort::Errors => self.errors() as f64,
            Sort::Busy => self.report.total.busy.unwrap_or(0.0),
        }
    }
}

/// The state of a device, and what to do about it.
fn state(now: &Measured, report: &Report, quiet: Duration) -> (String, Option<String>) {
    let id = now.id;
    let info = |what: &str| Some(format!("{what}: see `ublkctl info {id}`"));
    if let Some(cause) = &report.cause {
        let state = match (now.server_alive, now.agent_alive) {
            (false, _) => "no server",
            (_, false) => "no agent",
            _ => "silent",
        };
        let next = report.next.as_ref();
        let next = next.map_or_else(String::new, |next| format!(": {next}"));
        return (state.to_owned(), Some(format!("{cause}{next}")));
    }
    let error = now.health.as_ref().and_then(|it| it.first_error.clone());
    if now.health.as_ref().is_some_and(|it| it.state == "failed") {
        let error = error.unwrap_or_else(|| "a queue has failed".to_owned());
        return ("failed".to_owned(), info(&error));
    }
    let nbd = now.health.as_ref().and_then(|it: &Health| it.nbd.as_ref());
    if let Some(nbd) = nbd.filter(|it| it.state != "up") {
        let error = nbd.last_error.as_deref().unwrap_or("no connection");
        return (nbd.state.clone(), info(error));
    }
    let problems = now.health.iter().flat_map(|it| &it.problems);
    let stalled = problems.clone().find(|it| it.kind == ProblemKind::Stalled);
    if let Some(problem) = stalled {
        return ("stalled".to_owned(), info(&problem.text));
    }
    if quiet >= STALLED {
        let what = format!(
            "{} requests in flight, none taken or answered",
            report.total.in_flight
        );
        return (format!("stalled {}s", quiet.as_secs()), info(&what));
    }
    let worst = problems.map(|it| it.text.clone()).next();
    ("live".to_owned(), worst.and_then(|it| info(&it)))
}
