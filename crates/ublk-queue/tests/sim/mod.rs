//! The shipped engine on the simulated driver.

#![allow(dead_code, reason = "each test program uses its part")]

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use ublk_core::iod::{Io, IoBounds};
use ublk_core::{Backend, Errno, Limits, Op, QueueId};
use ublk_metrics::Level;
use ublk_queue::port::Port;
use ublk_queue::{
    Forward, Handler, LaneHandle, LaneSpec, Next, Part, Recorded, Recorder, Request, State, Worker,
    WorkerError,
};
use ublk_sim::{Config, Faults, Report, Sim, SimDescriptors, SimPort};

/// All faults that do not fail a request.
pub const ALL_FAULTS: Faults = Faults {
    short_submit: 20,
    interrupt: 10,
    transient: 5,
    full: 3,
    stale: 10,
    short_io: 0,
    interrupted_io: 0,
    failed_io: 0,
    busy: 5,
    late_aborts: 50,
};

/// The result of a run.
pub struct Run {
    pub has_armed: bool,
    pub result: Result<(), WorkerError>,
    pub lanes: Vec<LaneHandle>,
    pub report: Report,
    pub sim: Sim,
}

impl Run {
    /// Asserts that the run ended normally and served everything.
    pub fn assert_clean(&self, requests: usize) {
        assert_eq!(self.report.violations, Vec::<String>::new());
        assert_eq!(self.result, Ok(()));
        assert_eq!(self.report.completed, requests);
        assert!(self.lanes.iter().all(|lane| lane.state() == State::Empty));
    }

    pub fn stale(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.counters().stale).sum()
    }
}

/// Runs the engine on one thread, with a handler per lane, until it ends.
pub fn run<H: Handler>(config: Config, make: impl Fn() -> H) -> Run {
    run_by(config, make, Worker::run)
}

/// Like `run`, with an owner that drives the engine and sleeps in between for as long as it allows.
pub fn run_driven<H: Handler>(config: Config, make: impl Fn() -> H) -> Run {
    run_by(config, make, drive_and_sleep)
}

pub fn drive_and_sleep<H: Handler>(
    worker: &mut Worker<SimPort, SimDescriptors, H>,
) -> Result<(), WorkerError> {
    for _ in 0..200_000 {
        match worker.drive()? {
            Next::Ended => return Ok(()),
            Next::Ready => worker.port().sleep_until_readable(None),
            Next::Within(time) => worker.port().sleep_until_readable(Some(time)),
        }
    }
    panic!("the worker does not end");
}

/// The ring of a worker whose lanes match the device, as in all tests.
#[expect(
    unsafe_code,
    reason = "the simulated driver writes to the lanes' buffers"
)]
pub fn port(sim: &Sim) -> SimPort {
    // SAFETY: lanes have the configuration's depth, buffer size and data mode.
    unsafe { sim.port() }
}

fn run_by<H: Handler>(
    config: Config,
    make: impl Fn() -> H,
    serve: impl FnOnce(&mut Worker<SimPort, SimDescriptors, H>) -> Result<(), WorkerError>,
) -> Run {
    run_on(&config, port, Arc::default(), make, serve)
}

/// Like `run`, with an engine that measures this much from the start.
pub fn run_measured<H: Handler>(
    config: &Config,
    level: Level,
    make: impl Fn() -> H,
    serve: impl FnOnce(&mut Worker<SimPort, SimDescriptors, H>) -> Result<(), WorkerError>,
) -> Run {
    run_all(
        config,
        (config.size, level, None),
        port,
        Arc::default(),
        make,
        serve,
    )
}

/// Requests that were recorded.
#[derive(Clone, Default)]
pub struct Sink(pub Arc<Mutex<Vec<Recorded>>>);

impl Recorder for Sink {
    fn record(&mut self, request: &Recorded) {
        self.0.lock().expect("no panic").push(*request);
    }
}

/// Like `run`, with a recorder on each lane from the start.
pub fn run_recorded<H: Handler>(
    config: &Config,
    make: impl Fn() -> H,
    serve: impl FnOnce(&mut Worker<SimPort, SimDescriptors, H>) -> Result<(), WorkerError>,
) -> (Run, Vec<Recorded>) {
    let sink = Sink::default();
    let how = (config.size, Level::Latencies, Some(sink.clone()));
    let run = run_all(config, how, port, Arc::default(), make, serve);
    let recorded = sink.0.lock().expect("no panic").clone();
    (run, recorded)
}

/// Like `run`, for an engine that assumes this size of the device.
pub fn run_sized<H: Handler>(
    config: &Config,
    size: usize,
    make: impl Fn() -> H,
    serve: impl FnOnce(&mut Worker<SimPort, SimDescriptors, H>) -> Result<(), WorkerError>,
) -> Run {
    run_all(
        config,
        (size, Level::Off, None),
        port,
        Arc::default(),
        make,
        serve,
    )
}

