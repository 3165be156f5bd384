//! The words of `add`: backends, and what all devices have.

use super::Wait;
use crate::size;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use ublk_core::Mode;
use ublk_daemon::engine::Polling;
use ublk_daemon::wire;

/// What answers the requests of a new device.
#[derive(Debug, Subcommand)]
pub enum Backend {
    /// Accepts everything and keeps nothing: to measure the way to it
    Null {
        #[command(flatten)]
        add: Add,
        /// Size of the device
        #[arg(long, value_name = "SIZE", default_value = "250G", value_parser = size::parse)]
        size: u64,
    },
    /// Memory, taken as it is written and given back by discard
    Mem {
        #[command(flatten)]
        add: Add,
        /// Size of the device
        #[arg(long, value_name = "SIZE", value_parser = size::parse)]
        size: u64,
    },
    /// A regular file or a block device, or a part of it; direct I/O where the file allows it
    File {
        #[command(flatten)]
        add: Add,
        /// The file
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Make the file, sparse and of --size; one that is there is never touched
        #[arg(long, requires = "size", conflicts_with_all = ["offset", "length", "read_only"])]
        create: bool,
        /// Size of the file to make
        #[arg(long, value_name = "SIZE", requires = "create", value_parser = size::parse)]
        size: Option<u64>,
        /// Where in the file the device begins
        #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size::parse)]
        offset: u64,
        /// Size of the device [default: the rest of the file]
        #[arg(long, value_name = "SIZE", value_parser = size::parse)]
        length: Option<u64>,
        /// Go through the page cache even where direct I/O could be had
        #[arg(long)]
        buffered: bool,
        /// Offer no discard, even where the file could give storage back
        #[arg(long)]
        no_discard: bool,
        /// Also where it is mounted, or in use by another device: whoever writes beside it destroys data
        #[arg(long)]
        force: bool,
    },
}

/// What all devices have.
#[derive(Debug, Args)]
pub struct Add {
    /// Number of the device [default: the lowest free one]
    #[arg(short = 'n', long, value_name = "ID", value_parser = clap::value_parser!(u32).range(0..1 << 20))]
    pub id: Option<u32>,
    /// Hw queues, each served by a thread; the kernel makes at most one per CPU
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub queues: u16,
    /// Requests in flight on each queue
    #[arg(short, long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub depth: u16,
    /// Logical block size: 512 or 4096 [default: 512; file: as what is on it was written, else the smallest for direct I/O]
    #[arg(long, value_name = "SIZE", value_parser = small_size)]
    pub block_size: Option<u32>,
    /// Largest request: whole pages up to 32M
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = small_size)]
    pub max_io: u32,
    /// The I/O scheduler of the device: none, or what the kernel chooses (mq-deadline for one queue)
    #[arg(long, value_enum, default_value_t = Scheduler::None)]
    pub scheduler: Scheduler,
    /// How data travels between the kernel and the server; a mode that this kernel lacks is refused by the name
    /// of the feature
    #[arg(long, value_enum, default_value_t = DataMode::Auto)]
    pub data: DataMode,
    /// Whether commands to the driver go in batches
    #[arg(long, value_enum, default_value_t = Batch::Auto)]
    pub batch: Batch,
    /// Threads of each queue, for a backend whose work is more than one CPU can do (more than one: Linux 6.16)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub threads: u16,
    /// What a thread does before it sleeps: off, fixed or adaptive, the latter two with :MICROSECONDS if wanted
    #[arg(long, value_name = "HOW", default_value_t = Polling::Off)]
    pub poll: Polling,
    /// Buffers in huge pages where they are to be had: for large requests; one is taken whole by its first byte
    #[arg(long)]
    pub huge_pages: bool,
    /// Memory that clients do direct I/O from, so that nobody copies their data (Linux 7.1): a file of hugetlbfs or
    /// tmpfs that they map, or /proc/PID/fd/N of a memfd; requests from elsewhere go the way of --data
    #[arg(long, value_name = "PATH")]
    pub shm: Option<PathBuf>,
    /// The device refuses writes
    #[arg(long)]
    pub read_only: bool,
    /// Give the device a new server by itself when its own dies, with pauses that grow; needs --recovery
    #[arg(long)]
    pub supervise: bool,
    /// Lock the server's memory, so that it never waits for pages to be read in
    #[arg(long)]
    pub lock_memory: bool,
    /// A link to the device in /dev/ublkctl, kept across recovery; commands take it for the number
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// What becomes of the device when its server dies; not for mem, whose data dies with it
    #[arg(long, value_enum, default_value_t = Recovery::None)]
    pub recovery: Recovery,
    /// Make the device even on a kernel whose release is known for a crash in ADD_DEV (see `ublkctl doctor`), where
    /// that kernel is patched
    #[arg(long)]
    pub trust_kernel: bool,
    /// Stay in front until the device is gone; SIGINT and SIGTERM stop and delete it
    #[arg(long)]
    pub foreground: bool,
    /// File for the messages of the device's processes [default: ID.log in the run directory]
    #[arg(long, value_name = "FILE", conflicts_with = "foreground")]
    pub log: Option<PathBuf>,
    #[command(flatten)]
    pub wait: Wait,
}

