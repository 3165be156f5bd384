//! Text output; scripts use `--json`.

mod info;
mod stats;

pub use info::info;
pub use stats::{of_mode, stats, time};

use crate::doctor::Check;
use crate::size;
use std::fmt::Write;
use ublk_daemon::front::{self, Backing, Features, Found, ListEntry, Resized};
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
    table(&rows)
}

/// Rows with their columns aligned.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|c| width(c).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

/// The cells of a device. Text that other users chose cannot break the table.
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

/// The backing store of a device, as a cell.
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

/// The text of `upgrade`: the device, and how long its I/O waited.
pub fn upgraded(added: &Added) -> String {
    let ms = added.pause_us.unwrap_or_default().div_ceil(1000);
    format!(
        "{}: server {} took over, I/O waited {ms} ms\n",
        added.path.display(),
        added.server_pid
    )
}

/// The text of `resize`.
pub fn resized(r: &Resized) -> String {
    let (before, size) = (size::show(r.before), size::show(r.size));
    let held = r.pause_us.map_or_else(String::new, |us| {
        format!(", I/O waited {} ms", us.div_ceil(1000))
    });
    format!("{}: {before} before, {size} now{held}\n", r.path.display())
}

/// The text of `gc`: remaining orphans, and what was removed.
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

/// One line per feature.
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

/// One line per check, and one for its fix.
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

/// The policy of an NBD device after a change. Not its state, which may follow a moment later.
pub fn nbd_policy(changed: &front::NbdChanged) -> String {
    let nbd = &changed.nbd;
    format!("device {}: {}, retry {}\n", changed.id, nbd.uri, nbd.retry)
}

/// Server and policy of an NBD device after a change.
pub fn nbd_changed(changed: &front::NbdChanged) -> String {
    let nbd = &changed.nbd;
    format!(
        "device {}: {}, {}, retry {}\n",
        changed.id, nbd.uri, nbd.state, nbd.retry
    )
}

/// The text of `nbd info`.
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
    let replies = match (export.structured_replies, export.extended_headers) {
        (_, true) => "structured, extended headers",
        (true, false) => "structured",
        (false, false) => "simple",
    };
    let tls = export
        .tls
        .as_ref()
        .map_or_else(|| "none".to_owned(), ToString::to_string);
    let mut text = format!(
        "size      {}\nrequests  {blocks}\nflags     {}\nreplies   {replies}\nTLS       {tls}\n",
        size::show(export.size),
        export.flags.join(" ")
    );
    if !export.meta_contexts.is_empty() {
        let _ = writeln!(text, "contexts  {}", export.meta_contexts.join(" "));
    }
    if let Some(sum) = &export.allocation {
        let rest = match &sum.stopped {
            None => String::new(),
            Some(why) => format!(", the rest unknown: {why}"),
        };
        let _ = writeln!(
            text,
            "content   {} data, {} zeroes, {} not allocated, in {}{rest}",
            size::show(sum.data),
            size::show(sum.zero),
            size::show(sum.hole),
            match sum.extents {
                1 => "1 extent".to_owned(),
                n => format!("{n} extents"),
            }
        );
    }
    text
}

/// The text of `nbd list`.
pub fn nbd_list(exports: &[front::NbdListed]) -> String {
    if exports.is_empty() {
        return "the server lists no exports\n".to_owned();
    }
    let line = |export: &front::NbdListed| match export.description.is_empty() {
        true => format!("{:?}\n", export.name),
        false => format!("{:?}  {}\n", export.name, plain(&export.description)),
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

    /// A name is a single word and a backing store is a path, as in `losetup -l` and `lsblk`.
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

    /// A path with several lines is shown on one line, and no byte of it controls the terminal.
    #[test]
    fn l46_what_others_named_cannot_break_the_table() {
        let text = list(&[entry("n", "/srv/a\nID\x1b[31m", 0)]);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("/srv/a\\x0aID\\x1b[31m"), "{text}");
    }
}
