//! The unit `ublkctl@.service`, in the guest that runs systemd and udev.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::case::Case;
use crate::cli::Spec;
use crate::systemd::{BACK, Served, property, says, systemctl};
use crate::verifier::{BLOCK, Load};
use crate::wait::{secs, until};
use crate::{fs as files, pattern, procfs, run};

/// The device that the image's fstab mounts at boot, and its mount unit.
const BOOT: (&str, &str) = ("ublkctl@boot.service", "mnt-boot.mount");

/// A watchdog period that an emulated guest can meet.
const WATCHDOG: &str = "[Service]\nWatchdogSec=10s\n";

/// Number of upgrades in the usual run, and in a soak.
const UPGRADES: (usize, usize) = (3, 50);
/// Number of shutdowns under load, likewise.
const ENDS: (usize, usize) = (2, 20);

const REISSUE: &str = "recovery = \"reissue\"\n";

/// The body of a case.
pub(super) type Body = fn() -> Result<()>;

pub fn cases() -> Vec<Case> {
    let all: [(&str, Body); 12] = [
        ("systemd_boot_mounts_after_its_device", at_boot),
        ("systemd_a_mount_starts_its_device", on_demand),
        ("systemd_a_killed_device_comes_back_under_its_mount", killed),
        ("l24_systemd_the_watchdog_ends_a_silent_server", silent),
        ("l24_systemd_the_watchdog_ends_a_stuck_queue", stuck),
        ("systemd_failing_starts_are_paced", paced),
        ("systemd_a_wrong_configuration_is_final", wrong),
        ("systemd_stop_writes_back_and_deletes", stop),
        ("systemd_stop_while_mounted_leaves_the_device", stop_mounted),
        ("systemd_sessions_end_before_their_device", sessions),
        (
            "l44_systemd_an_upgraded_device_stays_with_its_unit",
            upgraded,
        ),
        ("l36_systemd_servers_keep_no_file_system_busy", no_pins),
    ];
    all.into_iter()
        .map(|(name, body)| Case::new(name, move || alone(name, body)))
        .collect()
}

/// Runs a case without the boot device, unless the case is about it.
pub(super) fn alone(name: &str, body: Body) -> Result<()> {
    if name.starts_with("systemd_boot") {
        return body();
    }
    systemctl(&["stop", BOOT.1, BOOT.0])?;
    body()
}

/// fstab's mount came after the service that it requires, although only the device's name connects them; both at boot.
fn at_boot() -> Result<()> {
    let (service, mount) = BOOT;
    says(mount, "ActiveState", "active", secs(10))?;
    let when = |unit: &str, what: &str| -> Result<u64> {
        let text = property(unit, what)?;
        text.parse()
            .with_context(|| format!("{what} of {unit}: {text:?}"))
    };
    let serves = when(service, "ActiveEnterTimestampMonotonic")?;
    let mounts = when(mount, "InactiveExitTimestampMonotonic")?;
    let program = when("guest-run.service", "InactiveExitTimestampMonotonic")?;
    ensure!(
        0 < serves && serves <= mounts,
        "served at {serves}, mounted at {mounts} µs"
    );
    ensure!(
        mounts <= program,
        "mounted at {mounts} µs, after boot at {program}"
    );
    let mounted = fs::read_to_string("/proc/self/mounts")?;
    ensure!(
        mounted.contains("/dev/ublkb40 /mnt/boot ext4 "),
        "{mounted}"
    );
    // Shutdown is the reverse of start-up.
    systemctl(&["stop", service, mount])?;
    ensure!(!Path::new("/dev/ublkb40").exists(), "it is still there");
    Ok(())
}

/// A mount starts its device's `notify` service, which is ready once it serves, is marked as an I/O flusher, and
/// hardened as the unit says.
fn on_demand() -> Result<()> {
    let more = format!("{REISSUE}lock-memory = true\n");
    let device = Served::new("demand", 3, 64 << 20, &more, "")?.with_file_system()?;
    let at = device.mount()?;
    files::fill(at, 10)?;
    says(&device.unit, "StatusText", "/dev/ublkb3 serves", secs(1))?;
    // Messages of the server have its device as a field.
    until("the server's messages in the journal", secs(20), || {
        let text = crate::cli::ublkctl(&["logs", "3"])?.stdout;
        Ok(text.contains("device 3 serves").then_some(()))
    })?;
    let server = device.server()?;
    let read = |name: &str| fs::read_to_string(format!("/proc/{server}/{name}"));
    ensure!(read("oom_score_adj")?.trim() == "-900");
    let info = crate::cli::ublkctl_json(&["info", "3"])?;
    ensure!(info.to_string().contains("\"io_flusher\":true"), "{info}");
    // Five capabilities, by number: 1, 14, 19, 21, 24.
    let bounds = "CapBnd:\t0000000001284002";
    for line in ["NoNewPrivs:\t1", "Seccomp:\t2", bounds] {
        ensure!(
            read("status")?.contains(line),
            "no {line} in {}",
            read("status")?
        );
    }
    ensure!(procfs::status(server, "VmLck")? > 0, "no memory is locked");
    let scheduler = fs::read_to_string("/sys/block/ublkb3/queue/scheduler")?;
    ensure!(
        scheduler.contains("[none]") || scheduler.trim() == "none",
        "{scheduler}"
    );
    // Stopped and started, it has the written data.
    device.unmount()?;
    device.stop()?;
    ensure!(device.state()?.is_none(), "the device is still there");
    files::compare(device.mount()?, 10)
}