/// Like `run`, with a ring around the simulated one, until it ends or is told to leave.
pub fn run_on<P: Port, H: Handler>(
    config: &Config,
    port: impl FnOnce(&Sim) -> P,
    leave: Arc<AtomicBool>,
    make: impl FnMut() -> H,
    serve: impl FnOnce(&mut Worker<P, SimDescriptors, H>) -> Result<(), WorkerError>,
) -> Run {
    run_all(
        config,
        (config.size, Level::Off, None),
        port,
        leave,
        make,
        serve,
    )
}

fn run_all<P: Port, H: Handler>(
    config: &Config,
    (size, level, sink): (usize, Level, Option<Sink>),
    port: impl FnOnce(&Sim) -> P,
    leave: Arc<AtomicBool>,
    mut make: impl FnMut() -> H,
    serve: impl FnOnce(&mut Worker<P, SimDescriptors, H>) -> Result<(), WorkerError>,
) -> Run {
    let sim = Sim::new(config.clone());
    let mut worker = Worker::new(port(&sim), leave);
    let mut lanes = Vec::new();
    for qid in 0..config.queues {
        let id = QueueId::new(qid).expect("few queues");
        let bounds = IoBounds::new(size as u64, config.max_io_bytes);
        let mut spec = LaneSpec::new(id, config.depth, bounds, sim.descriptors(qid), make());
        spec.generation = 3;
        spec.data = config.data;
        spec.batch = config.batch;
        spec.zoned = config.zone_size != 0;
        // All are the one simulated file.
        spec.file_count = 3;
        spec.buf_base = qid * config.depth;
        spec.device = Box::new(sim.device());
        spec.client_memory = sim.shared_memory().expect("mapped");
        lanes.push(worker.add_lane(spec).expect("memory"));
    }
    if let Some(sink) = sink {
        let since = Instant::now();
        for lane in &lanes {
            lane.record(Some((Box::new(sink.clone()), since)));
        }
    }
    if level != Level::Off {
        lanes
            .iter()
            .for_each(|lane: &LaneHandle| lane.measure(level));
    }
    let armed = worker.arm();
    let has_armed = armed.is_ok();
    let result = armed.and_then(|()| serve(&mut worker));
    if config.refuse_fetch.is_some() {
        // Like a thread whose set-up failed.
        drop(worker);
    } else {
        worker.finish(&result);
    }
    Run {
        has_armed,
        result,
        lanes,
        report: sim.report(),
        sim,
    }
}

/// Adds one lane of the device, with or without zone support.
pub fn lane(config: &Config, zones: bool) -> Result<(), Errno> {
    fn add<H: Handler>(config: &Config, handler: H) -> Result<(), Errno> {
        let sim = Sim::new(config.clone());
        let mut worker = Worker::new(port(&sim), Arc::default());
        let bounds = IoBounds::new(config.size as u64, config.max_io_bytes);
        let descriptors = sim.descriptors(0);
        let mut spec = LaneSpec::new(QueueId::ZERO, config.depth, bounds, descriptors, handler);
        spec.data = config.data;
        spec.zoned = config.zone_size != 0;
        worker.add_lane(spec).map(|_| ())
    }
    match zones {
        true => add(config, ublk_queue::Zoned(Filled)),
        false => add(config, Filled),
    }
}

/// Forwards every request to the file behind the operations.
pub struct ToFile;

impl Handler for ToFile {
    const FORWARDS: bool = true;

    fn handle(&mut self, request: Request<'_>) {
        let (offset, len, durable) = (request.offset(), request.len(), request.flags().fua());
        let to = match request.op() {
            Op::Read | Op::Write => Forward::Data {
                file: 0,
                offset,
                durable,
            },
            Op::Flush => Forward::Sync { file: 0 },
            _ => Forward::Allocate {
                file: 0,
                mode: 3,
                offset,
                len,
            },
        };
        request.forward(to);
    }
}

/// Like [`ToFile`], with data that alternates between three files.
pub struct Spread;

impl Spread {
    pub const CHUNK: u64 = 8192;
}

impl Handler for Spread {
    const FORWARDS: bool = true;
    const SPLITS: bool = true;

    fn handle(&mut self, request: Request<'_>) {
        let (op, durable) = (request.op(), request.flags().fua());
        match op {
            Op::Read | Op::Write => request.forward(Forward::Parts { durable }),
            Op::Flush => request.forward(Forward::SyncAll),
            _ => ToFile.handle(request),
        }
    }

    fn part(&mut self, io: &Io, done: u64) -> Part {
        let offset = io.offset + done;
        let chunk = offset / Self::CHUNK;
        Part {
            file: u16::try_from(chunk % 3).expect("three files"),
            offset,
            len: ((chunk + 1) * Self::CHUNK - offset).min(io.len - done),
        }
    }
}

/// A device of zeroes that accepts no other data.
pub struct Filled;

impl Handler for Filled {
    fn handle(&mut self, mut request: Request<'_>) {
        let filled = request.data_mut().map(|data| data.fill(0));
        request.complete(filled);
    }
}

/// The same as a backend for a pool.
pub struct Zeroes(pub usize);

impl Backend for Zeroes {
    fn limits(&self) -> Limits {
        Limits::new(self.0 as u64)
    }
    fn read_at(&self, buf: &mut [u8], _offset: u64) -> Result<(), Errno> {
        buf.fill(0);
        Ok(())
    }
}
