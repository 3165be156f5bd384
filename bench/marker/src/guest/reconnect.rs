//! Measures the time from the moment that an NBD server listens again to the answer of a READ that waits for it.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::peer::{self, Peer};
use crate::plan::Row;
use crate::usable::{self, Added};

/// How long the server is gone before it is started again: long enough for the client's delays to have grown to their
/// bound.
const GONE: Duration = Duration::from_secs(1);
/// By how much each outage is longer than the one before: the server comes back at another moment of the client's delay.
const LONGER: Duration = Duration::from_millis(17);
/// How long the answer may take, in guest time.
const DEADLINE: Duration = Duration::from_secs(30);

/// What the waiting READ came to, and when.
type Answer = Result<Instant>;

/// Adds the row's device and lets it lose its server as often as the row says.
///
/// # Errors
/// One of the steps failed, a READ without a server was answered, or one with a server was not.
pub fn measure(row: &Row, peer: &mut Peer) -> Result<String> {
    let device = Added::new(row)?;
    let times = (0..row.times).map(|number| outage(device.path(), peer, GONE + LONGER * number));
    let times: Result<Vec<Duration>> = times.collect();
    let deleted = device.delete();
    let times = times.with_context(|| device.path().to_owned())?;
    deleted?;
    let times: Vec<_> = times
        .iter()
        .map(|time| time.as_micros().to_string())
        .collect();
    Ok(format!(
        "@reconnect {} {} {}",
        row.name,
        device.path(),
        times.join(" ")
    ))
}

/// Kills the server, starts a READ, starts the server this much later, and returns how long the answer took from then on.
fn outage(device: &str, peer: &mut Peer, gone: Duration) -> Result<Duration> {
    peer.kill()?;
    let answer = read(device);
    match answer.recv_timeout(gone) {
        Err(RecvTimeoutError::Timeout) => {}
        early => bail!("the READ does not wait for its server: {early:?}"),
    }
    let other = peer.again()?;
    let listens = Instant::now();
    let answered = answer.recv_timeout(DEADLINE);
    let answered = answered.context("the READ is not answered")??;
    peer::handshake(other)?;
    // It may be answered before this thread has noticed that the server listens.
    Ok(answered.saturating_duration_since(listens))
}

/// Reads the first block in a thread of its own.
fn read(device: &str) -> Receiver<Answer> {
    let (sender, answer) = mpsc::channel();
    let device = device.to_owned();
    thread::spawn(move || {
        let answer = usable::read(&device).map(|()| Instant::now());
        let _ = sender.send(answer);
    });
    answer
}
