//! Commands for NBD devices: another retry policy, another server, what a server offers.

mod moves;

pub use moves::nbd_move;

use super::{ask, by_helper};
use crate::backend;
use crate::failure::{Failure, FailureKind};
use crate::report::{NbdReport, TlsInfo};
use crate::spec::{BackendCommand, BackendSpec, NbdCommand, Retry, TlsOptions};
use crate::state::{Record, Store};
use nbd_client::{Framing, TransmissionFlags, Uri, UriError};
use serde::Serialize;
use std::path::Path;
use std::time::{Duration, Instant};
use ublk_core::{DevId, deadline_in};
use ublk_ctrl::Controller;

/// Deadline of one question to the server process.
const ASK: Duration = Duration::from_secs(5);

/// Least time for one.
const LEAST: Duration = Duration::from_secs(1);

/// What is in force after a change: what the commands print as JSON.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct NbdChanged {
    /// The device.
    pub id: u32,
    /// Server, policy and connections.
    #[serde(flatten)]
    pub nbd: NbdReport,
}

/// Changes how long requests of a live device wait for a server that cannot be reached, also those that wait now.
///
/// # Errors
/// A device that is not an NBD device of ours, or whose server does not answer.
pub fn nbd_retry(
    program: &Path,
    id: DevId,
    retry: Retry,
    deadline: Duration,
) -> Result<NbdChanged, Failure> {
    let until = deadline_in(deadline);
    record_of(program, id, until)?;
    let command = NbdCommand {
        retry: Some(retry),
        ..NbdCommand::default()
    };
    let changed = ask(id, command, until)?;
    match changed.nbd.retry == retry {
        true => Ok(changed),
        false => Err(too_old(id)),
    }
}

/// Makes the server process fail the requests that wait for an unreachable NBD server, before a forced stop of the device.
pub(super) fn give_up(record: &Record, id: DevId) {
    if matches!(record.spec.backend, BackendSpec::Nbd { .. }) {
        let command = BackendCommand::Nbd(NbdCommand {
            give_up: true,
            ..NbdCommand::default()
        });
        let served = Store::of_user().is_ok_and(|store| store.has_server(record));
        if served && ask::command(id, &command, ASK).is_err() {
            tracing::warn!("the server process of device {id} does not answer");
        }
    }
}

/// Tells the server process of a device that was shrunk how large an export has to be from now on.
pub(super) fn shrunk(record: &Record, id: DevId, size: u64) {
    if matches!(record.spec.backend, BackendSpec::Nbd { .. }) {
        let command = BackendCommand::Nbd(NbdCommand {
            size: Some(size),
            ..NbdCommand::default()
        });
        if ask::command(id, &command, ASK).is_err() {
            tracing::warn!(
                "the server process of device {id} does not answer: until its next restart a smaller export makes the device \
                 reads-only"
            );
        }
    }
}

fn record_of(program: &Path, id: DevId, until: Instant) -> Result<Record, Failure> {
    let left = until.saturating_duration_since(Instant::now());
    let info = by_helper(program, |helper| helper.info(id, left))?;
    let record = Store::of_user()?.find(id.get(), info.server_flags())?;
    let record = record.ok_or_else(|| Failure::foreign(id))?;
    match record.spec.backend {
        BackendSpec::Nbd { .. } => Ok(record),
        _ => Err(not_nbd(id)),
    }
}

fn not_nbd(id: DevId) -> Failure {
    Failure::new(
        FailureKind::Usage,
        format!("device {id} is not an NBD device"),
    )
}

fn too_old(id: DevId) -> Failure {
    Failure::failed(format!(
        "the server process of device {id} does not know the command"
    ))
    .hint(format!(
        "`ublkctl upgrade {id}` replaces it by this version"
    ))
}

/// Asks the server process, which has a second even if the deadline comes first.
fn ask(id: DevId, command: NbdCommand, until: Instant) -> Result<NbdChanged, Failure> {
    let left = until.saturating_duration_since(Instant::now());
    let command = BackendCommand::Nbd(command);
    let answer = ask::command(id, &command, left.clamp(LEAST, ASK));
    let health = answer.map_err(|silence| silence.of_change(id))?;
    let nbd = health.nbd.ok_or_else(|| too_old(id))?;
    Ok(NbdChanged { id: id.get(), nbd })
}

