//! The arguments of `add`: backends, and options common to all devices.

use super::Wait;
use super::fault::Faults;
use crate::size;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Arg, Args, Subcommand, ValueEnum};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use ublk_core::mode::UnknownMode;
use ublk_core::{DataMode, Mode, Recovery};
use ublk_daemon::failure::Failure;
use ublk_daemon::server::data_plane::Polling;
use ublk_daemon::spec;
use ublk_daemon::spec::{Integrity, Retry, TlsOptions, ZoneLayout};
use ublk_metrics::Level;

/// The heading of options that only the block layer reads.
const PARAMETERS: &str = "Parameters of the block device";

/// The heading of options of zoned devices.
const ZONES: &str = "Zoned devices (Linux 6.6)";

/// Completes the help of `--block-size` with the backend's default.
fn block_default(arg: Arg, default: &str) -> Arg {
    arg.help(format!(
        "Logical block size: 512 or 4096 [default: {default}]"
    ))
}

/// What answers the requests of a new device.
#[derive(Debug, Subcommand)]
pub enum Backend {
    /// Completes requests without data: for measuring the path to the server
    #[command(mut_arg("block_size", |arg| block_default(arg, "512")))]
    Null {
        #[command(flatten)]
        add: Add,
        /// Size of the device
        #[arg(long, value_name = "SIZE", default_value = "250G", value_parser = size::parse)]
        size: u64,
    },
    /// Memory, allocated on write and freed by discard
    #[command(mut_arg("block_size", |arg| block_default(arg, "512")))]
    Mem {
        #[command(flatten)]
        add: Add,
        /// Size of the device
        #[arg(long, value_name = "SIZE", value_parser = size::parse)]
        size: u64,
    },
    /// Memory whose requests are slow, or fail, by a plan: to test file systems, RAID, applications
    Fault {
        #[command(flatten)]
        add: Add,
        /// Size of the device
        #[arg(long, value_name = "SIZE", value_parser = size::parse)]
        size: u64,
        #[command(flatten)]
        faults: Faults,
    },
    /// A regular file or a block device, or a part of it; direct I/O where the file allows it
    #[command(mut_arg("block_size", |arg| block_default(arg, "that of its contents, else the smallest for direct I/O")))]
    File {
        #[command(flatten)]
        add: Add,
        /// The file
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// Create a sparse file of --size; an existing file is never touched
        #[arg(long, requires = "size", conflicts_with_all = ["offset", "length", "read_only"])]
        create: bool,
        /// Size of the file to create
        #[arg(long, value_name = "SIZE", requires = "create", value_parser = size::parse)]
        size: Option<u64>,
        /// Offset in the file at which the device begins
        #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size::parse)]
        offset: u64,
        /// Size of the device [default: the rest of the file]
        #[arg(long, value_name = "SIZE", value_parser = size::parse)]
        length: Option<u64>,
        /// Use the page cache even if direct I/O is available
        #[arg(long)]
        buffered: bool,
        /// Do not offer discard, even if the file supports it
        #[arg(long)]
        no_discard: bool,
        /// Proceed even if the file is mounted or serves another device; two writers corrupt its data
        #[arg(long)]
        force: bool,
        /// File with the integrity metadata, which is made if there is none [default: PATH.integrity]
        #[arg(long, value_name = "PATH", requires = "integrity")]
        integrity_file: Option<PathBuf>,
    },
    /// Several files or block devices, one after the other
    Linear {
        #[command(flatten)]
        add: Add,
        #[command(flatten)]
        files: Files,
    },
    /// Several files or block devices that are dealt chunks in turn
    Stripe {
        #[command(flatten)]
        add: Add,
        #[command(flatten)]
        files: Files,
        /// Size of a chunk, a power of two from 4K
        #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = small_size)]
        chunk: u32,
    },
    /// An export of an NBD server, which may go away and come back
    #[command(mut_arg("block_size", |arg| block_default(arg, "the server's minimum, at least 512")))]
    Nbd {
        #[command(flatten)]
        add: Add,
        /// The export: `nbd://HOST:PORT/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`; nbds and nbds+unix with TLS
        #[arg(value_name = "URI")]
        uri: String,
        /// How long requests wait for a server that went away before they fail: SECONDS, forever or never
        #[arg(long, value_name = "POLICY", default_value_t = Retry::default())]
        retry: Retry,
        /// Seconds within which the server must answer a request, else the connection counts as lost
        #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=86_400))]
        request_timeout: u32,
        /// Wait this many seconds for the server to come up before `add` fails
        #[arg(long, value_name = "SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=86_400))]
        wait_for_server: u32,
        #[command(flatten)]
        tls: Tls,
    },
}

