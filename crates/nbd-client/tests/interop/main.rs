//! The protocol core against servers of others: nbdkit, qemu-nbd and nbd-server, beside libnbd's programs. A server that
//! is not on this host is skipped; `cargo xtask nbd-interop` fetches all of them and writes the table in docs/nbd.md.

#[path = "../common/mod.rs"]
mod common;
mod exercise;
mod images;
mod nbdkit;
mod others;
mod recordings;

use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};
use nbd_client::{Export, Framing, Options, TransmissionFlags};

use common::client::{Client, list, options};
use common::program::{Server, Stop};
use exercise::{Counts, Model, beyond, exercise, whole};

/// Tries a pair and says what was done.
pub type Try = fn() -> Result<String, Stop>;

/// A server with an export, and what is tried with it.
pub struct Pair {
    /// The server's program.
    server: &'static str,
    /// The export, as the table calls it.
    export: &'static str,
    run: Try,
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let pairs = nbdkit::pairs().into_iter().chain(images::pairs());
    let pairs = pairs.chain(recordings::pairs());
    let trial = |(place, pair): (usize, Pair)| {
        let name = format!("{} {}", pair.server, pair.export)
            .replace(", ", "_")
            .replace([' ', '-'], "_");
        Trial::test(name.clone(), move || run(&name, place, &pair))
    };
    let trials = pairs.enumerate().map(trial).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run(name: &str, place: usize, pair: &Pair) -> Result<(), Failed> {
    let outcome = (pair.run)();
    let told = match &outcome {
        Ok(shown) => shown.clone(),
        Err(Stop::Skip(reason)) => format!("skipped: {reason}"),
        Err(Stop::Fail(why)) => format!("failed: {why}"),
    };
    report(place, pair, &told).map_err(|e| e.to_string())?;
    match outcome {
        Ok(_) => Ok(()),
        Err(Stop::Skip(reason)) => {
            println!("SKIP {name}: {reason}");
            Ok(())
        }
        Err(Stop::Fail(why)) => Err(why.into()),
    }
}

/// Appends a line to the file of results, if the caller wants one.
fn report(place: usize, pair: &Pair, told: &str) -> std::io::Result<()> {
    let Some(path) = std::env::var_os("INTEROP_RESULTS") else {
        return Ok(());
    };
    let row = serde_json::json!({
        "place": place, "server": pair.server, "export": pair.export, "result": told,
    });
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    file.write_all(format!("{row}\n").as_bytes())
}

/// How an export is tried.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Requests on each of two connections.
    pub rounds: u32,
    /// Each may fail with EIO.
    pub fails: bool,
    /// The server answers OPT_INFO with what holds.
    pub has_info: bool,
    /// libnbd's programs try it, too.
    pub others: bool,
}

impl Plan {
    /// Everything.
    pub const USUAL: Self = Self {
        rounds: 300,
        fails: false,
        has_info: true,
        others: true,
    };
}

/// Tries an export: random requests with each framing that the server has, what they leave, the end of the export, and
/// libnbd's programs beside it. Says what was done.
pub(crate) fn try_all(server: &Server, plan: Plan) -> Result<String, Stop> {
    let mut sum = Counts::default();
    let (_, export) = open(server, Framing::Extended)?;
    let framings = [Framing::Simple, Framing::Structured, Framing::Extended];
    for (seed, framing) in (1..).zip(framings) {
        let (mut client, now) = open(server, framing)?;
        if now.framing != framing && framing == Framing::Extended {
            // Asked for, and not to be had: tried already.
            client.disconnect();
            continue;
        }
        let flags = expected(&export, now.framing);
        if (now.size, now.flags) != (export.size, flags) {
            return Err(Stop::Fail(format!("{now:?} after {export:?}")));
        }
        let mut model = Model::of(&mut client, &now);
        let requests = (seed, plan.rounds);
        sum += exercise(&mut client, &now, &mut model, requests, plan.fails)?;
        if !plan.fails {
            beyond(&mut client, &now)?;
            model.check(&whole(&mut client, &now))?;
        }
        client.disconnect();
        let (mut client, now) = open(server, framing)?;
        if !plan.fails {
            model.check(&whole(&mut client, &now))?;
        }
        client.disconnect();
    }
    let mut shown = sum.to_string();
    if export.framing == Framing::Extended {
        shown += "; with extended headers, too";
    }
    if plan.others {
        others::same_facts(server, &export, plan.has_info)?;
        let (mut client, export) = open(server, Framing::Extended)?;
        let found = whole(&mut client, &export);
        client.disconnect();
        others::same_bytes(server, &found)?;
        shown += "; as nbdinfo and nbdcopy see it";
        if !export.flags.contains(TransmissionFlags::READ_ONLY) {
            others::written_by_nbdcopy(server, &export)?;
        }
    }
    Ok(shown)
}

/// What a server can do with this framing, of what it can with all that it has: DF needs chunks, and a choice of contexts
/// needs extended headers.
fn expected(export: &Export, framing: Framing) -> TransmissionFlags {
    let without = match framing {
        Framing::Simple => TransmissionFlags::SEND_DF.0 | TransmissionFlags::BLOCK_STATUS_PAYLOAD.0,
        Framing::Structured => TransmissionFlags::BLOCK_STATUS_PAYLOAD.0,
        Framing::Extended => 0,
    };
    TransmissionFlags(export.flags.0 & !without)
}

/// Opens the export of a server, which must be in its list if it has a list.
pub(crate) fn open(server: &Server, framing: Framing) -> Result<(Client, Export), Stop> {
    let wanted = Options {
        structured: framing.has_chunks(),
        extended: framing == Framing::Extended,
        ..options(server.export())
    };
    Ok(Client::open(server.connect()?, wanted)?)
}

/// The server lists its export.
pub(crate) fn listed(server: &Server) -> Result<(), Stop> {
    let exports = list(server.connect()?)?;
    match exports.iter().any(|one| one.name == server.export()) {
        true => Ok(()),
        false => Err(Stop::Fail(format!("not in the list: {exports:?}"))),
    }
}
