//! Turns the guest's lines and the plugin's snapshots into figures.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::copies::Copies;
use super::label::Seen;
use super::rows::Row;

/// A snapshot of the plugin's counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    kernel: u64,
    own: u64,
    other: u64,
    user_copy: u64,
    page_copy: u64,
}

/// Instructions per I/O of one row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The row.
    pub name: String,
    /// All instructions.
    pub total: f64,
    /// Instructions of the kernel.
    pub kernel: f64,
    /// Instructions of the server's text.
    pub own: f64,
    /// Instructions of other user code, that is fio.
    pub other: f64,
    /// All instructions, as if every copy of the kernel took one per 8 bytes.
    pub alike: f64,
    /// Bytes copied by the kernel.
    pub copied: f64,
    /// Instructions of the row's NBD server, those of the kernel on its behalf included; part of the total.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<f64>,
    /// Context switches.
    pub switches: f64,
    /// The device as the kernel reports it.
    pub seen: Seen,
    /// Number of the row's first marker.
    #[serde(skip)]
    pub mark: u64,
    /// Difference in I/Os between the two runs.
    #[serde(skip)]
    pub ios: u64,
}

impl Figure {
    /// Whether the counts are the same; the position of markers and further device properties are not compared.
    pub fn same(&self, other: &Self) -> bool {
        let counts = |of: &Self| [of.total, of.kernel, of.own, of.other, of.switches];
        counts(self) == counts(other)
    }

    /// The figure as one line.
    pub fn line(&self) -> String {
        format!(
            "{}: total {:.1}, kernel {:.1}, own {:.1}, fio {:.1}, copied {:.0} bytes, alike {:.1}, switches {:.3}",
            self.name,
            self.total,
            self.kernel,
            self.own,
            self.other,
            self.copied,
            self.alike,
            self.switches
        )
    }
}

/// Parses the plugin's file: snapshots by number.
///
/// # Errors
/// A malformed line.
pub fn snapshots(text: &str) -> Result<BTreeMap<u64, Snapshot>> {
    let mut all = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let [
            "mark",
            number,
            "vcpu",
            _,
            "kernel",
            kernel,
            "server",
            own,
            "other",
            other,
            "user-copy",
            user_copy,
            "page-copy",
            page_copy,
        ] = words[..]
        else {
            ensure!(
                line.starts_with("exit "),
                "malformed line of the plugin: {line}"
            );
            continue;
        };
        let snapshot = Snapshot {
            kernel: kernel.parse()?,
            own: own.parse()?,
            other: other.parse()?,
            user_copy: user_copy.parse()?,
            page_copy: page_copy.parse()?,
        };
        all.insert(number.parse()?, snapshot);
    }
    Ok(all)
}

/// Computes the figure of a row from the guest's `@seen` and `@row` lines.
///
/// # Errors
/// A missing or malformed line, a marker that the plugin did not see, runs of the wrong length, or a device that does
/// not match the row's label.
pub fn figure(row: &Row, lines: &[String], snapshots: &BTreeMap<u64, Snapshot>) -> Result<Figure> {
    let seen = seen(row, lines)?;
    let line = line(row, lines, "row")?;
    let words: Vec<_> = line.split(' ').collect();
    let [_device, mark, switches_small, switches_large, small, large] = words[..] else {
        bail!("malformed line of the guest: {line}");
    };
    let (small, large): (u64, u64) = (small.parse()?, large.parse()?);
    let ios = row.ios * row.jobs;
    ensure!(
        large.checked_sub(small) == Some(ios),
        "fio did {small} and {large} I/Os, which do not differ by {ios}"
    );
    let mark: u64 = mark.parse()?;
    let at = |index: u64| {
        let number = mark + index;
        snapshots
            .get(&number)
            .with_context(|| format!("no snapshot {number}"))
    };
    let difference = |of: fn(&Snapshot) -> u64| -> Result<f64> {
        let small = of(at(1)?) - of(at(0)?);
        let large = of(at(3)?) - of(at(2)?);
        Ok(per_io(small, large, ios))
    };
    let kernel = difference(|snapshot| snapshot.kernel)?;
    let own = difference(|snapshot| snapshot.own)?;
    let other = difference(|snapshot| snapshot.other)?;
    let total = difference(|snapshot| snapshot.kernel + snapshot.own + snapshot.other)?;
    let copies = Copies {
        user: difference(|snapshot| snapshot.user_copy)?,
        pages: difference(|snapshot| snapshot.page_copy)?,
    };
    Ok(Figure {
        name: row.name.clone(),
        total,
        alike: copies.alike(total),
        copied: copies.bytes(),
        kernel,
        own,
        other,
        peer: seen.peer_ns.map(|[small, large]| per_io(small, large, ios)),
        switches: per_io(switches_small.parse()?, switches_large.parse()?, ios),
        seen,
        mark,
        ios,
    })
}

/// Finds the guest's line `@WORD NAME …` of a row.
///
/// # Errors
/// There is none; the error has the guest's reason, if it gave one.
pub fn line<'a>(row: &Row, lines: &'a [String], word: &str) -> Result<&'a str> {
    let find = |word: &str| {
        let start = format!("@{word} {} ", row.name);
        lines.iter().find_map(|line| line.strip_prefix(&start))
    };
    find(word).with_context(|| {
        let said = find("error").unwrap_or("not measured, and the guest gave no reason");
        said.to_owned()
    })
}

/// The row's device as the kernel reports it.
///
/// # Errors
/// The guest did not look, or the device does not match the row's label.
pub fn seen(row: &Row, lines: &[String]) -> Result<Seen> {
    let text = line(row, lines, "seen")?;
    let seen: Seen = serde_json::from_str(text).with_context(|| text.to_owned())?;
    let lies = row.label().lies(&seen);
    ensure!(
        lies.is_empty(),
        "the device differs from the row's label: {}",
        lies.join("; ")
    );
    Ok(seen)
}

/// The difference of two runs per additional I/O of the longer one. Exact: counts are far below 2^53.
#[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
fn per_io(small: u64, large: u64, ios: u64) -> f64 {
    (i128::from(large) - i128::from(small)) as f64 / ios as f64
}

#[cfg(test)]
impl Figure {
    /// A figure of a row.
    pub fn example(name: &str, total: f64, own: f64) -> Self {
        Self {
            name: name.into(),
            total,
            kernel: 0.0,
            own,
            other: 0.0,
            alike: total,
            copied: 0.0,
            peer: None,
            switches: 0.0,
            seen: Seen::default(),
            mark: 0,
            ios: 1,
        }
    }
}

#[cfg(test)]
mod tests;
