//! `cargo xtask nbd-interop`: the NBD client against servers of others, on sockets of the host.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::manifest::Manifest;
use crate::results::Results;
use crate::{cmd, e2e, host, paths, sources, test};

/// Options of the task.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Options {
    /// Write the results to docs/nbd.md
    #[arg(long, conflicts_with = "filter")]
    pub write_docs: bool,
    /// Only pairs whose name contains this
    #[arg(long)]
    pub filter: Option<String>,
}

/// One pair's result.
#[derive(Debug, Deserialize)]
struct Row {
    place: usize,
    server: String,
    export: String,
    result: String,
}

/// Fetches the servers, runs the pairs, and writes their table if that is wanted.
///
/// # Errors
/// A server is missing and cannot be had; a pair failed or was skipped.
pub fn run(options: &Options) -> Result<()> {
    let manifest = Manifest::load()?;
    let tools = &manifest.interop_tools;
    host::provide(&tools.iter().collect(), [])?;
    let results = paths::target().join("nbd-interop");
    if results.exists() {
        fs::remove_file(&results)?;
    }
    let mut command = test::limited(10 * 60);
    command.args(["test", "-p", "nbd-client", "--test", "interop"]);
    if let Some(filter) = &options.filter {
        command.args(["--", filter]);
    }
    command.env("INTEROP_RESULTS", &results);
    command.env("INTEROP_RECORDINGS", sources::files(&manifest, "nbd")?);
    let programs = tools.keys().filter_map(|name| host::find(name));
    surround(&mut command, programs.collect())?;
    let mut found = Results::default();
    let good = cmd::watch(&mut command, |line| found.line(line))?;
    found.check("nbd-interop", good);
    let text = fs::read_to_string(&results).with_context(|| results.display().to_string())?;
    let mut rows: Vec<Row> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    rows.sort_by_key(|row| row.place);
    if let Some(skipped) = rows.iter().find(|row| row.result.starts_with("skipped")) {
        let Row {
            server,
            export,
            result,
            ..
        } = skipped;
        bail!("{server} {export}: {result}");
    }
    if options.write_docs && found.failed.is_empty() {
        let page = paths::root().join("docs/nbd.md");
        let old = fs::read_to_string(&page)?;
        fs::write(&page, written(&old, &table(&rows, &versions()?))?)?;
    }
    e2e::conclude(&found)
}

/// Lets the test find programs and libraries of packages that were unpacked privately.
fn surround(command: &mut std::process::Command, programs: Vec<PathBuf>) -> Result<()> {
    let nbdkit = programs.iter().find(|path| path.ends_with("nbdkit"));
    let libraries: BTreeSet<_> = programs
        .iter()
        .filter_map(|program| host::libraries(program))
        .collect();
    if let Some(program) = nbdkit.filter(|program| host::libraries(program).is_some()) {
        command.env(
            "INTEROP_NBDKIT",
            host::library_directory(program).join("nbdkit"),
        );
    }
    if !libraries.is_empty() {
        let all: Vec<_> = libraries.iter().flat_map(env::split_paths).collect();
        command.env("LD_LIBRARY_PATH", env::join_paths(all)?);
    }
    let own = env::var_os("PATH").unwrap_or_default();
    let directories = programs.iter().filter_map(|path| path.parent());
    let all = env::split_paths(&own).chain(directories.map(Path::to_owned));
    command.env("PATH", env::join_paths(all)?);
    Ok(())
}

/// The servers and libnbd by their versions.
fn versions() -> Result<String> {
    let of = |program: &str, option: &str| -> Result<String> {
        let output = host::command(program).arg(option).output();
        let output = output.with_context(|| program.to_owned())?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let number = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
        let words = text.split(|c: char| c.is_whitespace() || c == '(');
        let version = words.filter(|word| !word.is_empty()).find(number);
        Ok(format!("{program} {}", version.context("no version")?))
    };
    let all = [
        of("nbdkit", "--version")?,
        of("qemu-nbd", "--version")?,
        of("nbd-server", "-V")?,
        of("nbdinfo", "--version")?,
    ];
    Ok(all.join(", "))
}

fn table(rows: &[Row], versions: &str) -> String {
    let mut text = format!("With {versions}:\n\n| Server | Export | Result |\n|---|---|---|\n");
    for row in rows {
        let result = row.result.replace('|', "/");
        text += &format!("| {} | {} | {result} |\n", row.server, row.export);
    }
    text
}

/// Where the table is in the page.
const BEGIN: &str = "<!-- written by cargo xtask nbd-interop --write-docs -->\n";
const END: &str = "<!-- end -->\n";

/// The page with another table.
fn written(page: &str, table: &str) -> Result<String> {
    let parts = page
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.with_context(|| format!("no {BEGIN:?} and {END:?} in the page"))?;
    Ok(format!("{before}{BEGIN}{table}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, END, Row, table, written};

    #[test]
    fn the_table_is_replaced_and_nothing_else() {
        let row = Row {
            place: 0,
            server: "nbdkit".to_owned(),
            export: "memory".to_owned(),
            result: "7 READ".to_owned(),
        };
        let table = table(&[row], "nbdkit 1");
        let page = format!("a\n{BEGIN}old\n{END}b\n");
        let now = written(&page, &table).unwrap();
        assert!(now.contains("| nbdkit | memory | 7 READ |\n") && !now.contains("old"));
        assert!(now.starts_with("a\n") && now.ends_with("b\n"));
        assert_eq!(written(&now, &table).unwrap(), now);
        assert!(written("a\n", &table).is_err());
    }
}
