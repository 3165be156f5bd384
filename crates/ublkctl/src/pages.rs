//! Texts made from the command definitions: man pages and completions.

use crate::cli::Cli;
use crate::output::{put, raw};
use clap::{Command, CommandFactory};
use serde_json::json;
use std::fs;
use std::io;
use std::path::Path;
use ublk_daemon::failure::Failure;

/// When the content of the pages last changed.
const DATE: &str = "2026-11-28";

/// Maximum line length in a page's source.
const WIDTH: usize = 76;

/// Prints a text as it is, or as the field `name` of a JSON object.
///
/// # Errors
/// Standard output cannot be written to.
pub fn text(json: bool, name: &str, text: &[u8]) -> Result<(), Failure> {
    if json {
        let value = json!({ name: String::from_utf8_lossy(text) });
        return put(true, &value, String::new);
    }
    raw(text)
}

/// Prints the page of the program, or writes the pages of all commands to a directory.
///
/// # Errors
/// File system errors.
pub fn man(dir: Option<&Path>, json: bool) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::failed(format!("cannot write the man pages: {e}"));
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    match dir {
        Some(dir) => {
            fs::create_dir_all(dir).map_err(failed)?;
            write_all(&cli, dir).map_err(failed)?;
            put(json, &json!({ "dir": dir }), String::new)
        }
        None => text(json, "page", page(&cli).map_err(failed)?.1.as_bytes()),
    }
}

/// Writes the pages of a command and of its subcommands.
fn write_all(command: &Command, dir: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        write_all(below, dir)?;
    }
    let (name, text) = page(command)?;
    fs::write(dir.join(name), text)
}

/// The page of a command, and the name of its file.
fn page(command: &Command) -> io::Result<(String, String)> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let page = clap_mangen::Man::new(command.clone())
        .title(name.to_uppercase())
        .date(DATE)
        .source(concat!("ublkctl ", env!("CARGO_PKG_VERSION")))
        .manual("ublkctl manual");
    let mut roff = Vec::new();
    page.render(&mut roff)?;
    let roff = String::from_utf8_lossy(&roff);
    Ok((page.get_filename(), tidy(&roff)))
}

/// The page as `mandoc -T lint` and `man --warnings` require it: short lines, no trailing blanks, no break next to a
/// paragraph.
fn tidy(roff: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in roff.lines().map(str::trim_end) {
        let last = lines.last().map_or("", |l| l.as_str());
        match line {
            ".br" if ends_a_line(last) => continue,
            line if ends_a_line(line) && last == ".br" => {
                lines.pop();
            }
            _ => {}
        }
        if line.starts_with('.') || line.starts_with('\'') {
            lines.push(line.to_owned());
        } else {
            wrap(line, &mut lines);
        }
    }
    lines.join("\n") + "\n"
}

/// Whether a request starts a new line anyway.
fn ends_a_line(request: &str) -> bool {
    [".sp", ".RS", ".RE", ".SH", ".TP", ".PP", ".IP", ".br"]
        .contains(&request.split(' ').next().unwrap_or_default())
}

/// Wraps a line of text at blanks, without turning a word into a request.
fn wrap(text: &str, into: &mut Vec<String>) {
    let mut line = String::new();
    for word in text.split(' ').filter(|w| !w.is_empty()) {
        let fits = line.len() + 1 + word.len() <= WIDTH;
        if !line.is_empty() && !fits && !word.starts_with(['.', '\'']) {
            into.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        into.push(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breaks_beside_paragraphs_go() {
        let page = ".TP\ntext \n.br\n\n.br\n.sp\nmore\n.br\nlines\n.RE\n.br\n";
        assert_eq!(tidy(page), ".TP\ntext\n.sp\nmore\n.br\nlines\n.RE\n");
    }

    #[test]
    fn long_lines_are_broken_at_words_that_are_no_requests() {
        let text = "word ".repeat(20) + ".hidden " + &"word ".repeat(10);
        let page = tidy(&text);
        assert!(
            page.lines()
                .all(|l| l.len() <= WIDTH + 8 && !l.starts_with('.')),
            "{page}"
        );
        assert_eq!(page.split_whitespace().count(), 31);
    }
}
