//! The command line, by definition: help, completions and man pages are made from it.

use crate::size;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use ublk_core::Mode;
use ublk_daemon::engine::Polling;
use ublk_daemon::{front, names, wire};

const CONTRACT: &str = "\
Output: `add` prints one line, the device path, once the device serves I/O. Messages go to standard \
error. With --json every command prints one JSON value on standard output; that is the contract for \
scripts, fields are only ever added.

Exit codes: 0 done, 1 failed, 2 usage, 3 timed out, 32 no such device.

Sizes: 512, 4K, 10G; each unit is 1024 times the one before (10G is 10 GiB).

Environment: UBLKCTL_RUN_DIR names another directory for state than /run/ublkctl (root) or \
ublkctl in $XDG_RUNTIME_DIR, /run/user/UID or $XDG_STATE_HOME; UBLKCTL_LOG sets how much is said: error, warn, info (default), debug, trace.";

/// Make, list, stop and delete ublk devices: block devices served by a process.
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
pub enum Command {
    /// Make a device and serve it; prints its path once it serves I/O
    Add {
        /// What answers the requests
        #[command(subcommand)]
        backend: Backend,
    },
    /// Bring up the devices of a configuration file; those that run as it says are left alone
    Up {
        #[command(flatten)]
        config: Config,
        /// Serve one device and stay in front until it is gone; SIGINT and SIGTERM stop and delete it. One that
        /// waits for a server, or is dead, from an earlier life is taken up again
        #[arg(long)]
        foreground: bool,
        /// With --foreground: SIGINT and SIGTERM write a recoverable device back and leave it to its next server
        #[arg(long, requires = "foreground")]
        leave: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Stop and delete the devices of a configuration file, the last one first; those that are not there are no error
    Down {
        #[command(flatten)]
        config: Config,
        /// Also where somebody loses data by it
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Check a configuration file: words, values, and what it is about
    Check {
        #[command(flatten)]
        config: Config,
    },
    /// List the devices of this machine, ours and others'
    List {
        /// Seconds to wait
        #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
        deadline: u64,
    },
    /// Show everything known of a device
    Info {
        #[command(flatten)]
        device: Device,
        /// Seconds to wait
        #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
        deadline: u64,
    },
    /// Stop a device: its data is written back, then /dev/ublkbN goes; /dev/ublkcN stays until `delete`
    Stop {
        #[command(flatten)]
        device: Device,
        /// Only if nobody has it open (Linux 7.0)
        #[arg(long, conflicts_with = "force")]
        if_unused: bool,
        /// Also where somebody loses data by it
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Stop a device and remove it for good
    Delete {
        #[command(flatten)]
        device: Device,
        /// Do not wait for those who have it open; its number is free when they are gone (Linux 6.9)
        #[arg(long = "async")]
        no_wait: bool,
        /// Also where somebody loses data by it
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Give a device whose server is gone a new one; it goes on where the old one left it
    Recover {
        /// The device: its number, /dev/ublkbN, or its name
        #[arg(value_name = "ID", value_parser = device_id, required_unless_present = "all", conflicts_with = "all")]
        id: Option<u32>,
        /// Every device of ours that waits for a server
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Replace the running server of a device by this program, while the device is in use; I/O waits meanwhile
    Upgrade {
        #[command(flatten)]
        device: Device,
        /// Also where the policy or the kernel cannot keep requests from failing
        #[arg(long)]
        allow_errors: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Change the size of a device in use (Linux 6.16); a larger one gets a new server, so it needs --recovery
    Resize {
        #[command(flatten)]
        device: Device,
        /// The new size
        #[arg(value_name = "SIZE", value_parser = size::parse, required_unless_present = "fill", conflicts_with = "fill")]
        size: Option<u64>,
        /// All that the file of a file device has now
        #[arg(long)]
        fill: bool,
        /// Cut it although somebody holds it
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show devices whose server is gone and that nobody takes care of, and remove those named
    Gc {
        /// Orphans to remove
        #[arg(value_name = "ID", value_parser = device_id)]
        ids: Vec<u32>,
        /// Remove every orphan of ours that no recovery can bring back
        #[arg(long)]
        all: bool,
        /// Also where somebody loses data by it
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Show what the kernel's ublk driver can do
    Features {
        #[command(flatten)]
        wait: Wait,
    },
    /// Check that ublk devices can be made here, and say how to mend what is not right
    Doctor {
        #[command(flatten)]
        wait: Wait,
    },
    /// For udev rules: print whose a device is, as KEY=VALUE lines
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

/// The device a command is about. There is no default: a command without it does nothing (L32).
#[derive(Debug, Args)]
pub struct Device {
    /// The device: its number, /dev/ublkbN, or its name
    #[arg(value_name = "ID", value_parser = device_id)]
    pub id: u32,
}

/// The devices a command is about, by a file.
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
    /// Seconds to wait; what is not done by then goes on without the caller (exit code 3)
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub deadline: u64,
}

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
    },
}

/// What all devices have.
#[derive(Debug, Args)]
pub struct Add {
    /// Number of the device [default: the lowest free one]
    #[arg(short = 'n', long, value_name = "ID", value_parser = device_id)]
    pub id: Option<u32>,
    /// Hw queues, each served by a thread; the kernel makes at most one per CPU
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub queues: u16,
    /// Requests in flight on each queue
    #[arg(short, long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub depth: u16,
    /// Logical block size: 512 or 4096 [default: 512; file: the smallest for direct I/O]
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
    /// What costs least by our measurements: zero copy for a file with asynchronous I/O where the kernel has it,
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
        Mode {
            data,
            batch: matches!(self.batch, Batch::On),
        }
    }
}

/// A device number, bare or in the name of a node.
fn device_id(text: &str) -> Result<u32, String> {
    let name = text.strip_prefix("/dev/").unwrap_or(text);
    let number = name
        .strip_prefix("ublkb")
        .or_else(|| name.strip_prefix("ublkc"))
        .unwrap_or(name);
    let whole = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
    let link = text.strip_prefix("/dev/ublkctl/").unwrap_or(text);
    if names::check(link).is_ok()
        && let Some(id) = front::named(link)
    {
        return Ok(id);
    }
    match number.parse::<u32>() {
        Ok(id) if whole && id < 1 << 20 => Ok(id),
        _ => Err(format!(
            "`{text}` is no ublk device: give its number, 0 to 1048575, /dev/ublkbN, or its name (see `ublkctl list`)"
        )),
    }
}

fn small_size(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text)?;
    u32::try_from(bytes).map_err(|_| format!("`{text}` is beyond 4 GiB"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn refused(words: &[&str]) -> ErrorKind {
        Cli::try_parse_from([&["ublkctl"], words].concat())
            .unwrap_err()
            .kind()
    }

    #[test]
    fn definitions_are_sound() {
        Cli::command().debug_assert();
    }

    /// L32 A missing id is a usage error: nothing has a default that stops or deletes.
    #[test]
    fn l32_a_missing_id_is_a_usage_error() {
        assert_eq!(refused(&["down"]), ErrorKind::MissingRequiredArgument);
        for command in ["info", "stop", "delete", "recover", "upgrade", "resize"] {
            assert_eq!(refused(&[command]), ErrorKind::MissingRequiredArgument);
            assert_eq!(refused(&[command, "all"]), ErrorKind::ValueValidation);
            assert_eq!(refused(&[command, ""]), ErrorKind::ValueValidation);
            assert_eq!(refused(&[command, "1048576"]), ErrorKind::ValueValidation);
            assert_eq!(refused(&[command, "+1"]), ErrorKind::ValueValidation);
        }
    }

    #[test]
    fn counts_outside_the_drivers_are_usage_errors() {
        for words in [
            ["add", "mem", "--size", "1G", "-d", "0"],
            ["add", "mem", "--size", "1G", "-d", "4097"],
            ["add", "mem", "--size", "1G", "-q", "4097"],
            ["add", "mem", "--size", "1G", "-q", "0"],
            ["add", "mem", "--size", "banana", "-q", "1"],
        ] {
            assert_eq!(refused(&words), ErrorKind::ValueValidation, "{words:?}");
        }
        assert_eq!(refused(&["add", "mem"]), ErrorKind::MissingRequiredArgument);
    }

    #[test]
    fn a_device_may_be_named_by_its_node() {
        for (text, id) in [("7", 7), ("/dev/ublkb7", 7), ("ublkc12", 12)] {
            assert_eq!(device_id(text), Ok(id));
        }
        assert!(device_id("/dev/sda1").is_err() && device_id("ublkb").is_err());
    }

    /// The words of `--data` and `--batch` are those of the core, besides `auto`: copy without batches.
    #[test]
    fn modes_are_named_as_in_the_core() {
        let mode = |data: &str, batch: &str| {
            let words = ["ublkctl", "add", "null", "--data", data, "--batch", batch];
            let cli = Cli::try_parse_from(words).unwrap();
            let Command::Add {
                backend: Backend::Null { add, .. },
            } = cli.command
            else {
                panic!("another command");
            };
            add.mode()
        };
        assert_eq!(mode("auto", "auto"), Mode::default());
        for data in ublk_core::DataMode::ALL {
            for (word, batch) in [("on", true), ("off", false), ("auto", false)] {
                assert_eq!(mode(data.name(), word), Mode { data, batch });
            }
        }
    }

    /// A file is made only with a size, and a size is only for a file to be made.
    #[test]
    fn creation_and_size_go_together() {
        let add = |words: &[&str]| {
            let words = [&["ublkctl", "add", "file", "disk.img"], words].concat();
            Cli::try_parse_from(words).map(|_| ()).map_err(|e| e.kind())
        };
        assert_eq!(add(&[]), Ok(()));
        assert_eq!(add(&["--create", "--size", "1G"]), Ok(()));
        assert_eq!(
            add(&["--offset", "1M", "--length", "1M", "--read-only"]),
            Ok(())
        );
        for words in [&["--create"][..], &["--size", "1G"]] {
            assert_eq!(
                add(words),
                Err(ErrorKind::MissingRequiredArgument),
                "{words:?}"
            );
        }
        for word in ["--offset=1M", "--length=1M", "--read-only"] {
            let words = ["--create", "--size", "1G", word];
            assert_eq!(add(&words), Err(ErrorKind::ArgumentConflict), "{word}");
        }
        assert_eq!(
            refused(&["add", "file"]),
            ErrorKind::MissingRequiredArgument
        );
    }

    #[test]
    fn the_flags_of_add_are_the_habits_of_the_field() {
        let words = "ublkctl add mem --size 1G -n 3 -q 4 -d 64 --block-size 4K --max-io 1M \
                     --data copy --batch off --read-only --json";
        let cli = Cli::try_parse_from(words.split_whitespace()).unwrap();
        assert!(cli.json);
        let Command::Add {
            backend: Backend::Mem { add, size },
        } = cli.command
        else {
            panic!("another command");
        };
        assert_eq!(
            (size, add.id, add.queues, add.depth),
            (1 << 30, Some(3), 4, 64)
        );
        assert_eq!((add.block_size, add.max_io), (Some(4096), 1 << 20));
        assert!(add.read_only && !add.foreground);
    }
}