/// If any of the three processes is killed, systemd restarts the unit, which takes over the waiting device, or the
/// front starts another agent for the server, while a load on the mounted file system continues without an error.
fn killed() -> Result<()> {
    let device = Served::new("killed", 4, 64 << 20, REISSUE, "")?.with_file_system()?;
    let at = device.mount()?;
    let since = property(device.mount_unit()?, "ActiveEnterTimestampMonotonic")?;
    let path = at.join("load");
    fs::write(&path, vec![0; 64 * BLOCK])?;
    fs::File::open(&path)?.sync_all()?;
    let load = Load::start(&path, 3, 64)?;
    for (restarts, whom) in [(1, "server"), (1, "agent"), (2, "front")] {
        load.more(20, BACK)?;
        let (server, agent) = (device.server()?, device.number("agent_pid")?);
        let pid = match whom {
            "server" => device.server()?,
            "agent" => device.number("agent_pid")?,
            _ => property(&device.unit, "MainPID")?.parse()?,
        };
        procfs::kill(pid, Signal::KILL)?;
        if whom == "agent" {
            // L49 In the same run of the unit, with the same server.
            until("another agent", BACK, || {
                Ok(device
                    .number("agent_pid")
                    .is_ok_and(|now| now != agent)
                    .then_some(()))
            })?;
            ensure!(device.server()? == server, "it has another server");
        }
        device
            .back(restarts, BACK)
            .with_context(|| format!("the {whom} was killed"))?;
        load.more(20, BACK)
            .with_context(|| format!("the {whom} was killed"))?;
    }
    let known = load.stop(BACK)?;
    ensure!(known.done.errors == 0, "{:?}", known.done);
    known.check(&path)?;
    let now = property(device.mount_unit()?, "ActiveEnterTimestampMonotonic")?;
    ensure!(now == since, "mounted at {since} and again at {now}");
    device.unmount()?;
    let node = device.node.to_string_lossy().into_owned();
    run::good("e2fsck", &["-f", "-n", &node]).map(drop)
}

/// L24 The watchdog kills and replaces a stopped server; before, idle for more than a period and a half, it was left
/// alone.
fn silent() -> Result<()> {
    let device = Served::new("silent", 5, 1 << 20, REISSUE, WATCHDOG)?;
    device.start()?;
    std::thread::sleep(secs(17));
    ensure!(device.restarts()? == 0, "an idle device was started again");
    procfs::stop(device.server()?)?;
    says(&device.unit, "StatusText", "does not answer", secs(20))?;
    device.back(1, BACK)?;
    let journal = crate::systemd::journal(&device.unit);
    ensure!(journal.contains("watchdog"), "{journal}");
    write(&device.node, 3)
}

/// L24 A queue stuck in a request starves the watchdog although its process responds: here its backend is a device
/// whose own server is stopped.
fn stuck() -> Result<()> {
    let below = Spec::mem("1M").add()?;
    let device = Served::over("stuck", 6, &below.path, REISSUE, WATCHDOG)?;
    device.start()?;
    write(&device.node, 1)?;
    let first = device.server()?;
    procfs::stop(below.server()?)?;
    let node = device.node.clone();
    let writer = std::thread::spawn(move || write(&node, 2));
    let noticed = says(&device.unit, "StatusText", "makes no progress", secs(30))
        .and_then(|()| says(&device.unit, "Result", "watchdog", secs(30)));
    // The killed server exits once its I/O completes.
    procfs::kill(below.server()?, Signal::CONT)?;
    noticed?;
    device.back(1, BACK)?;
    ensure!(device.server()? != first);
    let written = until("the end of the write", BACK, || {
        Ok(writer.is_finished().then_some(()))
    });
    written?;
    writer.join().map_err(|_| anyhow::anyhow!("panic"))??;
    drop(device);
    below.delete()
}

