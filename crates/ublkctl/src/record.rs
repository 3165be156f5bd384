//! `record`: writes the requests of a live device into a trace.

use crate::cli::Record;
use crate::output::put;
use crate::trace::failure;
use crate::trace::output::Output;
use serde::Serialize;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use ublk_core::DevId;
use ublk_daemon::failure::Failure;
use ublk_daemon::front::{Fetched, Recording};
use ublk_daemon::signals::Signals;
use ublk_trace::format::{Header, Writer};
use ublk_trace::units;

/// How often the server is asked. A thread's ring has room for what 1.3 million requests per second bring in that time.
const PACE: Duration = Duration::from_millis(50);

/// What `record` says.
#[derive(Debug, Serialize)]
struct Report {
    id: u32,
    file: PathBuf,
    requests: u64,
    /// Number of requests that are not in the trace.
    lost: u64,
    seconds: f64,
    /// Why it ended.
    ended: &'static str,
}

/// Records a device until it is told to end.
///
/// # Errors
/// A device that is not ours or does not answer; a file that cannot be written. If the server ends meanwhile, the file has
/// what was recorded until then.
pub fn run(id: DevId, args: &Record, json: bool) -> Result<(), Failure> {
    let told = |e: io::Error| failure(&args.file, &e.into());
    let signals = Signals::take_in_front()
        .map_err(|e| Failure::failed(format!("cannot handle signals: {e}")))?;
    let out = Counted {
        out: Output::create(&args.file, &[])?,
        written: 0,
    };
    let recording = Recording::start(id)?;
    let begun = Instant::now();
    let header = Header {
        began: recording.began,
        size: size_of(id),
        ..Header::default()
    };
    let mut sink = Sink {
        writer: Writer::new(out, &header).map_err(told)?,
        requests: 0,
        lost: 0,
    };
    tracing::info!("recording device {id}; Ctrl-C ends it");
    let (ended, broken) = fetch(&recording, &mut sink, args, &signals)?;
    let seconds = begun.elapsed().as_secs_f64();
    let broken = match broken {
        Some(broken) => Some(broken),
        None => match recording.end() {
            Ok(fetched) => {
                sink.take(&fetched).map_err(|e| failure(&args.file, &e))?;
                None
            }
            Err(e) => Some(e),
        },
    };
    let (requests, lost) = (sink.requests, sink.lost);
    sink.writer.finish().map_err(told)?.out.commit()?;
    if let Some(mut broken) = broken {
        let file = args.file.display();
        let before = units::counted(requests, "request");
        broken.text = format!("{}; {file} has what came before, {before}", broken.text);
        return Err(broken);
    }
    if lost > 0 {
        tracing::warn!(
            "{} not in the trace: it could not be fetched as fast as it came",
            units::counted(lost, "request")
        );
    }
    let report = Report {
        id: id.get(),
        file: args.file.clone(),
        requests,
        lost,
        seconds,
        ended,
    };
    put(json, &report, || {
        format!(
            "{}: {} in {seconds:.1} s\n",
            args.file.display(),
            units::counted(requests, "request")
        )
    })
}

/// Fetches requests until it is told to end. Returns why it ended, and the failure of a server that did not answer.
fn fetch(
    recording: &Recording,
    sink: &mut Sink,
    args: &Record,
    signals: &Signals,
) -> Result<(&'static str, Option<Failure>), Failure> {
    let time = args.duration.map(Duration::from_secs);
    let until = time.map(|time| Instant::now() + time);
    loop {
        let written = sink.writer.get_ref().written;
        if signals.came() {
            return Ok(("signal", None));
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(("time", None));
        }
        if args.limit.is_some_and(|limit| written >= limit) {
            return Ok(("limit", None));
        }
        std::thread::sleep(PACE);
        match recording.fetch() {
            Ok(fetched) => {
                if let Err(e) = sink.take(&fetched) {
                    // The file is what failed; the device shall be free for another recording at once.
                    let _ = recording.end();
                    return Err(failure(&args.file, &e));
                }
            }
            Err(e) => return Ok(("server", Some(e))),
        }
    }
}

/// The trace that is being written.
struct Sink {
    writer: Writer<Counted>,
    requests: u64,
    lost: u64,
}

impl Sink {
    fn take(&mut self, fetched: &Fetched) -> Result<(), ublk_trace::Error> {
        for request in &fetched.requests {
            self.writer.push(request)?;
            self.requests += 1;
        }
        self.lost += fetched.lost;
        self.writer.lost(fetched.lost);
        Ok(())
    }
}

/// A file that knows its length.
struct Counted {
    out: Output,
    written: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.written += u64::try_from(written).unwrap_or(0);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The size of the device in bytes; 0 if the kernel does not tell.
fn size_of(id: DevId) -> u64 {
    let sectors = std::fs::read_to_string(format!("/sys/class/block/ublkb{id}/size"));
    let sectors = sectors
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    sectors.map_or(0, |sectors| sectors.saturating_mul(512))
}
