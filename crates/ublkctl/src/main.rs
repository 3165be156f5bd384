//! `ublkctl`: makes, lists, stops and deletes ublk devices.
//!
//! The program is its own agent, server and helper: `ublk-daemon` starts it again in those roles.
#![forbid(unsafe_code)]

mod cli;
mod config;
mod doctor;
mod pages;
mod run;
mod show;
mod size;
mod udev;

use clap::Parser;
use std::io;
use std::process::ExitCode;
use tracing::level_filters::LevelFilter;
use ublk_daemon::roles;

fn main() -> ExitCode {
    log();
    // Before anything else: a role must start in milliseconds.
    if let Err(e) = roles::take_over() {
        eprintln!("ublkctl: {e}");
        return ExitCode::from(2);
    }
    // A mistake in the words ends here, with exit code 2.
    let cli = cli::Cli::parse();
    match run::run(&cli) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("ublkctl: {failure}");
            if let Some(hint) = &failure.hint {
                eprintln!("  hint: {hint}");
            }
            run::exit_code(failure.kind)
        }
    }
}

/// Messages go to standard error, which a role moves to its log.
fn log() {
    let level = std::env::var("UBLKCTL_LOG").ok();
    let level = level
        .and_then(|l| l.parse().ok())
        .unwrap_or(LevelFilter::INFO);
    let role = std::env::args()
        .nth(1)
        .filter(|word| word.starts_with("__"));
    let tracing = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(false);
    match role {
        // A log file wants times; a terminal does not.
        Some(_) => tracing.init(),
        None => tracing.without_time().init(),
    }
}
