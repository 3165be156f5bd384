//! What clap has to say instead of a command: mistakes in the words, help and the version.

use crate::output::{fail, put};
use clap::error::ErrorKind;
use serde_json::json;
use std::ffi::OsString;
use std::process::ExitCode;
use ublk_daemon::wire::{Failure, FailureKind};

/// Whether the words ask for JSON, however wrong the rest of them is.
pub fn asks_for_json(words: impl IntoIterator<Item = OsString>) -> bool {
    let options = words.into_iter().skip(1).take_while(|word| word != "--");
    options.into_iter().any(|word| word == "--json")
}

/// Tells what clap says, as clap does or as JSON; the exit code.
pub fn told(error: &clap::Error, json: bool) -> ExitCode {
    if !json {
        let _ = error.print();
        return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    }
    let text = error.render().to_string();
    let value = match error.kind() {
        ErrorKind::DisplayHelp => json!({ "help": text }),
        ErrorKind::DisplayVersion => json!({ "version": env!("CARGO_PKG_VERSION") }),
        kind => return fail(&failure(kind, &text), true),
    };
    match put(true, &value, String::new) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure, false),
    }
}

/// A mistake in the words: what it is in one line, and how the command is used.
fn failure(kind: ErrorKind, text: &str) -> Failure {
    let lines = || text.lines().map(str::trim).filter(|l| !l.is_empty());
    let usage = lines().find(|l| l.starts_with("Usage:"));
    let message = match kind {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a command is missing".to_owned(),
        _ => {
            let first: Vec<&str> = lines().take_while(|l| !l.starts_with("Usage:")).collect();
            let first = first.join(" ");
            first.strip_prefix("error: ").unwrap_or(&first).to_owned()
        }
    };
    let failure = Failure::new(FailureKind::Usage, message);
    match usage {
        Some(usage) => failure.hint(format!("{usage}; --help says more")),
        None => failure.hint("--help says more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_asked_for_anywhere_before_the_operands() {
        let asks = |words: &str| asks_for_json(words.split(' ').map(OsString::from));
        assert!(asks("ublkctl --json list") && asks("ublkctl add mem --json"));
        assert!(!asks("ublkctl add file -- --json") && !asks("ublkctl list --jso"));
        assert!(!asks("--json"));
    }
}
