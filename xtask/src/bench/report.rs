//! The table for people and the JSON for programs.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::figures::{Figure, Usable};
use super::rows::{self, Row};
use crate::cmd;
use crate::kernel::Kernel;

/// Everything that was measured, and on what.
#[derive(Debug)]
pub struct Report {
    kernel: String,
    qemu: String,
    fio: String,
    /// The QEMU command of the counting guest.
    pub command: String,
    /// Instructions per I/O.
    pub figures: Vec<Figure>,
    /// Times to the first read.
    pub usable: Vec<Usable>,
}

impl Report {
    /// Asks for the versions.
    ///
    /// # Errors
    /// QEMU or fio does not tell its version.
    pub fn new(kernel: &Kernel) -> Result<Self> {
        let version = |program: &str| -> Result<String> {
            let text = cmd::output(Command::new(program).arg("--version"))?;
            Ok(text.lines().next().unwrap_or_default().trim().to_owned())
        };
        Ok(Self {
            kernel: kernel.release.clone(),
            qemu: version("qemu-system-x86_64")?,
            fio: version("fio")?,
            command: String::new(),
            figures: Vec::new(),
            usable: Vec::new(),
        })
    }

    /// A Markdown table, and the commands behind its rows.
    pub fn table(&self) -> String {
        let mut text = format!(
            "Instructions per I/O, Linux {}, {}, {}:\n\n\
             | row | total | kernel | own | fio | switches |\n|---|--:|--:|--:|--:|--:|\n",
            self.kernel, self.qemu, self.fio
        );
        for figure in &self.figures {
            let _ = writeln!(
                text,
                "| {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.3} |",
                figure.name, figure.total, figure.kernel, figure.own, figure.other, figure.switches
            );
        }
        text.push('\n');
        let mut told = Vec::new();
        for row in rows::all() {
            let measured = self.figures.iter().any(|figure| figure.name == row.name);
            if measured && !row.server.is_empty() && !told.contains(&row.server) {
                let target = row.name.split('-').next().unwrap_or_default();
                let _ = writeln!(text, "{target}: `{}`", row.server);
                told.push(row.server);
            }
        }
        text
    }

    /// Writes everything as JSON.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path, faults: &[String]) -> Result<()> {
        let rows = rows::all();
        let row = |figure: &Figure| {
            let row: Option<&Row> = rows.iter().find(|row| row.name == figure.name);
            json!({
                "name": figure.name,
                "total": figure.total,
                "kernel": figure.kernel,
                "own": figure.own,
                "other": figure.other,
                "switches": figure.switches,
                "server": row.map(|row| &row.server),
                "device": row.map(|row| &row.device),
                "fio": row.map(|row| &row.fio),
            })
        };
        let value = json!({
            "kernel": self.kernel,
            "qemu": self.qemu,
            "fio": self.fio,
            "command": self.command,
            "unit": "instructions per I/O",
            "rows": self.figures.iter().map(row).collect::<Vec<_>>(),
            "usable_microseconds": self.usable,
            "faults": faults,
        });
        let text = serde_json::to_string_pretty(&value)? + "\n";
        fs::write(path, text).with_context(|| path.display().to_string())
    }
}
