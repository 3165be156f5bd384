//! The exporter: answers scrapes of Prometheus with the metrics of all devices of this user.
//!
//! It sends no control command and holds no device; it asks the devices' agents at their sockets. However many scrapers
//! there are and whatever they do, the devices are asked at most once in `FRESH`, a fixed number of threads answers, and
//! each connection has a deadline.
#![forbid(unsafe_code)]

mod collect;
mod http;
mod listen;

pub use listen::Listen;

use self::collect::Cache;
use self::http::Format;
use self::listen::{Listener, Stream};
use crate::failure::Failure;
use crate::signals::Signals;
use crate::sys::poll;
use std::os::fd::AsFd;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Threads that answer. Clients that connect and say nothing hold one each for [`ASK`].
const THREADS: usize = 16;

/// Connections that wait for a thread; more are told to come back, and closed.
const WAITING: usize = 32;

/// How long a client may take over its request.
const ASK: Duration = Duration::from_secs(1);

/// How long it may take to read the answer.
const READ: Duration = Duration::from_secs(5);

/// How long the rest of a request is read after its answer. A socket that is closed with unread bytes resets the connection,
/// and the client may lose the answer.
const LINGER: Duration = Duration::from_millis(100);

/// How long one look at the devices answers all scrapes.
const FRESH: Duration = Duration::from_millis(500);

/// Serves until a signal comes. `ready` is called with the address once it listens.
///
/// # Errors
/// An address that cannot be listened at.
pub fn run(listen: Option<&Listen>, ready: impl FnOnce(&str)) -> Result<(), Failure> {
    let signals = Signals::take_in_front()
        .map_err(|e| Failure::failed(format!("cannot handle signals: {e}")))?;
    let listener = Listener::open(listen)?;
    ready(&listener.name());
    serve(&listener, &signals, Cache::new(FRESH, collect::devices))
}

fn serve(listener: &Listener, signals: &Signals, cache: Cache) -> Result<(), Failure> {
    let (queue, connections) = sync_channel::<Stream>(WAITING);
    let (connections, cache) = (Arc::new(Mutex::new(connections)), Arc::new(cache));
    for n in 0..THREADS {
        let (connections, cache) = (Arc::clone(&connections), Arc::clone(&cache));
        let answer = move || {
            loop {
                let next = connections.lock().unwrap_or_else(PoisonError::into_inner);
                // The lock is held while it waits, and passed on with the connection.
                let Ok(stream) = next.recv() else { return };
                drop(next);
                answer(&stream, &cache);
            }
        };
        let thread = std::thread::Builder::new().name(format!("exporter-{n}"));
        thread
            .spawn(answer)
            .map_err(|e| Failure::failed(format!("cannot start a thread: {e}")))?;
    }
    loop {
        let ready = poll::readable(&[listener.as_fd(), signals.as_fd()], None)
            .map_err(|e| Failure::failed(format!("cannot wait for connections: {e}")))?;
        if ready.get(1) == Some(&true) {
            return Ok(());
        }
        match listener.accept() {
            Ok(Some(stream)) => pass_on(&queue, stream),
            Ok(None) => {}
            Err(e) => {
                // Out of descriptors, say: the connection stays in the backlog, and must not be polled without a pause.
                tracing::warn!("cannot take a connection: {e}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Gives a connection to a thread, or tells it to come back.
fn pass_on(queue: &SyncSender<Stream>, stream: Stream) {
    if let Err(TrySendError::Full(stream)) = queue.try_send(stream) {
        let busy = http::response(
            503,
            "text/plain; charset=utf-8",
            b"too many scrapes at once\n",
        );
        // Into the socket's buffer, which is empty: this does not wait.
        let _ = stream.write_all(&busy, Instant::now());
        stream.end(Instant::now());
    }
}

fn answer(stream: &Stream, cache: &Cache) {
    let until = Instant::now() + ASK;
    let reply = match http::head(|buf| stream.read(buf, until)) {
        Ok(head) => match http::parse(&head) {
            Ok(request) if request.path == "/metrics" => {
                let text = cache.text(request.format);
                let kind = request.format.content_type();
                let mut reply = http::response(200, kind, text.as_bytes());
                if request.head_only {
                    http::without_body(&mut reply);
                }
                reply
            }
            Ok(_) => http::response(404, Format::PLAIN, b"the metrics are at /metrics\n"),
            Err(status) => http::response(status, Format::PLAIN, b"GET /metrics is all there is\n"),
        },
        Err(http::Head::TooLong) => {
            http::response(431, Format::PLAIN, b"the request is too long\n")
        }
        // Nobody listens any more, or says nothing.
        Err(http::Head::Gone) => return,
    };
    let _ = stream.write_all(&reply, Instant::now() + READ);
    stream.end(Instant::now() + LINGER);
}

#[cfg(test)]
mod tests;
