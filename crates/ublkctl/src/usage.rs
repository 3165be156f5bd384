//! Output of clap: usage errors, help and the version.

use crate::output::{fail, put, raw};
use clap::error::ErrorKind;
use serde_json::json;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use ublk_daemon::failure::{Failure, FailureKind};

/// Whether the arguments request JSON, even if the rest of them is wrong.
pub fn asks_for_json(args: impl IntoIterator<Item = OsString>) -> bool {
    let options = args.into_iter().skip(1).take_while(|word| word != "--");
    options.into_iter().any(|word| word == "--json")
}

/// Prints clap's output, as clap does or as JSON; returns the exit code.
pub fn print(error: &clap::Error, json: bool) -> ExitCode {
    let code = ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    if !json && (error.use_stderr() || io::stdout().is_terminal()) {
        let _ = error.print();
        return code;
    }
    let text = error.render().to_string();
    if !json {
        return raw(text.as_bytes()).map_or_else(|failure| fail(&failure, false), |()| code);
    }
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

/// Converts a usage error: the mistake in one line, and the usage as a hint.
fn failure(kind: ErrorKind, text: &str) -> Failure {
    let paragraphs = text.split("\n\n");
    let mut paragraphs = paragraphs.map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
    let first = paragraphs.next().unwrap_or_default();
    let message = match kind {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a command is missing",
        _ => first.strip_prefix("error: ").unwrap_or(&first),
    };
    let mut hints: Vec<String> = paragraphs
        .filter(|p| p.starts_with("Usage:") || p.starts_with("tip:"))
        .collect();
    hints.push("see --help".to_owned());
    Failure::new(FailureKind::Usage, message).hint(hints.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    #[test]
    fn json_is_asked_for_anywhere_before_the_operands() {
        let asks = |args: &str| asks_for_json(args.split(' ').map(OsString::from));
        assert!(asks("ublkctl --json list") && asks("ublkctl add mem --json"));
        assert!(!asks("ublkctl add file -- --json") && !asks("ublkctl list --jso"));
        assert!(!asks("--json"));
    }

    /// Splits clap's message: the mistake, a tip, the usage.
    #[test]
    fn the_message_is_the_mistake_alone() {
        let message_of = |args: &str| {
            let error = Cli::try_parse_from(args.split(' ')).expect_err("a mistake");
            failure(error.kind(), &error.render().to_string())
        };
        let number = message_of("ublkctl add null --deadline 0");
        assert!(number.text.ends_with("0 is not in 1..=3600"), "{number:?}");
        assert_eq!(number.hint.as_deref(), Some("see --help"));
        let word = message_of("ublkctl list --jso");
        assert_eq!(word.text, "unexpected argument '--jso' found");
        let hint = word.hint.unwrap_or_default();
        assert!(
            hint.starts_with("tip: ") && hint.contains("Usage: "),
            "{hint}"
        );
    }
}
