//! Issues control commands on a separate thread.
#![expect(
    unsafe_code,
    reason = "a controller promises that replies are the driver's"
)]

use crate::wait::deadline_in;
use crate::{CANCEL_GRACE, Command, Control, Controller, Error, Operation, Reply};
use core::time::Duration;
use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Threads that may be stuck in the kernel before further commands are refused.
const MAX_LOST: usize = 8;

/// How much later than the command's deadline its caller gives up: the grace for cancelling, and as much again for a
/// loaded machine.
const MARGIN: Duration = CANCEL_GRACE.saturating_mul(2);

/// Executes commands on the thread.
pub(crate) type Handler = Box<dyn FnMut(Command, Duration) -> Result<Reply, Error>>;

type Make = Arc<dyn Fn() -> Result<Handler, Error> + Send + Sync>;
type Answer = Result<Reply, Error>;

/// A [`Controller`] that issues its commands on a separate thread of this process.
///
/// The caller returns at its deadline even if the thread does not: a thread that is stuck in the kernel is left behind,
/// and the next command gets a new thread with its own ring. Commands are serialized; for an `info` while a `start` is
/// waiting, create two controllers. The value may be moved and dropped on any thread; dropping waits for nothing and
/// deletes nothing (L29).
///
/// # Hazard
/// **A process with an unfinished control command cannot exit.** Suppose the server's own process issues STOP or DEL
/// and is then killed (SIGKILL, or its queue threads die) with a request unanswered. Its exit waits for the STOP, the
/// STOP waits for the request, and the request fails only when the process has exited: only a reboot resolves this. The
/// same holds for START on kernels that scan for partitions inside it (before 7.0), and for zoned devices. Later
/// kernels scan after START. A process that opens the device then waits in the kernel for the scan, and the scan waits
/// for the server. So a server's own process must not open its device before it has answered the first reads, neither
/// to check that it is ready ([`Nodes::see_ready`](crate::nodes::Nodes::see_ready)) nor for anything else.
/// [`Command::Sync`] waits for requests in the same way. [`Command::NoScheduler`] does so in a child process that
/// inherits nothing of ours.
///
/// So in a process that also serves: let the queues answer everything before STOP and never kill it while it stops, or
/// issue the commands from another process (an agent), as programs that must survive `kill -9` do.
pub struct ControlThread {
    make: Make,
    /// The current thread.
    thread: Option<Thread>,
    /// Threads that have not answered in time, as long as they live.
    lost: Vec<Weak<()>>,
}

/// A thread that issues commands.
struct Thread {
    jobs: Sender<Job>,
    /// Dropped when the thread has ended.
    life: Weak<()>,
}

struct Job {
    command: Command,
    until: Instant,
    answer: SyncSender<Answer>,
}

impl ControlThread {
    /// Opens the control node on a new thread.
    ///
    /// # Errors
    /// As [`Control::open`], and [`Error::ControllerGone`] if no thread can be created or opening takes longer than
    /// `deadline`.
    pub fn start(deadline: Duration) -> Result<Self, Error> {
        Self::with(
            || {
                let mut control = Control::open()?;
                Ok(Box::new(move |command, deadline| {
                    control.call(command, deadline)
                }))
            },
            deadline,
        )
    }

    /// As [`ControlThread::start`], with another constructor of handlers, which runs on the new thread, and again on
    /// every thread that replaces a stuck one.
    ///
    /// # Errors
    /// The constructor's error, or [`Error::ControllerGone`].
    pub(crate) fn with<M>(make: M, deadline: Duration) -> Result<Self, Error>
    where
        M: Fn() -> Result<Handler, Error> + Send + Sync + 'static,
    {
        let make: Make = Arc::new(make);
        let thread = Some(spawn(&make, deadline)?);
        let lost = Vec::new();
        Ok(Self { make, thread, lost })
    }

    /// The current thread's queue; starts a new thread if the last one is lost.
    fn jobs(&mut self, command: &Command, deadline: Duration) -> Result<&Sender<Job>, Error> {
        // Threads that have ended since are no longer stuck.
        self.lost.retain(|life| life.strong_count() > 0);
        let most = match command.operation() {
            // Commands that end a device get room in addition to stuck ones.
            Operation::Stop | Operation::Delete => MAX_LOST + 2,
            _ => MAX_LOST,
        };
        if self.lost.len() >= most {
            return Err(Error::Exhausted {
                operation: command.operation(),
                pending: self.lost.len(),
            });
        }
        let thread = match self.thread.take() {
            Some(thread) => thread,
            None => spawn(&self.make, deadline)?,
        };
        Ok(&self.thread.insert(thread).jobs)
    }
}

// SAFETY: replies come from the `Control` on its thread.
unsafe impl Controller for ControlThread {
    fn call(&mut self, command: Command, deadline: Duration) -> Answer {
        let (answer, wait) = sync_channel(1);
        let job = Job {
            command,
            until: deadline_in(deadline),
            answer,
        };
        let sent = self.jobs(&command, deadline)?.send(job);
        let got = match sent {
            Ok(()) => wait.recv_timeout(deadline.saturating_add(MARGIN)),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        got.unwrap_or_else(|error| {
            // Stuck or dead: closing its channel makes it end once the kernel lets it go.
            let thread = self.thread.take();
            match error {
                RecvTimeoutError::Timeout => {
                    self.lost.extend(thread.map(|thread| thread.life));
                    Err(Error::TimedOut {
                        operation: command.operation(),
                        dev: command.dev(),
                        after: deadline,
                        abandoned: true,
                    })
                }
                RecvTimeoutError::Disconnected => Err(Error::ControllerGone {
                    message: format!("the control thread ended during {}", command.operation()),
                }),
            }
        })
    }
}

impl fmt::Debug for ControlThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlThread")
            .field("lost", &self.lost.len())
            .finish_non_exhaustive()
    }
}

/// Starts a thread and waits until its handler is created.
fn spawn(make: &Make, deadline: Duration) -> Result<Thread, Error> {
    let gone = |message: String| Error::ControllerGone { message };
    let make = Arc::clone(make);
    let (jobs, work) = channel();
    let (made, opened) = sync_channel(1);
    let token = Arc::new(());
    let life = Arc::downgrade(&token);
    let body = move || {
        match make() {
            Ok(handler) => {
                // If nobody waits any more, nobody sends work either.
                if made.send(Ok(())).is_ok() {
                    serve(handler, &work);
                }
            }
            Err(error) => drop(made.send(Err(error))),
        }
        drop(token);
    };
    std::thread::Builder::new()
        .name("ublk-ctrl".into())
        .spawn(body)
        .map_err(|e| gone(format!("cannot start the control thread: {e}")))?;
    match opened.recv_timeout(deadline) {
        Ok(result) => result.map(|()| Thread { jobs, life }),
        Err(RecvTimeoutError::Timeout) => {
            Err(gone(format!("opening took longer than {deadline:?}")))
        }
        Err(RecvTimeoutError::Disconnected) => Err(gone("the control thread panicked".into())),
    }
}

fn serve(mut handler: Handler, work: &Receiver<Job>) {
    while let Ok(job) = work.recv() {
        let left = job.until.saturating_duration_since(Instant::now());
        // A caller that gave up has dropped its receiver.
        if job.answer.send(handler(job.command, left)).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
