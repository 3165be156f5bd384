//! Device specifications, passed from the command line and configuration files to the server, and stored in records.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use ublk_backends::Layout;
pub use ublk_backends::ZoneLayout;
pub use ublk_backends::{FaultOp, FaultPlan};
pub use ublk_core::Integrity;
use ublk_core::{DataMode, Limits, Mode, Recovery, SharedBuffer};
pub use ublk_nbd::{Retry, TlsOptions};
pub use ublk_queue::ServeOptions;

/// The backend of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BackendSpec {
    /// Discards writes; reads return zeroes or old bytes. For measuring.
    Null {
        /// Size in bytes.
        size: u64,
    },
    /// Memory of the server, populated as it is written.
    Mem {
        /// Size in bytes.
        size: u64,
    },
    /// Memory whose requests are slow, or fail, by a plan.
    Fault {
        /// Size in bytes.
        size: u64,
        /// What happens to requests.
        plan: FaultPlan,
    },
    /// A regular file or a block device, or a part of it.
    File {
        /// Absolute path.
        path: PathBuf,
        /// Offset of the device in the file, in bytes.
        offset: u64,
        /// Length of the device in bytes; `None` for the rest of the file. The front records the length that it found,
        /// so that the device keeps its size.
        length: Option<u64>,
        /// Use the page cache even if O_DIRECT is possible.
        buffered: bool,
        /// Offer DISCARD if the file can free storage.
        discard: bool,
        /// Serve the file although another process uses it.
        #[serde(default)]
        force: bool,
        /// Absolute path of the file with the integrity metadata, if that is not beside the data.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        integrity_file: Option<PathBuf>,
    },
    /// Several files or block devices, one after the other.
    Linear {
        /// The members.
        #[serde(flatten)]
        files: Files,
    },
    /// Several files or block devices that are dealt chunks in turn.
    Stripe {
        /// The members.
        #[serde(flatten)]
        files: Files,
        /// Bytes of a chunk.
        chunk: u32,
    },
    /// An export of an NBD server.
    Nbd {
        /// Where it is.
        uri: String,
        /// The server that the device was told to move to, until it has: it may be at either.
        #[serde(default)]
        moving_to: Option<String>,
        /// Bytes of the device, `None` for all of the export. The front records what it found, so that the device keeps
        /// its size.
        length: Option<u64>,
        /// What becomes of requests while the server cannot be reached.
        retry: Retry,
        /// Seconds that one request may take before the connection counts as lost.
        request_timeout: u32,
        /// Seconds for which the first connection is attempted; 0 for one attempt.
        wait_for_server: u32,
        /// Files and server name for TLS.
        #[serde(default)]
        tls: Box<TlsOptions>,
    },
}

/// The files of a device over several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    /// The members, in order.
    pub files: Vec<Member>,
    /// Through the page cache even where O_DIRECT could be had.
    pub buffered: bool,
    /// DISCARD is offered where all members can give storage back.
    pub discard: bool,
    /// They are served although somebody else uses them.
    #[serde(default)]
    pub force: bool,
    /// Bytes of the device; 0 before the front has looked at the members.
    #[serde(default)]
    pub bytes: u64,
}

/// A file of a device over several, or a part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Where it is; absolute.
    pub path: PathBuf,
    /// Where in it the member begins, in bytes.
    pub offset: u64,
    /// Bytes of the member, `None` for the rest of the file. The front writes down what it found.
    pub length: Option<u64>,
}

/// A change of a backend that serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BackendCommand {
    /// For an NBD device.
    Nbd(NbdCommand),
}

/// A change of an NBD device; without any, a question.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NbdCommand {
    /// Move to this server.
    pub uri: Option<String>,
    /// Give up a move that has not come about.
    pub stay: bool,
    /// What becomes of requests while the server cannot be reached.
    pub retry: Option<Retry>,
    /// The device has been shrunk to this many bytes: a smaller export suffices from now on.
    pub size: Option<u64>,
    /// Fail what waits for the server: the device is to end.
    pub give_up: bool,
}

