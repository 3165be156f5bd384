//! The commands, carried out.

use crate::cli::{Add, Backend, Cli, Command, Wait};
use crate::many::Chosen;
use crate::output::{exit_code, put, raw, tell};
use crate::target::Target;
use crate::{completions, config, doctor, pages, show, udev};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use ublk_core::DevId;
use ublk_daemon::front;
use ublk_daemon::front::{Foreground, ListEntry, Stop, Wanted};
use ublk_daemon::peer::this_program;
use ublk_daemon::privilege;
use ublk_daemon::wire::{AddSpec, Added, BackendSpec, Failure, Lifetime, Serving};

/// How long a look at the devices may take that chooses among them.
const LOOK: Duration = Duration::from_secs(5);

/// Carries out one command.
///
/// # Errors
/// What went wrong, with the kind that decides the exit code.
pub fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let program = this_program();
    let json = cli.json;
    match &cli.command {
        Command::Add { backend } => return add(backend, json),
        Command::Up {
            config,
            foreground: true,
            leave,
            wait,
        } => return config::foreground(config, *leave, within(wait), json),
        Command::Up { config, wait, .. } => return config::up(config, within(wait), json),
        Command::Down {
            config,
            force,
            in_front,
            wait,
        } => {
            let how = if *force { Stop::Force } else { Stop::Safe };
            return config::down(config, how, *in_front, within(wait), json);
        }
        Command::Check { config } => return config::check(config, json),
        Command::List { devices, wait } => {
            let deadline = Duration::from_secs(wait.deadline);
            let wanted = resolved(devices)?;
            let mut entries = front::list(&program, deadline)?;
            if let Some(gone) = wanted
                .iter()
                .find(|id| !entries.iter().any(|e| e.id == id.get()))
            {
                return Err(Failure::no_such_device(gone));
            }
            entries.retain(|e| wanted.is_empty() || wanted.iter().any(|id| id.get() == e.id));
            put(json, &entries, || show::list(&entries))?;
        }
        Command::Info { devices, wait } => {
            let deadline = Duration::from_secs(wait.deadline);
            let look = |device: front::Target| front::info(&program, device.id, deadline);
            return Chosen::named(&devices.devices).each(json, look, show::info);
        }
        Command::Stop {
            devices,
            if_unused,
            force,
            wait,
        } => {
            let how = match (if_unused, force) {
                (true, _) => Stop::IfUnused,
                (_, true) => Stop::Force,
                _ => Stop::Safe,
            };
            let chosen = if devices.all {
                ours(|e| e.state != "dead")?
            } else {
                Chosen::named(&devices.devices)
            };
            let stop = |device: front::Target| {
                front::stop(&program, device, how, within(wait))
                    .map(|()| Done::new(device.id, "stopped"))
            };
            return chosen.each(json, stop, |_| String::new());
        }
        Command::Delete {
            devices,
            no_wait,
            force,
            wait,
        } => {
            let how = if *force { Stop::Force } else { Stop::Safe };
            let chosen = if devices.all {
                ours(|_| true)?
            } else {
                Chosen::named(&devices.devices)
            };
            let delete = |device: front::Target| {
                front::delete(&program, device, how, *no_wait, within(wait))
                    .map(|()| Done::new(device.id, "deleted"))
            };
            return chosen.each(json, delete, |_| String::new());
        }
        Command::Recover {
            devices,
            all,
            accept_backing,
            wait,
        } => {
            let chosen = if *all {
                let waiting = front::recoverable(&program, within(wait))?;
                let all = front::list(&program, within(wait))?;
                Chosen::all(waiting.into_iter().map(front::Target::from))
                    .and_unknown(all.iter().filter(|e| e.orphan))
            } else {
                Chosen::named(devices)
            };
            let accept = *accept_backing;
            let recover = |device: front::Target| {
                front::recover(&program, device.id, false, false, accept, within(wait))
            };
            let path = |added: &Added| format!("{}\n", added.path.display());
            return chosen.each(json, recover, path);
        }
        Command::Upgrade {
            devices,
            allow_errors,
            accept_backing,
            wait,
        } => {
            let (allow, accept) = (*allow_errors, *accept_backing);
            let upgrade = |device: front::Target| {
                front::recover(&program, device.id, true, allow, accept, within(wait))
            };
            return Chosen::named(&devices.devices).each(json, upgrade, show::upgraded);
        }
        Command::Resize {
            device,
            size,
            fill: _,
            force,
            accept_backing,
            wait,
        } => {
            let id = device.device.resolve()?.id;
            let accept = *accept_backing;
            let resized = front::resize(&program, id, *size, *force, accept, within(wait))?;
            put(json, &resized, || show::resized(&resized))?;
        }
        Command::Gc {
            devices,
            all,
            force,
            wait,
        } => {
            let how = if *force { Stop::Force } else { Stop::Safe };
            let found = front::gc(&program, &resolved(devices)?, *all, how, within(wait))?;
            put(json, &found, || show::garbage(&found))?;
        }
        Command::Features { wait } => {
            let features = front::features(&program, Duration::from_secs(wait.deadline))?;
            put(json, &features, || show::features(&features))?;
        }
        Command::Doctor { wait } => {
            let findings = doctor::look(&program, Duration::from_secs(wait.deadline));
            put(json, &findings, || show::findings(&findings))?;
            if doctor::is_ill(&findings) {
                return Ok(ExitCode::FAILURE);
            }
        }
        Command::UdevOwner { node } => {
            let (owner, lines) = udev::owner(&program, node)?;
            if json {
                put(true, &owner, String::new)?;
            } else {
                raw(lines.as_bytes())?;
            }
        }
        Command::Completions { shell } => {
            pages::text(json, "script", &completions::script(*shell)?)?;
        }
        Command::Man { dir } => pages::man(dir.as_deref(), json)?,
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
    const fn new(id: DevId, done: &'static str) -> Self {
        Self { id: id.get(), done }
    }
}

