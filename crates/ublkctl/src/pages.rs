//! Man pages, made from the command definitions.

use crate::cli::Cli;
use clap::CommandFactory;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use ublk_daemon::wire::Failure;

/// Prints the page of the program, or writes the pages of all commands to a directory.
///
/// # Errors
/// Those of the file system.
pub fn man(dir: Option<&Path>) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::failed(format!("cannot write the man pages: {e}"));
    match dir {
        Some(dir) => {
            fs::create_dir_all(dir).map_err(failed)?;
            clap_mangen::generate_to(Cli::command(), dir).map_err(failed)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .map_err(failed)?;
            io::stdout().lock().write_all(&page).map_err(failed)
        }
    }
}
