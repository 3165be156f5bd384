//! Output for people. Scripts use `--json`.

use crate::doctor::Check;
use crate::size;
use std::fmt::Write;
use ublk_daemon::front::{self, Backing, Features, Found, Info, ListEntry, Resized};
use ublk_daemon::log::plain;
use ublk_daemon::report::Added;
use ublk_daemon::state::Phase;

/// The columns of `list`.
const COLUMNS: [&str; 10] = [
    "ID", "NAME", "DEVICE", "STATE", "SIZE", "QUEUES", "DEPTH", "BACKEND", "BACKING", "SERVER",
];

/// A table of devices.
pub fn list(entries: &[ListEntry]) -> String {
    if entries.is_empty() {
        return String::new();
    }
    let mut rows = vec![COLUMNS.map(String::from)];
    rows.extend(entries.iter().map(row));
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max();
    let widths: Vec<usize> = (0..COLUMNS.len()).map(|c| width(c).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

/// The cells of a device. What other people chose in them cannot break the table.
fn row(e: &ListEntry) -> [String; COLUMNS.len()] {
    let known = |n: u16| e.readable.then(|| n.to_string());
    let cells = [
        Some(e.id.to_string()),
        e.name.clone(),
        Some(e.path.display().to_string()),
        Some(e.state.clone()),
        e.size.map(size::show),
        known(e.queues),
        known(e.depth),
        Some(e.backend.clone().unwrap_or_else(|| match e.record_error {
            Some(_) => "unknown".to_owned(),
            None => "foreign".to_owned(),
        })),
        e.backing.as_ref().map(backing),
        Some(server(e)),
    ];
    cells.map(|cell| cell.map_or_else(|| "-".to_owned(), |text| plain(&text)))
}

/// Where the data of a device is, in a cell.
fn backing(b: &Backing) -> String {
    let path = b.path.display();
    match b.offset {
        0 => path.to_string(),
        offset => format!("{path} from {}", size::show(offset)),
    }
}

fn server(e: &ListEntry) -> String {
    if !e.readable {
        return format!("of user {}", e.owner.uid);
    }
    if e.orphan && matches!(e.state.as_str(), "quiesced" | "fail-io") {
        let whose = if e.foreign {
            ""
        } else {
            ": `ublkctl recover` starts another"
        };
        return format!("gone{whose}");
    }
    match (e.server_pid, e.server_alive, &e.cause) {
        (Some(pid), true, _) => pid.to_string(),
        (_, false, Some(cause)) => format!("gone: {cause}"),
        (_, false, None) if e.phase == Some(Phase::Stopped) => "left".to_owned(),
        (_, false, None) => "gone".to_owned(),
        (None, true, _) => "attached".to_owned(),
    }
}

/// What `upgrade` says: the device, and how long its I/O waited.
pub fn upgraded(added: &Added) -> String {
    let ms = added.pause_us.unwrap_or_default().div_ceil(1000);
    format!(
        "{}: server {} took over, I/O waited {ms} ms\n",
        added.path.display(),
        added.server_pid
    )
}

/// What `resize` says.
pub fn resized(r: &Resized) -> String {
    let (before, size) = (size::show(r.before), size::show(r.size));
    let held = r.pause_us.map_or_else(String::new, |us| {
        format!(", I/O waited {} ms", us.div_ceil(1000))
    });
    format!("{}: {before} before, {size} now{held}\n", r.path.display())
}

/// What `gc` found: the orphans that are left, what was removed.
pub fn garbage(found: &Found) -> String {
    let mut text = list(&found.orphans);
    for e in &found.orphans {
        let whose = if let Some(why) = &e.record_error {
            why
        } else if e.foreign {
            "not created by this ublkctl"
        } else {
            e.cause.as_deref().unwrap_or("its server is gone")
        };
        let next = e.next.as_deref().unwrap_or_default();
        let _ = writeln!(text, "{}: {}; {next}", e.id, plain(whose));
    }
    for id in &found.removed {
        let _ = writeln!(text, "{id}: removed");
    }
    for path in &found.litter {
        let path = plain(&path.display().to_string());
        let _ = writeln!(text, "{path}: removed, its device is gone");
    }
    text
}

/// Everything known of a device, a line each.
pub fn info(i: &Info) -> String {
    let e = &i.entry;
    let or_dash = |v: Option<String>| v.unwrap_or_else(|| "-".to_owned());
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<14} {}", plain(&value));
    };
    line("device", e.path.display().to_string());
    line("char device", e.char_path.display().to_string());
    line("state", e.state.clone());
    line("size", or_dash(e.size.map(size::show)));
    line("block size", or_dash(i.block_size.map(|b| b.to_string())));
    line("largest I/O", size::show(i.max_io_bytes.into()));
    line("read-only", or_dash(i.read_only.map(|r| r.to_string())));
    line("queues", format!("{}, depth {}", e.queues, e.depth));
    line(
        "data",
        format!("{}, batch {}", e.data, if e.batch { "on" } else { "off" }),
    );
    line("features", i.features.granted.join(" "));
    line(
        "backend",
        e.backend.clone().unwrap_or_else(|| match &e.record_error {
            Some(why) => format!("unknown: its record cannot be read: {why}"),
            None => "foreign: not created by this ublkctl".to_owned(),
        }),
    );
    if let Some(b) = &e.backing {
        let length = b
            .length
            .map_or_else(String::new, |l| format!(", {}", size::show(l)));
        line("backing", format!("{}{length}", backing(b)));
    }
    line("owner", format!("uid {} gid {}", e.owner.uid, e.owner.gid));
    if let Some(name) = &e.name {
        let link = e.link.as_ref();
        line(
            "name",
            link.map_or_else(|| name.clone(), |link| link.display().to_string()),
        );
    }
    let supervised = match e.supervised {
        Some(true) => ", supervised",
        _ => "",
    };
    line("recovery", format!("{}{supervised}", e.recovery));
    if let (Some(threads), Some(polling)) = (e.threads, &e.polling) {
        line("threads", format!("{threads} per queue, polling {polling}"));
    }
    if let Some(path) = &e.shared_memory {
        line("shared memory", path.display().to_string());
    }
    line("server", server(e));
    if let Some(next) = &e.next {
        line("next", next.clone());
    }
    line("agent", or_dash(i.agent_pid.map(|p| p.to_string())));
    line(
        "log",
        or_dash(i.log.as_ref().map(|l| l.display().to_string())),
    );
    for (qid, cpus) in i.affinity.iter().enumerate() {
        line(&format!("queue {qid} CPUs"), ranges(cpus));
    }
    if let Some(health) = &i.health {
        let s = &health.stats;
        line("health", health.state.clone());
        if let Some(error) = &health.first_error {
            line("first error", error.clone());
        }
        line(
            "requests",
            format!(
                "{} reads, {} writes, {} flushes, {} discards, {} write-zeroes",
                s.reads, s.writes, s.flushes, s.discards, s.write_zeroes
            ),
        );
        line(
            "errors",
            format!(
                "{} requests failed, {} panics caught, {} dropped, {} refused",
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
            line(
                "file",
                format!(
                    "{way}, {waits}; {} syncs for {} flushes and FUA writes",
                    file.syncs, file.sync_requests
                ),
            );
        }
        if let Some(shm) = &health.shm {
            line(
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
            let now = std::time::UNIX_EPOCH
                .elapsed()
                .map_or(0, |now| now.as_secs());
            line(
                "server",
                format!(
                    "{} for {} s, {} connections, {} reconnects, {} requests replayed, retry {}",
                    nbd.state,
                    now.saturating_sub(nbd.since),
                    nbd.connections,
                    nbd.reconnects,
                    nbd.replayed,
                    nbd.retry
                ),
            );
            if let Some(error) = &nbd.last_error {
                line("last error", error.clone());
            }
        }
        for q in &health.queues {
            let pinned = q.pinned.as_ref().map_or_else(
                || "not pinned".to_owned(),
                |cpus| format!("pinned to {}", ranges(cpus)),
            );
            let flusher = if q.io_flusher {
                "io-flusher"
            } else {
                "no io-flusher"
            };
            line(
                &match q.thread {
                    0 => format!("queue {}", q.qid),
                    n => format!("queue {}.{n}", q.qid),
                },
                format!(
                    "{}, {} in flight, {pinned}, {flusher}, {} of buffers in {}, ring {}",
                    q.state,
                    q.in_hand,
                    size::show(q.buffer_bytes),
                    q.pages,
                    q.setup
                ),
            );
        }
    } else {
        line("health", "not reachable".to_owned());
    }
    text
}

/// CPUs as a list of ranges: `0-3,8`.
fn ranges(cpus: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(cpu) => *last = cpu,
            _ => parts.push((cpu, cpu)),
        }
    }
    let show = |&(a, b): &(u32, u32)| {
        if a == b {
            a.to_string()
        } else {
            format!("{a}-{b}")
        }
    };
    parts.iter().map(show).collect::<Vec<_>>().join(",")
}

