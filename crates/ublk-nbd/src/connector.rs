//! Connects on its own thread, so that no queue waits for a server.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use nbd_client::Uri;
use ublk_queue::port::Wake;

use crate::connect::{ConnectError, Connected, connect};
use crate::options::{NbdOptions, TlsOptions};
use crate::status::Board;
use crate::transport::Work;

/// How long the thread may take to start.
const STARTS: Duration = Duration::from_secs(10);

/// Delay after the first failed attempt; it doubles with each further one.
const FIRST_DELAY: Duration = Duration::from_millis(10);

/// Longest delay during the first [`PATIENCE`] of an outage: a restarted server is found within 100 ms.
const SHORT: Duration = Duration::from_millis(80);

/// Longest delay after that.
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
    tls: TlsOptions,
    /// Whether replies in chunks are requested; `None` where they pay.
    chunks: Option<bool>,
    /// Whether the queues can take none.
    never_chunks: AtomicBool,
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
    /// When the last connection was made.
    made: Option<Instant>,
    /// Delay before the next connection, so that a server which accepts and breaks connections is not hammered.
    pause: Duration,
}

struct Wanted {
    wake: Arc<dyn Wake>,
    /// Set when the connection is ready, so that the queue can check without taking a lock.
    news: Arc<AtomicBool>,
}

impl std::fmt::Debug for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wanted").finish_non_exhaustive()
    }
}

