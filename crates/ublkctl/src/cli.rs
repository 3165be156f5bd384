//! The definition of the command line; help, completions and man pages are generated from it.

mod add;
mod fault;
mod load;
#[cfg(test)]
mod tests;
mod trace;

use crate::completions;
use crate::size;
use crate::target::{self, Target};
pub use add::{Add, Backend, Files, MemberPath, Tls, absolute};
use clap::{Args, Parser, Subcommand};
use clap_complete::engine::ArgValueCandidates;
pub use load::{Bench, LoadTarget, Replay, Rw, Sweep};
use std::path::PathBuf;
use std::time::Duration;
pub use trace::{Convert, Record, Target as Format, TraceCommand, TraceFile};
use ublk_daemon::exporter::Listen;
use ublk_daemon::spec::Retry;
use ublk_metrics::Level;

const CONTRACT: &str = "\
Output: `add` prints the device path on one line once the device serves I/O. Messages go to standard error. With \
--json every command prints one JSON value on standard output; a command that fails prints \
{\"error\": {kind, message, hint, errno, errno_name, exit_code}}. Scripts can rely on this format: fields are added, \
never changed or removed. A command about one device prints an object; about several devices, or with --all, an array.

Exit codes: 0 done, 1 failed, 2 usage, 3 timed out, 32 no such device; for several devices the worst of them: 3, then \
1, then 32.

Sizes: 512, 4K, 10G; each unit is 1024 times the one before (10G is 10 GiB).

Environment: UBLKCTL_RUN_DIR sets the directory of state files (default: /run/ublkctl for root; for other users, ublkctl \
in $XDG_RUNTIME_DIR, /run/user/UID or $XDG_STATE_HOME). UBLKCTL_LOG sets the log level: error, warn, info (default), \
debug, trace. UBLKCTL_SECCOMP=log makes the system call filter of servers log violations instead of refusing them; =off \
disables the filter.";

