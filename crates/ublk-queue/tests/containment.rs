//! A handler's mistake costs only its own request, and a lane leaves behind only what the kernel may still access.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::FilePort;
use common::sim::{self, Filled, ToFile, drive_and_sleep, run, run_driven, run_on};
use ublk_core::iod::{Io, IoBounds};
use ublk_core::{DataMode, Errno, QueueId, Tag};
use ublk_queue::port::{Completion, Content, Full, IoCommand, Port, UserCopyPort, Wake};
use ublk_queue::task::{Async, SharedFd, TaskRequest, leaked_operations};
use ublk_queue::worker::Share;
use ublk_queue::{
    BatchCommand, Handler, LaneSpec, MemRef, NotPushed, Operation, Operations, Request, State,
    Worker, WorkerError,
};
use ublk_sim::{Config, Faults, Sim};
use uring_lite::op::{self, SqeFlags};

fn panic_on_purpose() -> ! {
    // A panic without the message of the panic hook.
    std::panic::resume_unwind(Box::new("on purpose"))
}

/// Panics when asked for the data address of every tenth WRITE.
struct Placer(usize);

impl Handler for Placer {
    fn handle(&mut self, mut request: Request<'_>) {
        let filled = request.data_mut().map(|data| data.fill(0));
        request.complete(filled);
    }

    #[expect(unsafe_code, reason = "declared so; gives no memory")]
    unsafe fn data_address(&mut self, _: &Io) -> Option<MemRef<'static>> {
        self.0 += 1;
        if self.0.is_multiple_of(10) {
            panic_on_purpose();
        }
        None
    }
}

/// L25 A panic in `data_address` costs that WRITE only.
#[test]
fn l25_a_panic_in_data_address_answers_eio() {
    for seed in 0..10 {
        let config = Config {
            data: DataMode::GetData,
            read_percent: 0,
            faults: if seed % 2 == 0 {
                Faults::default()
            } else {
                sim::ALL_FAULTS
            },
            ..Config::new(seed)
        };
        for run in [
            run(config.clone(), || Placer(0)),
            run_driven(config.clone(), || Placer(0)),
        ] {
            run.assert_clean(1000);
            let panics = run.lanes[0].counters().panics;
            assert!(panics > 50, "{panics}");
            // A get-data command that io_uring refused asks for the address once more.
            let failed = u64::try_from(run.report.failed).expect("few");
            assert!(failed == panics || (seed % 2 == 1 && failed > 50 && failed < panics));
        }
    }
}

/// The method in which a handler with operations panics.
#[derive(Clone, Copy, PartialEq, Eq)]
enum In {
    Turn,
    EveryTurn,
    Completion,
}

/// Answers at once, sometimes pushes an operation, and panics.
struct Panics {
    when: In,
    calls: usize,
    in_flight: usize,
    left: usize,
}

impl Panics {
    const fn new(when: In) -> Self {
        Self {
            when,
            calls: 0,
            in_flight: 0,
            left: 60,
        }
    }

    fn maybe(&mut self) {
        self.calls += 1;
        if self.calls.is_multiple_of(7) {
            panic_on_purpose();
        }
    }
}

impl Handler for Panics {
    const OPERATIONS: bool = true;

    fn handle(&mut self, request: Request<'_>) {
        Filled.handle(request);
    }

    fn turn<P: Port>(&mut self, ring: &mut Operations<'_, P>) -> bool {
        match self.when {
            In::Turn => self.maybe(),
            In::EveryTurn => panic_on_purpose(),
            In::Completion => {}
        }
        let operation = Operation { slot: 1, turn: 1 };
        // Entries that would link to commits, or end without a completion, are refused.
        for tie in [
            SqeFlags::LINK,
            SqeFlags::HARDLINK,
            SqeFlags::DRAIN,
            SqeFlags::CQE_SKIP_SUCCESS,
        ] {
            let pushed = ring.push(op::nop().flags(tie), operation);
            assert_eq!(pushed, Err(NotPushed::Tied));
        }
        // Limited, because a lane ends only when its handler has no operation.
        if self.in_flight == 0 && self.left > 0 && ring.push(op::nop(), operation).is_ok() {
            (self.in_flight, self.left) = (1, self.left - 1);
        }
        false
    }

