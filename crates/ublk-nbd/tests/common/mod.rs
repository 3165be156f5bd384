//! A test server with selectable faults, and the simulated driver's ring with real sockets.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod faulty;
pub mod pki;
pub mod port;
pub mod server;
pub mod wire;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nbd_client::Uri;
use ublk_core::QueueId;
use ublk_core::iod::IoBounds;
use ublk_nbd::{Nbd, NbdOptions};
use ublk_queue::{LaneHandle, LaneSpec, Worker, WorkerError};
use ublk_sim::{Config, Report, Sim};

use port::{Pages, SocketPort};
use server::Server;

/// A run of the engine against a server.
pub struct Run {
    pub result: Result<(), WorkerError>,
    pub lanes: Vec<LaneHandle>,
    pub report: Report,
}

impl Run {
    /// Asserts that every request succeeded with the right data.
    pub fn assert_clean(&self, requests: usize) {
        assert_eq!(self.report.violations, Vec::<String>::new());
        assert_eq!(self.result, Ok(()));
        assert_eq!((self.report.completed, self.report.failed), (requests, 0));
    }
}

pub fn options(server: &Server) -> NbdOptions {
    let uri: Uri = server.uri().parse().expect("a URI");
    let mut options = NbdOptions::new(uri);
    options.connect_timeout = Duration::from_secs(2);
    options
}

pub fn open(options: &NbdOptions) -> Nbd {
    Nbd::open(options, Instant::now() + Duration::from_secs(10)).expect("a server")
}

/// Serves the simulated device until its end.
pub fn serve(nbd: &Nbd, config: &Config) -> Run {
    let sim = Sim::new(config.clone());
    let leave = Arc::new(AtomicBool::new(false));
    // SAFETY: the lanes are made below, of this device's configuration, and nobody else gets the worker.
    #[expect(unsafe_code, reason = "a port for lanes of its own device")]
    let port = unsafe { sim.port() };
    let port = SocketPort::new(port, Pages::new(Box::new(sim.device()), config.depth));
    let mut worker = Worker::new(port, leave);
    let mut lanes = Vec::new();
    for number in 0..config.queues {
        let qid = QueueId::new(number).expect("few queues");
        let bounds = IoBounds::new(config.size as u64, config.max_io_bytes);
        let descriptors = sim.descriptors(number);
        let handler = nbd.handler(number).expect("a thread");
        let mut spec = LaneSpec::new(qid, config.depth, bounds, descriptors, handler);
        spec.data = config.data;
        spec.batch = config.batch;
        spec.buf_base = number * config.depth;
        spec.device = Box::new(sim.device());
        lanes.push(worker.add_lane(spec).expect("memory"));
    }
    let result = worker.arm().and_then(|()| worker.run());
    worker.finish(&result);
    let report = sim.report();
    Run {
        result,
        lanes,
        report,
    }
}
