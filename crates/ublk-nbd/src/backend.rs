//! An export as the backend of a device.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nbd_client::{Address, BlockSizes, Export, TransmissionFlags, Uri};
use ublk_core::{Limits, OpenDevice};
use ublk_queue::{Plan, Server};

use crate::connect::{ConnectError, Connected, connect};
use crate::connector::Connector;
use crate::device::{Device, NEVER};
use crate::handler::NbdHandler;
use crate::options::{NbdOptions, Retry};
use crate::status::{Board, Status};

/// Block sizes of a block device: from a sector to a page.
const SECTOR: u32 = 512;
const PAGE: u32 = 4096;

/// Longest TRIM and WRITE_ZEROES: the block layer splits longer ones.
const LONGEST: u64 = 1 << 30;

/// Why an export cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server insists on blocks that no block device has.
    #[error("the export has a minimum block size of {0} bytes; a block device has at most 4096")]
    MinimumBlockSize(u32),
    /// The server takes less than a page at once.
    #[error("the export takes requests of at most {0} bytes; a block device has requests of 4096")]
    MaximumBlockSize(u32),
    /// A block size that the server does not take, or that no block device has.
    #[error(
        "a block size of {block} bytes is not possible: use a power of two from {least} to 4096"
    )]
    BlockSize {
        /// The one that was asked for.
        block: u32,
        /// The smallest possible one.
        least: u32,
    },
    /// The export is smaller than the device was made or is to be.
    #[error("the export has {has} bytes, fewer than the {wanted} of the device")]
    TooSmall {
        /// Bytes of the export.
        has: u64,
        /// Bytes of the device.
        wanted: u64,
    },
    /// Less than one block.
    #[error("the export has {0} bytes, which is less than one block")]
    Empty(u64),
}

/// A device with several connections does not move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "not moved: the device has several connections, which would use two servers at once for a time"
)]
pub struct SeveralConnections;

/// An export that is connected to and can be served as a device.
#[derive(Debug)]
pub struct Nbd {
    device: Arc<Device>,
    limits: Limits,
    notes: Vec<String>,
}