/// How an NBD server is verified, and how the client proves itself to it.
#[derive(Debug, Args)]
pub struct Tls {
    /// For nbds:// and nbds+unix://: the certificates (PEM) of the authorities that may sign the server's
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// The client's certificate (PEM), for a server that demands one
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The private key of --tls-cert (PEM, not encrypted)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The name that the server's certificate must contain [default: the host of the URI; unix sockets: localhost]
    #[arg(long, value_name = "NAME")]
    tls_hostname: Option<String>,
}

impl Tls {
    /// The same with absolute paths, which mean the same to every process of a device.
    ///
    /// # Errors
    /// A path that cannot be made absolute.
    pub fn options(&self) -> Result<TlsOptions, Failure> {
        let absolute = |path: &Option<PathBuf>| absolute(path.as_deref());
        Ok(TlsOptions {
            ca: absolute(&self.tls_ca)?,
            certificate: absolute(&self.tls_cert)?,
            key: absolute(&self.tls_key)?,
            hostname: self.tls_hostname.clone(),
        })
    }
}

/// The members of a device over several files.
#[derive(Debug, Args)]
pub struct Files {
    /// The members, in order: files or block devices, or parts of them; nothing is redundant, so the device is lost with
    /// any of them
    #[arg(value_name = "FILE[:OFFSET:LENGTH]", required = true)]
    pub files: Vec<MemberPath>,
    /// Use the page cache even if direct I/O is available
    #[arg(long)]
    pub buffered: bool,
    /// Do not offer discard, even if all members support it
    #[arg(long)]
    pub no_discard: bool,
    /// Proceed even if a member is mounted or serves another device; two writers corrupt its data
    #[arg(long)]
    pub force: bool,
}

/// A member as it is written: `FILE`, `FILE:OFFSET` or `FILE:OFFSET:LENGTH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberPath {
    /// The file.
    pub path: PathBuf,
    /// Where in it the member begins, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub length: Option<u64>,
}

impl FromStr for MemberPath {
    type Err = String;

    /// Names may have colons: a file that exists is meant, else the window is what looks like sizes at the end.
    fn from_str(text: &str) -> Result<Self, String> {
        if Path::new(text).exists() {
            return Ok(Self {
                path: text.into(),
                offset: 0,
                length: None,
            });
        }
        let mut parts = text.rsplitn(3, ':');
        let sizes = [parts.next(), parts.next()].map(|part| part.map(size::parse));
        let (path, offset, length) = match (sizes, parts.next()) {
            ([Some(Ok(length)), Some(Ok(offset))], Some(path)) => (path, offset, Some(length)),
            ([Some(Ok(offset)), Some(_)], _) => {
                let path = text.rsplit_once(':').map_or(text, |(path, _)| path);
                (path, offset, None)
            }
            _ => (text, 0, None),
        };
        if path.is_empty() {
            return Err(format!("`{text}` names no file: give FILE:OFFSET:LENGTH"));
        }
        Ok(Self {
            path: path.into(),
            offset,
            length,
        })
    }
}

/// A path as every process of the device sees it.
///
/// # Errors
/// There is no current directory.
pub fn absolute(path: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))
    };
    path.map(absolute).transpose()
}

