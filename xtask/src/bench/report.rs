//! The tables for people and the JSON for programs.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::figures::Figure;
use super::rows::Row;
use super::times::Times;
use super::wall::{self, Wall};
use crate::kernel::Kernel;
use crate::{cmd, host};

/// All results, and the environment.
#[derive(Debug, Default)]
pub struct Report {
    kernel: String,
    qemu: String,
    fio: String,
    /// The QEMU commands of the guests.
    pub commands: Vec<String>,
    /// The selected rows.
    pub rows: Vec<Row>,
    /// Instructions per I/O.
    pub figures: Vec<Figure>,
    /// Wall-clock rows.
    pub walls: Vec<Wall>,
    /// Accelerator of the wall-clock guest.
    pub accelerator: Option<String>,
    /// Times of single events.
    pub times: Vec<Times>,
    /// Rows that are left out here, and why.
    pub skipped: Vec<(String, String)>,
    /// Findings from several rows together.
    pub findings: Vec<String>,
}

impl Report {
    /// Determines the versions.
    ///
    /// # Errors
    /// QEMU or fio does not report its version.
    pub fn new(kernel: &Kernel) -> Result<Self> {
        let version = |program: &str| -> Result<String> {
            let text = cmd::output(host::command(program).arg("--version"))?;
            Ok(text.lines().next().unwrap_or_default().trim().to_owned())
        };
        Ok(Self {
            kernel: kernel.release.clone(),
            qemu: version("qemu-system-x86_64")?,
            fio: version("fio")?,
            ..Self::default()
        })
    }

    /// The environment as text.
    pub fn on(&self) -> String {
        format!("Linux {}, {}, {}", self.kernel, self.qemu, self.fio)
    }

    /// Markdown tables of all rows, and their commands.
    pub fn tables(&self) -> String {
        let mut text = String::new();
        let on = self.on();
        if !self.figures.is_empty() {
            let _ = writeln!(
                text,
                "Instructions per I/O, {on}:\n\n\
                 | row | device | total | kernel | own | fio | copied | alike | switches | peer |\n\
                 |---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
            );
        }
        for figure in &self.figures {
            let _ = writeln!(
                text,
                "| {} | {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.0} | {:.1} | {:.3} | {} |",
                figure.name,
                figure.seen,
                figure.total,
                figure.kernel,
                figure.own,
                figure.other,
                figure.copied,
                figure.alike,
                figure.switches,
                figure
                    .peer
                    .map_or("-".to_owned(), |peer| format!("{peer:.0}"))
            );
        }
        if !self.walls.is_empty() {
            let accelerator = self.accelerator.as_deref().unwrap_or("unknown");
            let _ = writeln!(text, "\nWall clock, {on}, {accelerator}, 4 CPUs:\n");
            text += &wall::table(&self.walls);
        }
        text + &self.told()
    }

    /// The command that made each target's device, findings, skips.
    fn told(&self) -> String {
        let mut text = String::from("\n");
        let mut told = Vec::new();
        for row in &self.rows {
            let target = &row.target;
            let measured = self.figures.iter().any(|figure| figure.name == row.name)
                || self.walls.iter().any(|wall| wall.name == row.name);
            if !measured || told.contains(&&target.name) {
                continue;
            }
            told.push(&target.name);
            let how = [&target.server, &target.device]
                .into_iter()
                .find(|text| !text.is_empty())
                .map_or_else(|| target.without_server(), Clone::clone);
            let _ = write!(text, "{}: `{how}`", target.name);
            if !target.prepare.is_empty() {
                let _ = write!(text, " ({})", target.prepare.join(", "));
            }
            text.push('\n');
        }
        for finding in &self.findings {
            let _ = writeln!(text, "\n{finding}");
        }
        for (name, why) in &self.skipped {
            let _ = writeln!(text, "skipped: {name} ({why})");
        }
        text
    }

    /// Everything as JSON.
    pub fn json(&self, faults: &[String]) -> Value {
        let with_row = |name: &str, figures: Result<Value, serde_json::Error>| {
            let mut value = figures.unwrap_or_default();
            if let Some(row) = self.rows.iter().find(|row| row.name == name) {
                value["server"] = json!(row.target.server);
                value["prepare"] = json!(row.target.prepare);
                value["loop"] = json!(row.target.looped);
                value["fio"] = json!(row.fio);
                value["floor"] = json!(row.floor);
                value["kind"] = json!(row.kind);
            }
            value
        };
        let counted = self.figures.iter();
        let walls = self.walls.iter();
        json!({
            "kernel": self.kernel,
            "qemu": self.qemu,
            "fio": self.fio,
            "commands": self.commands,
            "unit": "instructions per I/O",
            "rows": counted
                .map(|figure| with_row(&figure.name, serde_json::to_value(figure)))
                .collect::<Vec<_>>(),
            "accelerator": self.accelerator,
            "wall": walls
                .map(|wall| with_row(&wall.name, serde_json::to_value(wall)))
                .collect::<Vec<_>>(),
            "times_microseconds": self.times,
            "findings": self.findings,
            "skipped": self.skipped,
            "faults": faults,
        })
    }

    /// Writes everything as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path, faults: &[String]) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.json(faults))? + "\n";
        fs::write(path, text).with_context(|| path.display().to_string())
    }
}

#[cfg(test)]
impl Report {
    /// A report of one row.
    pub fn example(total: f64, own: f64) -> Self {
        Self {
            kernel: "k".into(),
            qemu: "q".into(),
            fio: "f".into(),
            figures: vec![Figure::example("brd-4k-randread-qd1", total, own)],
            ..Self::default()
        }
    }
}
