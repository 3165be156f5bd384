//! Servers that are killed (L31): nothing hangs, and what is left can be removed.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::case::Case;
use crate::cli::{self, Device, Spec, patience, ublkctl, ublkctl_json};
use crate::direct_io::Direct;
use crate::embed::Embedded;
use crate::wait::{secs, until};
use crate::{json, procfs, sysfs};

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for queues in [1, 4] {
        all.push(Case::new(
            format!("l31_kill_server_under_io_q{queues}"),
            move || under_io(queues),
        ));
    }
    all.push(Case::new("l31_kill_server_that_holds_every_tag", every_tag));
    all.push(Case::new(
        "l31_kill_server_while_it_is_stopped_under_io",
        while_stopping,
    ));
    all.push(Case::new(
        "l31_kill_server_that_holds_requests_while_it_is_stopped",
        stuck_stop,
    ));
    // Kernels before 7.0 scan for partitions inside START_DEV, which then waits for the answers.
    if looks_later() {
        all.push(Case::new(
            "l80_kill_server_of_the_library_with_its_first_reads_unanswered",
            || killed_with_reads_held(&["hold=80000"]),
        ));
    } else {
        all.push(Case::new(
            "l80_start_waits_for_the_first_reads_and_comes_back",
            slow_first_reads,
        ));
    }
    all.push(Case::new(
        "l80_kill_server_of_the_library_of_a_device_without_partitions",
        || killed_with_reads_held(&["hold=80000", "partitions=false"]),
    ));
    all.push(Case::new("l31_kill_agent", kill_agent));
    all.push(Case::new("l31_kill_everything_at_once", kill_everything));
    all.push(Case::new("l31_kill_add_at_any_moment", kill_add));
    all
}

/// Whether this kernel scans for partitions after START_DEV.
fn looks_later() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let major = release
        .split('.')
        .next()
        .and_then(|major| major.parse().ok());
    major.is_some_and(|major: u32| major >= 7)
}

/// A program with the library starts, and can be killed, while its backend does not even answer the first reads: the
/// kernel's partition scan, or ours if the kernel does not scan.
fn killed_with_reads_held(args: &[&str]) -> Result<()> {
    let begun = Instant::now();
    let mut embedded = Embedded::start(1, args)?;
    let took = begun.elapsed();
    ensure!(took < secs(60), "start waited for the backend: {took:?}");
    let path = embedded.path.clone();
    let reader = std::thread::spawn(move || Direct::open_read(&path)?.read(0, 4096));
    embedded.wait_count("held", 1)?;
    let (id, path) = (embedded.id.to_string(), embedded.path.clone());
    embedded.kill()?;
    ublkctl(&["delete", &id, "--force"])?.good()?;
    ensure!(!path.exists(), "{} is left", path.display());
    until("the reader's end", secs(20), || {
        Ok(reader.is_finished().then_some(()))
    })?;
    let read = reader.join();
    ensure!(matches!(read, Ok(Err(_))), "the read that was held is well");
    Ok(())
}

/// If START_DEV itself waits for the partition scan, it returns when the backend answers, even with an error. A start
/// past its deadline says so, and leaves a device that can be deleted once everything is answered. (A program killed
/// before that never exits, because nothing is left to answer.)
fn slow_first_reads() -> Result<()> {
    let embedded = Embedded::start(1, &["hold=100"])?;
    embedded.remove()?;
    let mut embedded = Embedded::idle(&["queues=1", "hold=700", "deadline=2000"])?;
    let error = embedded
        .ask("start")
        .map_or_else(|e| format!("{e:#}"), |a| a.to_string());
    ensure!(error.contains("partition scan"), "{error}");
    let listed = ublkctl_json(&["list"])?;
    let id = json::number(&listed[0], "id")?.to_string();
    // Its own stop waited for the scan, too, and had its deadline.
    until("the end of the search", secs(60), || {
        let output = ublkctl(&["delete", &id, "--force"])?;
        Ok((output.code() == 0).then_some(()))
    })?;
    embedded.end()?;
    procfs::nothing_stuck(patience())
}

