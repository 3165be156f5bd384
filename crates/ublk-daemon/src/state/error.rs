//! Errors of the state store.
#![forbid(unsafe_code)]

use super::{RUN_DIR_VARIABLE, STATE_VERSION};
use crate::failure::Failure;
use std::io;
use std::path::PathBuf;

/// Why a record or the run directory could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A file system operation failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Others can access a file or the directory.
    #[error("{} is not trusted: {why}", path.display())]
    Untrusted {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A file is not a valid record.
    #[error("{} is not a state file: {why}", path.display())]
    Garbled {
        /// The file.
        path: PathBuf,
        /// The parser's error.
        why: String,
    },
    /// Another version of the tool wrote the record.
    #[error("{} has version {version}, this ublkctl reads {STATE_VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// No run directory could be determined for this user.
    #[error(
        "no run directory: set XDG_RUNTIME_DIR, XDG_STATE_HOME or {RUN_DIR_VARIABLE} to a directory of your own"
    )]
    NoDirectory,
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        let hint = match &error {
            StateError::Garbled { .. }
            | StateError::Version { .. }
            | StateError::Untrusted { .. } => Some(
                "the device keeps serving; delete it by number (`ublkctl delete N`) and add it again",
            ),
            _ => None,
        };
        let failure = Self::failed(format!("state: {error}"));
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
