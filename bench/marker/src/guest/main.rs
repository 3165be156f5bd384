//! Runs the rows of a plan in the guest: server, fio, markers; tells what it saw, row by row.
//!
//! Lines of the answer, on standard output:
//!
//! ```text
//! @row NAME DEVICE MARK CTXT_SMALL CTXT_LARGE IOS_SMALL IOS_LARGE
//! @usable NAME DEVICE ADD_MICROSECONDS READ_MICROSECONDS
//! @error NAME TEXT
//! ```
//!
//! `MARK` is the number of the first of four markers: before and after the small run, before and
//! after the large one.
#![forbid(unsafe_code)]

mod fio;
mod plan;
mod server;
mod usable;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use icount_marker::mark;
use plan::Row;
use server::Server;

/// Numbers of I/Os: the first run warms caches, the difference of the others is the figure.
const WARM_UP: u64 = 6_000;
const SMALL: u64 = 1_000;
const LARGE: u64 = 11_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("@error plan {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let path = std::env::args().nth(1).context("no plan given")?;
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let mut marks = 0;
    for row in plan::parse(&text)? {
        let result = if row.usable {
            usable::measure(&row)
        } else {
            measure(&row, &mut marks)
        };
        match result {
            Ok(line) => println!("{line}"),
            Err(error) => {
                let text = format!("{error:#}").replace('\n', "; ");
                println!("@error {} {text}", row.name);
            }
        }
    }
    Ok(())
}

fn measure(row: &Row, marks: &mut u64) -> Result<String> {
    if row.server.is_empty() {
        return work(row, &row.device, marks);
    }
    let server = Server::start(&row.server)?;
    let answer = work(row, server.device(), marks);
    // A server that does not end well spoils its figures: it did something else than serve.
    let end = server.stop();
    let answer = answer?;
    end?;
    Ok(answer)
}

fn work(row: &Row, device: &str, marks: &mut u64) -> Result<String> {
    fio::run(&row.fio, device, WARM_UP)?;
    let first = *marks;
    let mut seen = Vec::new();
    for ios in [SMALL, LARGE] {
        let before = context_switches()?;
        mark();
        *marks += 1;
        let done = fio::run(&row.fio, device, ios);
        mark();
        *marks += 1;
        seen.push((context_switches()? - before, done?));
    }
    let (small, large) = (seen[0], seen[1]);
    Ok(format!(
        "@row {} {device} {first} {} {} {} {}",
        row.name, small.0, large.0, small.1, large.1
    ))
}

/// Context switches of the machine since it was started.
fn context_switches() -> Result<u64> {
    let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let count = text.lines().find_map(|line| line.strip_prefix("ctxt "));
    let count = count.context("no ctxt in /proc/stat")?;
    count.trim().parse().context("ctxt of /proc/stat")
}
