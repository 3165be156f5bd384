//! Wall-clock rows: rate, latency, processor time.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::figures;
use super::label::Seen;
use super::rows::Row;

/// The wall-clock figures of a row.
#[derive(Clone, Debug, Serialize)]
pub struct Wall {
    /// The row.
    pub name: String,
    /// I/Os per second.
    pub iops: f64,
    /// Median latency in nanoseconds.
    pub p50_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    pub p999_ns: u64,
    /// CPU time of all processors in nanoseconds per I/O.
    pub cpu_ns: f64,
    /// CPU time of the server's threads in nanoseconds per I/O, if there is a server.
    pub server_ns: Option<f64>,
    /// The device as the kernel reports it.
    pub seen: Seen,
}

/// The result of a guest.
#[derive(Debug, Default)]
pub struct Walls {
    /// Rows that could be measured.
    pub rows: Vec<Wall>,
    /// Rows that could not, and why.
    pub errors: Vec<String>,
    /// The QEMU command.
    pub command: String,
}

/// The guest's line.
#[derive(Debug, Deserialize)]
struct Raw {
    side: String,
    errors: i64,
    ios: u64,
    iops: f64,
    p50_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
    busy_ticks: u64,
    all_ticks: u64,
    server_ns: Option<u64>,
}

impl Walls {
    /// Parses the guest's lines.
    pub fn of(rows: &[Row], lines: &[String], command: &str) -> Self {
        let mut all = Self {
            command: command.to_owned(),
            ..Self::default()
        };
        for row in rows {
            match wall(row, lines) {
                Ok(wall) => all.rows.push(wall),
                Err(error) => all.errors.push(format!("{}: {error:#}", row.name)),
            }
        }
        all
    }
}

/// Number of CPUs of the guest.
const CPUS: f64 = 4.0;

#[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
fn wall(row: &Row, lines: &[String]) -> Result<Wall> {
    let seen = figures::seen(row, lines)?;
    let text = figures::line(row, lines, "wall")?;
    let raw: Raw = serde_json::from_str(text).with_context(|| text.to_owned())?;
    ensure!(
        raw.errors == 0 && raw.ios > 0 && raw.iops > 0.0,
        "fio: {text}"
    );
    ensure!(
        row.fio.contains(&raw.side),
        "fio did {} instead of {}",
        raw.side,
        row.fio
    );
    ensure!(raw.all_ticks > 0, "no time passed");
    // The busy fraction of all processors, divided by the rate: fio's start and end are a small part of it.
    let busy = raw.busy_ticks as f64 / raw.all_ticks as f64;
    // Ticks are hundredths of a second per processor.
    let elapsed = raw.all_ticks as f64 / CPUS * 1e7;
    Ok(Wall {
        name: row.name.clone(),
        iops: raw.iops,
        p50_ns: raw.p50_ns,
        p99_ns: raw.p99_ns,
        p999_ns: raw.p999_ns,
        cpu_ns: busy * CPUS * 1e9 / raw.iops,
        server_ns: raw
            .server_ns
            .map(|server| server as f64 / elapsed * 1e9 / raw.iops),
        seen,
    })
}

/// A Markdown table.
pub fn table(rows: &[Wall]) -> String {
    let mut text =
        "| row | device | IOPS | p50, µs | p99, µs | p99.9, µs | CPU µs/IO | server µs/IO |\n\
                    |---|---|--:|--:|--:|--:|--:|--:|\n"
            .to_owned();
    let micro = |nanoseconds: u64| format!("{}.{}", nanoseconds / 1000, nanoseconds % 1000 / 100);
    for row in rows {
        let server = row
            .server_ns
            .map_or_else(|| "–".to_owned(), |time| format!("{:.2}", time / 1000.0));
        text += &format!(
            "| {} | {} | {:.0} | {} | {} | {} | {:.2} | {server} |\n",
            row.name,
            row.seen,
            row.iops,
            micro(row.p50_ns),
            micro(row.p99_ns),
            micro(row.p999_ns),
            row.cpu_ns / 1000.0,
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Walls, table};
    use crate::bench::rows;

    const SEEN: &str = r#"{"device": "/dev/ublkb0", "queues": 4, "depth": 128, "info_queues": 4,
        "info_depth": 128, "data": "copy", "batch": false}"#;
    const WALL: &str = r#"{"side": "read", "errors": 0, "ios": 2000, "iops": 1000.0, "p50_ns": 1500,
        "p99_ns": 2, "p999_ns": 3, "busy_ticks": 400, "all_ticks": 800, "server_ns": 1000000000}"#;

    fn lines(name: &str, seen: &str, wall: &str) -> Vec<String> {
        vec![
            format!("@seen {name} {seen}"),
            format!("@wall {name} {wall}"),
        ]
    }

    /// L93 A row labelled with four queues whose device has one is an error and not printed.
    #[test]
    fn l93_a_row_whose_device_is_another_is_not_printed() {
        let mut rows = rows::wall();
        rows.retain(|row| row.name == "null_4q-4k-randread-qd64-4j");
        let name = rows[0].name.clone();
        let good = Walls::of(&rows, &lines(&name, SEEN, WALL), "");
        assert_eq!((good.rows.len(), good.errors.len()), (1, 0));
        // Half of four processors for two seconds and 2000 I/Os; half a second of it the server's.
        assert_eq!(good.rows[0].cpu_ns, 2e6);
        assert_eq!(good.rows[0].server_ns, Some(5e5));
        assert!(table(&good.rows).contains("| 4 x 128, copy | 1000 | 1.5 |"));
        let one = SEEN.replace("\"queues\": 4", "\"queues\": 1");
        let bad = Walls::of(&rows, &lines(&name, &one, WALL), "");
        assert_eq!((bad.rows.len(), bad.errors.len()), (0, 1));
        assert!(bad.errors[0].contains("hw queues: the label says 4, the kernel 1"));
        let zero_copy = SEEN.replace("copy", "zero-copy");
        let bad = Walls::of(&rows, &lines(&name, &zero_copy, WALL), "");
        assert!(bad.rows.is_empty() && bad.errors[0].contains("data mode"));
    }

    /// L90 fio's errors, no I/O, or the wrong direction give no figures.
    #[test]
    fn l90_what_fio_did_not_do_is_no_figure() {
        let mut rows = rows::wall();
        rows.retain(|row| row.name == "null_4q-4k-randread-qd64-4j");
        for (from, to) in [
            ("\"errors\": 0", "\"errors\": 5"),
            ("\"iops\": 1000.0", "\"iops\": 0.0"),
            ("\"read\"", "\"write\""),
        ] {
            let wall = WALL.replace(from, to);
            assert_eq!(
                Walls::of(&rows, &lines(&rows[0].name, SEEN, &wall), "")
                    .rows
                    .len(),
                0,
                "{to}"
            );
        }
    }
}
