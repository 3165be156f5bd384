//! What all queues of a device share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use nbd_client::{Export, TransmissionFlags, Uri};
use ublk_queue::port::Wake;

use crate::connector::Connector;
use crate::options::Retry;
use crate::promise::Promise;
use crate::status::Board;

/// Notes a device's next server where the device's later servers look. An error keeps the device where it is.
pub type Announce = Box<dyn Fn(&Uri) -> Result<(), String> + Send + Sync>;

/// What all queues of a device share.
pub(crate) struct Device {
    pub(crate) connector: Connector,
    pub(crate) board: Arc<Board>,
    pub(crate) export: Export,
    pub(crate) size: AtomicU64,
    pub(crate) promise: Mutex<Promise>,
    pub(crate) request_seconds: u64,
    /// TLS records after which a new connection with new keys replaces the current one.
    pub(crate) tls_records: u64,
    pub(crate) retry: AtomicU64,
    pub(crate) gives_up: AtomicBool,
    /// Number of times the device was told to move, or to stay.
    pub(crate) moves: AtomicU64,
    /// It was told to stay.
    pub(crate) stays: AtomicBool,
    /// The server that has the device's data: the one that it is on, or was on last. The connector connects to another one
    /// while the device moves.
    pub(crate) home: Mutex<Uri>,
    /// Told before the device goes to another server, and may refuse.
    pub(crate) announce: OnceLock<Announce>,
    pub(crate) queues: AtomicU64,
    /// Longest request in bytes; 0 while unknown.
    pub(crate) max_io: AtomicU64,
    pub(crate) wakers: Mutex<Vec<Arc<dyn Wake>>>,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("export", &self.export)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// The atomic encoding of a policy: seconds, or one of these.
const FOREVER: u64 = u64::MAX;
pub(crate) const NEVER: u64 = 0;

impl Device {
    pub(crate) const fn flags(&self) -> TransmissionFlags {
        self.export.flags
    }

    pub(crate) const fn request_seconds(&self) -> u64 {
        self.request_seconds
    }

    pub(crate) fn retry(&self) -> Retry {
        match self.retry.load(Ordering::Relaxed) {
            FOREVER => Retry::Forever,
            NEVER => Retry::Never,
            seconds => Retry::For(Duration::from_secs(seconds)),
        }
    }

    pub(crate) fn set_retry(&self, retry: Retry) {
        let kept = match retry {
            Retry::Forever => FOREVER,
            Retry::Never => NEVER,
            Retry::For(time) => time.as_secs().clamp(1, FOREVER - 1),
        };
        self.retry.store(kept, Ordering::Relaxed);
    }

    /// Registers a waker that every change of policy or server wakes.
    pub(crate) fn watched_by(&self, waker: Arc<dyn Wake>) {
        let wakers = self.wakers.lock();
        wakers.unwrap_or_else(PoisonError::into_inner).push(waker);
    }

    pub(crate) fn wake_all(&self) {
        let wakers = self.wakers.lock();
        for waker in wakers.unwrap_or_else(PoisonError::into_inner).iter() {
            waker.wake();
        }
    }

    /// The server that has the device's data.
    pub(crate) fn home(&self) -> Uri {
        let home = self.home.lock();
        home.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Moves the device's home, before the first request goes there.
    pub(crate) fn leaves_for(&self, uri: &Uri) -> Result<(), String> {
        let home = self.home();
        if *uri == home {
            return Ok(());
        }
        if let Some(announce) = self.announce.get() {
            announce(uri)?;
        }
        tracing::info!("leaves {home} for {uri}");
        let home = self.home.lock();
        home.unwrap_or_else(PoisonError::into_inner).clone_from(uri);
        Ok(())
    }

    /// Notes that a queue stays on its current server; later connections go there too.
    pub(crate) fn not_moved(&self, queue: usize, why: String) {
        let home = self.home();
        if self.connector.uri() != home {
            self.connector.set_uri(home);
        }
        self.board.moved(queue);
        tracing::error!("queue {queue}: {why}");
        self.board.failed(why);
    }

    pub(crate) fn moves(&self) -> u64 {
        self.moves.load(Ordering::Acquire)
    }

    pub(crate) fn gives_up(&self) -> bool {
        self.gives_up.load(Ordering::Relaxed)
    }

    /// Why an export found on reconnect must not be written to: it lacks something that the device has promised (L74).
    pub(crate) fn changed(&self, now: &Export) -> Option<String> {
        let size = self.size.load(Ordering::Relaxed);
        let max_io = self.max_io.load(Ordering::Relaxed);
        let several = self.queues.load(Ordering::Relaxed) > 1;
        let promise = *self.promise.lock().unwrap_or_else(PoisonError::into_inner);
        promise.broken_by(now, (size, max_io), several)
    }
}