/// A line for each feature.
pub fn features(features: &Features) -> String {
    let mut text = String::new();
    for f in &features.features {
        let word = if f.available { "yes" } else { "no " };
        let _ = writeln!(
            text,
            "{word}  {:<22} {} (Linux {})",
            f.name, f.meaning, f.since
        );
    }
    if features.unknown != 0 {
        let _ = writeln!(
            text,
            "yes  {:#x}: features unknown to this version",
            features.unknown
        );
    }
    text
}

/// A line for each check, and one for its fix.
pub fn findings(checks: &[Check]) -> String {
    let mut text = String::new();
    for c in checks {
        let _ = writeln!(text, "{:<4}  {:<14} {}", c.status, c.check, c.detail);
        if let Some(fix) = &c.fix {
            let _ = writeln!(text, "      {:<14} fix: {fix}", "");
        }
    }
    text
}

/// Server and policy of an NBD device after a change.
pub fn nbd_changed(changed: &front::NbdChanged) -> String {
    let nbd = &changed.nbd;
    format!(
        "device {}: {}, {}, retry {}\n",
        changed.id, nbd.uri, nbd.state, nbd.retry
    )
}

/// What a server offers for an export.
pub fn nbd_export(export: &front::NbdExport) -> String {
    let blocks = match export.block_sizes {
        Some([minimum, preferred, maximum]) => format!(
            "at least {}, preferably {}, at most {}",
            size::show(minimum.into()),
            size::show(preferred.into()),
            size::show(maximum.into())
        ),
        None => "not specified".to_owned(),
    };
    let replies = match export.structured_replies {
        true => "structured",
        false => "simple",
    };
    format!(
        "size      {}\nrequests  {blocks}\nflags     {}\nreplies   {replies}\n",
        size::show(export.size),
        export.flags.join(" ")
    )
}