/// fio running on a device until it is terminated or an error ends it.
fn load(device: &Device) -> Result<Child> {
    let filename = format!("--filename={}", device.node());
    let child = Command::new("fio")
        .args([
            "--name=load",
            &filename,
            "--direct=1",
            "--ioengine=libaio",
            "--rw=randrw",
            "--bs=4k",
            "--iodepth=64",
            "--numjobs=2",
            "--time_based",
            "--runtime=100",
            "--size=8m",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("fio")?;
    // In progress once the server has counted a few hundred requests.
    until("fio at work", secs(30), || {
        let info = device.query()?;
        Ok((json::number(&info, "writes")? > 200).then_some(()))
    })?;
    Ok(child)
}

/// fio must exit without help, with an error.
fn must_fail(mut fio: Child) -> Result<()> {
    let end = until("the end of fio", patience() + secs(10), || {
        Ok(fio.try_wait()?)
    });
    if end.is_err() {
        let _ = fio.kill();
    }
    ensure!(
        !end?.success(),
        "fio ended well though its device was killed"
    );
    Ok(())
}

/// After a kill: nothing hangs, `list` shows the device or it is gone, `delete` works.
fn settled(device: Device) -> Result<()> {
    procfs::nothing_stuck(patience())?;
    let listed = ublkctl_json(&["list"])?;
    let id = device.id;
    let there = listed
        .as_array()
        .is_some_and(|l| l.iter().any(|e| e["id"] == id));
    device.forget();
    let output = ublkctl(&["delete", &id.to_string()])?;
    // The agent may have been faster.
    let wanted: &[i32] = if there { &[0, 32] } else { &[32] };
    ensure!(wanted.contains(&output.code()), "{output}");
    cli::nothing_left(secs(10))
}

fn under_io(queues: usize) -> Result<()> {
    let device = Spec::mem("32M").queues(queues).depth(32).add()?;
    let fio = load(&device)?;
    procfs::kill(device.server()?, Signal::KILL)?;
    must_fail(fio)?;
    settled(device)?;
    // And the next device works like the first.
    let next = Spec::mem("16M").queues(queues).add()?;
    let direct = next.open()?;
    direct.write_pattern(0, 4096, 1)?;
    direct.check_pattern(0, 4096, 1)?;
    drop(direct);
    next.delete()
}

/// Writers whose requests a server holds. Far apart, so that the I/O scheduler does not merge them.
fn held(embedded: &mut Embedded, writers: u64) -> Result<Vec<std::thread::JoinHandle<bool>>> {
    embedded.ask("hold write")?;
    let threads = (0..writers).map(|writer| {
        let path = embedded.path.clone();
        std::thread::spawn(move || {
            let direct = crate::direct_io::Direct::open(&path);
            direct.is_ok_and(|d| d.write_pattern(writer << 16, 4096, 1).is_ok())
        })
    });
    let threads: Vec<_> = threads.collect();
    embedded.wait_count("held", writers)?;
    Ok(threads)
}

/// Waits for the writers: all must end, and no write may have succeeded.
fn none_done(threads: Vec<std::thread::JoinHandle<bool>>) -> Result<()> {
    until("the end of the writers", patience() + secs(5), || {
        Ok(threads.iter().all(|t| t.is_finished()).then_some(()))
    })?;
    for thread in threads {
        let done = thread.join().unwrap_or(true);
        ensure!(!done, "a write was acknowledged that the backend never did");
    }
    procfs::nothing_stuck(secs(5))
}

/// Removes what a killed embedding program has left behind.
fn remove_orphan(id: u32) -> Result<()> {
    let listed = ublkctl_json(&["list"])?;
    let mut entries = listed.as_array().into_iter().flatten();
    ensure!(
        entries.any(|e| e["id"] == id),
        "the orphan {id} is not in {listed}"
    );
    ublkctl(&["delete", &id.to_string()])?.good()?;
    cli::nothing_left(secs(10))
}

fn every_tag() -> Result<()> {
    // As many tags as the pool has threads, so that all can be held.
    let mut embedded = Embedded::start(1, &["depth=4"])?;
    let writers = held(&mut embedded, 4)?;
    let id = embedded.id;
    embedded.kill()?;
    none_done(writers)?;
    remove_orphan(id)
}

fn while_stopping() -> Result<()> {
    let device = Spec::mem("32M").queues(4).depth(32).add()?;
    let fio = load(&device)?;
    let id = device.id.to_string();
    let stop = cli::command(&["stop", "--force", &id, "--deadline", "20"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // The server is killed while the stop is in progress.
    procfs::kill(device.server()?, Signal::KILL)?;
    let mut stop = stop;
    let end = until("the end of `stop`", secs(30) + patience(), || {
        Ok(stop.try_wait()?)
    })?;
    ensure!(end.code().is_some(), "stop: {end}");
    must_fail(fio)?;
    settled(device)
}

/// Would deadlock if the server had issued the STOP itself: the stop waits for requests that only the server's end
/// fails. Issued by another process, both complete.
fn stuck_stop() -> Result<()> {
    let mut embedded = Embedded::start(2, &["depth=16"])?;
    let writers = held(&mut embedded, 3)?;
    let id = embedded.id;
    let mut stop = cli::command(&["stop", "--force", &id.to_string(), "--deadline", "60"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    // The stop is in progress once the disk is going: it then waits for the held requests.
    until("a stop that waits", secs(10), || {
        let helper = procfs::stuck().iter().any(|t| t.name.contains("ublk"));
        let gone = !sysfs::directory(id).exists();
        Ok((helper || gone).then_some(()))
    })
    .or_else(|error| match stop.try_wait() {
        Ok(None) => Ok(()),
        _ => Err(error.context("the stop ended though requests are held")),
    })?;
    // Queries work meanwhile.
    ublkctl_json(&["list"])?;
    ublkctl_json(&["info", &id.to_string()])?;
    embedded.kill()?;
    none_done(writers)?;
    let end = until("the end of `stop`", secs(70), || Ok(stop.try_wait()?))?;
    // Direct writes leave nothing to write back: their writers get the error, and the stop has nothing to report.
    ensure!(end.success(), "stop: {end}");
    remove_orphan(id)
}

fn agent(device: &Device) -> Result<u32> {
    Ok(u32::try_from(json::number(&device.info, "agent_pid")?)?)
}

/// The agent only controls: without it the device continues or is removed, but nothing hangs.
fn kill_agent() -> Result<()> {
    let device = Spec::mem("16M").queues(2).add()?;
    procfs::kill(agent(&device)?, Signal::KILL)?;
    settled(device)
}

fn kill_everything() -> Result<()> {
    let device = Spec::mem("32M").queues(4).depth(32).add()?;
    let fio = load(&device)?;
    let (server, agent) = (device.server()?, agent(&device)?);
    procfs::kill(agent, Signal::KILL)?;
    procfs::kill(server, Signal::KILL)?;
    must_fail(fio)?;
    settled(device)
}

/// Kills all of `add` at moments spread over its run; if a device is left, `list` shows it and `delete` removes it.
fn kill_add() -> Result<()> {
    for step in 0..12_u64 {
        let spec = Spec::mem("16M").queues(2);
        let args = spec.args();
        let mut front = cli::command(&args.iter().map(String::as_str).collect::<Vec<_>>())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        // The moment is the point of the case: this does not wait for anything.
        std::thread::sleep(Duration::from_millis(step * 12));
        let name = std::path::PathBuf::from(cli::program());
        let name = name
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        for process in procfs::running(&name) {
            // It may have exited already.
            let _ = procfs::kill(process.id, Signal::KILL);
        }
        until("the end of add", secs(20), || Ok(front.try_wait()?))?;
        until("the end of its processes", secs(10), || {
            Ok(procfs::running(&name).is_empty().then_some(()))
        })?;
        let listed = ublkctl_json(&["list"]).with_context(|| format!("step {step}"))?;
        for entry in listed.as_array().into_iter().flatten() {
            let id = json::number(entry, "id")?.to_string();
            let output = ublkctl(&["delete", &id])?;
            output.good().with_context(|| format!("step {step}"))?;
        }
        cli::nothing_left(secs(10)).with_context(|| format!("step {step}"))?;
    }
    Ok(())
}
