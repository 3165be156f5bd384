//! The text of `info`.

use super::{backing, ranges, server};
use crate::size;
use std::fmt::Write;
use ublk_daemon::front::Info;
use ublk_daemon::log::plain;
use ublk_daemon::report::{Health, NbdReport, QueueReport};
use ublk_daemon::spec::ZoneLayout;
use ublk_trace::units::counted;

/// Everything known about a device, one item per line.
pub fn info(i: &Info) -> String {
    let mut text = Text(String::new());
    text.device(i);
    text.life(i);
    match &i.health {
        Some(health) => text.health(health),
        None => {
            let why = i.health_error.as_deref();
            let why = why.map_or_else(String::new, |why| format!(": {why}"));
            text.line("health", format!("not reachable{why}"));
        }
    }
    text.0
}

/// Lines with a name and a value.
struct Text(String);

fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".to_owned())
}

/// Seconds since a time, which is in seconds since 1970.
fn ago(then: u64) -> u64 {
    let now = std::time::UNIX_EPOCH.elapsed();
    now.map_or(0, |now| now.as_secs()).saturating_sub(then)
}

/// A zoned device's zones; limits that there are not are left out.
fn zoned(zones: ZoneLayout) -> String {
    let mut text = format!("of {}", size::show(zones.size));
    if zones.capacity != zones.size {
        let _ = write!(text, ", capacity {}", size::show(zones.capacity));
    }
    for (what, number) in [
        ("conventional", zones.conventional),
        ("open at most", zones.max_open),
        ("active at most", zones.max_active),
    ] {
        if number != 0 {
            let _ = write!(text, ", {number} {what}");
        }
    }
    text
}

impl Text {
    fn line(&mut self, name: &str, value: String) {
        let _ = writeln!(self.0, "{name:<14} {}", plain(&value));
    }

    /// Adds the properties of the device.
    fn device(&mut self, i: &Info) {
        let e = &i.entry;
        self.line("device", e.path.display().to_string());
        self.line("char device", e.char_path.display().to_string());
        self.line("state", e.state.clone());
        self.line("size", or_dash(e.size.map(size::show)));
        self.line("block size", or_dash(i.block_size.map(|b| b.to_string())));
        self.line("largest I/O", size::show(i.max_io_bytes.into()));
        self.line("read-only", or_dash(i.read_only.map(|r| r.to_string())));
        self.line("queues", format!("{}, depth {}", e.queues, e.depth));
        self.line(
            "data",
            format!("{}, batch {}", e.data, if e.batch { "on" } else { "off" }),
        );
        self.line("features", i.features.granted.join(" "));
        self.line(
            "backend",
            e.backend.clone().unwrap_or_else(|| match &e.record_error {
                Some(why) => format!("unknown: its record cannot be read: {why}"),
                None => "foreign: not created by this ublkctl".to_owned(),
            }),
        );
        for (number, file) in i.files.iter().enumerate() {
            let length = file
                .length
                .map_or_else(String::new, |l| format!(", {}", size::show(l)));
            self.line(
                &format!("file {}", number + 1),
                format!(
                    "{}, offset {}{length}",
                    file.path.display(),
                    size::show(file.offset)
                ),
            );
        }
        if let Some(b) = e.backing.as_ref().filter(|_| i.files.is_empty()) {
            let length = b
                .length
                .map_or_else(String::new, |l| format!(", {}", size::show(l)));
            self.line("backing", format!("{}{length}", backing(b)));
            if let Some(to) = &b.moving_to {
                self.line("moving to", to.clone());
            }
        }
        if let Some(integrity) = &i.integrity {
            let at = i.integrity_file.as_ref();
            let at = at.map_or_else(String::new, |at| format!(", in {}", at.display()));
            self.line("integrity", format!("{integrity}{at}"));
        }
        if let Some(zones) = i.zones {
            self.line("zones", zoned(zones));
        }
    }