impl BackendSpec {
    /// Sets the size of the device, in bytes.
    pub fn set_size(&mut self, bytes: u64) {
        match self {
            Self::Null { size } | Self::Mem { size } | Self::Fault { size, .. } => *size = bytes,
            Self::File { length, .. } | Self::Nbd { length, .. } => *length = Some(bytes),
            Self::Linear { files } | Self::Stripe { files, .. } => files.bytes = bytes,
        }
    }

    /// The members of a device over several files, and their layout.
    #[must_use]
    pub const fn composition(&self) -> Option<(Layout, &Files)> {
        match self {
            Self::Linear { files } => Some((Layout::Linear, files)),
            Self::Stripe { files, chunk } => Some((Layout::Stripe { chunk: *chunk }, files)),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub(crate) const fn files_mut(&mut self) -> Option<&mut Files> {
        match self {
            Self::Linear { files } | Self::Stripe { files, .. } => Some(files),
            _ => None,
        }
    }

    /// Whether the files behind it are served although somebody else uses them.
    #[must_use]
    pub const fn is_forced(&self) -> bool {
        match self {
            Self::File { force, .. } => *force,
            Self::Linear { files } | Self::Stripe { files, .. } => files.force,
            _ => false,
        }
    }

    /// The files behind it, in order: path, and window as far as it is known.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        match self {
            Self::File {
                path,
                offset,
                length,
                ..
            } => vec![Member {
                path: path.clone(),
                offset: *offset,
                length: *length,
            }],
            Self::Linear { files } | Self::Stripe { files, .. } => files.files.clone(),
            _ => Vec::new(),
        }
    }

    /// Takes the values of a change that later servers are to have, and where the device is to move. False if there are none.
    pub(crate) fn keep(&mut self, command: &BackendCommand) -> bool {
        let (
            Self::Nbd {
                uri,
                moving_to,
                length,
                retry,
                ..
            },
            BackendCommand::Nbd(command),
        ) = (self, command)
        else {
            return false;
        };
        if let Some(to) = command.uri.as_ref().filter(|to| *to != uri) {
            *moving_to = Some(to.clone());
        }
        *retry = command.retry.unwrap_or(*retry);
        *length = command.size.or(*length);
        command.uri.is_some() || command.retry.is_some() || command.size.is_some()
    }

    /// Notes the server that has the device's data, as the device itself says, and that it moves nowhere if `settled`. False if
    /// all of that was known.
    pub(crate) fn is_at(&mut self, server: &str, settled: bool) -> bool {
        let Self::Nbd { uri, moving_to, .. } = self else {
            return false;
        };
        let same = |one: &str| match (one.parse::<nbd_client::Uri>(), server.parse()) {
            (Ok(one), Ok(server)) => one == server,
            _ => one == server,
        };
        let moved = !same(uri);
        if moved {
            server.clone_into(uri);
        }
        let arrived = moving_to.take_if(|to| settled || same(to)).is_some();
        moved || arrived
    }

    /// The server process ended, and had not said that the device moved.
    pub(crate) fn has_not_moved(&mut self) {
        if let Self::Nbd { moving_to, .. } = self {
            *moving_to = None;
        }
    }

    /// Where the device was told to move, until it has.
    #[must_use]
    pub fn moving_to(&self) -> Option<&str> {
        match self {
            Self::Nbd { moving_to, .. } => moving_to.as_deref(),
            _ => None,
        }
    }

