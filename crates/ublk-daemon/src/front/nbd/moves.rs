//! `nbd move`: another server for a device, live or not.

use super::{ASK, NbdChanged, ask, by_helper, not_nbd, parsed, record_of};
use crate::backend;
use crate::failure::{Failure, FailureKind};
use crate::front::reserve::change_alone;
use crate::report::NbdReport;
use crate::spec::{AddSpec, BackendSpec, NbdCommand};
use crate::state::{Record, Store};
use nbd_client::Uri;
use std::path::Path;
use std::time::{Duration, Instant};
use ublk_core::{DevId, DeviceParams, deadline_in};
use ublk_ctrl::{Controller, wait};

/// Moves a device to another NBD server, which has to have the same data. The old connection of a live device is drained and
/// flushed first, and the device stays where it is if the new server cannot be reached or has another export. A device
/// without a server process has the new server from its next process on.
///
/// # Errors
/// As for [`nbd_retry`](super::nbd_retry); the other NBD server does not suit the device; the deadline, and then the device
/// stays where it is, unless its processes do not answer.
pub fn nbd_move(
    program: &Path,
    id: DevId,
    to: &str,
    deadline: Duration,
) -> Result<NbdChanged, Failure> {
    let until = deadline_in(deadline);
    parsed(to)?;
    record_of(program, id, until)?;
    let _lock = change_alone(id, until)?;
    // Now that no other command changes it.
    let record = record_of(program, id, until)?;
    let mut spec = record.spec.clone();
    if spec.queues > 1 {
        let text = format!(
            "device {id} has {} queues, each with its connection",
            spec.queues
        );
        return Err(Failure::failed(text).hint(
            "only a device of one queue can move: several would use two servers at once for a time, whose caches need not agree",
        ));
    }
    let BackendSpec::Nbd {
        uri,
        moving_to,
        wait_for_server,
        ..
    } = &mut spec.backend
    else {
        return Err(not_nbd(id));
    };
    let from = std::mem::replace(uri, to.to_owned());
    *wait_for_server = 0;
    *moving_to = None;
    // What it has promised, and its size: it may have been resized since it was added.
    let left = until.saturating_duration_since(Instant::now());
    let params = by_helper(program, |helper| helper.get_params(id, left))?;
    // Seen from here first: what can be refused is refused with nothing changed.
    let suits = suits(&spec, params.as_ref(), until);
    let offered = suits.map_err(|failure| stays(failure, id, &from))?;
    let size = params.map_or(offered, |params| params.size);
    warn(id, (&from, to), size, offered)?;
    if !Store::of_user()?.has_server(&record) {
        return recorded(&record, spec, until);
    }
    arrive(id, to, until)
}

/// Bytes of the export, which suits a device of this specification with these parameters.
fn suits(spec: &AddSpec, params: Option<&DeviceParams>, until: Instant) -> Result<u64, Failure> {
    let mut whole = spec.clone();
    let BackendSpec::Nbd { uri, length, .. } = &mut whole.backend else {
        return Err(Failure::failed("not an NBD device"));
    };
    *length = None;
    let uri = uri.clone();
    let export = backend::look_at_export(&whole, until)?;
    let misfit = params.and_then(|params| export.misfit(params));
    match misfit {
        Some(why) => Err(Failure::failed(format!("{uri}: {why}"))),
        None => Ok(export.limits().size),
    }
}

/// Says of a refused move what becomes of the device.
fn stays(mut failure: Failure, id: DevId, from: &str) -> Failure {
    let lacks_authority = failure.text.contains("--tls-ca");
    failure.text = match lacks_authority {
        true => format!("device {id} stays with {from}: it has no certificate of an authority"),
        false => format!("device {id} stays with {from}: {}", failure.text),
    };
    if lacks_authority {
        return failure.hint(
            "name the directory of the certificates in the URI: `?tls-certificates=DIR`, with DIR/ca-cert.pem",
        );
    }
    if failure.kind == FailureKind::Usage && failure.hint.is_none() {
        // The request is well formed, but the export is another one.
        failure.kind = FailureKind::Failed;
    }
    if failure
        .hint
        .as_ref()
        .is_some_and(|hint| hint.contains("--wait-for-server"))
    {
        failure.hint = Some("start that server first".to_owned());
    }
    failure
}

