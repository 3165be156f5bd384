//! The server half of a device: workers on threads, their health, their end.

mod ending;
mod error;
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

use self::ending::{EndGuard, Running, ServerState};
use self::parts::{ThreadSetup, is_zoned, shares_memory};
use self::shared_threads::{Guest, Hosted};
use self::threads::{Assignment, assignments};
use crate::handler::{
    ClientShared, Direct, DirectShared, Handler, Inline, InlineShared, Mapped, Pool, Zoned,
};
use crate::health::{Counters, Health, QueueHealth, State};
use crate::panics::{catch, caught, discard};
use crate::polling::Polling;
use crate::port::Port;
use crate::port::{DescTable, RingPort};
use crate::worker::{LaneHandle, Share, Worker, WorkerError};

pub use self::error::Error;
pub(crate) use self::parts::Parts;
pub use self::plan::Plan;
pub use self::shared_threads::Threads;

/// What is left to say of a server that ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// Its last health.
    pub health: Health,
}

/// A device's queues being served.
///
/// # Drop
/// Dropping it waits for nothing. Before the device has been started the threads leave. One that is in use they serve on,
/// unseen, until the driver takes its queues back (STOP_DEV, DEL_DEV, QUIESCE_DEV) or the process ends: a ring that is
/// closed in a thread that lives on can lose a request that is under way, on kernels before 6.16, and whoever waits for
/// it then waits for ever. [`leave`](Self::leave) is for those who know better: it ends the rings at once, whatever is
/// under way.
pub struct Server {
    threads: Vec<JoinHandle<()>>,
    lanes: Vec<ArmedLane>,
    shared: Arc<ServerState>,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("lanes", &self.lanes.len())
            .finish_non_exhaustive()
    }
}

/// What a thread reports once the driver has its fetches.
struct ArmedLane {
    lane: LaneHandle,
    /// Which of the queue's threads it is.
    thread: u16,
    place: ThreadSetup,
    ring: String,
}

/// The number of an assignment, and how its thread fared.
type ArmResult = (usize, Result<Vec<ArmedLane>, Error>);

/// A worker whose tags are all with the driver, and what there is to say of its lanes.
type SetUp<H> = (Worker<RingPort, DescTable, H>, Vec<ArmedLane>);

/// What a worker's thread needs before it can make anything of its own.
struct Job<F> {
    /// The number of the assignment.
    number: usize,
    qids: Vec<QueueId>,
    /// Several threads on a queue: which of them this is, and its share.
    thread: u16,
    share: Option<Share>,
    device: OpenDevice,
    plan: Arc<Plan>,
    make: Arc<F>,
    shared: Arc<ServerState>,
}

