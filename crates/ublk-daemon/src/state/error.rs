//! Why the state store could not be used.
#![forbid(unsafe_code)]

use super::{RUN_DIR_VARIABLE, STATE_VERSION};
use crate::failure::Failure;
use std::io;
use std::path::PathBuf;

/// Why a record could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A file or the directory could not be used.
    #[error("{}: {source}", path.display())]
    Io {
        /// What was used.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A file or the directory is not ours alone.
    #[error("{} is not trusted: {why}", path.display())]
    Untrusted {
        /// What is not trusted.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The bytes are no record.
    #[error("{} is not a state file: {why}", path.display())]
    Garbled {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        why: String,
    },
    /// Another version wrote it.
    #[error("{} has version {version}, this ublkctl reads {STATE_VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// A user without a run directory.
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
                "the device goes on, and `ublkctl delete N`, by its number, still works; add it again then",
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