/// Says what a move changes besides the place.
fn warn(id: DevId, (from, to): (&str, &str), size: u64, offered: u64) -> Result<(), Failure> {
    if offered > size {
        tracing::warn!(
            "the export of {to} has {offered} bytes, device {id} has {size}: `ublkctl resize {id} SIZE` follows, if it is meant \
             to be larger"
        );
    }
    let (from, at): (Uri, Uri) = (parsed(from)?, parsed(to)?);
    if from.tls && !at.tls {
        tracing::warn!("the data goes to {to} in plain text from now on, not over TLS as before");
    }
    Ok(())
}

/// Records the server of a device that has no server process.
fn recorded(record: &Record, spec: AddSpec, until: Instant) -> Result<NbdChanged, Failure> {
    let store = Store::of_user()?;
    let id = record.id.unwrap_or_default();
    // An agent that gives it a server has read the record.
    let lock = store.lock(id, until)?;
    let _lock = lock.ok_or_else(|| {
        Failure::timed_out(format!("device {id} is being given a server process"))
            .hint(format!("see `ublkctl info {id}`, then try again"))
    })?;
    let BackendSpec::Nbd { uri, retry, .. } = &spec.backend else {
        return Err(Failure::failed("not an NBD device"));
    };
    let nbd = NbdReport {
        state: "none".to_owned(),
        since: 0,
        last_error: None,
        connections: 0,
        reconnects: 0,
        replayed: 0,
        retry: *retry,
        uri: uri.clone(),
        moving: 0,
        moving_to: None,
        tls: None,
    };
    let mut changed = record.clone();
    changed.spec.backend = spec.backend;
    store.write(&changed)?;
    tracing::info!(
        "device {id} has no server process: `ublkctl recover {id}` starts one, on {}",
        nbd.uri
    );
    Ok(NbdChanged { id, nbd })
}

/// Makes a live device move, and waits until it has.
fn arrive(id: DevId, to: &str, until: Instant) -> Result<NbdChanged, Failure> {
    let change = NbdCommand {
        uri: Some(to.to_owned()),
        ..NbdCommand::default()
    };
    // Asked once: a server process that has refused to move would try again with each repetition.
    let mut changed = ask(id, change, until)?;
    let settled = wait::until(until, || {
        if changed.nbd.moving > 0 {
            changed = ask(id, NbdCommand::default(), until)?;
        }
        Ok::<_, Failure>((changed.nbd.moving == 0).then_some(()))
    })?;
    let late = settled.is_none();
    if late {
        changed = given_up(id)?;
    }
    if parsed(&changed.nbd.uri)? == parsed(to)? {
        return Ok(changed);
    }
    let at = &changed.nbd.uri;
    if late {
        let text = format!("device {id} has not moved by the deadline, and stays with {at}");
        return Err(Failure::new(FailureKind::TimedOut, text).hint(
            "it finishes the requests in flight on its old server and flushes there before it moves: see the state of that server",
        ));
    }
    let why = changed.nbd.last_error.as_deref();
    let why = why.filter(|why| why.starts_with("not moved"));
    let why =
        why.unwrap_or("its server process was replaced meanwhile, or could not record the move");
    Err(
        Failure::failed(format!("device {id} stays with {at}: {why}"))
            .hint(format!("see `ublkctl logs {id}`")),
    )
}

/// Gives up a move. It may have come about meanwhile.
fn given_up(id: DevId) -> Result<NbdChanged, Failure> {
    let by = Instant::now() + ASK;
    let stay = NbdCommand {
        stay: true,
        ..NbdCommand::default()
    };
    let mut changed = ask(id, stay, by)?;
    wait::until(by, || {
        if changed.nbd.moving > 0 {
            changed = ask(id, NbdCommand::default(), by)?;
        }
        Ok::<_, Failure>((changed.nbd.moving == 0).then_some(()))
    })?;
    Ok(changed)
}