impl Queues {
    /// Threads to start for connections that no queue has taken yet.
    fn works(&mut self) -> impl Iterator<Item = Work> {
        let ready = self.mailboxes.iter_mut().filter_map(|m| m.ready.as_mut());
        ready.filter_map(|connected| connected.work.take())
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
    /// The thread is not started yet. The first queue that asks gets `first`, an existing connection.
    pub(crate) fn new(options: &NbdOptions, board: Arc<Board>, first: Option<Connected>) -> Self {
        let shared = Arc::new(Shared {
            uri: Mutex::new(options.uri.clone()),
            tls: options.tls.clone(),
            chunks: options.chunks,
            never_chunks: AtomicBool::new(false),
            timeout: options.connect_timeout,
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

    /// Starts the thread, unless it runs. A process that gives up privileges calls this before, because the thread
    /// inherits them. The thread has dropped CAP_SYS_ADMIN, if `gives_up_admin` is set, when this returns: later the caller may
    /// forbid it the system call.
    ///
    /// # Errors
    /// There is no thread, or it keeps what it should drop.
    pub(crate) fn start(&self, gives_up_admin: bool) -> io::Result<()> {
        if std::mem::replace(&mut self.shared.queues().started, true) {
            return Ok(());
        }
        let started = self.spawn(gives_up_admin);
        if started.is_err() {
            self.shared.queues().started = false;
        }
        started
    }

    /// Creates the thread and waits until it has given up what it should.
    fn spawn(&self, gives_up_admin: bool) -> io::Result<()> {
        let worker = Arc::clone(&self.shared);
        // Started by the thread, the first connection's own has the same privileges.
        let works: Vec<_> = worker.queues().works().collect();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let run = move || {
            ublk_queue::thread::set_io_flusher();
            let given_up = !gives_up_admin || ublk_queue::thread::give_up_admin();
            let _ = ready.send(given_up);
            if !given_up {
                return;
            }
            for work in works {
                if let Err(e) = work.start() {
                    tracing::error!("no thread for the TLS of the first connection: {e}");
                }
            }
            worker.run();
        };
        let thread = thread::Builder::new().name("nbd-connect".to_owned());
        thread.spawn(run)?;
        match is_ready.recv_timeout(STARTS) {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::Error::other(
                "the connecting thread cannot give up CAP_SYS_ADMIN",
            )),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Requests a connection for a queue; when it is ready, sets `news` and wakes the queue.
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

    /// Cancels a queue's request for a connection.
    pub(crate) fn cancel(&self, queue: usize) {
        if let Some(mailbox) = self.shared.queues().mailboxes.get_mut(queue) {
            (mailbox.wanted, mailbox.ready) = (None, None);
        }
    }

    /// Takes the connection that was made for a queue.
    pub(crate) fn take(&self, queue: usize) -> Option<Connected> {
        let mut queues = self.shared.queues();
        queues.mailboxes.get_mut(queue)?.ready.take()
    }

    pub(crate) fn uri(&self) -> Uri {
        self.shared.uri()
    }

    /// Requests no replies in chunks from now on.
    pub(crate) fn without_chunks(&self) {
        // Relaxed: the queue that calls asks for its connection after this, and the lock orders that.
        self.shared.never_chunks.store(true, Ordering::Relaxed);
        for mailbox in &mut self.shared.queues().mailboxes {
            let has_chunks = |connected: &mut Connected| connected.export.framing.has_chunks();
            if let Some(connected) = mailbox.ready.take_if(has_chunks) {
                connected.close();
            }
        }
    }

    /// Files and server name for TLS.
    pub(crate) fn tls(&self) -> &TlsOptions {
        &self.shared.tls
    }

    /// Sets the server for all further connections.
    pub(crate) fn set_uri(&self, uri: Uri) {
        *self
            .shared
            .uri
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = uri;
        // Drop connections to the previous server that no queue has taken yet.
        for mailbox in &mut self.shared.queues().mailboxes {
            mailbox.ready = None;
        }
        self.shared.changed.notify_one();
    }
}

impl Drop for Connector {
    fn drop(&mut self) {
        // Do not join the thread: it may be in an attempt, which has a deadline.
        let mut queues = self.shared.queues();
        queues.ended = true;
        for mailbox in &mut queues.mailboxes {
            if let Some(connected) = mailbox.ready.take() {
                connected.close();
            }
        }
        drop(queues);
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
            let chunks = match self.never_chunks.load(Ordering::Relaxed) {
                true => Some(false),
                false => self.chunks,
            };
            let made = connect(&uri, &self.tls, chunks, begun + self.timeout);
            match made.and_then(Connected::started) {
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

    /// The next queue that needs a connection and the delay before the attempt; `None` at the end.
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

    /// Hands a connection to its queue, unless the device has moved meanwhile.
    fn deliver(&self, queue: usize, connected: Connected, uri: &Uri) {
        let mut queues = self.queues();
        // Checked under the lock: a later change of the server drops the connection from the mailbox.
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

    /// Waits for the delay, the end, or a change of the server.
    fn pause(&self, delay: Duration) {
        let uri = self.uri();
        let waits = |queues: &mut Queues| !queues.ended && self.uri() == uri;
        drop(self.changed.wait_timeout_while(self.queues(), delay, waits));
    }
}

/// A series of failed attempts.
#[derive(Debug, Default)]
struct Outage {
    since: Option<Instant>,
    attempts: u32,
    delay: Duration,
    said: String,
    random: RandomState,
}

impl Outage {
    /// Records a failure, logs the first of its kind, and returns the delay before the next attempt.
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
        // Subtract up to half at random, so that a server's clients do not all reconnect at once.
        let part = self.random.hash_one((since, self.attempts)) % 512;
        self.delay - self.delay * u32::try_from(part).unwrap_or(0) / 1024
    }

    /// Ends the outage and returns the number of failed attempts; `None` if there was none.
    fn end(&mut self) -> Option<u32> {
        let ended = std::mem::take(self);
        ended.since.map(|_| ended.attempts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::TlsSetupError;

    /// L79 Delays start short, grow to a bound, and are never zero.
    #[test]
    fn l79_delays_grow_to_a_bound() {
        let mut outage = Outage::default();
        let error = ConnectError::from(TlsSetupError::NoAuthority);
        let delays: Vec<_> = (0..20).map(|_| outage.failed(&error)).collect();
        assert!(delays.iter().all(|d| *d >= FIRST_DELAY / 2 && *d <= SHORT));
        assert!(delays[0] <= FIRST_DELAY && delays[19] > FIRST_DELAY * 2);
        assert_eq!(outage.end(), Some(20));
        assert_eq!(outage.end(), None);
        outage.since = Instant::now().checked_sub(PATIENCE);
        let later = (0..20).map(|_| outage.failed(&error)).max();
        assert!(later.is_some_and(|d| d > LONG / 2 && d <= LONG));
    }

    /// Effective capabilities of threads of this process, as the kernel's bit mask, by the threads' name.
    fn effective(name: &str) -> Vec<u64> {
        let tasks = std::fs::read_dir("/proc/self/task").expect("proc");
        let status = |task: std::io::Result<std::fs::DirEntry>| {
            std::fs::read_to_string(task.ok()?.path().join("status")).ok()
        };
        let of = |text: String| {
            let field = |key| text.lines().find_map(|line| line.strip_prefix(key));
            let caps = field("CapEff:")?.trim();
            (field("Name:")?.trim() == name).then(|| u64::from_str_radix(caps, 16).expect("hex"))
        };
        tasks.filter_map(status).filter_map(of).collect()
    }

    /// The caller may forbid the system call as soon as it has the thread.
    #[test]
    fn the_thread_has_given_up_when_it_is_started() {
        const CAP_SYS_ADMIN: u64 = 1 << 21;
        let options = NbdOptions::new("nbd+unix:///?socket=none".parse().expect("a URI"));
        for _ in 0..20 {
            let connector = Connector::new(&options, Arc::new(Board::new()), None);
            connector.start(true).expect("a thread");
            let all = effective("nbd-connect");
            assert!(all.iter().all(|caps| caps & CAP_SYS_ADMIN == 0), "{all:x?}");
            assert!(!all.is_empty());
        }
    }
}
