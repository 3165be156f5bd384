//! The server role: owns the data rings of one device and nothing else.
//!
//! The server opens and describes its backend, is assigned a device, arms it, and serves it. It never starts, stops or
//! deletes the device: when asked to end, it asks the agent and continues to serve, so that STOP_DEV can write back
//! dirty data (L22). It exits when the driver has aborted every tag and no request is in flight. Without an agent it
//! continues to serve.

pub mod data_plane;
pub mod engine;
mod failures;
mod metrics;
mod recording;
pub mod sandbox;
#[cfg(feature = "kill-points")]
mod trap;
mod watch;

use self::engine::{Announce, Engine, Running};
use self::recording::Recordings;
use self::watch::Watch;
use crate::failure::Failure;
use crate::kill_point::kill_point;
use crate::link::listener::Listener;
use crate::link::message::{FromServer, ToServer};
use crate::link::peer::Role;
use crate::link::{LINK_VERSION, Link, LinkError};
use crate::log;
use crate::report::Health;
use crate::signals::Signals;
use crate::state::{Held, Store};
use crate::sys::{memory, poll, title};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use ublk_core::Features;

/// How long a server waits for the next message of an agent before the device serves.
const PATIENCE: Duration = Duration::from_secs(120);

/// Number of queues whose health fits into one message.
const QUEUES: usize = 128;

/// How long an agent may take to read the whole report.
const REPORT: Duration = Duration::from_secs(1);

/// How long joining the threads of an ended server may take.
const JOIN: Duration = Duration::from_secs(5);

/// Runs the role to its end. Returns the exit code: 0 for the normal end. Marks its device as served in `store`.
pub fn run(
    link: Link,
    engine: &mut dyn Engine,
    signals: Option<Signals>,
    store: Option<Store>,
) -> i32 {
    let link = Arc::new(link);
    let mut server = Server {
        for_moves: Arc::new(Mutex::new(Some(Arc::clone(&link)))),
        link: Some(link),
        signals,
        id: None,
        serving: None,
        store,
        recoverable: false,
        handed_over: false,
        live: false,
        attach: None,
        recordings: Recordings::default(),
    };
    match server.play(engine) {
        Ok(()) => 0,
        Err(failure) => {
            tracing::error!("{failure}");
            server.send(&FromServer::Failed(failure));
            1
        }
    }
}

/// Tells the agent where the device goes. What was sent reaches an agent that lives, even if this process dies next.
fn announce(link: Arc<Mutex<Option<Arc<Link>>>>) -> Announce {
    Box::new(move |uri| {
        let link = link.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let nobody = "the agent of the device is gone, and nobody else records it".to_owned();
        let moves = FromServer::Moves {
            uri: uri.to_owned(),
        };
        link.ok_or(nobody)?.send(&moves).map_err(|e| e.to_string())
    })
}

struct Server {
    link: Option<Arc<Link>>,
    /// The same, for the thread on which the device moves to another NBD server.
    for_moves: Arc<Mutex<Option<Arc<Link>>>>,
    signals: Option<Signals>,
    id: Option<u32>,
    /// Held as long as this process lives, for processes that cannot see it (L47).
    serving: Option<Held>,
    store: Option<Store>,
    /// The device outlives this process.
    recoverable: bool,
    /// The device was left to the next server.
    handed_over: bool,
    /// The agent has said that the device serves.
    live: bool,
    /// Where another agent can connect to a server that has lost its own.
    attach: Option<Listener>,
    recordings: Recordings,
}

impl Server {
    fn set_link(&mut self, link: Option<Link>) {
        self.link = link.map(Arc::new);
        let mut for_moves = self
            .for_moves
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for_moves.clone_from(&self.link);
    }

    /// Sends a message to the agent, if there is one.
    fn send(&mut self, message: &FromServer) {
        self.send_with(message, &[]);
    }

