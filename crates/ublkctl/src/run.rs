//! The commands, carried out.

use crate::cli::{Add, Backend, Cli, Command, Wait};
use crate::{config, doctor, pages, show, udev};
use clap::CommandFactory;
use serde::Serialize;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use ublk_core::DevId;
use ublk_daemon::front;
use ublk_daemon::front::{Stop, Wanted};
use ublk_daemon::peer::this_program;
use ublk_daemon::privilege;
use ublk_daemon::wire::{AddSpec, BackendSpec, Failure, FailureKind, Lifetime, Serving};

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
        Command::Up {
            config,
            foreground: true,
            leave,
            wait,
        } => config::foreground(config, *leave, within(wait), json)?,
        Command::Up { config, wait, .. } => return config::up(config, within(wait), json),
        Command::Down {
            config,
            force,
            wait,
        } => {
            let how = if *force { Stop::Force } else { Stop::Safe };
            return config::down(config, how, within(wait), json);
        }
        Command::Check { config } => config::check(config, json)?,
        Command::List { deadline } => {
            let entries = front::list(&program, Duration::from_secs(*deadline))?;
            put(json, &entries, || show::list(&entries))?;
        }
        Command::Info { device, deadline } => {
            let info = front::info(&program, id(device.id)?, Duration::from_secs(*deadline))?;
            put(json, &info, || show::info(&info))?;
        }
        Command::Stop {
            device,
            if_unused,
            force,
            wait,
        } => {
            let how = match (if_unused, force) {
                (true, _) => Stop::IfUnused,
                (_, true) => Stop::Force,
                _ => Stop::Safe,
            };
            front::stop(&program, id(device.id)?, how, within(wait))?;
            put(json, &Done::new(device.id, "stopped"), String::new)?;
        }
        Command::Delete {
            device,
            no_wait,
            force,
            wait,
        } => {
            let how = if *force { Stop::Force } else { Stop::Safe };
            front::delete(&program, id(device.id)?, how, *no_wait, within(wait))?;
            put(json, &Done::new(device.id, "deleted"), String::new)?;
        }
        Command::Recover { id, all, wait } => {
            return recover(*id, *all, within(wait), json);
        }
        Command::Upgrade {
            device,
            allow_errors,
            wait,
        } => {
            let (id, allow) = (id(device.id)?, *allow_errors);
            let added = front::recover(&program, id, true, allow, within(wait))?;
            put(json, &added, || show::upgraded(&added))?;
        }
        Command::Resize {
            device,
            size,
            fill: _,
            force,
            wait,
        } => {
            let device = id(device.id)?;
            let resized = front::resize(&program, device, *size, *force, within(wait))?;
            put(json, &resized, || show::resized(&resized))?;
        }
        Command::Gc {
            ids,
            all,
            force,
            wait,
        } => {
            let how = if *force { Stop::Force } else { Stop::Safe };
            let ids: Vec<DevId> = ids.iter().map(|n| id(*n)).collect::<Result<_, _>>()?;
            let found = front::gc(&program, &ids, *all, how, within(wait))?;
            put(json, &found, || show::garbage(&found))?;
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
        Command::UdevOwner { node } => write(udev::owner(&program, node)?.as_bytes())?,
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

/// A path as every process of the device sees it.
fn absolute(path: Option<&Path>) -> Result<Option<PathBuf>, Failure> {
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|e| Failure::failed(format!("{}: {e}", path.display())))
    };
    path.map(absolute).transpose()
}

/// The common words of `add` and the backend. The block size that a null or memory device has when none is asked
/// for; a file has its own.
fn parts(backend: &Backend) -> Result<(&Add, BackendSpec, u32), Failure> {
    const BLOCK: u32 = 512;
    Ok(match backend {
        Backend::Null { add, size } => (add, BackendSpec::Null { size: *size }, BLOCK),
        Backend::Mem { add, size } => (add, BackendSpec::Mem { size: *size }, BLOCK),
        Backend::File {
            add,
            path,
            offset,
            length,
            buffered,
            no_discard,
            create: _,
            size: _,
        } => {
            let absolute = std::path::absolute(path)
                .map_err(|e| Failure::failed(format!("{}: {e}", path.display())))?;
            let backend = BackendSpec::File {
                path: absolute,
                offset: *offset,
                length: *length,
                buffered: *buffered,
                discard: !no_discard,
            };
            (add, backend, 0)
        }
    })
}

/// Recovers one device, or every one of ours that waits for a server: then each is tried, and the first
/// failure is the command's.
fn recover(
    device: Option<u32>,
    all: bool,
    within: Duration,
    json: bool,
) -> Result<ExitCode, Failure> {
    let program = this_program();
    let Some(device) = device.filter(|_| !all) else {
        let (mut done, mut first) = (Vec::new(), None);
        for waits in front::recoverable(&program, within)? {
            match front::recover(&program, waits, false, false, within) {
                Ok(added) => done.push(added),
                Err(failure) => {
                    tracing::error!("device {waits}: {failure}");
                    first.get_or_insert(failure);
                }
            }
        }
        let paths = || done.iter().map(|a| format!("{}\n", a.path.display()));
        put(json, &done, || paths().collect())?;
        return match first {
            Some(failure) => Err(failure),
            None => Ok(ExitCode::SUCCESS),
        };
    };
    let added = front::recover(&program, id(device)?, false, false, within)?;
    put(json, &added, || format!("{}\n", added.path.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// The device that the words of `add` describe.
///
/// # Errors
/// A path that cannot be made absolute.
pub fn wanted(backend: &Backend) -> Result<Wanted, Failure> {
    let (add, spec, block_size) = parts(backend)?;
    let create = match backend {
        Backend::File {
            create: true, size, ..
        } => *size,
        _ => None,
    };
    let spec = AddSpec {
        backend: spec,
        id: add.id,
        queues: add.queues,
        depth: add.depth,
        block_size: add.block_size.unwrap_or(block_size),
        max_io_bytes: add.max_io,
        read_only: add.read_only,
        mode: add.mode(),
        auto: add.auto(),
        recovery: add.recovery.into(),
        scheduler: add.scheduler.into(),
        serving: Serving {
            threads: add.threads,
            poll: add.poll.to_string(),
            huge_pages: add.huge_pages,
            shm: absolute(add.shm.as_deref())?,
            lock_memory: add.lock_memory,
        },
        name: add.name.clone(),
        supervise: add.supervise,
        unprivileged: !privilege::is_privileged(),
    };
    Ok(Wanted {
        spec,
        create,
        reuse: false,
        log: add.log.clone(),
    })
}

fn add(backend: &Backend, json: bool) -> Result<(), Failure> {
    let (add, _, _) = parts(backend)?;
    let lifetime = if add.foreground {
        Lifetime::Front
    } else {
        Lifetime::Own
    };
    let wanted = wanted(backend)?;
    let (added, device) = front::make(&this_program(), &wanted, lifetime, within(&add.wait))?;
    put(json, &added, || format!("{}\n", added.path.display()))?;
    if add.foreground {
        device.wait()?;
    }
    Ok(())
}

/// Prints a value: as one line of JSON, or as its text.
pub fn put<T: Serialize>(
    json: bool,
    value: &T,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
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