/// The devices that words name.
fn resolved(targets: &[Target]) -> Result<Vec<DevId>, Failure> {
    let ids = targets.iter().map(|t| t.resolve().map(|found| found.id));
    ids.collect()
}

/// Every device of ours that is `fit`, the last one first: what was made later may stand on what was made before.
fn ours(fit: impl Fn(&ListEntry) -> bool) -> Result<Chosen, Failure> {
    let entries = front::list(&this_program(), LOOK)?;
    let ours = entries.iter().filter(|e| !e.foreign && fit(e));
    let unknown = entries.iter().filter(|e| fit(e));
    Ok(Chosen::all(ours.filter_map(ListEntry::target).rev()).and_unknown(unknown))
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
            force,
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
                force: *force,
            };
            (add, backend, 0)
        }
    })
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
        trust_kernel: add.trust_kernel,
    };
    Ok(Wanted {
        spec,
        create,
        reuse: false,
        log: add.log.clone(),
    })
}

fn add(backend: &Backend, json: bool) -> Result<ExitCode, Failure> {
    let (add, _, _) = parts(backend)?;
    let lifetime = if add.foreground {
        Lifetime::Front
    } else {
        Lifetime::Own
    };
    let wanted = wanted(backend)?;
    let (added, device) = front::make(&this_program(), &wanted, lifetime, within(&add.wait))?;
    let told = put(json, &added, || format!("{}\n", added.path.display()));
    if let Err(failure) = told {
        let path = added.path.display();
        let gone = device.take_back(within(&add.wait));
        return Err(match gone {
            Ok(()) => failure.hint(format!("{path} was taken back")),
            Err(e) => failure.hint(format!("{path} is still there: {e}")),
        });
    }
    if add.foreground {
        return Ok(stay(device));
    }
    device.keep()?;
    Ok(ExitCode::SUCCESS)
}

/// Stays in front of a device that was printed until it is gone. How it ends is told in words and by the exit code:
/// the one value on standard output is out.
pub fn stay(device: Foreground) -> ExitCode {
    match device.wait() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure);
            exit_code(failure.kind)
        }
    }
}
