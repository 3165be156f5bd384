//! A device backend that serves an NBD export.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nbd_client::{Address, BlockSizes, Export, TransmissionFlags, Uri};
use ublk_core::{DataMode, DeviceParams, Limits, OpenDevice};
use ublk_queue::{Plan, Server};

use crate::connect::{ConnectError, Connected, check_files, connect};
use crate::connector::Connector;
use crate::device::{Announce, Device, NEVER};
use crate::handler::NbdHandler;
use crate::options::{NbdOptions, Retry};
use crate::promise::{Promise, longest};
use crate::registered;
use crate::status::{Board, Status};

/// Block sizes that a block device supports: from a sector to a page.
const SECTOR: u32 = 512;
const PAGE: u32 = 4096;

/// Why an export cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The connection failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server's minimum block size is one that no block device has.
    #[error("the export has a minimum block size of {0} bytes; a block device has at most 4096")]
    MinimumBlockSize(u32),
    /// The server's largest request is shorter than a page.
    #[error("the export takes requests of at most {0} bytes; a block device has requests of 4096")]
    MaximumBlockSize(u32),
    /// The server or block devices do not support the requested block size.
    #[error(
        "a block size of {block} bytes is not possible: the export needs a power of two from {least} to 4096"
    )]
    BlockSize {
        /// The requested block size.
        block: u32,
        /// The smallest possible block size.
        least: u32,
    },
    /// The export is smaller than the device.
    #[error("the export has {has} bytes, fewer than the {wanted} of the device")]
    TooSmall {
        /// Size of the export in bytes.
        has: u64,
        /// Size of the device in bytes.
        wanted: u64,
    },
    /// The export is larger than any block device.
    #[error("the export has {0} bytes, more than a block device can have")]
    TooLarge(u64),
    /// The export is smaller than one block.
    #[error("the export has {0} bytes, which is less than one block")]
    Empty(u64),
}

/// A device with several connections cannot move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not moved: the device has several connections, which would use two servers at once for a time"
)]
pub struct SeveralConnections;

/// A connected export that can be served as a device.
#[derive(Debug)]
pub struct Nbd {
    device: Arc<Device>,
    limits: Limits,
    notes: Vec<String>,
}

impl Nbd {
    /// Connects to the export. Attempts are repeated until `by`, so that the server may start later.
    ///
    /// # Errors
    /// The last attempt's error, or the export cannot be a block device.
    pub fn open(options: &NbdOptions, by: Instant) -> Result<Self, OpenError> {
        let connected = first(options, by)?;
        let (limits, notes) = limits(&connected.export, options)?;
        let board = Arc::new(Board::new());
        let export = connected.export.clone();
        let connector = Connector::new(options, Arc::clone(&board), Some(connected));
        let device = Device {
            connector,
            board,
            export,
            size: AtomicU64::new(limits.size),
            promise: Mutex::new(Promise::of_limits(&limits)),
            request_seconds: options.request_timeout.as_secs().max(1),
            tls_records: options.tls_records.max(1),
            retry: AtomicU64::new(NEVER),
            gives_up: AtomicBool::new(false),
            moves: AtomicU64::new(0),
            stays: AtomicBool::new(false),
            home: Mutex::new(options.uri.clone()),
            announce: OnceLock::new(),
            wakers: Mutex::default(),
            queues: AtomicU64::new(1),
            max_io: AtomicU64::new(0),
        };
        device.set_retry(options.retry);
        Ok(Self {
            device: Arc::new(device),
            limits,
            notes,
        })
    }

    /// The device's limits.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// Notes for the user, such as that the device omits a part of the export.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Longest READ and WRITE that the server accepts, in bytes.
    #[must_use]
    pub fn max_io_bytes(&self) -> u32 {
        let sizes = self.device.export.block_sizes;
        sizes.unwrap_or(BlockSizes::DEFAULT).maximum
    }

    /// The handlers will serve a device that exists with these parameters: they are what it has promised, not what this export
    /// offers. An export that lacks some of it serves reads, and writes fail; so does any later one.
    pub fn serves(&self, params: &DeviceParams) {
        let promise = Promise::of_params(params);
        let mut now = self
            .device
            .promise
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *now = promise;
    }

    /// Why this export cannot serve a device of one queue with these parameters.
    #[must_use]
    pub fn misfit(&self, params: &DeviceParams) -> Option<String> {
        let promise = Promise::of_params(params);
        promise.broken_by(
            &self.device.export,
            (params.size, params.max_io_bytes),
            false,
        )
    }

