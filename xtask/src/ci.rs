//! `ci`: the checks before a change goes in.

use anyhow::{Result, bail};
use clap::Args;

use crate::{cmd, lint, test};

/// Options of `ci`.
#[derive(Clone, Copy, Debug, Args)]
pub struct Options {
    /// Only format, clippy and the host's unit tests: for a pre-commit hook
    #[arg(long)]
    pub fast: bool,
}

/// Runs the checks.
///
/// # Errors
/// The first that fails.
pub fn run(options: Options) -> Result<()> {
    if !options.fast {
        lint::run()?;
        return test::run(test::Options::default());
    }
    lint::format()?;
    lint::clippy()?;
    let mut command = cmd::cargo();
    command.args(["test", "--quiet", "--workspace"]);
    command.args(["--lib", "--bins"]);
    if cmd::run(&mut command).is_err() {
        bail!("{}", cmd::line(&command));
    }
    Ok(())
}