    /// Adds owner, server and state.
    fn life(&mut self, i: &Info) {
        let e = &i.entry;
        self.line("owner", format!("uid {} gid {}", e.owner.uid, e.owner.gid));
        if let Some(name) = &e.name {
            let link = e.link.as_ref();
            self.line(
                "name",
                link.map_or_else(|| name.clone(), |link| link.display().to_string()),
            );
        }
        let supervised = match e.supervised {
            Some(true) => ", supervised",
            _ => "",
        };
        self.line("recovery", format!("{}{supervised}", e.recovery));
        if let (Some(threads), Some(polling)) = (e.threads, &e.polling) {
            self.line("threads", format!("{threads} per queue, polling {polling}"));
        }
        if let Some(path) = &e.shared_memory {
            self.line("shared memory", path.display().to_string());
        }
        self.line("server", server(e));
        if let Some(next) = &e.next {
            self.line("next", next.clone());
        }
        self.line("agent", or_dash(i.agent_pid.map(|p| p.to_string())));
        self.line(
            "log",
            or_dash(i.log.as_ref().map(|l| l.display().to_string())),
        );
        for (qid, cpus) in i.affinity.iter().enumerate() {
            self.line(&format!("queue {qid} CPUs"), ranges(cpus));
        }
    }

    fn health(&mut self, health: &Health) {
        let s = &health.stats;
        self.line("health", health.state.clone());
        for problem in &health.problems {
            self.line(problem.kind.name(), problem.text.clone());
        }
        if let Some(error) = &health.first_error {
            self.line("first error", error.clone());
        }
        if let Some(first) = &health.first_failure {
            let text = format!("{} s ago: {}", ago(first.at), first.text);
            self.line("first failure", text);
        }
        self.line(
            "requests",
            format!(
                "{} reads, {} writes, {} flushes, {} discards, {} write-zeroes",
                s.reads, s.writes, s.flushes, s.discards, s.write_zeroes
            ),
        );
        self.line(
            "failures",
            format!(
                "{} answered with an error, {} panics caught, {} dropped, {} refused",
                s.errors, s.panics, s.dropped, s.refused
            ),
        );
        if let Some(file) = &health.file {
            let way = if file.direct {
                "direct I/O"
            } else {
                "page cache"
            };
            let waits = if file.asynchronous {
                "asynchronous"
            } else {
                "synchronous"
            };
            self.line(
                "file",
                format!(
                    "{way}, {waits}; {} syncs for {} flushes and FUA writes",
                    file.syncs, file.sync_requests
                ),
            );
        }
        if let Some(shm) = &health.shm {
            self.line(
                "shared I/O",
                format!(
                    "{}, {} hits, {} misses",
                    size::show(shm.bytes),
                    shm.hits,
                    shm.fallbacks
                ),
            );
        }
        if let Some(nbd) = &health.nbd {
            self.nbd(nbd);
        }
        for queue in &health.queues {
            self.queue(queue);
        }
    }

    fn nbd(&mut self, nbd: &NbdReport) {
        self.line(
            "NBD server",
            format!(
                "{} for {} s, {}, {}, {} replayed, retry {}",
                nbd.state,
                ago(nbd.since),
                counted(nbd.connections.into(), "connection"),
                counted(nbd.reconnects, "reconnect"),
                counted(nbd.replayed, "request"),
                nbd.retry
            ),
        );
        if let Some(tls) = nbd.tls.as_ref().filter(|_| nbd.connections > 0) {
            self.line("TLS", tls.to_string());
        }
        if let Some(error) = &nbd.last_error {
            self.line("last error", error.clone());
        }
    }

    fn queue(&mut self, q: &QueueReport) {
        let pinned = q.pinned.as_ref().map_or_else(
            || "not pinned".to_owned(),
            |cpus| format!("pinned to {}", ranges(cpus)),
        );
        let oldest = q.oldest.as_ref().map_or_else(String::new, |oldest| {
            format!(" (the oldest for {} ms: {})", oldest.ms, oldest.place)
        });
        let flusher = if q.io_flusher {
            "io-flusher"
        } else {
            "no io-flusher"
        };
        self.line(
            &match q.thread {
                0 => format!("queue {}", q.qid),
                n => format!("queue {}.{n}", q.qid),
            },
            format!(
                "{}, {} in flight{oldest}, {pinned}, {flusher}, {} of buffers in {}, ring {}",
                q.state,
                q.in_hand,
                size::show(q.buffer_bytes),
                q.pages,
                q.setup
            ),
        );
    }
}
