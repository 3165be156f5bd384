//! Texts made from the command definitions: man pages and completions.

use crate::cli::Cli;
use crate::output::{put, raw};
use clap::CommandFactory;
use serde_json::json;
use std::fs;
use std::io;
use std::path::Path;
use ublk_daemon::wire::Failure;

/// Prints a text as it is, or as the field `name` of a JSON object.
///
/// # Errors
/// Standard output that cannot be written to.
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
/// Those of the file system.
pub fn man(dir: Option<&Path>, json: bool) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::failed(format!("cannot write the man pages: {e}"));
    match dir {
        Some(dir) => {
            fs::create_dir_all(dir).map_err(failed)?;
            clap_mangen::generate_to(Cli::command(), dir).map_err(failed)?;
            put(json, &json!({ "dir": dir }), String::new)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .map_err(failed)?;
            text(json, "page", &page)
        }
    }
}
