//! The server half of a device: workers on threads, their health, and their shutdown.

mod ending;
mod error;
mod measuring;
mod parts;
mod plan;
mod shared_threads;
mod threads;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ublk_core::{Backend, DataMode, OpenDevice, QueueId, deadline_in};
use ublk_metrics::Level;

use self::ending::{EndGuard, Running, ServerState};
use self::measuring::Begun;
use self::parts::{ThreadSetup, is_zoned, shares_memory};
use self::shared_threads::{Guest, Hosted};
use self::threads::{Assignment, assignments};
use crate::handler::{
    ClientShared, Direct, DirectShared, Handler, Inline, InlineMetadata, InlineShared, Mapped,
    Pool, Zoned, boxed,
};
use crate::health::{Counters, Health, QueueHealth, State};
use crate::panics::{catch, caught, discard};
use crate::polling::Polling;
use crate::port::Port;
use crate::port::{DescTable, RingPort};
use crate::thread;
use crate::worker::{LaneHandle, Share, Worker, WorkerError};

pub use self::error::Error;
pub(crate) use self::parts::Parts;
pub use self::plan::Plan;
pub use self::shared_threads::Threads;

/// The result of a server that ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// Its last health.
    pub health: Health,
}

/// Serves the queues of a device.
///
/// # Drop
/// Dropping a server does not wait. If the device has not been started, the threads leave. If it is in use, they keep
/// serving in the background until the driver takes its queues back (STOP_DEV, DEL_DEV, QUIESCE_DEV) or the process
/// ends: on kernels before 6.16, closing a ring in a thread that lives on can lose a request in flight, and its
/// submitter then waits for ever. [`leave`](Self::leave) closes the rings at once regardless.
pub struct Server {
    threads: Vec<JoinHandle<()>>,
    lanes: Vec<ArmedLane>,
    shared: Arc<ServerState>,
    begun: Begun,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("lanes", &self.lanes.len())
            .finish_non_exhaustive()
    }
}

/// What a thread reports once its fetches are with the driver.
struct ArmedLane {
    lane: LaneHandle,
    /// Which of the queue's threads.
    thread: u16,
    setup: ThreadSetup,
    ring: String,
}

/// Index of an assignment, and the result of its thread.
type ArmResult = (usize, Result<Vec<ArmedLane>, Error>);

/// A worker whose tags are all with the driver, and the report on its lanes.
type SetUp<H> = (Worker<RingPort, DescTable, H>, Vec<ArmedLane>);

/// What a worker's thread needs to set itself up.
struct Job<F> {
    /// Index of the assignment.
    number: usize,
    qids: Vec<QueueId>,
    /// Which of the queue's threads this is, and its share, if the queue has several.
    thread: u16,
    share: Option<Share>,
    device: OpenDevice,
    plan: Arc<Plan>,
    make: Arc<F>,
    shared: Arc<ServerState>,
}

impl Server {
    /// Serves a device with a blocking backend: on the queues' own threads if it is quick, else on a pool. Returns once
    /// the driver has taken the fetch of every tag of every queue, so that you can send START_DEV.
    ///
    /// # Errors
    /// The first failure of any queue; the other threads have left by then.
    pub fn arm<B: Backend>(device: OpenDevice, plan: Plan, backend: Arc<B>) -> Result<Self, Error> {
        let zoned = is_zoned(device.geometry());
        if backend.limits().quick && zoned {
            return Self::arm_with(device, plan, move |_| {
                Zoned(boxed(Inline::new(Arc::clone(&backend))))
            });
        }
        if backend.limits().quick && backend.limits().integrity.is_some() {
            return Self::arm_with(device, plan, move |_| {
                boxed(InlineMetadata::new(Arc::clone(&backend)))
            });
        }
        if backend.limits().quick && shares_memory(device.geometry()) {
            return Self::arm_with(device, plan, move |_| {
                InlineShared::new(Arc::clone(&backend))
            });
        }
        if backend.limits().quick {
            return Self::arm_with(device, plan, move |_| Inline::new(Arc::clone(&backend)));
        }
        let geometry = device.geometry();
        let tags = usize::from(geometry.depth()) * usize::from(geometry.queues());
        let pool = Pool::start_as(&backend, plan.pool_threads, tags, plan.gives_up_admin);
        let pool = pool.map_err(Error::Thread)?;
        let handler = pool.handler();
        let server = match zoned {
            true => Self::arm_with(device, plan, move |_| Zoned(handler.clone())),
            false => Self::arm_with(device, plan, move |_| handler.clone()),
        }?;
        server.shared.keep(pool);
        Ok(server)
    }