/// Options common to all devices.
#[derive(Debug, Args)]
pub struct Add {
    /// Number of the device [default: the lowest free one]
    #[arg(short = 'n', long, value_name = "ID", value_parser = clap::value_parser!(u32).range(0..1 << 20))]
    pub id: Option<u32>,
    /// Hardware queues, each served by a thread; the kernel creates at most one per CPU
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub queues: u16,
    /// Requests in flight on each queue
    #[arg(short, long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub depth: u16,
    /// Logical block size: 512 or 4096
    #[arg(long, value_name = "SIZE", value_parser = small_size)]
    pub block_size: Option<u32>,
    /// Largest request, a multiple of the page size, at most 32M
    #[arg(long, value_name = "SIZE", default_value = "1M", value_parser = small_size)]
    pub max_io: u32,
    /// I/O scheduler of the device: none, or the kernel's choice (mq-deadline for one queue)
    #[arg(long, value_enum, default_value_t = Scheduler::None)]
    pub scheduler: Scheduler,
    /// How data is moved between the kernel and the server; a mode that this kernel lacks is refused, naming the
    /// missing feature
    #[arg(long, default_value = "auto", value_parser = word::<Data>(&DATA))]
    pub data: Data,
    /// Whether commands to the driver are sent in batches
    #[arg(long, value_enum, default_value_t = Batch::Auto)]
    pub batch: Batch,
    /// Threads per queue, for a backend that needs more than one CPU (more than one: Linux 6.16)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub threads: u16,
    /// Serve all queues together from this many threads, instead of one each
    #[arg(long, value_name = "N", conflicts_with = "threads", value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub total_threads: Option<u16>,
    /// Poll before a thread sleeps: off, fixed or adaptive; fixed and adaptive take an optional :MICROSECONDS
    #[arg(long, value_name = "HOW", default_value_t = Polling::Off)]
    pub poll: Polling,
    /// Allocate buffers in huge pages if available, for large requests; touching one byte allocates a whole huge page
    #[arg(long)]
    pub huge_pages: bool,
    /// Measure from the start: off, counters (batch sizes, polls) or latencies; `ublkctl metrics` changes it later
    #[arg(long, value_name = "LEVEL", default_value_t = Level::Off)]
    pub metrics: Level,
    /// Memory shared with clients, whose direct I/O from it is not copied (Linux 7.1): a file on hugetlbfs or tmpfs
    /// that they map, or /proc/PID/fd/N of a memfd; requests from other memory use the mode of --data
    #[arg(long, value_name = "PATH")]
    pub shm: Option<PathBuf>,
    /// Only read the memory shared with clients: what they write is not copied, what they read is
    #[arg(long, requires = "shm")]
    pub shm_read_only: bool,
    /// Make the device read-only
    #[arg(long)]
    pub read_only: bool,
    /// Do not scan for partitions when the device starts; from Linux 7.0 on `blockdev --rereadpt` scans later
    #[arg(long)]
    pub no_partition_scan: bool,
    /// Smallest preferred I/O, reported as minimum_io_size
    #[arg(long, value_name = "SIZE", value_parser = small_size, help_heading = PARAMETERS)]
    pub io_min: Option<u32>,
    /// Optimal I/O, reported as optimal_io_size
    #[arg(long, value_name = "SIZE", value_parser = small_size, help_heading = PARAMETERS)]
    pub io_opt: Option<u32>,
    /// Split requests at multiples of this size, reported as chunk_sectors
    #[arg(long, value_name = "SIZE", value_parser = small_size, help_heading = PARAMETERS)]
    pub io_boundary: Option<u32>,
    /// Split requests whose inner segments do not begin and end at multiples of this size
    #[arg(long, value_name = "SIZE", value_parser = small_size, help_heading = PARAMETERS)]
    pub virt_boundary: Option<u32>,
    /// Offset of the first whole discard unit
    #[arg(long, value_name = "SIZE", value_parser = small_size, help_heading = PARAMETERS)]
    pub discard_alignment: Option<u32>,
    /// Report a spinning disk, or with `false` none [default: that of the backend]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = PARAMETERS)]
    pub rotational: Option<bool>,
    /// Make a memory or file device zoned, with zones of this size, a power of two; a file's write pointers are in FILE.zones
    #[arg(long, value_name = "SIZE", value_parser = size::parse, help_heading = ZONES)]
    pub zone_size: Option<u64>,
    /// Writable bytes of a zone [default: all]
    #[arg(long, value_name = "SIZE", requires = "zone_size", value_parser = size::parse, help_heading = ZONES)]
    pub zone_capacity: Option<u64>,
    /// Number of conventional zones, which come first
    #[arg(long, value_name = "N", requires = "zone_size", default_value_t = 0, help_heading = ZONES)]
    pub conventional_zones: u32,
    /// Zones that may be open at once [default: any number]
    #[arg(long, value_name = "N", requires = "zone_size", default_value_t = 0, hide_default_value = true, help_heading = ZONES)]
    pub max_open_zones: u32,
    /// Zones that may be active at once [default: any number]
    #[arg(long, value_name = "N", requires = "zone_size", default_value_t = 0, hide_default_value = true, help_heading = ZONES)]
    pub max_active_zones: u32,
    /// Make a memory or file device keep integrity metadata, of this many bytes per block: none, ip, crc16 or crc64 (Linux
    /// 7.0); the kernel then makes and verifies protection information. A file's metadata is in PATH.integrity. More words:
    /// interval=BYTES of data, offset=BYTES of the protection information, tag=BYTES of the application tag, incapable
    #[arg(long, value_name = "CHECKSUM:BYTES[:reftag][:WORD]...", help_heading = PARAMETERS)]
    pub integrity: Option<Integrity>,
    /// Size of an I/O descriptor, a multiple of 8 up to 256 (Linux 7.3); for tests, since nothing uses the additional bytes
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(24..=256), help_heading = PARAMETERS)]
    pub descriptor_size: Option<u16>,
    /// Restart the server when it dies, with growing pauses; needs --recovery
    #[arg(long)]
    pub supervise: bool,
    /// Lock the server's memory, so that it never waits for a page fault
    #[arg(long)]
    pub lock_memory: bool,
    /// Name of a link in /dev/ublkctl, kept across recovery; commands accept it instead of the number
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// What happens to the device when its server dies; not for mem, whose data is lost with it
    #[arg(long, default_value = "none", value_parser = word::<Recovery>(&RECOVERY))]
    pub recovery: Recovery,
    /// Create the device even if this kernel release is known to crash in ADD_DEV (see `ublkctl doctor`), because
    /// this build is patched
    #[arg(long)]
    pub trust_kernel: bool,
    /// Stay in the foreground until the device is gone; SIGINT and SIGTERM stop and delete it
    #[arg(long)]
    pub foreground: bool,
    /// Log file of the device's processes [default: ID.log in the run directory]
    #[arg(long, value_name = "FILE", conflicts_with = "foreground")]
    pub log: Option<PathBuf>,
    #[command(flatten)]
    pub wait: Wait,
}

