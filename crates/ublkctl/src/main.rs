//! `ublkctl`: creates, lists, stops and deletes ublk devices.
//!
//! The program is its own agent, server and helper: `ublk-daemon` starts it again in those roles.
#![forbid(unsafe_code)]

mod cli;
mod completions;
mod config;
mod device;
mod doctor;
mod load;
mod logs;
mod many;
mod output;
mod pages;
mod record;
mod run;
mod show;
mod size;
mod stats;
mod target;
mod top;
mod trace;
mod udev;
mod usage;

use clap::{CommandFactory, Parser};
use std::process::ExitCode;
use tracing::level_filters::LevelFilter;
use ublk_daemon::failure::{Failure, FailureKind};
use ublk_daemon::{log, roles};
use usage::asks_for_json;

fn main() -> ExitCode {
    messages();
    let json = asks_for_json(std::env::args_os());
    // First of all: a role must start within milliseconds.
    if let Err(e) = roles::play() {
        return output::fail(&Failure::new(FailureKind::Usage, e.to_string()), json);
    }
    if completions::answered(cli::Cli::command) {
        return ExitCode::SUCCESS;
    }
    // A usage error exits here, with code 2.
    match cli::Cli::try_parse() {
        Ok(cli) => run::run(&cli).unwrap_or_else(|failure| output::fail(&failure, cli.json)),
        Err(error) => usage::print(&error, json),
    }
}

/// Messages go to standard error, which a role moves to its log.
fn messages() {
    let level = std::env::var("UBLKCTL_LOG").ok();
    let level = level
        .and_then(|l| l.parse().ok())
        .unwrap_or(LevelFilter::INFO);
    let role = std::env::args()
        .nth(1)
        .filter(|word| word.starts_with("__"));
    log::start(level, role.is_some());
}