impl Server {
    /// Serves a device with a blocking backend: on the queues' own threads if it is quick, else on a
    /// pool. Returns once the driver has taken the fetch of every tag of every queue, so that START_DEV
    /// can be sent.
    ///
    /// # Errors
    /// The first failure of any queue; the other threads have left by then.
    pub fn arm<B: Backend>(device: OpenDevice, plan: Plan, backend: Arc<B>) -> Result<Self, Error> {
        let zoned = is_zoned(device.geometry());
        if backend.limits().quick && zoned {
            return Self::arm_with(device, plan, move |_| {
                Zoned(Inline::new(Arc::clone(&backend)))
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

    /// Serves a device from memory of this process: where the plan is user copy or get-data, the driver copies
    /// to and from the backend's own memory.
    ///
    /// # Errors
    /// As for [`Server::arm`].
    pub fn arm_mapped<B: Mapped>(
        device: OpenDevice,
        plan: Plan,
        backend: Arc<B>,
    ) -> Result<Self, Error> {
        if is_zoned(device.geometry()) {
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

    /// Serves a device with a handler per queue, made on the thread that will call it. For a zoned device it is one with
    /// [`Handler::ZONES`].
    ///
    /// # Errors
    /// As for [`Server::arm`].
    pub fn arm_with<H, F>(device: OpenDevice, plan: Plan, make: F) -> Result<Self, Error>
    where
        H: Handler + 'static,
        F: Fn(QueueId) -> H + Send + Sync + 'static,
    {
        if shares_memory(device.geometry()) && !H::SHARED {
            return Self::arm_all(device, plan, move |qid| ClientShared(make(qid)));
        }
        Self::arm_all(device, plan, make)
    }

    fn arm_all<H, F>(device: OpenDevice, mut plan: Plan, make: F) -> Result<Self, Error>
    where
        H: Handler + 'static,
        F: Fn(QueueId) -> H + Send + Sync + 'static,
    {
        if plan.hosts.is_some() {
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
        };
        let (plan, make) = (Arc::new(plan), Arc::new(make));
        let (report, reports) = mpsc::channel::<ArmResult>();
        let threads = assignments.len();
        let mut waits_for = Vec::with_capacity(threads);
        let hosts = plan.hosts.clone().map(|threads| (threads.deal(), threads));
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
            if let Some((first, hosts)) = &hosts {
                let host = move || job.host(&report, guard);
                hosts.host(first.wrapping_add(n), Box::new(host));
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
        Ok(server)
    }

    /// Takes what each thread tells once it has armed; `waits_for` has the first queue of each.
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

    /// The device has another size in bytes: requests beyond it are refused. A larger one is said before the driver hears
    /// of it (UPDATE_SIZE, Linux 6.16), a smaller one after.
    pub fn set_size(&self, bytes: u64) {
        for armed in &self.lanes {
            armed.lane.set_size(bytes);
        }
    }

    /// A snapshot of the server's health. Takes no lock of the serving threads.
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
            // Empty only when all are; failed as soon as one is; else the furthest.
            state = match (state, lane.state()) {
                (State::Failed, _) | (_, State::Failed) => State::Failed,
                (State::Empty, other) | (other, State::Empty) => other,
                (one, other) => one.max(other),
            };
            // A queue that was told to leave because of another's failure is not the cause.
            if first_error.is_none() || lane.first_error().is_some_and(|e| !is_told_to_leave(&e)) {
                first_error = lane.first_error().or(first_error);
            }
            queues.push(QueueHealth {
                qid: lane.qid(),
                state: lane.state(),
                in_hand: lane.in_hand(),
                thread: armed.thread,
                pinned: armed.place.pinned.clone(),
                io_flusher: armed.place.io_flusher,
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

    /// Waits until every thread has ended: the driver aborted all tags and nothing is in hand, or a
    /// queue failed; or until a failed queue's thread lingers ([`Plan::linger`]). True if that is so; false after the
    /// timeout.
    #[must_use]
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        self.shared.wait(timeout, Running::is_over)
    }

    /// Readable (an eventfd) once every thread has ended or one lingers, for those who poll several things.
    #[must_use]
    pub fn ended_fd(&self) -> BorrowedFd<'_> {
        self.shared.ended_fd.as_fd()
    }

    /// Makes the threads leave now, without the driver's aborts. Requests in hand are not committed;
    /// what the driver does with them follows from the device's recovery policy. Kernels before 6.16 may lose one that
    /// comes at that moment, so that whoever sent it waits until the process has ended: stop the device first, or leave
    /// in order to end the process.
    pub fn leave(&self) {
        self.shared.leave();
    }

    /// Waits for the end and joins the threads; rings, descriptor mappings and the char device are gone
    /// when it returns.
    ///
    /// # Errors
    /// [`Error::TimedOut`] while a thread still serves: the server goes on, call again.
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
            // A panic is in the health report already, by the thread's end guard.
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
                // The receiver is gone only if the owner has given up already.
                let _ = report.send((self.number, Err(error)));
                return;
            }
        };
        guard.lanes = armed.iter().map(|armed| armed.lane.clone()).collect();
        // An owner that has given up will send no START_DEV: nobody would ever abort the tags.
        let result = match report.send((self.number, Ok(armed))) {
            Ok(()) => caught(|| worker.run()),
            Err(_) => Some(Err(WorkerError::Left)),
        };
        match &result {
            Some(result) => worker.record_end(result),
            // No handler's panic: a defect of the engine.
            None => guard.tell_panic(),
        }
        if guard.has_failed() && !self.plan.linger.is_zero() {
            self.shared.linger(self.plan.linger);
        }
    }

    /// The same on a thread that serves other devices too, which drives what this makes.
    fn host<H>(
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
        // An owner that has given up: the guest leaves.
        report.send((self.number, Ok(armed))).ok()?;
        Some(Box::new(guest))
    }

    /// A panic of what makes the handlers is the device's failure, told with its queue, and nobody else's (L64).
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
                message: text.unwrap_or_else(|| "without words".to_owned()),
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
        let place = parts.set_up_thread();
        let port = parts.port::<H>()?;
        self.shared.wakers().push(port.wake_handle());
        let ring = port.describe();
        let leave = Arc::clone(&self.shared.leave);
        let (worker, lanes) = parts.worker(port, leave, |qid| (self.make)(qid))?;
        let armed = |lane| ArmedLane {
            lane,
            thread: self.thread,
            place: place.clone(),
            ring: ring.clone(),
        };
        Ok((worker, lanes.into_iter().map(armed).collect()))
    }
}