    /// The name on the command line.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Null { .. } => "null",
            Self::Mem { .. } => "mem",
            Self::Fault { .. } => "fault",
            Self::File { .. } => "file",
            Self::Linear { .. } => "linear",
            Self::Stripe { .. } => "stripe",
            Self::Nbd { .. } => "nbd",
        }
    }

    /// Size of the device in bytes; 0 for a file that has not been inspected yet.
    #[must_use]
    pub const fn size(&self) -> u64 {
        match self {
            Self::Null { size } | Self::Mem { size } | Self::Fault { size, .. } => *size,
            Self::File { length, .. } | Self::Nbd { length, .. } => match length {
                Some(size) => *size,
                None => 0,
            },
            Self::Linear { files } | Self::Stripe { files, .. } => files.bytes,
        }
    }
}

/// The specification of a device for `add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddSpec {
    /// The backend.
    pub backend: BackendSpec,
    /// The device's number; `None` for the lowest free one.
    pub id: Option<u32>,
    /// Requested hw queues; the kernel grants at most one per CPU.
    pub queues: u16,
    /// Tags of each queue.
    pub depth: u16,
    /// Logical block size in bytes; 0 for the file's own, which the front fills in.
    pub block_size: u32,
    /// Largest request in bytes.
    pub max_io_bytes: u32,
    /// Whether the device refuses writes.
    pub read_only: bool,
    /// How data and commands travel, as features of ADD_DEV. Records without it mean copy mode.
    #[serde(default)]
    pub mode: Mode,
    /// Set if the data mode was left open: the mode that measurements favour for this backend, moved to `mode` when the
    /// device is created, if the kernel supports it.
    #[serde(default)]
    pub auto: Option<DataMode>,
    /// What happens when its server dies.
    #[serde(default)]
    pub recovery: Recovery,
    /// The I/O scheduler of its block device.
    #[serde(default)]
    pub scheduler: Scheduler,
    /// Its name, which is that of a link to its node.
    #[serde(default)]
    pub name: Option<String>,
    /// Whether its agent replaces a dead server.
    #[serde(default)]
    pub supervise: bool,
    /// Created by a user without CAP_SYS_ADMIN, who owns it (UBLK_F_UNPRIVILEGED_DEV, Linux 6.3).
    #[serde(default)]
    pub unprivileged: bool,
    /// Create it even on a kernel that is known to crash in ADD_DEV.
    #[serde(default)]
    pub trust_kernel: bool,
    /// How each queue is served; concerns only the server.
    #[serde(default)]
    pub serving: Serving,
    /// Parameters that replace those of the backend.
    #[serde(default)]
    pub parameters: Box<Parameters>,
}

/// Parameters of a device that replace those of its backend, or the kernel's usual ones. `None` keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Parameters {
    /// The kernel does not scan for partitions when the device starts.
    pub no_partition_scan: bool,
    /// Size of an I/O descriptor in bytes (Linux 7.3).
    pub descriptor_size: Option<u16>,
    /// Smallest preferred I/O in bytes.
    pub io_min: Option<u32>,
    /// Optimal I/O in bytes.
    pub io_opt: Option<u32>,
    /// Requests do not cross a multiple of this many bytes.
    pub io_boundary: Option<u32>,
    /// Inner segments of a request begin and end at multiples of this many bytes.
    pub virt_boundary: Option<u32>,
    /// Offset of the first whole discard unit in bytes.
    pub discard_alignment: Option<u32>,
    /// Whether seeks are expensive.
    pub rotational: Option<bool>,
    /// Makes a zoned device of a memory or file backend.
    pub zones: Option<ZoneLayout>,
    /// Makes a memory or file backend keep integrity metadata (Linux 7.0).
    pub integrity: Option<Integrity>,
}

impl Parameters {
    /// Replaces what is set.
    #[must_use]
    pub fn over(&self, mut limits: Limits) -> Limits {
        limits.minimum_io_size = self.io_min.unwrap_or(limits.minimum_io_size);
        limits.optimal_io_size = self.io_opt.unwrap_or(limits.optimal_io_size);
        limits.chunk_size = self.io_boundary.unwrap_or(limits.chunk_size);
        limits.virtual_boundary = self.virt_boundary.unwrap_or(limits.virtual_boundary);
        limits.discard_alignment = self.discard_alignment.unwrap_or(limits.discard_alignment);
        limits.rotational = self.rotational.unwrap_or(limits.rotational);
        limits
    }
}