/// Writes a block of a pattern with direct I/O and reads it back.
fn write(node: &Path, generation: u64) -> Result<()> {
    let file = crate::direct_io::Direct::open(node)?;
    let mut buffer = crate::direct_io::Buffer::new(BLOCK);
    pattern::fill(buffer.bytes_mut(), 0, generation);
    let wanted = buffer.bytes().to_vec();
    file.file().write_all_at(buffer.bytes(), 0)?;
    buffer.bytes_mut().fill(0);
    file.file().read_exact_at(buffer.bytes_mut(), 0)?;
    ensure!(buffer.bytes() == wanted, "other data came back");
    Ok(())
}

/// A missing backend is retried at growing intervals; once it is back, so is the device, soon.
fn paced() -> Result<()> {
    let device = Served::new("paced", 12, 4 << 20, "", "")?;
    fs::remove_file(&device.file)?;
    systemctl(&["start", "--no-block", &device.unit])?;
    std::thread::sleep(secs(8));
    let tries = device.restarts()?;
    ensure!(
        (2..=7).contains(&tries),
        "{tries} tries in 8 s\n{}",
        crate::systemd::journal(&device.unit)
    );
    fs::File::create(&device.file)?.set_len(4 << 20)?;
    says(&device.unit, "ActiveState", "active", secs(60))?;
    ensure!(device.state()?.as_deref() == Some("live"));
    device.stop()?;
    ensure!(
        !Path::new("/run/ublkctl/name-paced.starts").exists(),
        "a good end is not forgotten"
    );
    Ok(())
}

/// An error that no retry can fix is reported once.
fn wrong() -> Result<()> {
    let device = Served::new("wrong", 13, 4 << 20, "quues = 2\n", "")?;
    ensure!(systemctl(&["start", &device.unit]).is_err());
    std::thread::sleep(secs(2));
    ensure!(device.restarts()? == 0, "{} restarts", device.restarts()?);
    says(&device.unit, "ActiveState", "failed", secs(5))
}

/// A stop writes dirty data back, deletes the device, and counts as success. Both with recovery and without.
fn stop() -> Result<()> {
    for (number, more) in [REISSUE, ""].into_iter().enumerate() {
        let device = Served::new("stop", 7, 4 << 20, more, "")?;
        device.start()?;
        let mut data = vec![0; 1 << 20];
        pattern::fill(&mut data, 0, 7 + number as u64);
        // Into the page cache, without sync.
        let mut file = fs::OpenOptions::new().write(true).open(&device.node)?;
        file.write_all(&data)?;
        // A reader does not prevent the stop, and keeps the page cache alive.
        let reader = fs::File::open(&device.node)?;
        drop(file);
        systemctl(&["stop", &device.unit])?;
        drop(reader);
        ensure!(device.state()?.is_none(), "the device is still there");
        ensure!(property(&device.unit, "Result")? == "success");
        let found = fs::read(&device.file)?;
        ensure!(found[..data.len()] == data, "what was dirty is lost");
    }
    Ok(())
}

/// Stopped while mounted, a recoverable device waits for the next start, and nothing is lost.
fn stop_mounted() -> Result<()> {
    let device = Served::new("mounted", 8, 64 << 20, REISSUE, "")?.with_file_system()?;
    let at = device.mount()?.to_owned();
    files::fill(&at, 10)?;
    device.stop()?;
    ensure!(
        device.state()?.as_deref() == Some("quiesced"),
        "{:?}",
        device.state()?
    );
    ensure!(device.is_mounted()?);
    // A process writes meanwhile, and blocks.
    let path = at.join("meanwhile");
    let writer = std::thread::spawn(move || -> Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .custom_flags(libc::O_SYNC)
            .open(path)?;
        Ok(file.write_all(b"meanwhile")?)
    });
    device.start()?;
    until("the end of the write", BACK, || {
        Ok(writer.is_finished().then_some(()))
    })?;
    writer.join().map_err(|_| anyhow::anyhow!("panic"))??;
    files::compare(&at, 10)?;
    device.unmount()?;
    let node = device.node.to_string_lossy().into_owned();
    run::good("e2fsck", &["-f", "-n", &node])?;
    device.stop()?;
    ensure!(device.state()?.is_none(), "the device is still there");
    Ok(())
}