    fn send_with(&mut self, message: &FromServer, descriptors: &[BorrowedFd<'_>]) {
        let link = self.link.as_ref();
        if let Some(Err(e)) = link.map(|link| link.send_with(message, descriptors)) {
            tracing::warn!("cannot send to the agent: {e}");
        }
    }

    fn next(&self) -> Result<ToServer, Failure> {
        let link = self.link.as_ref().ok_or(LinkError::Closed);
        link.and_then(|link| link.recv(Instant::now() + PATIENCE))
            .map_err(|e| Failure::failed(format!("no message from the agent: {e}")))
    }

    fn play(&mut self, engine: &mut dyn Engine) -> Result<(), Failure> {
        let (spec, opening) = match self.next()? {
            ToServer::Describe {
                version,
                spec,
                opening,
            } if version == LINK_VERSION => (spec, opening),
            ToServer::Describe { version, .. } => {
                return Err(Failure::failed(LinkError::Version(version).to_string()));
            }
            ToServer::Quit => return Ok(()),
            other => return Err(out_of_turn(&other)),
        };
        if spec.serving.lock_memory {
            memory::lock().map_err(|e| {
                Failure::failed(format!("cannot lock the server's memory: {e}")).hint(
                    "raise the limit of locked memory: `ulimit -l unlimited`, or LimitMEMLOCK=infinity in a unit",
                )
            })?;
        }
        let passed = self.link.as_deref().map(Link::take_descriptors);
        let opened = engine.open(&spec, &opening, passed.unwrap_or_default())?;
        let (backing, descriptors): (Vec<_>, Vec<_>) = opened.store.into_iter().unzip();
        let described = FromServer::Described {
            version: LINK_VERSION,
            limits: opened.limits,
            backing,
        };
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        self.send_with(&described, &borrowed);
        drop(descriptors);
        let assignment = match self.next()? {
            ToServer::Assign(assignment) => assignment,
            ToServer::Quit => return Ok(()),
            other => return Err(out_of_turn(&other)),
        };
        let attach = self.link.as_deref().and_then(Link::take_descriptor);
        self.attach = attach.and_then(|fd| Listener::from_fd(fd).ok());
        self.id = Some(assignment.geometry.dev_id().get());
        log::journal::device(assignment.geometry.dev_id().get(), spec.name.as_deref());
        title::set(Role::Server.name(), self.id);
        self.serving = self.mark();
        self.recoverable = assignment
            .geometry
            .features()
            .contains(Features::USER_RECOVERY);
        kill_point("server:assigned");
        let mut running = engine.arm(&assignment)?;
        running.announce_moves(announce(Arc::clone(&self.for_moves)));
        kill_point("server:armed");
        self.send(&FromServer::Armed {
            pid: std::process::id(),
        });
        let end = self.serve(running.as_mut());
        // Threads with requests in flight are not told to leave one by one: they all end with the process, at once.
        // Otherwise Linux 6.12 may wait forever for a request of the last one.
        std::mem::forget(running);
        end
    }

    /// Serves until the driver has aborted all tags. An idle server sleeps without a timeout, except while its device is
    /// recorded (L55).
    fn serve(&mut self, running: &mut dyn Running) -> Result<(), Failure> {
        let mut watch = Watch::default();
        loop {
            watch.look(running, Instant::now(), |text| tracing::warn!("{text}"));
            let ready = self
                .wait(running, watch.next())
                .map_err(|e| Failure::failed(format!("cannot wait for events: {e}")))?;
            if ready.moved {
                watch.moved(Instant::now());
            }
            if ready.failures || ready.ended {
                running.say_failures();
            }
            if ready.ended {
                return self.end(running);
            }
            if ready.signal {
                self.asked_to_end();
            }
            if ready.agent {
                self.meet_agent();
            }
            if ready.link && self.listen(running) {
                return Ok(());
            }
            self.recordings.expire(running);
            if self.handed_over {
                return Ok(());
            }
        }
    }

    fn wait(&self, running: &dyn Running, deadline: Option<Instant>) -> io::Result<Ready> {
        let mut fds = vec![running.ended_fd()];
        fds.extend(self.signals.as_ref().map(AsFd::as_fd));
        fds.extend(self.link.as_deref().map(AsFd::as_fd));
        let failures = running.failures_fd();
        fds.extend(failures);
        let attach = self.attach.as_ref().filter(|_| self.link.is_none());
        fds.extend(attach.map(AsFd::as_fd));
        // While looks are due anyway, the descriptor may stay readable.
        let moved = running.moved_fd().filter(|_| deadline.is_none());
        fds.extend(moved);
        let until = [deadline, self.recordings.deadline()];
        let until = until.into_iter().flatten().min();
        let mut ready = poll::readable(&fds, until)?.into_iter();
        let mut next = || ready.next().unwrap_or(false);
        Ok(Ready {
            ended: next(),
            signal: self.signals.is_some() && next(),
            link: self.link.is_some() && next(),
            failures: failures.is_some() && next(),
            agent: self.link.is_none() && self.attach.is_some() && next(),
            moved: moved.is_some() && next(),
        })
    }

    /// Accepts a new agent in place of the lost one.
    fn meet_agent(&mut self) {
        let Some(link) = self.attach.as_ref().and_then(Listener::accept) else {
            return;
        };
        let version = LINK_VERSION;
        match link.send(&FromServer::Attached { version }) {
            Ok(()) => {
                tracing::info!("another agent manages the device");
                self.set_link(Some(link));
            }
            Err(e) => tracing::warn!("an agent connected and hung up: {e}"),
        }
    }

    fn asked_to_end(&mut self) {
        if let Some(signals) = &mut self.signals {
            signals.clear();
        }
        let id = self.id.unwrap_or_default();
        if self.link.is_some() {
            self.send(&FromServer::Leave {
                why: "the server got a signal".to_owned(),
            });
        } else if self.recoverable {
            self.hand_over();
        } else {
            tracing::warn!(
                "ignoring a signal: the agent is gone, and a server must not stop its own device; run `ublkctl delete {id}`"
            );
        }
    }

    /// Reports the health in as many messages as the queues need: hundreds of threads do not fit into one.
    fn report(&mut self, ticket: u64, mut health: Health) {
        let Some(link) = &self.link else { return };
        let deadline = Instant::now() + REPORT;
        let mut queues = std::mem::take(&mut health.queues);
        loop {
            let rest = queues.split_off(queues.len().min(QUEUES));
            let more = !rest.is_empty();
            health.queues = std::mem::replace(&mut queues, rest);
            let health = health.clone();
            let part = FromServer::Health {
                ticket,
                health,
                more,
            };
            if let Err(e) = link.send_by(&part, deadline) {
                return tracing::warn!("cannot send to the agent: {e}");
            }
            if !more {
                return;
            }
        }
    }

    /// Marks the device as served. If that fails, the device still serves, and only processes that see this one know
    /// it.
    fn mark(&self) -> Option<Held> {
        let held = self.store.as_ref()?.serve(self.id?);
        held.map_err(|e| tracing::warn!("{e}")).ok()
    }

    /// Leaves the device to its next server without answering the requests in flight; the recovery policy decides what
    /// happens to them.
    fn hand_over(&mut self) {
        if self.recoverable && !self.handed_over {
            self.handed_over = true;
            tracing::info!("left to the next server");
            self.send(&FromServer::Empty { health: None });
        }
    }

    /// Handles the agent's messages. Returns true if told to quit.
    fn listen(&mut self, running: &dyn Running) -> bool {
        loop {
            let Some(link) = &self.link else {
                return false;
            };
            match link.try_recv() {
                Ok(None) => return false,
                Ok(Some(ToServer::Live)) => self.serve_live(),
                Ok(Some(ToServer::Health { ticket })) => {
                    self.report(ticket, running.health());
                }
                Ok(Some(ToServer::Backend { ticket, command })) => {
                    running.command(&command);
                    self.report(ticket, running.health());
                }
                Ok(Some(ToServer::Metrics { ticket, level })) => {
                    if let Some(level) = level {
                        running.measure(level);
                    }
                    metrics::tell(link, ticket, running.metrics(), Instant::now() + REPORT);
                }
                Ok(Some(ToServer::Record { ticket, order })) => {
                    let piece = self.recordings.order(running, order);
                    recording::tell(link, ticket, piece, Instant::now() + REPORT);
                }
                Ok(Some(ToServer::Log { ticket, level })) => {
                    if let Ok(level) = level.parse() {
                        log::set_level(level);
                    }
                    self.report(ticket, running.health());
                }
                Ok(Some(ToServer::HandOver)) => self.hand_over(),
                Ok(Some(ToServer::Quit)) => return true,
                // An unexpected message does not end a device that serves.
                Ok(Some(other)) => tracing::warn!("{}", out_of_turn(&other)),
                Err(e @ (LinkError::Garbled(_) | LinkError::TooLong(_))) => tracing::warn!("{e}"),
                // The device was not announced yet, and no agent is left to start it.
                Err(_) if !self.live => return true,
                Err(e) => {
                    tracing::warn!(
                        "the agent is gone ({e}); the device keeps serving, `ublkctl recover {}` starts another agent",
                        self.id.unwrap_or_default()
                    );
                    self.set_link(None);
                }
            }
        }
    }

    fn serve_live(&mut self) {
        self.live = true;
        if let Some(file) = self.link.as_deref().and_then(Link::take_descriptor) {
            log::into(file.as_fd());
        }
        tracing::info!("device {} serves", self.id.unwrap_or_default());
    }

    fn end(&mut self, running: &mut dyn Running) -> Result<(), Failure> {
        if let Some(failure) = running.failure() {
            return Err(failure);
        }
        let mut health = running.finish(JOIN)?;
        // Nobody needs the queues any more, and hundreds of them would not fit into the message.
        health.queues.clear();
        tracing::info!("device {} is empty", self.id.unwrap_or_default());
        self.send(&FromServer::Empty {
            health: Some(health),
        });
        Ok(())
    }
}

struct Ready {
    ended: bool,
    signal: bool,
    link: bool,
    failures: bool,
    agent: bool,
    moved: bool,
}

fn out_of_turn(message: &ToServer) -> Failure {
    Failure::failed(format!("unexpected message from the agent: {message:?}"))
}

#[cfg(test)]
mod tests;