    /// Serves a device from this process's memory: in user copy and get-data mode the driver copies to and from the
    /// backend's own memory.
    ///
    /// # Errors
    /// As for [`Server::arm`].
    pub fn arm_mapped<B: Mapped>(
        device: OpenDevice,
        plan: Plan,
        backend: Arc<B>,
    ) -> Result<Self, Error> {
        if is_zoned(device.geometry()) || backend.limits().integrity.is_some() {
            return Self::arm(device, plan, backend);
        }
        if shares_memory(device.geometry()) && backend.limits().quick {
            return Self::arm_with(device, plan, move |_| {
                DirectShared::new(Arc::clone(&backend))
            });
        }
        match DataMode::of(device.geometry().features()) {
            DataMode::UserCopy | DataMode::GetData => {
                Self::arm_with(device, plan, move |_| Direct(Arc::clone(&backend)))
            }
            _ => Self::arm(device, plan, backend),
        }
    }

    /// Serves a device with one handler per queue, made on the thread that will call it. A zoned device needs one with
    /// [`Handler::ZONES`].
    ///
    /// # Errors
    /// As for [`Server::arm`].
    pub fn arm_with<H, F>(device: OpenDevice, plan: Plan, make: F) -> Result<Self, Error>
    where
        H: Handler + 'static,
        F: Fn(QueueId) -> H + Send + Sync + 'static,
    {
        if shares_memory(device.geometry()) && !H::CLIENT_MEMORY {
            return Self::arm_all(device, plan, move |qid| ClientShared(make(qid)));
        }
        Self::arm_all(device, plan, make)
    }

    fn arm_all<H, F>(device: OpenDevice, mut plan: Plan, make: F) -> Result<Self, Error>
    where
        H: Handler + 'static,
        F: Fn(QueueId) -> H + Send + Sync + 'static,
    {
        if plan.shared_threads.is_some() {
            (plan.affinity, plan.options.polling) = (Vec::new(), Polling::Off);
        }
        let geometry = *device.geometry();
        let assignments = assignments(&geometry, &plan)?;
        let deadline = plan.arm_deadline;
        let shared = Arc::new(ServerState::new(assignments.len()).map_err(Error::Thread)?);
        let mut server = Self {
            threads: Vec::new(),
            lanes: Vec::new(),
            shared,
            begun: Begun::now(),
        };
        let level = plan.options.metrics;
        let (plan, make) = (Arc::new(plan), Arc::new(make));
        let (report, reports) = mpsc::channel::<ArmResult>();
        let threads = assignments.len();
        let mut waits_for = Vec::with_capacity(threads);
        let attach_to = plan
            .shared_threads
            .clone()
            .map(|threads| (threads.next_thread(), threads));
        for (n, assignment) in assignments.into_iter().enumerate() {
            let Assignment {
                qids,
                thread,
                share,
            } = assignment;
            let name = match (qids.first(), &share) {
                (Some(qid), None) => format!("ublk-{}-q{qid}", geometry.dev_id()),
                (Some(qid), Some(_)) => format!("ublk-{}-q{qid}.{thread}", geometry.dev_id()),
                (None, _) => continue,
            };
            waits_for.push(qids.first().copied());
            let job = Job {
                number: n,
                qids,
                thread,
                share,
                device: device.clone(),
                plan: Arc::clone(&plan),
                make: Arc::clone(&make),
                shared: Arc::clone(&server.shared),
            };
            let report = report.clone();
            let guard = EndGuard::new(&server.shared);
            if let Some((first, threads)) = &attach_to {
                let set_up = move || job.attach(&report, guard);
                threads.attach(first.wrapping_add(n), Box::new(set_up));
                continue;
            }
            let thread = std::thread::Builder::new()
                .name(name)
                .spawn(move || job.run(&report, guard))
                .map_err(Error::Thread)?;
            server.threads.push(thread);
        }
        drop(report);
        server.take_reports(&reports, waits_for, deadline)?;
        if level != Level::Off {
            server.measure(level);
        }
        Ok(server)
    }