/// A shutdown under load: a session that writes, and takes its time to exit, ends before its mount, and that before the
/// device, which is deleted with all written data.
fn sessions() -> Result<()> {
    // It writes until SIGTERM, holds its file for another second, and reports its end.
    const SESSION: &str = "exec 3>>$0; end=; trap end=1 TERM; \
        while [ -z \"$end\" ]; do echo busy >&3; done; sleep 1; echo ended >&3";
    let device = Served::new("sessions", 14, 64 << 20, "", "")?.with_file_system()?;
    let rounds = crate::case::rounds(ENDS.0, ENDS.1);
    for round in 0..rounds {
        let log = device.mount()?.join(format!("log{round}"));
        let log = log.to_string_lossy().into_owned();
        let args = ["--slice=user.slice", "--unit=session", "/bin/sh", "-c"];
        run::good("systemd-run", &[&args[..], &[SESSION, &log]].concat())?;
        until("the session to write", secs(20), || {
            Ok(fs::metadata(&log).is_ok_and(|m| m.len() > 0).then_some(()))
        })?;
        let mount = device.mount_unit()?;
        systemctl(&["stop", "user.slice", mount, &device.unit])?;
        for unit in [mount, &device.unit] {
            let result = property(unit, "Result")?;
            ensure!(
                result == "success",
                "round {round}: {unit} ended with {result}"
            );
        }
        ensure!(
            !device.is_mounted()? && device.state()?.is_none(),
            "round {round}: it is still there"
        );
        let file = device.file.to_string_lossy().into_owned();
        run::good("e2fsck", &["-f", "-n", &file])?;
        let said = fs::read_to_string(device.mount()?.join(format!("log{round}")))?;
        ensure!(
            said.ends_with("\nended\n"),
            "round {round}: the session did not come to its end"
        );
        device.unmount()?;
    }
    crate::case::measured(format!("{rounds} ends under load"));
    device.stop()
}

/// Upgrades of a device in use: its unit continues with the new processes, feeds its watchdog, and stops them when it
/// is stopped.
fn upgraded() -> Result<()> {
    let device = Served::new("upgraded", 10, 64 << 20, REISSUE, WATCHDOG)?.with_file_system()?;
    let at = device.mount()?;
    let path = at.join("load");
    fs::write(&path, vec![0; 64 * BLOCK])?;
    fs::File::open(&path)?.sync_all()?;
    let main = property(&device.unit, "MainPID")?;
    let load = Load::start(&path, 3, 64)?;
    let rounds = crate::case::rounds(UPGRADES.0, UPGRADES.1);
    for round in 0..rounds {
        let at = || format!("upgrade {round}");
        load.more(20, BACK).with_context(at)?;
        let before = device.server()?;
        crate::cli::ublkctl(&["upgrade", "10", "--deadline", "50"])?
            .good()
            .with_context(at)?;
        ensure!(device.server()? != before, "{}", at());
        ensure!(
            property(&device.unit, "ActiveState")? == "active",
            "{}",
            at()
        );
        ensure!(property(&device.unit, "MainPID")? == main, "{}", at());
    }
    // Longer than the watchdog's period.
    std::thread::sleep(secs(17));
    load.more(20, BACK)?;
    ensure!(device.restarts()? == 0, "the unit was started again");
    let known = load.stop(BACK)?;
    ensure!(known.done.errors == 0, "{:?}", known.done);
    known.check(&path)?;
    for role in [device.server()?, device.number("agent_pid")?] {
        let group = fs::read_to_string(format!("/proc/{role}/cgroup"))?;
        ensure!(group.contains(&device.unit), "process {role} is in {group}");
    }
    crate::case::measured(format!("{rounds} upgrades under the unit"));
    // Later deaths are handled by the unit as before.
    procfs::kill(device.server()?, Signal::KILL)?;
    device.back(1, BACK)?;
    crate::cli::ublkctl(&["upgrade", "10", "--deadline", "50"])?.good()?;
    device.unmount()?;
    device.stop()?;
    ensure!(device.state()?.is_none(), "the device is still there");
    Ok(())
}

/// L36 A server does not keep the mounts of the time it starts: neither another device's server, nor the next server of
/// the same device.
fn no_pins() -> Result<()> {
    let device = Served::new("pinned", 9, 64 << 20, REISSUE, "")?.with_file_system()?;
    device.mount()?;
    let other = Spec::mem("1M").add()?;
    procfs::kill(device.server()?, Signal::KILL)?;
    device.back(1, BACK)?;
    device.unmount()?;
    // Refused while a file system uses the device, in any namespace.
    let alone = || {
        fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_EXCL)
            .open(&device.node)
    };
    let free = until("the device to be free", secs(10), || Ok(alone().ok()));
    drop(free.with_context(|| format!("{:?}", alone().err()))?);
    other.delete()
}