/// Create, list, stop and delete ublk devices: block devices served by a process.
#[derive(Debug, Parser)]
#[command(name = "ublkctl", version, after_long_help = CONTRACT)]
pub struct Cli {
    /// Print JSON on standard output
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
#[expect(
    clippy::large_enum_variant,
    reason = "one value, parsed once; the parser does not support a box here"
)]
pub enum Command {
    /// Create a device, serve it, and print its path once it serves I/O
    Add {
        /// What answers the requests
        #[command(subcommand)]
        backend: Backend,
    },
    /// Bring up the devices of a configuration file; those that already run as configured are left alone
    Up {
        #[command(flatten)]
        config: Config,
        /// Serve one device and stay in the foreground until it is gone; SIGINT and SIGTERM stop and delete it. A device
        /// without a server is recovered
        #[arg(long)]
        foreground: bool,
        /// With --foreground: on SIGINT and SIGTERM, write back a recoverable device and leave it to its next server
        #[arg(long, requires = "foreground")]
        leave: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Stop and delete the devices of a configuration file, last one first; devices that do not exist are skipped
    Down {
        #[command(flatten)]
        config: Config,
        /// Proceed even if unwritten data is lost
        #[arg(long)]
        force: bool,
        /// Only devices served by `up --foreground`; devices that another agent has taken over stay
        #[arg(long)]
        in_front: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Check a configuration file: its keys, its values, and the files it names
    Check {
        #[command(flatten)]
        config: Config,
    },
    /// List the devices of this machine, including those of other programs
    #[command(visible_alias = "ls")]
    List {
        /// Devices to list [default: all]
        #[arg(value_name = "ID", value_parser = target::parse, add = ArgValueCandidates::new(completions::devices))]
        devices: Vec<Target>,
        #[command(flatten)]
        wait: Look,
    },
    /// Show everything known about a device
    Info {
        #[command(flatten)]
        devices: Devices,
        #[command(flatten)]
        wait: Look,
    },
    /// Stop a device: write back its data, then remove /dev/ublkbN; /dev/ublkcN stays until `delete`
    Stop {
        #[command(flatten)]
        devices: DevicesOrAll,
        /// Stop the device only if it is not open (Linux 7.0)
        #[arg(long, conflicts_with = "force")]
        if_unused: bool,
        /// Proceed even if unwritten data is lost
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Stop a device and remove it
    #[command(visible_alias = "rm")]
    Delete {
        #[command(flatten)]
        devices: DevicesOrAll,
        /// Do not wait until the device is closed everywhere; its number is free only after that (Linux 6.9)
        #[arg(long = "async")]
        no_wait: bool,
        /// Proceed even if unwritten data is lost
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Hold a device's I/O and end its server, for maintenance below it; `recover` continues (Linux 6.16)
    Quiesce {
        #[command(flatten)]
        devices: Devices,
        /// Proceed even if some requests fail meanwhile
        #[arg(long)]
        allow_errors: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Start a new server for a device whose server is gone, so that I/O continues
    Recover {
        /// Devices, each by its number, its node or a link to it, or its name
        #[arg(value_name = "ID", value_parser = target::parse, add = ArgValueCandidates::new(completions::devices), required_unless_present = "all", conflicts_with = "all")]
        devices: Vec<Target>,
        /// Every device of this user that waits for a server
        #[arg(long)]
        all: bool,
        /// Serve whatever file or disk is at the device's path now, even if it is not the one the device was created with
        #[arg(long, conflicts_with = "all")]
        accept_backing: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Replace the running server of a device with this program while the device is in use; I/O waits meanwhile
    Upgrade {
        #[command(flatten)]
        devices: Devices,
        /// Proceed even if requests may fail because of the recovery policy or the kernel
        #[arg(long)]
        allow_errors: bool,
        /// Serve whatever file or disk is at the device's path now, even if it is not the one the device was created with
        #[arg(long)]
        accept_backing: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show what devices do: rates, errors, latency percentiles; since their servers started, or in intervals
    Stats {
        /// Devices to show [default: all of this user]
        #[arg(value_name = "ID", value_parser = target::parse, add = ArgValueCandidates::new(completions::devices))]
        devices: Vec<Target>,
        /// Show each queue, too
        #[arg(long)]
        queues: bool,
        /// Report again after this many seconds, with the work of the interval; with --json one value per report
        #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = interval)]
        interval: Option<f64>,
        /// End after this many reports; with --interval
        #[arg(long, value_name = "N", requires = "interval", value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
    },
    /// Show what devices do on the terminal, live: rates, latencies over time, queues, states and what to do about them
    Top {
        /// Devices to show [default: all of this user]
        #[arg(value_name = "ID", value_parser = target::parse, add = ArgValueCandidates::new(completions::devices))]
        devices: Vec<Target>,
        /// Look at the devices every so many seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 1.0, allow_negative_numbers = true, value_parser = interval)]
        interval: f64,
    },
    /// Change what a device measures while it serves; its later servers measure the same
    Metrics {
        #[command(flatten)]
        device: Device,
        /// off, counters (batch sizes, polls) or latencies
        #[arg(value_name = "LEVEL")]
        level: Level,
        #[command(flatten)]
        wait: Look,
    },
    /// Show the messages of a device's agent and server, or change from which level on they are written
    Logs {
        #[command(flatten)]
        device: Device,
        /// Print new messages as they come, until SIGINT or SIGTERM
        #[arg(short, long)]
        follow: bool,
        /// Show only this many of the latest lines
        #[arg(short = 'n', long, value_name = "N")]
        lines: Option<usize>,
        /// Write messages from this level on, while the device serves: error, warn, info, debug, trace
        #[arg(long, value_name = "LEVEL", value_parser = ["error", "warn", "info", "debug", "trace"])]
        level: Option<String>,
        #[command(flatten)]
        wait: Look,
    },
    /// Answer scrapes of Prometheus with the metrics of all devices of this user, until SIGINT or SIGTERM
    Exporter {
        /// Address (HOST:PORT, :PORT for all addresses) or unix:/PATH [default: the socket that systemd passes]
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<Listen>,
    },
    /// Manage NBD devices: change the retry policy, move to another server, show what a server offers
    Nbd {
        /// What to do
        #[command(subcommand)]
        command: Nbd,
    },
    /// Change the size of a device in use (Linux 6.16); a larger one gets a new server, so it needs --recovery
    Resize {
        #[command(flatten)]
        device: Device,
        /// The new size
        #[arg(value_name = "SIZE", value_parser = size::parse, required_unless_present = "fill", conflicts_with = "fill")]
        size: Option<u64>,
        /// Use the current size of the device's file
        #[arg(long)]
        fill: bool,
        /// Shrink it even if it is in use
        #[arg(long)]
        force: bool,
        /// Serve whatever file or disk is at the device's path now, even if it is not the one the device was created with
        #[arg(long)]
        accept_backing: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show orphans (devices with neither server nor agent), and remove the named ones
    Gc {
        /// Orphans to remove
        #[arg(value_name = "ID", value_parser = target::parse, add = ArgValueCandidates::new(completions::devices))]
        devices: Vec<Target>,
        /// Remove every orphan of this user that cannot be recovered
        #[arg(long)]
        all: bool,
        /// Proceed even if unwritten data is lost
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Write the requests of a device in use into a trace, until Ctrl-C, a time or a size; the device does not stop
    Record(Record),
    /// Show what a trace of block I/O tells: operations, sizes, working set, depth and latency over time
    #[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Trace {
        #[command(flatten)]
        trace: TraceFile,
        /// What else to do with a trace
        #[command(subcommand)]
        command: Option<TraceCommand>,
    },
    /// Send the requests of a trace to a file or block device, at their times or as fast as it takes them
    Replay(Replay),
    /// Measure a file or block device: rate, latency percentiles, and how far to trust them
    Bench(Bench),
    /// Show what the kernel's ublk driver can do
    Features {
        #[command(flatten)]
        wait: Look,
    },
    /// Check whether ublk devices can be created here, and say how to fix what is wrong
    Doctor {
        #[command(flatten)]
        wait: Look,
    },
    /// For udev rules: print the owner of a device as KEY=VALUE lines
    UdevOwner {
        /// The kernel's name of a node: ublkcN, ublkbN, or a partition of it
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the man page of ublkctl, or write those of all commands to a directory
    Man {
        /// Where to write the pages
        dir: Option<PathBuf>,
    },
}

/// Seconds between two reports.
fn interval(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok();
    let fit = seconds.filter(|seconds| (0.1..=86_400.0).contains(seconds));
    fit.ok_or_else(|| format!("`{text}` is no interval: give seconds from 0.1 to 86400"))
}

/// The device to act on. There is no default: a command without it does nothing (L32).
#[derive(Debug, Args)]
pub struct Device {
    /// The device: its number, its node or a link to it, or its name
    #[arg(value_name = "ID", value_parser = target::parse, add = ArgValueCandidates::new(completions::devices))]
    pub device: Target,
}

/// The devices to act on: at least one.
#[derive(Debug, Args)]
pub struct Devices {
    /// Devices, each by its number, its node or a link to it, or its name
    #[arg(value_name = "ID", value_parser = target::parse, add = ArgValueCandidates::new(completions::devices), required = true)]
    pub devices: Vec<Target>,
}

/// The devices to act on: at least one, or all with `--all`.
#[derive(Debug, Args)]
pub struct DevicesOrAll {
    /// Devices, each by its number, its node or a link to it, or its name
    #[arg(value_name = "ID", value_parser = target::parse, add = ArgValueCandidates::new(completions::devices), required_unless_present = "all", conflicts_with = "all")]
    pub devices: Vec<Target>,
    /// Every device that this user created with ublkctl
    #[arg(long)]
    pub all: bool,
}

/// The devices to act on, from a file.
#[derive(Debug, Args)]
pub struct Config {
    /// A table `[device.NAME]` for each device, with `backend` and the long options of `add` as keys (TOML)
    #[arg(value_name = "CONFIG")]
    pub file: PathBuf,
    /// Devices of the file [default: all]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
}

/// How long to wait.
#[derive(Debug, Args)]
pub struct Wait {
    /// Seconds to wait for each device; what is not finished by then continues in the background (exit code 3)
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub deadline: u64,
}

/// How long to wait for an answer.
#[derive(Debug, Args)]
pub struct Look {
    /// Seconds to wait
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub deadline: u64,
}

impl Wait {
    /// The same as a time.
    pub const fn time(&self) -> Duration {
        Duration::from_secs(self.deadline)
    }
}

impl Look {
    /// The same as a time.
    pub const fn time(&self) -> Duration {
        Duration::from_secs(self.deadline)
    }
}

/// The commands of `nbd`.
#[derive(Debug, Subcommand)]
pub enum Nbd {
    /// Change how long requests of a live device wait for an unreachable server, including those already waiting
    Retry {
        /// The device, by its number, its node or a link to it, or its name
        #[arg(value_name = "ID", value_parser = target::parse, add = ArgValueCandidates::new(completions::devices))]
        device: Target,
        /// SECONDS, forever or never
        #[arg(value_name = "POLICY")]
        retry: Retry,
        #[command(flatten)]
        wait: Wait,
    },
    /// Move a device to another server that has the same data; the connection to the old one is drained and flushed
    #[command(mut_arg("deadline", |arg| arg.help("Seconds to wait; a move that has not come about by then is given up (exit code 3)")))]
    Move {
        /// The device, by its number, its node or a link to it, or its name
        #[arg(value_name = "ID", value_parser = target::parse, add = ArgValueCandidates::new(completions::devices))]
        device: Target,
        /// The export to move to
        #[arg(value_name = "URI")]
        uri: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show what a server offers for an export: size, block sizes, operations, encryption
    Info {
        /// The export
        #[arg(value_name = "URI")]
        uri: String,
        #[command(flatten)]
        tls: Tls,
    },
    /// List the exports of a server
    List {
        /// The server; the name of an export in it is ignored
        #[arg(value_name = "URI")]
        uri: String,
        #[command(flatten)]
        tls: Tls,
    },
}