/// A parser for values with help texts; the names are those that `Value` parses.
fn word<Value>(words: &[(&'static str, &'static str)]) -> impl TypedValueParser<Value = Value>
where
    Value: FromStr + Clone + Send + Sync + 'static,
    Value::Err: std::error::Error + Send + Sync + 'static,
{
    let value = |(name, help): &(&'static str, &'static str)| PossibleValue::new(*name).help(*help);
    PossibleValuesParser::new(words.iter().map(value)).try_map(|word| word.parse::<Value>())
}

/// A data mode, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Data(Option<DataMode>);

impl FromStr for Data {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        match name {
            "auto" => Ok(Self(None)),
            name => name.parse().map(|data| Self(Some(data))),
        }
    }
}

const DATA: [(&str, &str); 6] = [
    (
        "auto",
        "The cheapest mode as measured: zero copy for a file that is not in memory, if the kernel has it; else copy",
    ),
    (
        "copy",
        "The driver copies between the request and a buffer of the server (any kernel)",
    ),
    (
        "get-data",
        "The driver copies, directly to and from the memory of a mem device; two commands per write (any kernel)",
    ),
    (
        "user-copy",
        "The server copies, directly to and from the memory of a mem device; one system call per request (any kernel)",
    ),
    (
        "zero-copy",
        "No copy: the driver registers the request's pages with the server's ring (Linux 6.16); not for mem, which \
         has no file or socket to forward requests to",
    ),
    (
        "zero-copy-manual",
        "No copy: the server registers the pages by command (Linux 6.15); not for mem",
    ),
];

const RECOVERY: [(&str, &str); 4] = [
    (
        "none",
        "When the server dies, I/O fails and /dev/ublkbN is removed",
    ),
    (
        "queue",
        "I/O waits for the next server (`recover`); requests in flight fail",
    ),
    (
        "reissue",
        "I/O waits for the next server; requests in flight are reissued, so a write may be done twice",
    ),
    (
        "fail",
        "I/O fails immediately until there is a new server (Linux 6.13)",
    ),
];

/// The I/O scheduler of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scheduler {
    /// No scheduler: the storage behind the device has its own
    None,
    /// mq-deadline for one queue, none for several; its sorting costs a fifth of a small request
    Kernel,
}

impl From<Scheduler> for spec::Scheduler {
    fn from(scheduler: Scheduler) -> Self {
        match scheduler {
            Scheduler::None => Self::None,
            Scheduler::Kernel => Self::Kernel,
        }
    }
}

/// Whether commands are sent in batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Batch {
    /// One command carries many requests (Linux 7.0); not with get-data
    On,
    /// One command per request
    Off,
    /// Off: batches save 6 % of a request's instructions at depth 64 and cost 10 % at depth 1
    Auto,
}

impl Add {
    /// The mode to start from if the data mode is `auto`.
    pub fn auto(&self) -> Option<DataMode> {
        self.data.0.is_none().then_some(DataMode::Copy)
    }

    /// The zones that are asked for.
    pub fn zones(&self) -> Option<ZoneLayout> {
        let size = self.zone_size?;
        Some(ZoneLayout {
            size,
            capacity: self.zone_capacity.unwrap_or(size),
            conventional: self.conventional_zones,
            max_open: self.max_open_zones,
            max_active: self.max_active_zones,
        })
    }

    /// The requested mode; `auto` is copy without batches.
    pub fn mode(&self) -> Mode {
        let data = self.data.0.unwrap_or(DataMode::Copy);
        Mode::new(data).batched(matches!(self.batch, Batch::On))
    }
}

fn small_size(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text)?;
    u32::try_from(bytes).map_err(|_| format!("`{text}` is too large: give less than 4 GiB"))
}
