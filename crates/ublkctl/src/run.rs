//! Runs the commands.

use crate::cli::{Cli, Command, DevicesOrAll, Nbd};
use crate::many::Chosen;
use crate::output::{put, raw};
use crate::target::Target;
use crate::{
    completions, config, device, doctor, load, logs, pages, record, show, stats, top, trace, udev,
};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use ublk_core::DevId;
use ublk_daemon::exporter;
use ublk_daemon::failure::Failure;
use ublk_daemon::front;
use ublk_daemon::front::{ListEntry, Stop};
use ublk_daemon::link::peer::this_program;
use ublk_daemon::report::Added;

/// How long listing the devices may take when choosing among them.
const LOOK: Duration = Duration::from_secs(5);

/// Runs one command and prints its result.
///
/// # Errors
/// The failure, whose kind determines the exit code.
#[expect(clippy::too_many_lines, reason = "one arm per command")]
pub fn run(cli: &Cli) -> Result<ExitCode, Failure> {
    let program = this_program();
    let json = cli.json;
    match &cli.command {
        Command::Add { backend } => return device::add(backend, json),
        Command::Up {
            config,
            foreground: true,
            leave,
            wait,
        } => return config::foreground(config, *leave, wait.time(), json),
        Command::Up { config, wait, .. } => return config::up(config, wait.time(), json),
        Command::Down {
            config,
            force,
            in_front,
            wait,
        } => {
            let how = how_to_stop(false, *force);
            return config::down(config, how, *in_front, wait.time(), json);
        }
        Command::Check { config } => return config::check(config, json),
        Command::List { devices, wait } => return list(&program, devices, wait.time(), json),
        Command::Info { devices, wait } => {
            let deadline = wait.time();
            let look = |device: front::Target| front::info(&program, device.id, deadline);
            return Chosen::named(&devices.devices).each(json, look, show::info);
        }
        Command::Stop {
            devices,
            if_unused,
            force,
            wait,
        } => {
            return stop(
                &program,
                devices,
                how_to_stop(*if_unused, *force),
                wait.time(),
                json,
            );
        }
        Command::Delete {
            devices,
            no_wait,
            force,
            wait,
        } => {
            return delete(
                &program,
                devices,
                (how_to_stop(false, *force), *no_wait),
                wait.time(),
                json,
            );
        }
        Command::Quiesce {
            devices,
            allow_errors,
            wait,
        } => {
            let quiesce = |device: front::Target| {
                let done = front::quiesce(&program, device, *allow_errors, wait.time());
                done.map(|()| Done::new(device.id, "quiesced"))
            };
            return Chosen::named(&devices.devices).each(json, quiesce, |_| String::new());
        }
        Command::Recover {
            devices,
            all,
            accept_backing,
            wait,
        } => {
            return recover(
                &program,
                devices,
                (*all, *accept_backing),
                wait.time(),
                json,
            );
        }
        Command::Upgrade {
            devices,
            allow_errors,
            accept_backing,
            wait,
        } => {
            let (allow, accept) = (*allow_errors, *accept_backing);
            let upgrade = |device: front::Target| {
                front::recover(&program, device.id, true, allow, accept, wait.time())
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
            let resized = front::resize(&program, id, *size, *force, accept, wait.time())?;
            put(json, &resized, || show::resized(&resized))?;
        }
        Command::Gc {
            devices,
            all,
            force,
            wait,
        } => {
            let how = how_to_stop(false, *force);
            let found = front::gc(&program, &resolved(devices)?, *all, how, wait.time())?;
            put(json, &found, || show::garbage(&found))?;
        }
        Command::Stats {
            devices,
            queues,
            interval,
            count,
        } => {
            let wanted = stats::Wanted {
                queues: *queues,
                interval: interval.map(Duration::from_secs_f64),
                count: *count,
            };
            return stats::stats(devices, wanted, json);
        }
        Command::Top { devices, interval } => {
            return top::top(devices, Duration::from_secs_f64(*interval), json);
        }
        Command::Metrics {
            device,
            level,
            wait,
        } => {
            let target = device.device.resolve()?;
            let changed = stats::metrics(target, *level, wait.time())?;
            put(json, &changed, String::new)?;
        }
        Command::Logs {
            device,
            follow,
            lines,
            level,
            wait,
        } => {
            let wanted = logs::Wanted {
                follow: *follow,
                lines: *lines,
                level: level.clone(),
                deadline: wait.time(),
            };
            logs::logs(device.device.resolve()?.id, &wanted, json)?;
        }
        Command::Exporter { listen } => {
            exporter::run(listen.as_ref(), |address| {
                tracing::info!("metrics at {address}, path /metrics");
            })?;
        }
        Command::Nbd { command } => return nbd(&program, command, json),
        Command::Record(args) => record::run(args.device.device.resolve()?.id, args, json)?,
        Command::Trace { trace, command } => return trace::run(trace, command.as_ref(), json),
        Command::Replay(args) => load::replay::run(args, json)?,
        Command::Bench(args) => return load::bench::run(args, json),
        Command::Features { wait } => {
            let features = front::features(&program, wait.time())?;
            put(json, &features, || show::features(&features))?;
        }
        Command::Doctor { wait } => {
            let findings = doctor::look(&program, wait.time());
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

/// The commands of `nbd`.
fn nbd(program: &Path, command: &Nbd, json: bool) -> Result<ExitCode, Failure> {
    match command {
        Nbd::Retry {
            device,
            retry,
            wait,
        } => {
            let id = device.resolve()?.id;
            let changed = front::nbd_retry(program, id, *retry, wait.time())?;
            put(json, &changed, || show::nbd_policy(&changed))?;
        }
        Nbd::Move { device, uri, wait } => {
            let id = device.resolve()?.id;
            let changed = front::nbd_move(program, id, uri, wait.time())?;
            put(json, &changed, || show::nbd_changed(&changed))?;
        }
        Nbd::Info { uri, tls } => {
            let export = front::nbd_info(uri, &tls.options()?)?;
            put(json, &export, || show::nbd_export(&export))?;
        }
        Nbd::List { uri, tls } => {
            let exports = front::nbd_list(uri, &tls.options()?)?;
            put(json, &exports, || show::nbd_list(&exports))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The kind of stop that the options select.
const fn how_to_stop(if_unused: bool, force: bool) -> Stop {
    match (if_unused, force) {
        (true, _) => Stop::IfUnused,
        (_, true) => Stop::Force,
        _ => Stop::Safe,
    }
}

/// Lists all devices, or those that are named.
fn list(
    program: &Path,
    devices: &[Target],
    deadline: Duration,
    json: bool,
) -> Result<ExitCode, Failure> {
    let wanted = resolved(devices)?;
    let mut entries = front::list(program, deadline)?;
    if let Some(gone) = wanted
        .iter()
        .find(|id| !entries.iter().any(|e| e.id == id.get()))
    {
        return Err(Failure::no_such_device(gone));
    }
    entries.retain(|e| wanted.is_empty() || wanted.iter().any(|id| id.get() == e.id));
    put(json, &entries, || show::list(&entries))?;
    Ok(ExitCode::SUCCESS)
}

/// Stops devices.
fn stop(
    program: &Path,
    devices: &DevicesOrAll,
    how: Stop,
    deadline: Duration,
    json: bool,
) -> Result<ExitCode, Failure> {
    let chosen = if devices.all {
        ours(|e| e.state != "dead")?
    } else {
        Chosen::named(&devices.devices)
    };
    let stop = |device: front::Target| {
        front::stop(program, device, how, deadline).map(|()| Done::new(device.id, "stopped"))
    };
    chosen.each(json, stop, |_| String::new())
}

/// Stops and deletes devices.
fn delete(
    program: &Path,
    devices: &DevicesOrAll,
    (how, no_wait): (Stop, bool),
    deadline: Duration,
    json: bool,
) -> Result<ExitCode, Failure> {
    let chosen = if devices.all {
        ours(|_| true)?
    } else {
        Chosen::named(&devices.devices)
    };
    let delete = |device: front::Target| {
        front::delete(program, device, how, no_wait, deadline)
            .map(|()| Done::new(device.id, "deleted"))
    };
    chosen.each(json, delete, |_| String::new())
}

/// Starts new servers for devices without one.
fn recover(
    program: &Path,
    devices: &[Target],
    (all, accept): (bool, bool),
    deadline: Duration,
    json: bool,
) -> Result<ExitCode, Failure> {
    let chosen = if all {
        let waiting = front::recoverable(program, deadline)?;
        let all = front::list(program, deadline)?;
        Chosen::all(waiting.into_iter().map(front::Target::from))
            .and_unknown(all.iter().filter(|e| e.orphan))
    } else {
        Chosen::named(devices)
    };
    let recover =
        |device: front::Target| front::recover(program, device.id, false, false, accept, deadline);
    let path = |added: &Added| format!("{}\n", added.path.display());
    chosen.each(json, recover, path)
}

/// The JSON output of `stop` and `delete`.
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

/// The devices that the arguments name.
fn resolved(targets: &[Target]) -> Result<Vec<DevId>, Failure> {
    let ids = targets.iter().map(|t| t.resolve().map(|found| found.id));
    ids.collect()
}

/// Every device of ours that is `fit`, in reverse order of creation, because later devices may be stacked on earlier
/// ones.
fn ours(fit: impl Fn(&ListEntry) -> bool) -> Result<Chosen, Failure> {
    let entries = front::list(&this_program(), LOOK)?;
    let ours = entries.iter().filter(|e| !e.foreign && fit(e));
    let unknown = entries.iter().filter(|e| fit(e));
    Ok(Chosen::all(ours.filter_map(ListEntry::target).rev()).and_unknown(unknown))
}