    /// Whether each queue may have its own connection. Otherwise the device has one queue.
    #[must_use]
    pub fn allows_several_connections(&self) -> bool {
        let flags = self.device.flags();
        flags.contains(TransmissionFlags::CAN_MULTI_CONN)
    }

    /// Creates the handler of a queue, for an engine that its owner drives.
    ///
    /// # Errors
    /// The thread that reconnects cannot be created.
    pub fn handler(&self, queue: u16) -> io::Result<NbdHandler> {
        self.device.connector.start(false)?;
        let queues = u64::from(queue) + 1;
        self.device.queues.fetch_max(queues, Ordering::Relaxed);
        Ok(NbdHandler::new(Arc::clone(&self.device), queue.into()))
    }

    /// Arms a server with handlers for this export.
    ///
    /// # Errors
    /// Those of [`Server::arm_with`].
    pub fn arm(&self, device: OpenDevice, plan: Plan) -> Result<Server, ublk_queue::Error> {
        let shared = Arc::clone(&self.device);
        let threads = u64::from(plan.options.threads_per_queue.max(1));
        let queues = u64::from(device.geometry().queues()) * threads;
        shared.queues.store(queues, Ordering::Relaxed);
        let started = shared.connector.start(plan.gives_up_admin);
        started.map_err(ublk_queue::Error::Thread)?;
        let longest = u64::from(device.geometry().max_io_bytes());
        shared.max_io.store(longest, Ordering::Relaxed);
        if DataMode::of(device.geometry().features()).is_zero_copy() {
            // Known before the process gives up the right to make rings.
            let _ = registered::has_flags();
        }
        // With several threads per queue, each has its own connection.
        let number = AtomicUsize::new(0);
        Server::arm_with(device, plan, move |_| {
            let number = number.fetch_add(1, Ordering::Relaxed);
            NbdHandler::new(Arc::clone(&shared), number)
        })
    }

    /// Waits until each queue has its connection, once the handlers are armed. Returns how many lack one at the deadline: a
    /// server may allow several connections and yet admit fewer clients.
    #[must_use]
    pub fn unconnected(&self, by: Instant) -> usize {
        let queues = self.device.queues.load(Ordering::Relaxed);
        let queues = usize::try_from(queues).unwrap_or(usize::MAX);
        self.device.board.lacking(queues, by)
    }

    /// State of the connections.
    #[must_use]
    pub fn status(&self) -> Status {
        self.device.board.snapshot()
    }

    /// Changes the retry policy, also for requests that wait now.
    pub fn set_retry(&self, retry: Retry) {
        self.device.set_retry(retry);
        self.device.gives_up.store(false, Ordering::Relaxed);
        self.device.wake_all();
    }

    /// The device has this many bytes from now on: a server that comes back with a smaller export must have as many.
    pub fn set_size(&self, bytes: u64) {
        self.device.size.store(bytes, Ordering::Relaxed);
    }

    /// The current policy.
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.device.retry()
    }

    /// Makes requests fail at once while there is no connection, because the device is being forced to stop.
    pub fn give_up(&self) {
        self.device.gives_up.store(true, Ordering::Relaxed);
        self.device.wake_all();
    }

    /// Moves the device to another server, which must have the same data: the queue connects to the new server,
    /// finishes the requests in flight on its old connection, flushes, and continues on the new one. A queue that
    /// cannot connect keeps its old connection and retries. A queue whose new export does not match stays on its old
    /// connection, see [`Status::last_error`]. A queue without a connection continues on the new server.
    ///
    /// # Errors
    /// The device has several connections. They cannot move at the same moment, and meanwhile two servers with separate
    /// caches would serve parts of the device.
    pub fn move_to(&self, uri: Uri) -> Result<(), SeveralConnections> {
        if self.device.queues.load(Ordering::Relaxed) > 1 {
            return Err(SeveralConnections);
        }
        if uri == self.device.connector.uri() {
            return Ok(());
        }
        if uri != self.uri() {
            self.device.board.move_all();
        }
        self.device.connector.set_uri(uri);
        self.device.moves.fetch_add(1, Ordering::Release);
        self.device.wake_all();
        Ok(())
    }

    /// Gives up a move that has not come about.
    pub fn stay(&self) {
        // The queue decides: it may have moved meanwhile.
        self.device.stays.store(true, Ordering::Relaxed);
        self.device.moves.fetch_add(1, Ordering::Release);
        self.device.wake_all();
    }

    /// The server that the device moves to, until it has.
    #[must_use]
    pub fn moves_to(&self) -> Option<Uri> {
        let to = self.device.connector.uri();
        (to != self.uri()).then_some(to)
    }

    /// Calls this on the queue's thread before the device goes to another server: all requests on the old one are answered and
    /// flushed, or its connection is lost. If it fails the device stays where it is. It must not block; the first one counts.
    pub fn announce_moves(&self, announce: Announce) {
        let _ = self.device.announce.set(announce);
    }

    /// Checks whether this process may reconnect after it has given up its privileges, because a unix socket or the TLS
    /// files may belong to another user.
    ///
    /// # Errors
    /// EACCES, or the socket is gone; a file that cannot be read, by its name.
    pub fn check_access(&self) -> io::Result<()> {
        check_files(&self.uri(), self.device.connector.tls()).map_err(io::Error::other)?;
        match self.uri().address {
            Address::Unix(path) => rustix::fs::accessat(
                rustix::fs::CWD,
                &path,
                rustix::fs::Access::WRITE_OK,
                rustix::fs::AtFlags::EACCESS,
            )
            .map_err(Into::into),
            _ => Ok(()),
        }
    }

    /// The server that has the device's data.
    #[must_use]
    pub fn uri(&self) -> Uri {
        self.device.home()
    }
}

