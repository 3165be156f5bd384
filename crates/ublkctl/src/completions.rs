//! Shell completions. At each key the shell asks this program for commands, options and existing devices.

use clap::Command;
use clap_complete::engine::CompletionCandidate;
use clap_complete::env::{CompleteEnv, Shells};
use std::io;
use ublk_daemon::failure::Failure;
use ublk_daemon::front;

/// Set by a shell that asks for completions; the value names the shell.
const VARIABLE: &str = "UBLKCTL_COMPLETE";

/// Answers a shell's request for completions of `command`, if there is one. Errors are not reported, because the user is
/// typing.
pub fn answered(command: fn() -> Command) -> bool {
    if std::env::var_os(VARIABLE).is_none() {
        return false;
    }
    let here = std::env::current_dir().ok();
    let answer = CompleteEnv::with_factory(command)
        .var(VARIABLE)
        .bin("ublkctl");
    !matches!(
        answer.try_complete(std::env::args_os(), here.as_deref()),
        Ok(false)
    )
}

/// The script that makes a shell ask for completions.
///
/// # Errors
/// The shell is not supported.
pub fn script(shell: clap_complete::Shell) -> Result<Vec<u8>, Failure> {
    let name = shell.to_string();
    let shells = Shells::builtins();
    let unknown = || Failure::failed(format!("no completions for {name}"));
    let completer = shells.completer(&name).ok_or_else(unknown)?;
    let mut text = Vec::new();
    let program = "ublkctl";
    completer
        .write_registration(VARIABLE, program, program, program, &mut text)
        .map_err(|e: io::Error| Failure::failed(format!("cannot write completions: {e}")))?;
    Ok(text)
}

/// The existing devices, for an operand that is a device.
pub fn devices() -> Vec<CompletionCandidate> {
    let candidates = front::candidates().into_iter();
    candidates
        .map(|device| {
            let about = (!device.about.is_empty()).then(|| device.about.into());
            CompletionCandidate::new(device.value).help(about)
        })
        .collect()
}
