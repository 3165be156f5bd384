//! End-to-end cases on a real ublk driver, driven through `ublkctl` and through the facade.
//!
//! Run as root with the driver loaded: in the test guest of `cargo xtask vm-e2e`, or on a host (`--host`). Arguments
//! are those of libtest, mainly a filter; `UBLKCTL` names the tool, `UBLK_EXAMPLES` the directory of the examples.
//! Cases run one after the other. A case that cannot run here is ignored, and a line `SKIP name: reason` says so; the
//! runner compares these lines with the expected skips.

#![deny(unsafe_code)]

mod case;
mod cases;
mod cli;
mod direct_io;
mod embed;
mod fio;
mod fs;
mod idle;
mod json;
mod metadata_client;
mod pattern;
mod plain;
mod procfs;
mod prometheus;
mod run;
mod serve;
mod shared_client;
mod sysfs;
mod systemd;
mod verifier;
mod volume;
mod wait;

use std::process::ExitCode;

use libtest_mimic::{Arguments, ColorSetting};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(("--serve", rest)) = args.split_first().map(|(f, r)| (f.as_str(), r)) {
        return match serve::serve(rest) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("serve: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    if let Some(("--prometheus", rest)) = args.split_first().map(|(f, r)| (f.as_str(), r)) {
        return match prometheus::judge(rest) {
            Ok(found) => {
                println!("{found}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("prometheus: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    if let Some(("--idle", rest)) = args.split_first().map(|(f, r)| (f.as_str(), r)) {
        return match idle::idle(rest) {
            Ok(value) => {
                println!("{value}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("idle: {error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let mut arguments = Arguments::from_args();
    // The cases change the state of the machine.
    arguments.test_threads = Some(1);
    // The runner parses the lines, in a guest whose channel looks like a terminal.
    arguments.color.get_or_insert(ColorSetting::Never);
    let (part, parts) = case::part();
    let (avoided, all): (Vec<_>, Vec<_>) = cases::all(case::set())
        .into_iter()
        .skip(part)
        .step_by(parts)
        .partition(case::Case::is_avoided);
    if !arguments.list {
        let named = |c: &&case::Case| c.named(arguments.filter.as_ref());
        avoided
            .iter()
            .filter(named)
            .for_each(case::Case::tell_avoided);
        all.iter().filter(named).for_each(case::Case::announce);
    }
    let trials = all.into_iter().map(case::Case::trial).collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    case::print_measured();
    conclusion.exit_code()
}