    #[expect(unsafe_code, reason = "declared so; has lent nothing")]
    unsafe fn operation_completed(&mut self, _: Operation, _: i32, _: u32) {
        self.in_flight = 0;
        if self.when == In::Completion {
            self.maybe();
        }
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn leave(&mut self) {
        panic_on_purpose();
    }
}

/// L25 A panic in a handler's `turn`, even in every one, or at the completion of an operation costs no request; it is
/// only counted. On the engine's own thread and on an owner's.
#[test]
fn l25_a_panic_between_requests_costs_none() {
    for seed in 0..6 {
        for when in [In::Turn, In::EveryTurn, In::Completion] {
            let config = Config {
                queues: 2,
                read_percent: 100,
                requests: 300,
                ..Config::new(seed)
            };
            let first = common::run(&config, || Panics::new(when));
            first.assert_clean(300);
            assert!(first.panics() > 2, "{}", first.panics());
            let shared = Arc::new(common::FileState::default());
            let port = |sim: &Sim| FilePort::new(sim::port(sim), Arc::clone(&shared), 1, 0);
            let driven = run_on(
                &config,
                port,
                Arc::default(),
                || Panics::new(when),
                |worker| {
                    for _ in 0..20_000 {
                        if worker.drive()? == ublk_queue::Next::Ended {
                            return Ok(());
                        }
                    }
                    panic!("the worker does not end");
                },
            );
            driven.assert_clean(300);
        }
    }
}

/// L25 A panic in `leave` does not keep the worker from leaving.
#[test]
fn l25_a_panic_in_leave_is_contained() {
    let leave = Arc::new(AtomicBool::new(true));
    let config = Config::new(1);
    let run = common::run_until(&config, leave, || Panics::new(In::Completion));
    assert_eq!(run.result, Err(WorkerError::Left));
    assert_eq!(run.lanes[0].state(), State::Failed);
    assert_eq!(run.panics(), 1);
}

/// A character device that shows who holds it.
struct Device(Mutex<Option<Arc<()>>>);

impl UserCopyPort for Device {
    fn retire(&self) {
        self.0.lock().expect("no panic").take();
    }
    fn pull(&self, _: QueueId, _: Tag, _: Content, _: MemRef<'_>) -> Result<(), Errno> {
        Ok(())
    }
    fn push(&self, _: QueueId, _: Tag, _: Content, _: MemRef<'_>) -> Result<(), Errno> {
        Ok(())
    }
}

/// A ring whose waker shows who holds it.
struct Counted<P> {
    inner: P,
    bell: Arc<()>,
}

struct Bell(#[expect(dead_code, reason = "counted")] Arc<()>);

impl Wake for Bell {
    fn wake(&self) {}
}

#[expect(unsafe_code, reason = "forwards another port's guarantees")]
// SAFETY: everything is forwarded to the inner port.
unsafe impl<P: Port> Port for Counted<P> {
    type Wake = Bell;
    type Command = P::Command;
    fn prepare(&self, lane: u16, command: &IoCommand, word: u64) -> P::Command {
        self.inner.prepare(lane, command, word)
    }
    fn push(&mut self, command: &P::Command, result: i32, addr: u64) -> Result<(), Full> {
        self.inner.push(command, result, addr)
    }
    fn push_batch(&mut self, lane: u16, command: &BatchCommand, word: u64) -> Result<(), Full> {
        self.inner.push_batch(lane, command, word)
    }
    fn take_tags(&mut self, lane: u16, completion: &Completion, tags: &mut Vec<u16>) {
        self.inner.take_tags(lane, completion, tags);
    }
    fn space(&mut self) -> u32 {
        self.inner.space()
    }
    fn pending(&mut self) -> u32 {
        self.inner.pending()
    }
    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        self.inner.enter(want, timeout)
    }
    fn next(&mut self) -> Option<Completion> {
        self.inner.next()
    }
    fn wake_handle(&self) -> Bell {
        Bell(Arc::clone(&self.bell))
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

/// L63 A lane that leaves with tags at the driver leaks only their buffers: neither the character device, for which
/// DEL_DEV would wait, nor its ring's waker.
#[test]
fn l63_a_lane_that_leaves_leaks_nothing_but_buffers() {
    for batch in [false, true] {
        for data in [DataMode::Copy, DataMode::GetData, DataMode::UserCopy] {
            if batch && data == DataMode::GetData {
                continue;
            }
            let config = Config {
                data,
                batch,
                ..Config::new(1)
            };
            let sim = Sim::new(config.clone());
            let (bell, device) = (Arc::new(()), Arc::new(()));
            let port = Counted {
                inner: sim::port(&sim),
                bell: Arc::clone(&bell),
            };
            let mut worker = Worker::new(port, Arc::default());
            let bounds = IoBounds::new(config.size as u64, config.max_io_bytes);
            let (qid, descriptors) = (QueueId::ZERO, sim.descriptors(0));
            let mut spec = LaneSpec::new(qid, config.depth, bounds, descriptors, Filled);
            (spec.data, spec.batch) = (data, batch);
            spec.device = Box::new(Device(Mutex::new(Some(Arc::clone(&device)))));
            let lane = worker.add_lane(spec).expect("memory");
            worker.arm().expect("taken");
            worker.finish(&Err(WorkerError::Left));
            drop(lane);
            assert_eq!(Arc::strong_count(&device), 1, "{data:?}");
            assert_eq!(Arc::strong_count(&bell), 1, "{data:?}");
            // The buffers still exist: otherwise this would crash.
            let written = sim.late_writes();
            assert!(written > 0 || data != DataMode::Copy, "{data:?}");
        }
    }
}

/// L63 The same for futures with operations in flight on their requests' buffers: the kernel keeps the buffers, and the
/// character device and the operations' files are closed.
#[test]
fn l63_operations_under_way_hold_no_device() {
    let config = Config {
        data: DataMode::UserCopy,
        read_percent: 100,
        enter_fails: Some((6, 9)),
        ..Config::new(3)
    };
    let sim = Sim::new(config.clone());
    let device = Arc::new(());
    let shared = Arc::new(common::FileState::default());
    *shared.file.lock().expect("no panic") = vec![0; config.size];
    let mut worker = Worker::new(FilePort::new(sim::port(&sim), shared, 1, 0), Arc::default());
    let bounds = IoBounds::new(config.size as u64, config.max_io_bytes);
    let (near, far) = std::os::unix::net::UnixStream::pair().expect("sockets");
    let file = SharedFd::new(near);
    let serve = move |mut request: TaskRequest| {
        let file = file.clone();
        async move {
            let offset = request.offset();
            request.read_from(&file, offset).await
        }
    };
    let (qid, descriptors) = (QueueId::ZERO, sim.descriptors(0));
    let mut spec = LaneSpec::new(qid, config.depth, bounds, descriptors, Async::new(serve));
    spec.data = config.data;
    spec.device = Box::new(Device(Mutex::new(Some(Arc::clone(&device)))));
    let lane = worker.add_lane(spec).expect("memory");
    let before = leaked_operations();
    let result = worker.arm().and_then(|()| worker.run());
    assert!(result.is_err());
    worker.finish(&result);
    assert!(leaked_operations() > before, "some were under way");
    // Neither the worker nor a reader of its health holds the device.
    assert_eq!(
        (Arc::strong_count(&device), lane.state()),
        (1, State::Failed)
    );
    // The peer of an operation's file sees the end of the stream.
    far.set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a deadline");
    let read = std::io::Read::read(&mut &far, &mut [0]);
    assert_eq!(read.expect("closed"), 0);
}

/// L09 The buffers of requests on their way to a file outlive a worker that leaves, even if the driver has none of its
/// tags.
#[test]
fn l09_buffers_of_forwarded_requests_outlive_their_worker() {
    let mut written = 0;
    for seed in 0..200 {
        let config = Config {
            file: true,
            depth: 2,
            read_percent: 100,
            enter_fails: Some((20 + seed, 9)),
            ..Config::new(seed as u64)
        };
        let run = run(config, || ToFile);
        assert!(run.result.is_err());
        let sim::Run { lanes, sim, .. } = run;
        drop(lanes);
        written += sim.late_writes();
    }
    assert!(written > 0, "some read was on its way");
}

/// L09 The elements of batch commands in flight outlive their worker, and so do the buffers.
#[test]
fn l09_elements_of_batch_commands_outlive_their_worker() {
    for seed in 0..20 {
        let config = Config {
            batch: true,
            depth: 64,
            read_percent: 100,
            enter_fails: Some((20 + seed, 9)),
            ..Config::new(seed as u64)
        };
        let run = run(config, || Filled);
        assert!(run.result.is_err());
        let sim::Run { lanes, sim, .. } = run;
        drop(lanes);
        // Reuses memory if it was freed, and writes to it.
        let other: Vec<Vec<u8>> = (0..64).map(|n| vec![0xa5; 128 << (n % 4)]).collect();
        let _ = sim.late_writes();
        assert_eq!(sim.report().violations, Vec::<String>::new());
        drop(other);
    }
}

/// L22 The ring is closed before the lanes whose buffers it may use, however the worker ends.
#[test]
fn l22_a_ring_is_closed_before_its_lanes_go() {
    let count = AtomicUsize::new(0);
    let sim = Sim::new(Config::new(1));
    let config = Config::new(1);
    let mut worker = Worker::new(sim::port(&sim), Arc::default());
    let bounds = IoBounds::new(config.size as u64, config.max_io_bytes);
    let handler = |request: Request<'_>| {
        count.fetch_add(1, Ordering::Relaxed);
        Filled.handle(request);
    };
    let (qid, descriptors) = (QueueId::ZERO, sim.descriptors(0));
    let spec = LaneSpec::new(qid, config.depth, bounds, descriptors, handler);
    worker.add_lane(spec).expect("memory");
    worker.arm().expect("taken");
    drop(worker);
    assert_eq!(sim.report().violations, Vec::<String>::new());
}

/// Drives the queue like the owner's loop elsewhere, so that these tests sleep, too.
#[test]
fn l25_a_panic_in_a_driven_queue_lets_it_sleep() {
    let config = Config {
        read_percent: 100,
        requests: 300,
        ..Config::new(3)
    };
    let mut calls = 0;
    let run = run_on(
        &config,
        sim::port,
        Arc::default(),
        || {
            move |request: Request<'_>| {
                calls += 1;
                if calls % 10 == 0 {
                    panic_on_purpose();
                }
                Filled.handle(request);
            }
        },
        drive_and_sleep,
    );
    run.assert_clean(300);
    assert_eq!(run.report.failed, 30);
}

/// L65 L03 A share that was dealt for smaller buffers, or for fewer tags, fits no lane.
#[test]
fn l65_a_share_of_another_queue_is_refused() {
    let config = Config::new(3);
    let add = |depth, bytes| {
        let sim = Sim::new(config.clone());
        let mut worker = Worker::new(sim::port(&sim), Arc::default());
        let bounds = IoBounds::new(config.size as u64, config.max_io_bytes);
        let handler = |request: Request<'_>| request.complete(Ok(()));
        let mut spec = LaneSpec::new(
            QueueId::ZERO,
            config.depth,
            bounds,
            sim.descriptors(0),
            handler,
        );
        spec.share = Share::deal(1, depth, bytes).expect("memory").remove(0);
        worker.add_lane(spec).map(drop)
    };
    let (depth, bytes) = (config.depth, config.max_io_bytes);
    assert_eq!(add(depth, bytes), Ok(()));
    assert_eq!(add(depth, bytes / 2), Err(Errno::EINVAL));
    assert_eq!(add(depth - 1, bytes), Err(Errno::EINVAL));
    assert_eq!(add(depth + 1, bytes), Err(Errno::EINVAL));
}

/// Panics again when it is dropped.
struct Bomb(u32);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0 > 0 && !std::thread::panicking() {
            std::panic::resume_unwind(Box::new(Self(self.0 - 1)));
        }
    }
}

/// Panics at the fiftieth request, with a payload that panics.
struct Loaded(u32);

impl Handler for Loaded {
    fn handle(&mut self, mut request: Request<'_>) {
        self.0 += 1;
        if self.0 == 50 {
            std::panic::resume_unwind(Box::new(Bomb(2)));
        }
        let filled = request.data_mut().map(|data| data.fill(0));
        request.complete(filled);
    }
}

/// L25 A panic's payload may panic when it is dropped: that costs the same single request, and no thread.
#[test]
fn l25_what_a_panic_carries_is_contained() {
    let config = Config {
        read_percent: 0,
        requests: 300,
        ..Config::new(7)
    };
    let run = common::run(&config, || Loaded(0));
    assert_eq!(run.panics(), 1);
}
