//! NBD exports as backends.

use super::Purpose;
use crate::failure::{Failure, FailureKind};
use crate::spec::{AddSpec, BackendSpec};
use std::time::{Duration, Instant};
use ublk_nbd::{ConnectError, Nbd, NbdOptions, OpenError};

/// Connects to the NBD server of a device.
pub(super) fn open_nbd(spec: &AddSpec, purpose: Purpose) -> Result<Nbd, Failure> {
    let BackendSpec::Nbd {
        uri,
        wait_for_server,
        ..
    } = &spec.backend
    else {
        return Err(Failure::failed("not an NBD device"));
    };
    let mut options = nbd_options(spec)?;
    let mut by = Instant::now() + Duration::from_secs((*wait_for_server).into());
    if let Purpose::Look(until) = purpose {
        by = by.min(until);
        let left = until.saturating_duration_since(Instant::now());
        options.connect_timeout = options.connect_timeout.min(left);
    }
    Nbd::open(&options, by).map_err(|e| match e {
        OpenError::Connect(e) => {
            let mut failure = not_connected(uri, &e);
            if e.not_started() && *wait_for_server == 0 {
                failure.hint = Some(
                    "start the server first, or let the device wait for it with --wait-for-server SECONDS"
                        .to_owned(),
                );
            }
            // It was waited for, or would have been.
            let late = Instant::now() >= by && *wait_for_server > 0;
            if late || matches!(purpose, Purpose::Look(until) if Instant::now() >= until) {
                failure.kind = FailureKind::TimedOut;
            }
            failure
        }
        OpenError::BlockSize { .. } => Failure::new(FailureKind::Usage, format!("{uri}: {e}")),
        e => Failure::failed(format!("{uri}: {e}")),
    })
}

/// What the connections of an NBD device are made with, if that is well formed.
pub(super) fn nbd_options(spec: &AddSpec) -> Result<NbdOptions, Failure> {
    let BackendSpec::Nbd {
        uri,
        moving_to: _,
        length,
        retry,
        request_timeout,
        wait_for_server: _,
        tls,
    } = &spec.backend
    else {
        return Err(Failure::failed("not an NBD device"));
    };
    let at: nbd_client::Uri = uri
        .parse()
        .map_err(|e: nbd_client::UriError| Failure::new(FailureKind::Usage, e.to_string()))?;
    if let nbd_client::Address::Unix(path) = &at.address
        && path.is_relative()
    {
        let text = format!("{uri}: the processes of a device have other directories than yours");
        return Err(
            Failure::new(FailureKind::Usage, text).hint("give the absolute path of the socket")
        );
    }
    if let Err(e) = tls.suit(&at)
        && e.is_usage()
    {
        return Err(not_connected(uri, &e.into()));
    }
    let mut options = NbdOptions::new(at);
    options.tls = (**tls).clone();
    options.retry = *retry;
    options.request_timeout = Duration::from_secs((*request_timeout).into());
    options.read_only = spec.read_only;
    options.size = *length;
    options.block_size = (spec.block_size != 0).then_some(spec.block_size);
    Ok(options)
}

/// The failure of a connection to an NBD server.
pub(crate) fn not_connected(uri: &str, error: &ConnectError) -> Failure {
    let kind = match error {
        ConnectError::TlsSetup(e) if e.is_usage() => FailureKind::Usage,
        e if e.timed_out() => FailureKind::TimedOut,
        _ => FailureKind::Failed,
    };
    let failure = Failure::new(kind, format!("{uri}: {error}"));
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Adapts what the NBD server does not allow (L72), and says so.
pub(super) fn fit_server(spec: &mut AddSpec, nbd: &Nbd) {
    let BackendSpec::Nbd { uri, .. } = &spec.backend else {
        return;
    };
    for note in nbd.notes() {
        tracing::warn!("{uri}: {note}");
    }
    // The kernel demands whole pages.
    let longest = (nbd.max_io_bytes() & !0xfff).max(4096);
    if spec.max_io_bytes > longest {
        tracing::warn!("{uri}: the NBD server takes requests of at most {longest} bytes");
        spec.max_io_bytes = longest;
    }
    if spec.queues > 1 && !nbd.allows_several_connections() {
        tracing::warn!(
            "{uri}: the NBD server allows one connection only (no NBD_FLAG_CAN_MULTI_CONN), so the device has one queue"
        );
        spec.queues = 1;
    }
}
