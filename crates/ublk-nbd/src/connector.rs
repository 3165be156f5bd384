//! Makes connections on a thread of its own, so that no queue waits for a server.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nbd_client::Uri;
use ublk_queue::port::Wake;

use crate::connect::{ConnectError, Connected, connect};
use crate::status::Board;

/// Delay after the first failed attempt; each further one doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(10);

/// Longest delay during the first [`PATIENCE`] of an outage: a server that restarts is found within 100 ms.
const SHORT: Duration = Duration::from_millis(80);

/// Longest delay later on.
const LONG: Duration = Duration::from_secs(1);

/// How long an outage counts as short.
const PATIENCE: Duration = Duration::from_secs(60);

/// Hands connections to queues.
#[derive(Debug)]
pub(crate) struct Connector {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    uri: Mutex<Uri>,
    timeout: Duration,
    board: Arc<Board>,
    queues: Mutex<Queues>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queues {
    mailboxes: Vec<Mailbox>,
    started: bool,
    ended: bool,
}

#[derive(Debug, Default)]
struct Mailbox {
    wanted: Option<Wanted>,
    ready: Option<Connected>,
    /// When the last one was made.
    made: Option<Instant>,
    /// How long the next one waits: a server that takes connections and breaks them is not asked without a pause.
    pause: Duration,
}

struct Wanted {
    wake: Arc<dyn Wake>,
    /// Set when the connection is ready, so that a queue looks without taking a lock.
    news: Arc<AtomicBool>,
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wanted").finish_non_exhaustive()
    }
}

impl Shared {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn uri(&self) -> Uri {
        let uri = self.uri.lock().unwrap_or_else(PoisonError::into_inner);
        uri.clone()
    }
}

impl Connector {
    /// Without its thread yet. `first` is a connection that exists already, for the first queue that asks.
    pub(crate) fn new(
        uri: Uri,
        timeout: Duration,
        board: Arc<Board>,
        first: Option<Connected>,
    ) -> Self {
        let shared = Arc::new(Shared {
            uri: Mutex::new(uri),
            timeout,
            board,
            queues: Mutex::new(Queues {
                mailboxes: vec![Mailbox {
                    ready: first,
                    ..Mailbox::default()
                }],
                started: false,
                ended: false,
            }),
            changed: Condvar::new(),
        });
        Self { shared }
    }

    /// Starts the thread, unless it runs. A process that is about to give up privileges does so first: the thread has
    /// those of its creator, but for CAP_SYS_ADMIN, which it gives up if told to.
    pub(crate) fn start(&self, gives_up_admin: bool) -> io::Result<()> {
        if std::mem::replace(&mut self.shared.queues().started, true) {
            return Ok(());
        }
        let worker = Arc::clone(&self.shared);
        let run = move || {
            ublk_queue::thread::set_io_flusher();
            if gives_up_admin && !ublk_queue::thread::give_up_admin() {
                tracing::warn!("the connecting thread cannot give up CAP_SYS_ADMIN");
            }
            worker.run();
        };
        let thread = thread::Builder::new().name("nbd-connect".to_owned());
        thread.spawn(run).map(drop)
    }

    /// Asks for a connection for a queue; `news` is set and the queue woken when it is ready.
    pub(crate) fn request(&self, queue: usize, wake: Arc<dyn Wake>, news: &Arc<AtomicBool>) {
        let mut queues = self.shared.queues();
        if queues.mailboxes.len() <= queue {
            queues.mailboxes.resize_with(queue + 1, Mailbox::default);
        }
        if let Some(mailbox) = queues.mailboxes.get_mut(queue) {
            if mailbox.ready.is_some() {
                news.store(true, Ordering::Release);
                wake.wake();
                return;
            }
            let news = Arc::clone(news);
            mailbox.wanted = Some(Wanted { wake, news });
        }
        drop(queues);
        self.shared.changed.notify_one();
    }

    /// A queue wants no connection any more.
    pub(crate) fn cancel(&self, queue: usize) {
        if let Some(mailbox) = self.shared.queues().mailboxes.get_mut(queue) {
            (mailbox.wanted, mailbox.ready) = (None, None);
        }
    }

    /// The connection that was made for a queue.
    pub(crate) fn take(&self, queue: usize) -> Option<Connected> {
        let mut queues = self.shared.queues();
        queues.mailboxes.get_mut(queue)?.ready.take()
    }

    pub(crate) fn uri(&self) -> Uri {
        self.shared.uri()
    }

