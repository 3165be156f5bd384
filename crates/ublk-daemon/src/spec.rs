//! Device specifications, passed from the command line and configuration files to the server, and stored in records.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use ublk_core::{DataMode, Mode, Recovery, SharedBuffer};
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
    },
    /// An export of an NBD server.
    Nbd {
        /// Where it is.
        uri: String,
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

/// A change of a backend that serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "backend", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum BackendCommand {
    /// For an NBD device.
    Nbd {
        /// Move to this server.
        #[serde(default)]
        uri: Option<String>,
        /// What becomes of requests while the server cannot be reached.
        #[serde(default)]
        retry: Option<Retry>,
        /// Fail what waits for the server: the device is to end.
        #[serde(default)]
        give_up: bool,
        /// Later servers of the device get these values, too.
        #[serde(default)]
        keep: bool,
    },
}

impl BackendSpec {
    /// Sets the size of the device, in bytes.
    pub fn set_size(&mut self, bytes: u64) {
        match self {
            Self::Null { size } | Self::Mem { size } => *size = bytes,
            Self::File { length, .. } | Self::Nbd { length, .. } => *length = Some(bytes),
        }
    }

    /// Takes the values of a change that later servers are to have. False if there are none.
    pub(crate) fn keep(&mut self, command: &BackendCommand) -> bool {
        let (
            Self::Nbd { uri, retry, .. },
            BackendCommand::Nbd {
                uri: to,
                retry: policy,
                keep: true,
                ..
            },
        ) = (self, command)
        else {
            return false;
        };
        if let Some(to) = to {
            uri.clone_from(to);
        }
        *retry = policy.unwrap_or(*retry);
        true
    }

    /// The name on the command line.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Null { .. } => "null",
            Self::Mem { .. } => "mem",
            Self::File { .. } => "file",
            Self::Nbd { .. } => "nbd",
        }
    }

    /// Size of the device in bytes; 0 for a file that has not been inspected yet.
    #[must_use]
    pub const fn size(&self) -> u64 {
        match self {
            Self::Null { size } | Self::Mem { size } => *size,
            Self::File { length, .. } | Self::Nbd { length, .. } => match length {
                Some(size) => *size,
                None => 0,
            },
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
    /// Whether the server's memory is locked.
    #[serde(default)]
    pub lock_memory: bool,
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
        };
        assert_eq!((file.name(), file.size()), ("file", 0));
        if let BackendSpec::File { length, .. } = &mut file {
            *length = Some(8192);
        }
        assert_eq!(file.size(), 8192);
        let text = serde_json::to_string(&file).unwrap();
        assert_eq!(serde_json::from_str::<BackendSpec>(&text).unwrap(), file);
    }
}
