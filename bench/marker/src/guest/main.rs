//! Runs the rows of a plan in the guest: server, fio, markers; reports the results row by row.
//!
//! Lines of the answer, on standard output:
//!
//! ```text
//! @seen NAME JSON
//! @row NAME DEVICE MARK CTXT_SMALL CTXT_LARGE IOS_SMALL IOS_LARGE
//! @wall NAME JSON
//! @usable NAME DEVICE ADD_MICROSECONDS READ_MICROSECONDS
//! @reconnect NAME DEVICE MICROSECONDS…
//! @error NAME TEXT
//! @symbol NAME START END
//! ```
//!
//! `MARK` is the number of the first of four markers: before and after the small run, before and after the large one.
//! `@seen` has the device's properties as the kernel reports them, see `seen.rs`, and `ring_completions`: the
//! completions of each of the server's rings in one more run of several jobs, and `peer_ns`: the processor time of the
//! row's NBD server in both runs; a row without a device has only the latter. `@symbol` answers `bench-guest --symbols
//! NAME…`: the address range of that kernel function.

mod beside;
mod count;
mod fio;
mod floor;
mod kernel_nbd;
mod loops;
mod peer;
mod plan;
mod prepare;
mod reconnect;
mod seen;
mod server;
mod symbols;
mod usable;
mod wall;

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};
use beside::Beside;
use count::{Client, Runs};
use floor::{Floor, Job};
use kernel_nbd::KernelNbd;
use loops::Loop;
use peer::Peer;
use plan::{Kind, Row};
use prepare::Prepared;
use serde_json::{Value, json};
use server::Server;

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
    let args: Vec<_> = std::env::args().skip(1).collect();
    if let Some(("--symbols", names)) = args
        .split_first()
        .map(|(word, names)| (word.as_str(), names))
    {
        return symbols::print(names);
    }
    let path = args.first().context("no plan given")?;
    let text = fs::read_to_string(path).with_context(|| path.clone())?;
    let mut marks = 0;
    let mut prepared = Prepared::default();
    for row in plan::parse(&text)? {
        let result = prepared.need(&row.prepare).and_then(|()| match row.kind {
            Kind::Usable => usable::measure(&row),
            Kind::Reconnect => {
                let peer = prepared.peer_mut(&row.prepare);
                reconnect::measure(&row, peer.context("no NBD server")?)
            }
            Kind::Counted | Kind::Wall => measure(&row, prepared.peer(&row.prepare), &mut marks),
        });
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

/// Creates the row's device, if it has one, measures, and removes it.
fn measure(row: &Row, peer: Option<&Peer>, marks: &mut u64) -> Result<String> {
    if let Some(job) = &row.floor {
        return count_floor(row, job, peer, marks);
    }
    if let Some((file, direct)) = &row.looped {
        let device = Loop::new(file, *direct)?;
        return work(row, device.path(), peer, marks);
    }
    if let Some(server) = &row.kernel_nbd {
        let _device = KernelNbd::new(server)?;
        return work(row, KernelNbd::PATH, peer, marks);
    }
    if row.server.is_empty() {
        return work(row, &row.device, peer, marks);
    }
    let server = match row.stop.as_slice() {
        [] => Server::start(&row.server)?,
        stop => Server::start_silent(&row.server, &row.device, stop)?,
    };
    let answer = beside(row, server.device(), peer, marks);
    // A server that fails at its end spoils its figures: it did something other than serve.
    let end = server.stop();
    let answer = answer?;
    end?;
    Ok(answer)
}

/// Measures while the row's other command, if it has one, runs.
fn beside(row: &Row, device: &str, peer: Option<&Peer>, marks: &mut u64) -> Result<String> {
    if row.beside.is_empty() {
        return work(row, device, peer, marks);
    }
    let other = Beside::start(&row.beside)?;
    let answer = work(row, device, peer, marks)?;
    other.stop()?;
    Ok(answer)
}

fn work(row: &Row, device: &str, peer: Option<&Peer>, marks: &mut u64) -> Result<String> {
    for (attribute, value) in &row.queue {
        let name = device.trim_start_matches("/dev/");
        let path = format!("/sys/block/{name}/queue/{attribute}");
        fs::write(&path, value).with_context(|| path)?;
    }
    match row.kind {
        Kind::Wall => {
            let seen = seen::device(device)?;
            println!("@seen {} {seen}", row.name);
            let server = seen["server_pid"].as_u64();
            let result = wall::measure(row, device, server)?;
            Ok(format!("@wall {} {result}", row.name))
        }
        Kind::Counted | Kind::Usable | Kind::Reconnect => count(row, device, peer, marks),
    }
}

fn count(row: &Row, device: &str, peer: Option<&Peer>, marks: &mut u64) -> Result<String> {
    let runs = Runs::new(row, Client::Fio(&row.fio, device), peer, marks)?;
    // Afterwards, so that it does not affect the figures.
    let mut seen = seen::device(device)?;
    if row.jobs > 1 {
        seen["ring_completions"] = completions(row, device, &seen)?;
    }
    if !runs.peer.is_empty() {
        seen["peer_ns"] = json!(runs.peer);
    }
    println!("@seen {} {seen}", row.name);
    Ok(runs.line(&row.name, device))
}

/// Counts a client without a block device.
fn count_floor(row: &Row, job: &Job, peer: Option<&Peer>, marks: &mut u64) -> Result<String> {
    let floor = Box::new(Floor::connect(job)?);
    let runs = Runs::new(row, Client::Floor(floor), peer, marks)?;
    let seen = json!({ "device": job.at, "peer_ns": runs.peer });
    println!("@seen {} {seen}", row.name);
    Ok(runs.line(&row.name, &job.at))
}

/// The completions of each of the server's rings while the row's fio job runs once more.
fn completions(row: &Row, device: &str, seen: &Value) -> Result<Value> {
    let Some(pid) = seen["server_pid"].as_u64() else {
        return Ok(Value::Null);
    };
    let before = seen::rings(pid)?;
    fio::run(&row.fio, device, row.ios)?;
    Ok(json!(seen::between(&before, &seen::rings(pid)?)))
}
