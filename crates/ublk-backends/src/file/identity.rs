//! Identifies a file or disk regardless of its name.

#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use ublk_core::Errno;

use super::facts::Queue;
use super::os;

/// Identity of a file or disk, independent of its name (L43).
///
/// Names are not stable: a file is renamed and another takes its place, a disk is unplugged and the next one gets its
/// device node. The identity is stored with a device, and compared with [`Identity::is`] when its backing store is
/// opened again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(tag = "kind", rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Identity {
    /// A regular file.
    File {
        /// Device number of its file system.
        device: u64,
        /// Inode number in that file system.
        inode: u64,
        /// Creation time in nanoseconds since 1970, if the file system stores it: inode numbers of deleted files are
        /// reused.
        born: Option<u64>,
    },
    /// A block device.
    Disk {
        /// Device number.
        device: u64,
        /// Sequence number of the disk (Linux 5.15): device numbers of removed disks are reused.
        sequence: Option<u64>,
        /// Start on its disk in sectors of 512 bytes; 0 for a whole disk.
        start: u64,
    },
}

impl Identity {
    /// The identity of an open file.
    ///
    /// # Errors
    /// The errno of fstat(2).
    pub fn of(file: &fs::File) -> Result<Self, Errno> {
        let meta = file.metadata().map_err(|e| Errno::from_io(&e))?;
        if meta.file_type().is_block_device() {
            return Ok(Self::Disk {
                device: meta.rdev(),
                sequence: os::disk_sequence(file).ok(),
                start: Queue::of(meta.rdev()).start(),
            });
        }
        Ok(Self::File {
            device: meta.dev(),
            inode: meta.ino(),
            born: os::born(file),
        })
    }

    /// Whether both identify the same file or disk. Fields that one of them lacks are not compared.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        let agree = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        match (*self, *other) {
            (
                Self::File {
                    device,
                    inode,
                    born,
                },
                Self::File {
                    device: d,
                    inode: i,
                    born: b,
                },
            ) => (device, inode) == (d, i) && agree(born, b),
            (
                Self::Disk {
                    device,
                    sequence,
                    start,
                },
                Self::Disk {
                    device: d,
                    sequence: s,
                    start: at,
                },
            ) => (device, start) == (d, at) && agree(sequence, s),
            _ => false,
        }
    }

    /// Whether the metadata match, as far as they tell.
    #[must_use]
    pub fn matches(&self, meta: &fs::Metadata) -> bool {
        match *self {
            Self::File { device, inode, .. } => {
                meta.file_type().is_file() && (meta.dev(), meta.ino()) == (device, inode)
            }
            Self::Disk { device, .. } => {
                meta.file_type().is_block_device() && meta.rdev() == device
            }
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |device: u64| format!("{}:{}", libc::major(device), libc::minor(device));
        match *self {
            Self::File {
                device,
                inode,
                born,
            } => {
                write!(f, "inode {inode} on device {}", number(device))?;
                match born {
                    // Whole seconds, as `stat --format=%W` prints them.
                    Some(born) => write!(f, ", made at {}", born / 1_000_000_000),
                    None => Ok(()),
                }
            }
            Self::Disk {
                device,
                sequence,
                start,
            } => {
                write!(f, "block device {}", number(device))?;
                if let Some(sequence) = sequence {
                    write!(f, ", disk sequence number {sequence}")?;
                }
                if start != 0 {
                    write!(f, ", from sector {start} on")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    fn of(path: &std::path::Path) -> Identity {
        Identity::of(&fs::File::open(path).expect("there")).expect("a file")
    }

    /// L43 A file is the same under another name; a file that takes over its name, or even its inode number, is
    /// another.
    #[test]
    fn l43_a_file_is_not_its_name() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let (one, two) = (place.path().join("one"), place.path().join("two"));
        fs::write(&one, b"1").expect("room");
        fs::write(&two, b"2").expect("room");
        let first = of(&one);
        assert!(first.is(&first) && !first.is(&of(&two)));
        assert!(first.matches(&fs::metadata(&one).expect("there")));
        assert!(!first.matches(&fs::metadata(&two).expect("there")));
        fs::rename(&two, &one).expect("renamed");
        assert!(!first.is(&of(&one)), "another file of that name");
        let mut reborn = first;
        if let Identity::File { born, .. } = &mut reborn {
            *born = Some(1);
        }
        let Identity::File { born: known, .. } = first else {
            panic!("{first}");
        };
        assert_eq!(reborn.is(&first), known.is_none());
        if let Identity::File { born, .. } = &mut reborn {
            *born = None;
        }
        assert!(reborn.is(&first), "what is not known is not compared");
    }

    /// L43 A disk is identified by its sequence number, a partition also by its start.
    #[test]
    fn l43_a_disk_is_not_its_number() {
        let disk = |device, sequence, start| Identity::Disk {
            device,
            sequence,
            start,
        };
        let one = disk(1792, Some(7), 0);
        assert!(one.is(&one) && one.is(&disk(1792, None, 0)));
        for other in [
            disk(1792, Some(8), 0),
            disk(1793, Some(7), 0),
            disk(1792, Some(7), 2048),
        ] {
            assert!(!one.is(&other), "{other}");
        }
        assert_eq!(one.to_string(), "block device 7:0, disk sequence number 7");
    }

    #[cfg(feature = "serde")]
    #[test]
    fn identities_survive_a_record() {
        for identity in [
            of(std::path::Path::new("/proc/self/exe")),
            Identity::Disk {
                device: 1792,
                sequence: None,
                start: 0,
            },
        ] {
            let text = serde_json::to_string(&identity).expect("a value");
            let back: Identity = serde_json::from_str(&text).expect("its own words");
            assert_eq!(back, identity);
        }
    }
}