/// The exports of a server.
pub fn nbd_list(exports: &[front::NbdListed]) -> String {
    let line = |export: &front::NbdListed| match export.description.is_empty() {
        true => format!("{:?}\n", export.name),
        false => format!("{:?}  {}\n", export.name, export.description),
    };
    exports.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_shown_as_ranges() {
        assert_eq!(ranges(&[0, 1, 2, 3, 8, 10, 11]), "0-3,8,10-11");
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[u32::MAX]), "4294967295");
    }

    fn entry(name: &str, path: &str, offset: u64) -> ListEntry {
        serde_json::from_value(serde_json::json!({
            "id": 3, "path": "/dev/ublkb3", "char_path": "/dev/ublkc3", "state": "live",
            "queues": 2, "depth": 64, "data": "copy", "batch": false, "size": 4096,
            "backend": "file", "server_pid": 7, "server_alive": true,
            "owner": {"uid": 0, "gid": 0}, "foreign": false, "phase": "live", "cause": null,
            "name": name, "link": null, "recovery": "none", "supervised": false, "shared_memory": null,
            "backing": {"path": path, "offset": offset, "length": 4096},
            "threads": 1, "polling": "off", "orphan": false, "next": null, "readable": true,
        }))
        .unwrap()
    }

    /// A name is a word and a backing store a path, as `losetup -l` and `lsblk` show them.
    #[test]
    fn the_table_names_device_and_backing() {
        let text = list(&[entry("data", "/srv/d.img", 1 << 20)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0].split_whitespace().collect::<Vec<_>>(),
            COLUMNS.to_vec()
        );
        assert!(
            lines[1].starts_with("3   data  /dev/ublkb3  live   4 KiB  2       64     file     /srv/d.img from 1 MiB  7"),
            "{text}"
        );
    }

    /// A path of several lines is shown in one, and none of its bytes commands the terminal.
    #[test]
    fn l46_what_others_named_cannot_break_the_table() {
        let text = list(&[entry("n", "/srv/a\nID\x1b[31m", 0)]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("/srv/a\\x0aID\\x1b[31m"), "{text}");
    }
}
