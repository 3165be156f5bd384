//! Writes the measured tables into docs/benchmarks.md, in the run that measured them.

use std::fmt::Write;
use std::fs;

use anyhow::{Context, Result, ensure};

use super::figures::Figure;
use super::report::Report;
use super::rows::{FLOOR, Kind, sizes};
use crate::paths;

const FILE: &str = "docs/benchmarks.md";
const BEGIN: &str = "<!-- Written by `cargo xtask vm-benchmark --icount --write-docs`. -->\n";
const END: &str = "<!-- End of what is written. -->\n";

/// Infix in the names of rows for every size.
const SIZE: &str = "-size-";

/// Writes the results of a complete count.
///
/// # Errors
/// Rows were left out, so the tables would not be of one run; or the file cannot be read or written, or lacks the
/// marks.
pub fn write(report: &Report) -> Result<()> {
    let skipped = report.skipped.iter();
    let skipped = skipped.map(|(name, why)| format!("{name}: {why}"));
    let failed = report.rows.iter().filter(|row| {
        let counted = matches!(row.kind, Kind::Counted { .. });
        counted && !report.figures.iter().any(|figure| figure.name == row.name)
    });
    let failed = failed.map(|row| format!("{}: it has no figure", row.name));
    let missing: Vec<_> = skipped.chain(failed).collect();
    ensure!(
        missing.is_empty(),
        "{FILE} is unchanged, since rows are missing:\n{}",
        missing.join("\n")
    );
    let path = paths::root().join(FILE);
    let text = fs::read_to_string(&path).context(FILE)?;
    let text = replaced(&text, &tables(report)).with_context(|| format!("{FILE}: {BEGIN}"))?;
    fs::write(&path, text).context(FILE)
}

/// The document with new tables; `None` if it lacks the marks.
fn replaced(text: &str, tables: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{tables}\n{END}{after}"))
}

/// All tables, one after the other.
fn tables(report: &Report) -> String {
    let without_server = |figure: &Figure| {
        let row = report.rows.iter().find(|row| row.name == figure.name);
        row.is_some_and(|row| row.target.server.is_empty())
    };
    let (mut ours, mut libublk, mut kublk) = (vec![], vec![], vec![]);
    let (mut kernel, mut floors) = (vec![], vec![]);
    for figure in &report.figures {
        match figure.name.as_str() {
            name if name.contains(SIZE) => {}
            name if name.starts_with("libublk_") => libublk.push(figure),
            name if name.starts_with("kublk_") => kublk.push(figure),
            name if name.starts_with(FLOOR) => floors.push(figure),
            _ if without_server(figure) => kernel.push(figure),
            _ => ours.push(figure),
        }
    }
    let mut text = format!(
        "On {}. Ours; those of `smp_` with two CPUs:\n\n",
        report.on()
    );
    text += &table(&ours);
    text += "\nlibublk 0.4.8, with the scheduler that the kernel gives it:\n\n";
    text += &table(&libublk);
    text += "\nThe kernel's test server, without a scheduler:\n\n";
    text += &table(&kublk);
    text += "\nThe kernel's own devices, without a server:\n\n";
    text += &table(&kernel);
    text += "\nClients of NBD servers without a block device; their own code counts as fio's:\n\n";
    text += &table(&floors);
    text += "\nZero copy, copy and the loop driver at every size: total instructions per I/O of sequential requests, depth 8, on \
             ext4, copies alike:\n\n";
    text + &by_size(&report.figures)
}

fn table(figures: &[&Figure]) -> String {
    let mut text = String::from(
        "| row | total | kernel | own | fio | copied | alike | switches |\n|---|--:|--:|--:|--:|--:|--:|--:|\n",
    );
    for figure in figures {
        let _ = writeln!(
            text,
            "| {} | {:.0} | {:.0} | {:.1} | {:.0} | {:.0} | {:.0} | {:.3} |",
            figure.name,
            figure.total,
            figure.kernel,
            figure.own,
            figure.other,
            figure.copied,
            figure.alike,
            figure.switches
        );
    }
    text
}

fn by_size(figures: &[Figure]) -> String {
    let mut text =
        String::from("| size | mode | zero copy | copy | loop, direct |\n|--:|---|--:|--:|--:|\n");
    for size in sizes() {
        for mode in ["read", "write"] {
            let cell = |target: &str| {
                let name = format!("{target}{SIZE}{size}k-{mode}");
                let figure = figures.iter().find(|figure| figure.name == name);
                figure.map_or("-".to_owned(), |figure| format!("{:.0}", figure.alike))
            };
            let (zero_copy, copy, looped) = (
                cell("file_ext4_zero_copy"),
                cell("file_ext4_copy"),
                cell("loop_ext4"),
            );
            let _ = writeln!(
                text,
                "| {size}k | {mode} | {zero_copy} | {copy} | {looped} |"
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text between the marks is replaced, and nothing else.
    #[test]
    fn tables_are_written_between_the_marks() {
        let text = format!("before\n{BEGIN}\nold\n\n{END}after\n");
        let new = replaced(&text, "new\n").expect("marks");
        assert_eq!(new, format!("before\n{BEGIN}\nnew\n\n{END}after\n"));
        assert_eq!(replaced(&new, "new\n").as_ref(), Some(&new));
        assert_eq!(replaced("before\n", "new\n"), None);
        let document = fs::read_to_string(paths::root().join(FILE)).expect("the document");
        assert!(replaced(&document, "").is_some(), "{FILE} has no marks");
    }

    #[test]
    fn rows_go_to_the_tables_of_their_servers() {
        let mut report = Report::example(5000.0, 0.0);
        for name in [
            "null-4k-randread-qd1",
            "kublk_null-4k-randread-qd1",
            "floor_tcp-4k-randread-qd1",
            "loop_ext4-size-8k-read",
        ] {
            report.figures.push(Figure::example(name, 7000.0, 100.0));
        }
        let text = tables(&report);
        let at = |part: &str| {
            text.find(part)
                .unwrap_or_else(|| panic!("no {part} in {text}"))
        };
        assert!(at("| null-4k") < at("libublk 0.4.8"));
        assert!(at("test server") < at("| kublk_null-4k"));
        assert!(at("without a block device") < at("| floor_tcp-4k"));
        assert!(text.contains("| 8k | read | - | - | 7000 |"), "{text}");
    }

    #[test]
    fn rows_that_were_left_out_write_nothing() {
        let mut report = Report::example(5000.0, 0.0);
        report
            .skipped
            .push(("libublk_null".into(), "no libclang".into()));
        let error = write(&report).expect_err("refused").to_string();
        assert!(error.contains("libublk_null: no libclang"), "{error}");
    }
}
