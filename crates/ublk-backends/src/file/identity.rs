//! Which file or disk it is, by whatever name it is reached.

#![forbid(unsafe_code)]

use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use ublk_core::Errno;

use super::facts::Queue;
use super::os;

/// What tells one file or disk from all others, whatever its name is today (L43).
///
/// Names are only ways to a backing store: a file is renamed and another takes its place, a disk is unplugged and the
/// next one gets its node. This is kept with a device, and compared by [`Identity::is`] when its backing store is opened
/// again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(tag = "kind", rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Identity {
    /// A regular file.
    File {
        /// The number of the device that its file system is on.
        device: u64,
        /// Its number in that file system.
        inode: u64,
        /// When it was made, in nanoseconds since 1970, where the file system keeps that: numbers of files that were
        /// removed are given again.
        born: Option<u64>,
    },
    /// A block device.
    Disk {
        /// Its number.
        device: u64,
        /// Its disk's sequence number (Linux 5.15): numbers of devices that were removed are given again.
        sequence: Option<u64>,
        /// Where on its disk it begins, in sectors of 512 bytes: 0 for a whole disk.
        start: u64,
    },
}

impl Identity {
    /// That of an open file.
    ///
    /// # Errors
    /// What fstat(2) answers.
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

    /// Whether both are of one file or disk. What one of them does not know is not compared.
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

    /// Whether that is what the metadata are of, as far as they tell.
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

    /// L43 A file is itself under another name, and what takes its name is another; also one with its number.
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

    /// L43 A disk is its sequence number, a partition its begin.
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
