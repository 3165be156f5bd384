//! Configuration of a simulated driver.

use std::time::Duration;

use ublk_core::DataMode;
use ublk_queue::Polling;

/// How a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// STOP_DEV after the last request: requests are drained, then idle commands aborted.
    Stop,
    /// QUIESCE_DEV after this many requests: idle commands are aborted while others are in the
    /// server's hands; later commits complete their request and stay silent.
    Quiesce(usize),
}

/// Probabilities of events that occur in normal operation, in percent of the opportunities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// An enter takes only some of the commands.
    pub short_submit: u8,
    /// An enter returns early without completions, as after a signal.
    pub interrupt: u8,
    /// io_uring refuses a command with ENOMEM, EAGAIN or ECANCELED.
    pub transient: u8,
    /// The submission queue is full.
    pub full: u8,
    /// A completion of another generation, lane or tag appears.
    pub stale: u8,
    /// An operation on the file is short.
    pub short_io: u8,
    /// An operation on the file is interrupted (EINTR or EAGAIN).
    pub interrupted_io: u8,
    /// An operation on the file fails with EIO.
    pub failed_io: u8,
    /// An enter takes nothing and shows nothing: io_uring is short of requests or memory, or its CQ is full (EAGAIN,
    /// EBUSY, ENOMEM).
    pub busy: u8,
    /// An abort becomes visible at a later enter than the one in which the driver made it.
    pub late_aborts: u8,
}

/// A run of the simulated driver.
#[derive(Debug, Clone)]
pub struct Config {
    /// Determines everything that is random.
    pub seed: u64,
    /// How data is transferred.
    pub data: DataMode,
    /// Whether commands carry many tags.
    pub batch: bool,
    /// Size of the zones of a zoned device in bytes, or 0 for an ordinary one.
    pub zone_size: usize,
    /// READ and WRITE have metadata: eight bytes for each 512 of data, which only the client can check. In user copy.
    pub metadata: bool,
    /// Number of queues (lanes of the one worker).
    pub queues: u16,
    /// Tags per queue.
    pub depth: u16,
    /// Size of the device in bytes, a multiple of 4096.
    pub size: usize,
    /// Largest request in bytes.
    pub max_io_bytes: u32,
    /// Number of requests to send.
    pub requests: usize,
    /// Percentage of reads; the others are writes, with some flushes, discards and zeroes.
    pub read_percent: u8,
    /// The server stores the data in the simulated file, where durability after FLUSH and FUA is checked.
    pub file: bool,
    /// Percentage of requests whose data is in memory that the client shares with the server.
    pub shared_percent: u8,
    /// Automatic zero copy: percentage of requests whose pages the driver could not register.
    pub unregistered_percent: u8,
    /// Faults to inject.
    pub faults: Faults,
    /// What an engine does before it sleeps.
    pub polling: Polling,
    /// How the run ends.
    pub end: End,
    /// The driver refuses this fetch (lane, tag) with this result.
    pub refuse_fetch: Option<(u16, u16, i32)>,
    /// The driver refuses the n-th commit with this result; the server keeps the request.
    pub refuse_commit: Option<(usize, i32)>,
    /// `enter` fails permanently from this call on, with this errno.
    pub enter_fails: Option<(usize, i32)>,
    /// Descriptors are random bytes, as a broken driver could write them.
    pub hostile: bool,
    /// How long a sleeping engine may wait for another thread's answer before that counts as a hang.
    pub patience: Duration,
}

impl Config {
    /// A fault-free run of 1,000 mixed requests on one queue of 16 tags.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            data: DataMode::Copy,
            batch: false,
            zone_size: 0,
            metadata: false,
            queues: 1,
            depth: 16,
            size: 1 << 20,
            max_io_bytes: 64 << 10,
            requests: 1000,
            read_percent: 50,
            file: false,
            shared_percent: 0,
            unregistered_percent: 0,
            faults: Faults {
                short_submit: 0,
                interrupt: 0,
                transient: 0,
                full: 0,
                stale: 0,
                short_io: 0,
                interrupted_io: 0,
                failed_io: 0,
                busy: 0,
                late_aborts: 0,
            },
            polling: Polling::Off,
            end: End::Stop,
            refuse_fetch: None,
            refuse_commit: None,
            enter_fails: None,
            hostile: false,
            patience: Duration::from_secs(5),
        }
    }
}
