//! Why a device gets no other server or agent, and what to do instead.

use super::recover::Way;
use crate::failure::{Failure, FailureKind};
use crate::link::message::RecoverRequest;
use crate::spec::BackendSpec;
use crate::state::{ProcessId, Record};
use ublk_core::DevId;

/// Refuses another server for a device that may be at either of two NBD servers.
pub(super) fn is_somewhere(id: DevId, record: &Record, way: Way) -> Result<(), Failure> {
    let (BackendSpec::Nbd { uri, .. }, Some(to)) =
        (&record.spec.backend, record.spec.backend.moving_to())
    else {
        return Ok(());
    };
    let failure = match way {
        // The server knows.
        Way::Agent => return Ok(()),
        Way::Other => Failure::failed(format!("device {id} is moving from {uri} to {to}")).hint(
            format!("wait until it has (`ublkctl info {id}`), or end that with `ublkctl nbd move {id} {uri}`"),
        ),
        Way::Server => Failure::failed(format!(
            "device {id} was moving from {uri} to {to} when its processes ended: either may have its last writes"
        ))
        .hint(format!(
            "find out which, then `ublkctl nbd move {id}` to that one and `ublkctl recover {id}`"
        )),
    };
    Err(failure)
}

/// An unsuitable backend of an existing device is not a usage error, unless the command gives the size.
pub(super) fn of_a_device(
    mut failure: Failure,
    request: &RecoverRequest,
    (size, backend): (u64, &BackendSpec),
) -> Failure {
    if let BackendSpec::Nbd { uri, .. } = backend {
        if failure.kind == FailureKind::Usage && request.size.is_none() {
            failure.kind = FailureKind::Failed;
        }
        let id = request.id;
        let elsewhere = match request.replace {
            true => format!("device {id} goes on with its server process, on {uri}"),
            false => format!(
                "the device is on {uri}; if another server has the same data, `ublkctl nbd move {id} URI`, then `ublkctl \
                 recover {id}`"
            ),
        };
        failure.hint = Some(match failure.hint {
            Some(hint) if !hint.contains("--wait-for-server") => format!("{hint}; {elsewhere}"),
            _ => elsewhere,
        });
        return failure;
    }
    let files = backend.members().len();
    if failure.kind == FailureKind::Usage && request.size.is_none() {
        failure.kind = FailureKind::Failed;
        failure.hint.get_or_insert_with(|| match files {
            0 | 1 => format!(
                "the device has {size} bytes; if its file was truncated, `truncate -s {size}` restores the length, \
                 and the lost part reads as zeroes"
            ),
            _ => "a file that was truncated gets its length back by `truncate -s`, and the lost part reads as zeroes".to_owned(),
        });
    }
    failure
}

/// The failure for a device that needs nothing.
pub(super) fn nothing_missing(id: DevId, record: &Record) -> Failure {
    let pid = record.server.map_or(0, |s| s.pid);
    Failure::failed(format!(
        "device {id} is live, served by process {pid}: there is nothing to recover"
    ))
    .hint(format!(
        "to replace the server, use `ublkctl upgrade {id}`; if it does not answer, kill process {pid}"
    ))
}

/// The failure for a character device that is still open at the deadline.
pub(super) fn not_free(id: DevId, old: Option<ProcessId>) -> Failure {
    let who = match old.filter(ProcessId::runs) {
        Some(old) => format!(
            "the old server, process {}, does not answer its requests, or does not exit",
            old.pid
        ),
        None => "a process still has its character device open".to_owned(),
    };
    Failure::timed_out(format!("{who}; I/O of device {id} is held")).hint(format!(
        "its agent starts a new server once the device is released (see `ublkctl info {id}`); kill a server that does not answer"
    ))
}