    /// The server that connections are made to from now on.
    pub(crate) fn set_uri(&self, uri: Uri) {
        *self
            .shared
            .uri
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = uri;
        // Connections to the server before that nobody has taken yet.
        for mailbox in &mut self.shared.queues().mailboxes {
            mailbox.ready = None;
        }
        self.shared.changed.notify_one();
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        // Not joined: the thread may be in an attempt, which has a deadline.
        self.shared.queues().ended = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        let mut outage = Outage::default();
        while let Some((queue, pause)) = self.next() {
            if !pause.is_zero() {
                self.pause(pause);
            }
            let begun = Instant::now();
            let uri = self.uri();
            match connect(&uri, begun + self.timeout) {
                Ok(connected) => {
                    if let Some(errors) = outage.end() {
                        tracing::info!("connected to {} after {errors} attempts", connected.peer);
                    }
                    self.deliver(queue, connected, &uri);
                }
                Err(error) => {
                    let delay = outage.failed(&error);
                    self.board.failed(error.to_string());
                    self.pause(delay);
                }
            }
        }
    }

    /// The next queue that wants a connection, and how long to wait before; `None` at the end.
    fn next(&self) -> Option<(usize, Duration)> {
        let queues = self.queues();
        let idle = |queues: &mut Queues| {
            !queues.ended
                && queues
                    .mailboxes
                    .iter()
                    .all(|mailbox| mailbox.wanted.is_none())
        };
        let waited = self.changed.wait_while(queues, idle);
        let mut queues = waited.unwrap_or_else(PoisonError::into_inner);
        if queues.ended {
            return None;
        }
        let wants = |(_, mailbox): &(usize, &mut Mailbox)| mailbox.wanted.is_some();
        let (queue, mailbox) = queues.mailboxes.iter_mut().enumerate().find(wants)?;
        let held = mailbox
            .made
            .take()
            .is_none_or(|made| made.elapsed() >= LONG);
        mailbox.pause = match held {
            true => Duration::ZERO,
            false => (mailbox.pause * 2).clamp(FIRST_DELAY, LONG),
        };
        Some((queue, mailbox.pause))
    }

    /// Hands a connection to the queue that wants it, unless the device was moved meanwhile.
    fn deliver(&self, queue: usize, connected: Connected, uri: &Uri) {
        let mut queues = self.queues();
        // After the lock: whoever changes the server then drops what is ready.
        if self.uri() != *uri {
            return;
        }
        let Some(mailbox) = queues.mailboxes.get_mut(queue) else {
            return;
        };
        if let Some(Wanted { wake, news }) = mailbox.wanted.take() {
            mailbox.ready = Some(connected);
            mailbox.made = Some(Instant::now());
            news.store(true, Ordering::Release);
            wake.wake();
        }
    }

    /// Waits before the next attempt, or until the end or a change of the server.
    fn pause(&self, delay: Duration) {
        let uri = self.uri();
        let waits = |queues: &mut Queues| !queues.ended && self.uri() == uri;
        drop(self.changed.wait_timeout_while(self.queues(), delay, waits));
    }
}

/// A row of failed attempts.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    attempts: u32,
    delay: Duration,
    said: String,
    random: RandomState,
}

impl Outage {
    /// Notes a failure, logs the first of its kind, and gives the delay before the next attempt.
    fn failed(&mut self, error: &ConnectError) -> Duration {
        let since = *self.since.get_or_insert_with(Instant::now);
        self.attempts += 1;
        let text = error.to_string();
        if text != self.said {
            tracing::warn!("{text}; trying again");
            self.said = text;
        }
        let longest = match since.elapsed() < PATIENCE {
            true => SHORT,
            false => LONG,
        };
        self.delay = (self.delay * 2).clamp(FIRST_DELAY, longest);
        // Up to half of it less, so that clients of one server do not come all at once.
        let part = self.random.hash_one((since, self.attempts)) % 512;
        self.delay - self.delay * u32::try_from(part).unwrap_or(0) / 1024
    }

    /// Ends it: the number of failed attempts, `None` if there was none.
    fn end(&mut self) -> Option<u32> {
        let ended = std::mem::take(self);
        ended.since.map(|_| ended.attempts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L79 Attempts come at growing distances, first soon, never in a tight loop.
    #[test]
    fn l79_delays_grow_to_a_bound() {
        let mut outage = Outage::default();
        let error = ConnectError::Tls;
        let delays: Vec<_> = (0..20).map(|_| outage.failed(&error)).collect();
        assert!(delays.iter().all(|d| *d >= FIRST_DELAY / 2 && *d <= SHORT));
        assert!(delays[0] <= FIRST_DELAY && delays[19] > FIRST_DELAY * 2);
        assert_eq!(outage.end(), Some(20));
        assert_eq!(outage.end(), None);
        outage.since = Instant::now().checked_sub(PATIENCE);
        let later = (0..20).map(|_| outage.failed(&error)).max();
        assert!(later.is_some_and(|d| d > LONG / 2 && d <= LONG));
    }
}
