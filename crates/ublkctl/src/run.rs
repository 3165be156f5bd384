//! The commands, carried out.

use crate::cli::{Backend, Cli, Command, Wait};
use crate::{doctor, pages, show};
use clap::CommandFactory;
use serde::Serialize;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;
use ublk_core::DevId;
use ublk_daemon::front;
use ublk_daemon::peer::this_program;
use ublk_daemon::wire::{AddSpec, BackendSpec, Failure, FailureKind};

/// The exit code of a kind of failure.
pub fn exit_code(kind: FailureKind) -> ExitCode {
    ExitCode::from(match kind {
        FailureKind::Usage => 2,
        FailureKind::TimedOut => 3,
        FailureKind::NoSuchDevice => 32,
        _ => 1,
    })
}

/// Carries out one command.
///
/// # Errors
/// What went wrong, with the kind that decides the exit code.
pub fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let program = this_program();
    let json = cli.json;
    match &cli.command {
        Command::Add { backend } => add(backend, json)?,
        Command::List { deadline } => {
            let entries = front::list(&program, Duration::from_secs(*deadline))?;
            put(json, &entries, || show::list(&entries))?;
        }
        Command::Info { device, deadline } => {
            let info = front::info(&program, id(device.id)?, Duration::from_secs(*deadline))?;
            put(json, &info, || show::info(&info))?;
        }
        Command::Stop { device, wait } => {
            front::stop(&program, id(device.id)?, within(wait))?;
            put(json, &Done::new(device.id, "stopped"), String::new)?;
        }
        Command::Delete { device, wait } => {
            front::delete(&program, id(device.id)?, within(wait))?;
            put(json, &Done::new(device.id, "deleted"), String::new)?;
        }
        Command::Features { wait } => {
            let features = front::features(&program, within(wait))?;
            put(json, &features, || show::features(&features))?;
        }
        Command::Doctor { wait } => {
            let findings = doctor::look(&program, within(wait));
            put(json, &findings, || show::findings(&findings))?;
            if doctor::is_ill(&findings) {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "ublkctl", &mut text);
            write(&text)?;
        }
        Command::Man { dir } => pages::man(dir.as_deref())?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What `stop` and `delete` say in JSON.
#[derive(Debug, Serialize)]
struct Done {
    id: u32,
    done: &'static str,
}

impl Done {
    const fn new(id: u32, done: &'static str) -> Self {
        Self { id, done }
    }
}

fn id(id: u32) -> Result<DevId, Failure> {
    DevId::new(id).map_err(|e| Failure::new(FailureKind::Usage, e.to_string()))
}

const fn within(wait: &Wait) -> Duration {
    Duration::from_secs(wait.deadline)
}

fn add(backend: &Backend, json: bool) -> Result<(), Failure> {
    let (add, backend) = match backend {
        Backend::Null { add, size } => (add, BackendSpec::Null { size: *size }),
        Backend::Mem { add, size } => (add, BackendSpec::Mem { size: *size }),
    };
    let spec = AddSpec {
        backend,
        id: add.id,
        queues: add.queues,
        depth: add.depth,
        block_size: add.block_size,
        max_io_bytes: add.max_io,
        read_only: add.read_only,
        mode: add.mode(),
    };
    let log = add.log.clone();
    let program = this_program();
    let (added, device) = front::add(&program, spec, add.foreground, log, within(&add.wait))?;
    put(json, &added, || format!("{}\n", added.path.display()))?;
    if add.foreground {
        device.wait()?;
    }
    Ok(())
}

/// Prints a value: as one line of JSON, or as its text.
fn put<T: Serialize>(json: bool, value: &T, text: impl FnOnce() -> String) -> Result<(), Failure> {
    if json {
        let mut line = serde_json::to_vec(value)
            .map_err(|e| Failure::failed(format!("cannot write JSON: {e}")))?;
        line.push(b'\n');
        write(&line)
    } else {
        write(text().as_bytes())
    }
}

fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|e| Failure::failed(format!("cannot write to standard output: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_contract() {
        let codes = [
            (FailureKind::Failed, 1),
            (FailureKind::Usage, 2),
            (FailureKind::TimedOut, 3),
            (FailureKind::NoSuchDevice, 32),
        ];
        for (kind, code) in codes {
            assert_eq!(exit_code(kind), ExitCode::from(code));
        }
    }
}