    /// Collects the reports of the threads as they arm; `waits_for` has the first queue of each.
    fn take_reports(
        &mut self,
        reports: &mpsc::Receiver<ArmResult>,
        mut waits_for: Vec<Option<QueueId>>,
        deadline: Duration,
    ) -> Result<(), Error> {
        let until = deadline_in(deadline);
        for _ in 0..waits_for.len() {
            let left = until.saturating_duration_since(Instant::now());
            match reports.recv_timeout(left) {
                Ok((number, armed)) => {
                    self.lanes.extend(armed?);
                    waits_for[number] = None;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(Error::TimedOut {
                        what: "arm",
                        deadline,
                    });
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let silent = waits_for.iter().flatten().next();
                    let qid = silent.copied().unwrap_or(QueueId::ZERO);
                    return Err(Error::Panicked { qid });
                }
            }
        }
        let lanes = &mut self.lanes;
        lanes.sort_by_key(|armed| (armed.lane.qid(), armed.thread));
        Ok(())
    }

    /// Sets the size of the device in bytes: requests beyond it are refused. Call it before the driver learns of a
    /// larger size (UPDATE_SIZE, Linux 6.16), and after it has learnt of a smaller one.
    pub fn set_size(&self, bytes: u64) {
        for armed in &self.lanes {
            armed.lane.set_size(bytes);
        }
    }

    /// A snapshot of the server's health. Takes no lock of the serving threads. It asks them how old their requests are, for
    /// the next snapshot: call it once per second or so to see requests that are never answered
    /// ([`Oldest`](crate::Oldest)).
    #[must_use]
    pub fn health(&self) -> Health {
        let mut sum = Counters::default();
        let mut state = State::Empty;
        let mut first_error = None;
        let mut queues = Vec::with_capacity(self.lanes.len());
        for armed in &self.lanes {
            let lane = &armed.lane;
            let counters = lane.counters();
            sum.add(&counters);
            // Empty only if all lanes are, failed as soon as one is, else the most advanced state.
            state = match (state, lane.state()) {
                (State::Failed, _) | (_, State::Failed) => State::Failed,
                (State::Empty, other) | (other, State::Empty) => other,
                (one, other) => one.max(other),
            };
            // A queue that left because another failed is not the cause.
            if first_error.is_none() || lane.first_error().is_some_and(|e| !is_told_to_leave(&e)) {
                first_error = lane.first_error().or(first_error);
            }
            queues.push(QueueHealth {
                qid: lane.qid(),
                state: lane.state(),
                in_hand: lane.in_hand(),
                oldest: lane.look_at(|lane, tag| self.shared.has_waiting(lane, tag)),
                thread: armed.thread,
                pinned: armed.setup.pinned.clone(),
                io_flusher: armed.setup.io_flusher,
                ring: armed.ring.clone(),
                buffer_bytes: lane.buffers().0,
                pages: lane.buffers().1,
                counters,
            });
        }
        Health {
            state,
            first_error,
            counters: sum,
            queues,
        }
    }

    /// Waits until every thread has ended (the driver aborted all tags and no request is in hand, or a queue failed),
    /// or the thread of a failed queue lingers ([`Plan::linger`]). False after the timeout.
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.shared.wait(timeout, Running::is_over)
    }

    /// An eventfd, readable once every thread has ended or one lingers, for callers that poll.
    #[must_use]
    pub fn ended_fd(&self) -> BorrowedFd<'_> {
        self.shared.ended_fd.as_fd()
    }

    /// Makes [`moved_fd`](Self::moved_fd) readable once a queue's thread has served something. Idle threads are not woken
    /// for it, and busy ones notice it once.
    pub fn tell_when_moving(&self) {
        thread::drain_event(self.shared.moved_fd.as_fd());
        for armed in &self.lanes {
            armed.lane.tell_when_moving(&self.shared.moved_fd);
        }
    }

    /// An eventfd, for callers that poll: see [`tell_when_moving`](Self::tell_when_moving).
    #[must_use]
    pub fn moved_fd(&self) -> BorrowedFd<'_> {
        self.shared.moved_fd.as_fd()
    }

    /// Makes the threads leave now, without waiting for the driver's aborts. Requests in hand are not committed; the
    /// device's recovery policy decides what the driver does with them. Kernels before 6.16 may lose a request that
    /// arrives at that moment; its submitter then waits until the process has ended. Stop the device first, or call
    /// this only to end the process.
    pub fn leave(&self) {
        self.shared.leave();
    }

    /// Waits for the threads and joins them; rings, descriptor mappings and the char device are closed when it returns.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if a thread still serves: the server continues, and you may call it again.
    pub fn finish(&mut self, deadline: Duration) -> Result<Report, Error> {
        let until = deadline_in(deadline);
        let mut ended = self.wait(Some(deadline));
        if ended && self.shared.running().failed {
            self.leave();
            let left = until.saturating_duration_since(Instant::now());
            ended = self.shared.wait(Some(left), Running::have_ended);
        }
        if !ended {
            return Err(Error::TimedOut {
                what: "end",
                deadline,
            });
        }
        for thread in self.threads.drain(..) {
            // The end guard has recorded a panic in the health report already.
            let _ = thread.join();
        }
        Ok(Report {
            health: self.health(),
        })
    }
}