/// Ways of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DataMode {
    /// What costs least by our measurements: zero copy for a file that is not in memory where the kernel has it,
    /// else copy
    Auto,
    /// The driver copies between the request and a buffer of the server (any kernel)
    Copy,
    /// The driver copies, to and from the memory of a mem device itself; two commands for each write (any kernel)
    GetData,
    /// The server copies, to and from the memory of a mem device itself; a system call for each request (any
    /// kernel)
    UserCopy,
    /// No copy: the driver registers the request's pages with the server's ring (Linux 6.16); not for mem, which
    /// has no file to forward requests to
    ZeroCopy,
    /// No copy, registered by a command of the server (Linux 6.15); not for mem
    ZeroCopyManual,
}

/// Recovery policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Recovery {
    /// It dies with its server: I/O fails, /dev/ublkbN goes
    None,
    /// I/O waits for the next server (`recover`); what the dead one had in hand fails
    Queue,
    /// I/O waits for the next server; what the dead one had in hand is sent again, so it may be done twice
    Reissue,
    /// I/O fails at once until there is a next server (Linux 6.13)
    Fail,
}

impl From<Recovery> for ublk_core::Recovery {
    fn from(policy: Recovery) -> Self {
        match policy {
            Recovery::None => Self::None,
            Recovery::Queue => Self::Queue,
            Recovery::Reissue => Self::Reissue,
            Recovery::Fail => Self::Fail,
        }
    }
}

/// The I/O scheduler of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scheduler {
    /// Requests come as they were made: what is behind the device sorts its own
    None,
    /// mq-deadline for one queue, none for several; its sorting costs a fifth of a small request
    Kernel,
}

impl From<Scheduler> for wire::Scheduler {
    fn from(scheduler: Scheduler) -> Self {
        match scheduler {
            Scheduler::None => Self::None,
            Scheduler::Kernel => Self::Kernel,
        }
    }
}

/// Whether commands go in batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Batch {
    /// A command carries many requests (Linux 7.0); not with get-data, which has no such command
    On,
    /// A command for each request
    Off,
    /// Off: batches save 6 % of a request's instructions at depth 64 and cost 10 % at depth 1
    Auto,
}

impl Add {
    /// That the way of data is left open.
    pub fn auto(&self) -> Option<ublk_core::DataMode> {
        matches!(self.data, DataMode::Auto).then_some(ublk_core::DataMode::Copy)
    }

    /// The mode asked for; copy without batches where that is left open.
    pub const fn mode(&self) -> Mode {
        use ublk_core::DataMode as Core;
        let data = match self.data {
            DataMode::Auto | DataMode::Copy => Core::Copy,
            DataMode::GetData => Core::GetData,
            DataMode::UserCopy => Core::UserCopy,
            DataMode::ZeroCopy => Core::ZeroCopy,
            DataMode::ZeroCopyManual => Core::ZeroCopyManual,
        };
        Mode::new(data).batched(matches!(self.batch, Batch::On))
    }
}

fn small_size(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text)?;
    u32::try_from(bytes).map_err(|_| format!("`{text}` is beyond 4 GiB"))
}
