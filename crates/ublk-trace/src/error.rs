//! Why a trace cannot be read.

use std::io;

/// A trace that cannot be read, or not any further.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read or written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The file has no bytes.
    #[error("the file is empty")]
    Empty,
    /// No format that is known begins like this.
    #[error(
        "unknown format: the file begins neither as a ublk trace, nor as a fio iolog, a blktrace stream or MSR CSV"
    )]
    UnknownFormat,
    /// A version of a known format that this program cannot read.
    #[error("{format} version {version} is not supported, only {supported}")]
    Version {
        /// The format.
        format: &'static str,
        /// The version of the file.
        version: u32,
        /// Those that can be read.
        supported: &'static str,
    },
    /// The header of a ublk trace is damaged.
    #[error("the header of the trace is damaged: {0}")]
    Header(&'static str),
    /// A line of a text format that makes no sense.
    #[error("line {line}: {what}")]
    Line {
        /// Its number, from 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
    /// Bytes of a binary format that make no sense.
    #[error("byte {at}: {what}")]
    Bytes {
        /// Where in the file.
        at: u64,
        /// What is wrong there.
        what: String,
    },
    /// A request whose numbers do not fit the target format.
    #[error("a request is beyond the limits of a trace: {0}")]
    Limits(String),
}

impl Error {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Io(e) if e.kind() == io::ErrorKind::StorageFull => {
                "free some space, or write to another file system"
            }
            Self::Io(_) => "check the path and its permissions",
            Self::Empty => "record or copy the trace again",
            Self::UnknownFormat => {
                "merge the files of blktrace with `blkparse -i DEVICE -d FILE -O`; a CSV file needs the seven columns of \
                 the MSR Cambridge traces"
            }
            Self::Version { .. } => "convert the trace with the program that wrote it",
            Self::Header(_) => {
                "the file is not a trace, or its begin was overwritten: use another copy"
            }
            Self::Line { .. } | Self::Bytes { .. } => {
                "cut the file before this place to use what precedes it"
            }
            Self::Limits(_) => "leave this request out",
        }
    }
}