fn is_told_to_leave(error: &str) -> bool {
    error == WorkerError::Left.to_string()
}

impl<F> Job<F> {
    fn run<H>(self, report: &mpsc::Sender<ArmResult>, mut guard: EndGuard)
    where
        H: Handler + 'static,
        F: Fn(QueueId) -> H,
    {
        let (mut worker, armed) = match self.set_up_contained() {
            Ok(parts) => parts,
            Err(error) => {
                // Fails only if the owner has given up already.
                let _ = report.send((self.number, Err(error)));
                return;
            }
        };
        guard.lanes = armed.iter().map(|armed| armed.lane.clone()).collect();
        // An owner that has given up sends no START_DEV: nobody would ever abort the tags.
        let result = match report.send((self.number, Ok(armed))) {
            Ok(()) => caught(|| worker.run()),
            Err(_) => Some(Err(WorkerError::Left)),
        };
        match &result {
            Some(result) => worker.record_end(result),
            // Not a handler's panic but a defect of the engine.
            None => guard.tell_panic(),
        }
        if guard.has_failed() && !self.plan.linger.is_zero() {
            self.shared.linger(self.plan.linger);
        }
    }

    /// Sets the worker up on a thread that serves other devices, too, and that will drive it.
    fn attach<H>(
        self,
        report: &mpsc::Sender<ArmResult>,
        mut guard: EndGuard,
    ) -> Option<Box<dyn Hosted>>
    where
        H: Handler + 'static,
        F: Fn(QueueId) -> H,
    {
        let (worker, armed) = match self.set_up_contained() {
            Ok(parts) => parts,
            Err(error) => {
                let _ = report.send((self.number, Err(error)));
                return None;
            }
        };
        guard.lanes = armed.iter().map(|armed| armed.lane.clone()).collect();
        let guest = Guest::new(worker, guard);
        // The owner has given up: the guest leaves.
        report.send((self.number, Ok(armed))).ok()?;
        Some(Box::new(guest))
    }

    /// A panic while handlers are made fails this device, with the name of its queue, and no other device (L64).
    fn set_up_contained<H>(&self) -> Result<SetUp<H>, Error>
    where
        H: Handler + 'static,
        F: Fn(QueueId) -> H,
    {
        catch(|| self.set_up()).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            discard(panic);
            Err(Error::SetUpPanicked {
                qid: self.qids.first().copied().unwrap_or(QueueId::ZERO),
                message: text.unwrap_or_else(|| "no message".to_owned()),
            })
        })
    }

    fn set_up<H>(&self) -> Result<SetUp<H>, Error>
    where
        H: Handler + 'static,
        F: Fn(QueueId) -> H,
    {
        let parts = Parts {
            qids: &self.qids,
            share: self.share.as_ref(),
            device: &self.device,
            plan: &self.plan,
        };
        let setup = parts.set_up_thread();
        let port = parts.port::<H>()?;
        self.shared.wakers().push(port.wake_handle());
        let ring = port.describe();
        let leave = Arc::clone(&self.shared.leave);
        let (worker, lanes) = parts.worker(port, leave, |qid| (self.make)(qid))?;
        let armed = |lane| ArmedLane {
            lane,
            thread: self.thread,
            setup: setup.clone(),
            ring: ring.clone(),
        };
        Ok((worker, lanes.into_iter().map(armed).collect()))
    }
}