/// The I/O scheduler of a new device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scheduler {
    /// None: requests keep their order.
    #[default]
    None,
    /// The kernel's choice.
    Kernel,
}

/// How the queues of a device are served.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Serving {
    /// The options of any device's queues.
    #[serde(flatten)]
    pub options: ServeOptions,
    /// Absolute path of the memory file that the device's clients share with it.
    #[serde(default)]
    pub shm: Option<PathBuf>,
    /// Whether the server only reads that memory.
    #[serde(default)]
    pub shm_read_only: bool,
    /// Whether the server's memory is locked.
    #[serde(default)]
    pub lock_memory: bool,
    /// Threads for all queues together, `None` for one each.
    #[serde(default)]
    pub total_threads: Option<u16>,
}

/// Memory that was registered with a device, and its file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The file's device (`st_dev`).
    pub device: u64,
    /// The file's inode number (`st_ino`).
    pub inode: u64,
    /// The ranges registered with the driver.
    pub buffers: Vec<SharedBuffer>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_queue::Polling;

    /// Records of earlier builds can be read: missing options get their defaults.
    #[test]
    fn options_are_read_as_they_were_written() {
        let old: Serving = serde_json::from_str(r#"{"threads":2,"poll":"fixed:10"}"#).unwrap();
        assert_eq!(old.options.threads_per_queue, 2);
        assert_eq!(old.options.polling.to_string(), "fixed:10");
        assert!(!old.options.huge_pages && !old.lock_memory && old.shm.is_none());
        let text = serde_json::to_string(&Serving::default()).unwrap();
        assert!(
            text.starts_with(r#"{"threads":1,"poll":"off","huge_pages":false"#),
            "{text}"
        );
        assert_eq!(
            serde_json::from_str::<Serving>(&text).unwrap(),
            Serving::default()
        );
        assert_eq!(Serving::default().options.polling, Polling::Off);
        assert!(serde_json::from_str::<Serving>(r#"{"threads":2,"poll":"often"}"#).is_err());
    }

    #[test]
    fn backend_words_are_those_of_the_command_line() {
        let spec = BackendSpec::Mem { size: 4096 };
        assert_eq!(
            serde_json::to_string(&spec).unwrap(),
            r#"{"kind":"mem","size":4096}"#
        );
        assert_eq!((spec.name(), spec.size()), ("mem", 4096));
        let mut file = BackendSpec::File {
            path: "/srv/disk.img".into(),
            offset: 0,
            length: None,
            buffered: false,
            discard: true,
            force: false,
            integrity_file: None,
        };
        assert_eq!((file.name(), file.size()), ("file", 0));
        if let BackendSpec::File { length, .. } = &mut file {
            *length = Some(8192);
        }
        assert_eq!(file.size(), 8192);
        let text = serde_json::to_string(&file).unwrap();
        assert_eq!(serde_json::from_str::<BackendSpec>(&text).unwrap(), file);
        let files = Files {
            files: file.members(),
            buffered: false,
            discard: true,
            force: false,
            bytes: 1 << 40,
        };
        for (spec, name) in [
            (
                BackendSpec::Linear {
                    files: files.clone(),
                },
                "linear",
            ),
            (
                BackendSpec::Stripe {
                    files,
                    chunk: 65_536,
                },
                "stripe",
            ),
        ] {
            let text = serde_json::to_string(&spec).unwrap();
            assert!(
                text.contains(&format!(r#""kind":"{name}","files":[{{"path":"#)),
                "{text}"
            );
            assert_eq!(serde_json::from_str::<BackendSpec>(&text).unwrap(), spec);
            assert_eq!((spec.name(), spec.size()), (name, 1 << 40));
        }
    }
}
