//! What the tool prints, and the code it ends with.
//!
//! With `--json` every outcome is exactly one JSON value on standard output, a failure too: `{"error": {"kind",
//! "message", "hint", "errno", "errno_name", "exit_code"}}`. Messages go to standard error in any case. Nothing here
//! panics if a stream cannot be written to.

use serde::Serialize;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::process::ExitCode;
use ublk_core::Errno;
use ublk_daemon::closed;
use ublk_daemon::failure::{Failure, FailureKind};
use ublk_daemon::log::{Stderr, plain};

/// A failure in JSON output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ErrorBody {
    /// The kind of failure.
    pub kind: FailureKind,
    /// What failed, on what, and why.
    pub message: String,
    /// What to do next.
    pub hint: Option<String>,
    /// The kernel's errno, if any.
    pub errno: Option<i32>,
    /// Its name: `EBUSY`.
    pub errno_name: Option<&'static str>,
    /// The exit code of the failed command.
    pub exit_code: u8,
}

impl From<&Failure> for ErrorBody {
    fn from(failure: &Failure) -> Self {
        Self {
            kind: failure.kind,
            message: failure.text.clone(),
            hint: failure.hint.clone(),
            errno: failure.errno.map(ublk_core::Errno::get),
            errno_name: failure.errno.and_then(ublk_core::Errno::name),
            exit_code: failure.kind.exit_code(),
        }
    }
}

/// The JSON value of a failed command.
#[derive(Debug, Serialize)]
struct Failed {
    error: ErrorBody,
}

/// Prints a value: as one line of JSON, or as text.
///
/// # Errors
/// Standard output cannot be written to.
pub fn put<T: Serialize>(
    json: bool,
    value: &T,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    if json {
        let mut line = serde_json::to_vec(value)
            .map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))?;
        line.push(b'\n');
        raw(&line)
    } else {
        let text = text();
        let lines: Vec<String> = text.split('\n').map(plain).collect();
        raw(lines.join("\n").as_bytes())
    }
}

/// Prints raw bytes, which other programs read.
///
/// # Errors
/// As [`put`].
pub fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let open = match closed::standard_output() {
        // As if the closed descriptor had not been replaced.
        true => Err(io::Error::from_raw_os_error(libc::EBADF)),
        false => Ok(()),
    };
    open.and_then(|()| out.write_all(bytes))
        .and_then(|()| out.flush())
        .map_err(|e| {
            let failure = Failure::failed(format!("cannot write to standard output: {e}"));
            failure.errno(Errno::from_io(&e))
        })
}

/// Whether the reader of standard output has gone: what is printed for ever ends well then.
pub fn is_unread(failure: &Failure) -> bool {
    failure.errno == Some(Errno::EPIPE)
}

/// Prints a failure to standard error.
pub fn print_failure(failure: &Failure) {
    let mut text = format!("ublkctl: {}\n", plain(&failure.text));
    if let Some(hint) = &failure.hint {
        let _ = writeln!(text, "  hint: {}", plain(hint));
    }
    // If this fails, the exit code still reports the failure.
    let _ = Stderr.write_all(text.as_bytes());
}

/// Ends a command that failed before it printed anything.
pub fn fail(failure: &Failure, json: bool) -> ExitCode {
    print_failure(failure);
    if json {
        let error = ErrorBody::from(failure);
        let _ = put(true, &Failed { error }, String::new);
    }
    exit_code(failure.kind)
}

/// Ends a command that printed what it found and then failed, if it did: the failure is no second JSON value.
pub fn end(failure: Option<&Failure>) -> ExitCode {
    failure.map_or(ExitCode::SUCCESS, |failure| {
        print_failure(failure);
        exit_code(failure.kind)
    })
}

/// The exit code of a kind of failure.
pub fn exit_code(kind: FailureKind) -> ExitCode {
    ExitCode::from(kind.exit_code())
}

/// The worst of several exit codes: a timeout is worse than a failure, because more is left to clean up; a failure is
/// worse than a missing device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Worst(u8);

impl Worst {
    /// Adds an outcome.
    pub fn add(&mut self, code: u8) {
        let rank = |code| [0, 32, 2, 1, 3].iter().position(|c| *c == code);
        if rank(code) > rank(self.0) {
            self.0 = code;
        }
    }

    /// The resulting exit code.
    pub fn code(self) -> ExitCode {
        ExitCode::from(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_core::Errno;

    #[test]
    fn exit_codes_are_the_contract() {
        let codes = [
            (FailureKind::Failed, 1),
            (FailureKind::Busy, 1),
            (FailureKind::Usage, 2),
            (FailureKind::TimedOut, 3),
            (FailureKind::NoSuchDevice, 32),
        ];
        for (kind, code) in codes {
            assert_eq!(kind.exit_code(), code);
        }
    }

    #[test]
    fn the_worst_outcome_decides() {
        let of = |codes: &[u8]| {
            let mut worst = Worst::default();
            codes.iter().for_each(|c| worst.add(*c));
            worst.0
        };
        assert_eq!(of(&[]), 0);
        assert_eq!(of(&[0, 32, 0]), 32);
        assert_eq!(of(&[1, 32]), 1);
        assert_eq!(of(&[32, 3, 1]), 3);
    }

    #[test]
    fn errors_have_all_that_a_script_asks_for() {
        let failure = Failure::new(FailureKind::Busy, "it is open")
            .hint("close it")
            .errno(Errno::EBUSY);
        let json = serde_json::to_value(ErrorBody::from(&failure)).unwrap();
        let wanted = serde_json::json!({
            "kind": "busy", "message": "it is open", "hint": "close it",
            "errno": 16, "errno_name": "EBUSY", "exit_code": 1,
        });
        assert_eq!(json, wanted);
    }
}