/// What a server offers for an export: what `nbd info` prints as JSON.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct NbdExport {
    /// Bytes.
    pub size: u64,
    /// Smallest, preferred and largest request in bytes, if the NBD server reports them.
    pub block_sizes: Option<[u32; 3]>,
    /// `NBD_FLAG_*` without the prefix.
    pub flags: Vec<&'static str>,
    /// Structured replies.
    pub structured_replies: bool,
    /// Encryption of the connection; `null` for plain text.
    pub tls: Option<TlsInfo>,
    /// Whether requests and replies have extended headers, with lengths of 64 bits.
    pub extended_headers: bool,
    /// Names of the export's meta contexts, if the server lists them.
    pub meta_contexts: Vec<String>,
    /// How much of the export is data, if the server has `base:allocation`.
    pub allocation: Option<NbdAllocation>,
}

/// How much of an export is data, by the server's word, in bytes.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct NbdAllocation {
    /// May hold anything.
    pub data: u64,
    /// Reads as zeroes, allocated or not.
    pub zero: u64,
    /// Not allocated.
    pub hole: u64,
    /// Number of extents.
    pub extents: u64,
    /// Whether the extents cover the export.
    pub complete: bool,
    /// Why they do not.
    pub stopped: Option<String>,
}

/// An export in a server's list: what `nbd list` prints as JSON.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct NbdListed {
    /// Its name; empty for the default export.
    pub name: String,
    /// Its description by the NBD server.
    pub description: String,
}

/// How long a server may take to answer.
const CONNECT: Duration = Duration::from_secs(10);

/// Asks an NBD server what it offers for an export.
///
/// # Errors
/// The URI is invalid, or the error of the NBD server.
pub fn nbd_info(uri: &str, tls: &TlsOptions) -> Result<NbdExport, Failure> {
    let offer = ublk_nbd::info(&parsed(uri)?, tls, Instant::now() + CONNECT);
    let offer = offer.map_err(|e| backend::not_connected(uri, &e))?;
    let (export, allocation) = (offer.export, offer.allocation);
    let names = [
        (TransmissionFlags::READ_ONLY, "READ_ONLY"),
        (TransmissionFlags::SEND_FLUSH, "SEND_FLUSH"),
        (TransmissionFlags::SEND_FUA, "SEND_FUA"),
        (TransmissionFlags::ROTATIONAL, "ROTATIONAL"),
        (TransmissionFlags::SEND_TRIM, "SEND_TRIM"),
        (TransmissionFlags::SEND_WRITE_ZEROES, "SEND_WRITE_ZEROES"),
        (TransmissionFlags::SEND_DF, "SEND_DF"),
        (TransmissionFlags::CAN_MULTI_CONN, "CAN_MULTI_CONN"),
        (TransmissionFlags::SEND_CACHE, "SEND_CACHE"),
        (TransmissionFlags::SEND_FAST_ZERO, "SEND_FAST_ZERO"),
        (
            TransmissionFlags::BLOCK_STATUS_PAYLOAD,
            "BLOCK_STAT_PAYLOAD",
        ),
    ];
    let set = names
        .into_iter()
        .filter(|(flag, _)| export.flags.contains(*flag));
    Ok(NbdExport {
        size: export.size,
        block_sizes: export
            .block_sizes
            .map(|sizes| [sizes.minimum, sizes.preferred, sizes.maximum]),
        flags: set.map(|(_, name)| name).collect(),
        structured_replies: export.framing.has_chunks(),
        extended_headers: export.framing == Framing::Extended,
        meta_contexts: export.contexts,
        allocation: allocation.map(|sum| NbdAllocation {
            data: sum.data,
            zero: sum.zero,
            hole: sum.hole,
            extents: sum.extents,
            complete: sum.complete,
            stopped: sum.stopped,
        }),
        tls: offer.tls,
    })
}

/// Asks an NBD server for its exports.
///
/// # Errors
/// The URI is invalid, or the error of the NBD server.
pub fn nbd_list(uri: &str, tls: &TlsOptions) -> Result<Vec<NbdListed>, Failure> {
    let exports = ublk_nbd::list(&parsed(uri)?, tls, Instant::now() + CONNECT);
    let exports = exports.map_err(|e| backend::not_connected(uri, &e))?;
    let listed = |export: nbd_client::Listed| NbdListed {
        name: export.name,
        description: export.description,
    };
    Ok(exports.into_iter().map(listed).collect())
}

fn parsed(uri: &str) -> Result<Uri, Failure> {
    uri.parse()
        .map_err(|e: UriError| Failure::new(FailureKind::Usage, e.to_string()))
}