/// Makes the first connection.
fn first(options: &NbdOptions, by: Instant) -> Result<Connected, ConnectError> {
    const DELAY: Duration = Duration::from_millis(100);
    // First: no server that comes back makes them better.
    check_files(&options.uri, &options.tls)?;
    loop {
        let deadline = Instant::now() + options.connect_timeout;
        match connect(&options.uri, &options.tls, options.chunks, deadline) {
            Ok(connected) => return Ok(connected),
            Err(error) if error.may_pass() && Instant::now() < by => {
                std::thread::sleep(DELAY.min(by.saturating_duration_since(Instant::now())));
            }
            Err(error) => return Err(error),
        }
    }
}

/// The limits of a device for this export, within its block sizes (L73).
fn limits(export: &Export, options: &NbdOptions) -> Result<(Limits, Vec<String>), OpenError> {
    let sizes = export.block_sizes.unwrap_or(BlockSizes::DEFAULT);
    let least = sizes.minimum.max(SECTOR);
    let block = options.block_size.unwrap_or(least);
    if least > PAGE {
        return Err(OpenError::MinimumBlockSize(sizes.minimum));
    }
    if sizes.maximum < PAGE {
        return Err(OpenError::MaximumBlockSize(sizes.maximum));
    }
    if block < least || block > PAGE || !block.is_power_of_two() {
        return Err(OpenError::BlockSize { block, least });
    }
    let read_only = options.read_only;
    let wanted = options.size.unwrap_or(export.size);
    if wanted > export.size {
        let has = export.size;
        return Err(OpenError::TooSmall { has, wanted });
    }
    if i64::try_from(wanted).is_err() {
        return Err(OpenError::TooLarge(export.size));
    }
    let rest = wanted % u64::from(block);
    let size = wanted - rest;
    if size == 0 {
        return Err(OpenError::Empty(export.size));
    }
    let has = |flag| export.flags.contains(flag);
    let mut notes = Vec::new();
    if rest > 0 {
        notes.push(format!(
            "the last {rest} bytes of the export are not part of the device: they are less than a block of {block}"
        ));
    }
    if !read_only && has(TransmissionFlags::READ_ONLY) {
        notes.push("the export is read-only, and so is the device".to_owned());
    }
    let when = |flag, value| if has(flag) { value } else { 0 };
    let mut limits = Limits::new(size);
    limits.logical_block_size = block;
    limits.physical_block_size = sizes.preferred.clamp(block, PAGE);
    limits.optimal_io_size = match sizes.preferred > PAGE && sizes.preferred <= 32 << 20 {
        true => sizes.preferred,
        false => 0,
    };
    limits.read_only = read_only || has(TransmissionFlags::READ_ONLY);
    limits.volatile_cache = has(TransmissionFlags::SEND_FLUSH);
    limits.fua = limits.volatile_cache && has(TransmissionFlags::SEND_FUA);
    limits.rotational = has(TransmissionFlags::ROTATIONAL);
    let writes = !limits.read_only;
    if writes {
        let longest = longest(export, block);
        limits.max_discard = when(TransmissionFlags::SEND_TRIM, longest);
        limits.max_write_zeroes = when(TransmissionFlags::SEND_WRITE_ZEROES, longest);
    }
    limits.discard_granularity = block;
    Ok((limits, notes))
}