impl Nbd {
    /// Connects to the export. With `by` later than one attempt takes, attempts are repeated until then: the server may
    /// come up later.
    ///
    /// # Errors
    /// The last attempt's, and an export that no block device can be made of.
    pub fn open(options: &NbdOptions, by: Instant) -> Result<Self, OpenError> {
        let connected = first(options, by)?;
        let (limits, notes) = limits(&connected.export, options)?;
        let board = Arc::new(Board::new());
        let export = connected.export.clone();
        let connector = Connector::new(
            options.uri.clone(),
            options.connect_timeout,
            Arc::clone(&board),
            Some(connected),
        );
        let device = Device {
            connector,
            board,
            export,
            size: limits.size,
            block: limits.logical_block_size,
            read_only: limits.read_only,
            request_seconds: options.request_timeout.as_secs().max(1),
            retry: AtomicU64::new(NEVER),
            gives_up: AtomicBool::new(false),
            moves: AtomicU64::new(0),
            before: Mutex::default(),
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

    /// What the device can do.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// What a user should know, such as a part of the export that the device leaves out.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The longest READ and WRITE that the server takes, in bytes.
    #[must_use]
    pub fn max_io_bytes(&self) -> u32 {
        let sizes = self.device.export.block_sizes;
        sizes.unwrap_or(BlockSizes::DEFAULT).maximum
    }

    /// Whether each queue may have a connection of its own: a device has one queue otherwise.
    #[must_use]
    pub fn allows_several_connections(&self) -> bool {
        let flags = self.device.flags();
        flags.contains(TransmissionFlags::CAN_MULTI_CONN)
    }

    /// The handler of a queue, for an engine that is driven by its owner.
    ///
    /// # Errors
    /// No thread for later connections.
    pub fn handler(&self, queue: u16) -> io::Result<NbdHandler> {
        self.device.connector.start(false)?;
        let queues = u64::from(queue) + 1;
        self.device.queues.fetch_max(queues, Ordering::Relaxed);
        Ok(NbdHandler::new(Arc::clone(&self.device), queue.into()))
    }

    /// Serves a device with it.
    ///
    /// # Errors
    /// As for [`Server::arm_with`].
    pub fn arm(&self, device: OpenDevice, plan: Plan) -> Result<Server, ublk_queue::Error> {
        let shared = Arc::clone(&self.device);
        let threads = u64::from(plan.options.threads_per_queue.max(1));
        let queues = u64::from(device.geometry().queues()) * threads;
        shared.queues.store(queues, Ordering::Relaxed);
        let started = shared.connector.start(plan.gives_up_admin);
        started.map_err(ublk_queue::Error::Thread)?;
        let longest = u64::from(device.geometry().max_io_bytes());
        shared.max_io.store(longest, Ordering::Relaxed);
        // Threads of one queue have a connection each, too.
        let number = AtomicUsize::new(0);
        Server::arm_with(device, plan, move |_| {
            let number = number.fetch_add(1, Ordering::Relaxed);
            NbdHandler::new(Arc::clone(&shared), number)
        })
    }

    /// State of the connections.
    #[must_use]
    pub fn status(&self) -> Status {
        self.device.board.snapshot()
    }

    /// Changes what becomes of requests while the server cannot be reached, also of those that wait now.
    pub fn set_retry(&self, retry: Retry) {
        self.device.set_retry(retry);
        self.device.gives_up.store(false, Ordering::Relaxed);
        self.device.wake_all();
    }

    /// The policy in force.
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.device.retry()
    }

    /// From now on requests fail at once while there is no connection: the device is to end, whatever is lost.
    pub fn give_up(&self) {
        self.device.gives_up.store(true, Ordering::Relaxed);
        self.device.wake_all();
    }

    /// Moves the device to another server, which must have the same data: each queue connects to it, finishes what is in
    /// flight on its old connection, flushes that, and goes on with the new one. A queue whose new connection cannot be
    /// made keeps its old one and tries on; one whose new export is not like the old keeps the old one, see
    /// [`Status::last_error`].
    ///
    /// # Errors
    /// A device with several connections: they cannot move in one moment, and meanwhile two servers, whose caches need not
    /// agree, would serve parts of it.
    pub fn move_to(&self, uri: Uri) -> Result<(), SeveralConnections> {
        if self.device.queues.load(Ordering::Relaxed) > 1 {
            return Err(SeveralConnections);
        }
        if uri == self.uri() {
            return Ok(());
        }
        let before = self.uri();
        *self
            .device
            .before
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(before);
        self.device.connector.set_uri(uri);
        self.device.board.move_all();
        self.device.moves.fetch_add(1, Ordering::Release);
        self.device.wake_all();
        Ok(())
    }

    /// Whether this process may connect to the server again: its unix socket may belong to somebody else, which matters
    /// once privileges are given up. Other transports need none.
    ///
    /// # Errors
    /// EACCES, or the socket is gone.
    pub fn check_access(&self) -> io::Result<()> {
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

    /// The server that connections are made to.
    #[must_use]
    pub fn uri(&self) -> Uri {
        self.device.connector.uri()
    }
}

/// The first connection.
fn first(options: &NbdOptions, by: Instant) -> Result<Connected, ConnectError> {
    const DELAY: Duration = Duration::from_millis(100);
    loop {
        let deadline = Instant::now() + options.connect_timeout;
        match connect(&options.uri, deadline) {
            Ok(connected) => return Ok(connected),
            Err(
                ConnectError::Resolve { .. }
                | ConnectError::Connect { .. }
                | ConnectError::Handshake { .. },
            ) if Instant::now() < by => {
                std::thread::sleep(DELAY.min(by.saturating_duration_since(Instant::now())));
            }
            Err(error) => return Err(error),
        }
    }
}

/// The device that an export makes.
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
        limits.max_discard = when(TransmissionFlags::SEND_TRIM, LONGEST);
        limits.max_write_zeroes = when(TransmissionFlags::SEND_WRITE_ZEROES, LONGEST);
    }
    limits.discard_granularity = block;
    Ok((limits, notes))
}
