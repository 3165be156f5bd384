//! Commands that the driver does not answer, or answers with an error: reported in time, with their true cause.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use super::stop::Backing;
use crate::case::Case;
use crate::cli::{self, Device, Spec, code, fails, patience, ublkctl, ublkctl_json};
use crate::direct_io::Direct;
use crate::wait::{secs, until};
use crate::{procfs, sysfs};

/// The exit code for an expired deadline.
const TIMED_OUT: i32 = 3;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("l27_a_server_that_stands_still", stands_still),
        Case::new("l27_an_upgrade_of_a_server_that_stands_still", upgrade),
        Case::new("l28_errors_of_the_driver_arrive", errors),
        Case::new("l53_lives_of_one_number_are_told_apart", lives),
    ]
}

/// A server that is stopped (SIGSTOP) while it holds a write; it continues on drop.
struct Still {
    server: u32,
    writer: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Still {
    fn new(device: &Device) -> Result<Self> {
        let server = device.server_now()?;
        let direct = device.open()?;
        procfs::stop(server)?;
        let still = Self {
            server,
            writer: Some(std::thread::spawn(move || direct.write_pattern(0, 4096, 1))),
        };
        until("a write in flight", secs(10), || {
            let text = sysfs::text(device.id, "inflight")?;
            Ok(text.split_whitespace().any(|n| n != "0").then_some(()))
        })?;
        Ok(still)
    }

    /// Waits for the end of the write; true if it succeeded.
    fn written(mut self) -> bool {
        let writer = self.writer.take();
        writer.is_some_and(|w| matches!(w.join(), Ok(Ok(()))))
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        let _ = procfs::kill(self.server, Signal::CONT);
    }
}

/// Runs a command that must end by its own deadline of 2 seconds, with the pipes of all its processes closed.
fn in_time(args: &[&str], code: i32, parts: &[&str]) -> Result<()> {
    let args = [args, &["--deadline", "2"]].concat();
    let begun = Instant::now();
    fails(&args, code, parts)?;
    // Two processes, a grace period for cancelling, and an emulated machine.
    ensure!(
        begun.elapsed() < secs(15),
        "{args:?} took {:?}",
        begun.elapsed()
    );
    Ok(())
}

/// L27 STOP_DEV waits for a write that nobody answers: each verb returns by its deadline and says what to do; `list`
/// and `info` work; and once the server continues, everything completes.
fn stands_still() -> Result<()> {
    let device = Spec::mem("16M").add()?;
    let id = device.id.to_string();
    let still = Still::new(&device)?;
    // A writer prevents a stop; a forced stop waits for it.
    in_time(&["stop", &id], code::FAILED, &["open in process"])?;
    in_time(
        &["stop", "--force", &id],
        TIMED_OUT,
        &["kill the server", "open in process"],
    )?;
    in_time(&["delete", "--force", &id], TIMED_OUT, &[])?;
    in_time(&["delete", "--force", "--async", &id], TIMED_OUT, &[])?;
    ublkctl_json(&["list"])?;
    let begun = Instant::now();
    ublkctl_json(&["info", &id])?;
    ensure!(
        begun.elapsed() < secs(10),
        "info took {:?}",
        begun.elapsed()
    );
    procfs::kill(still.server, Signal::CONT)?;
    ensure!(still.written(), "a stop failed a write that was on its way");
    device.forget();
    let gone = ublkctl(&["delete", "--force", &id])?;
    ensure!([0, code::NO_DEVICE].contains(&gone.code()), "{gone}");
    procfs::nothing_stuck(secs(10))?;
    cli::nothing_left(secs(20))
}

/// L27 L44 An upgrade whose old server does not answer is reported in time. Once that server is killed, its agent
/// replaces it without a command, and the write succeeds after all.
fn upgrade() -> Result<()> {
    let backing = Backing::new("still");
    let device = backing.spec("16M", &["--recovery", "reissue"]).add()?;
    let id = device.id.to_string();
    let still = Still::new(&device)?;
    in_time(
        &["recover", &id],
        code::FAILED,
        &["is live", "kill process"],
    )?;
    in_time(&["upgrade", &id], TIMED_OUT, &["old server"])?;
    let old = still.server;
    procfs::kill(old, Signal::KILL)?;
    until("another server", patience() + secs(20), || {
        let info = device.query()?;
        let other = info["server_alive"] == true && info["server_pid"] != old;
        Ok((info["state"] == "live" && other).then_some(()))
    })?;
    ensure!(still.written(), "the write failed");
    device.open()?.check_pattern(0, 4096, 1)?;
    device.delete()?;
    cli::nothing_left(secs(10))
}

/// L28 EEXIST, ENODEV and EBUSY are reported as such, at once, and neither retried nor called success.
fn errors() -> Result<()> {
    let device = Spec::null("1G").with(&["--id", "11"]).add()?;
    let begun = Instant::now();
    fails(
        &["add", "null", "--id", "11"],
        code::FAILED,
        &["11", "in use"],
    )?;
    for verb in ["info", "stop", "delete", "recover", "upgrade"] {
        fails(&[verb, "12"], code::NO_DEVICE, &["12"])?;
    }
    fails(&["resize", "12", "1G"], code::NO_DEVICE, &["12"])?;
    if sysfs::kernel() >= (7, 0) {
        let open = device.open()?;
        fails(&["stop", "--if-unused", "11"], code::FAILED, &["open"])?;
        drop(open);
    }
    ensure!(begun.elapsed() < secs(60), "{:?}", begun.elapsed());
    ensure!(device.query()?["state"] == "live");
    // Repeating a completed command is not an error.
    ublkctl(&["stop", "11"])?.good()?;
    let again = ublkctl(&["stop", "11"])?;
    // Its agent may have deleted it meanwhile.
    ensure!([0, code::NO_DEVICE].contains(&again.code()), "{again}");
    ublkctl(&["delete", "11"])?;
    device.forget();
    cli::nothing_left(secs(10))
}

/// L53 One number, many devices, ended in turn by a kill and by a delete: nothing of an earlier one, neither a
/// completion nor a byte, appears in a later one.
fn lives() -> Result<()> {
    for life in 1..=12_u64 {
        let queues = [1, 2, 4][usize::try_from(life % 3)?];
        let at = || format!("life {life}");
        let spec = Spec::mem("8M")
            .queues(queues)
            .depth(8)
            .with(&["--id", "21"]);
        let device = spec.add().with_context(at)?;
        let direct = device.open()?;
        direct.check_zero(0, 1 << 20).with_context(at)?;
        direct.write_pattern(0, 1 << 20, life).with_context(at)?;
        direct.check_pattern(0, 1 << 20, life).with_context(at)?;
        if life % 2 == 0 {
            // With requests of all threads in flight.
            let path = device.path.clone();
            let writer = std::thread::spawn(move || {
                let direct = Direct::open(&path)?;
                let until = Instant::now() + Duration::from_secs(20);
                while Instant::now() < until && direct.write_pattern(0, 65_536, life).is_ok() {}
                Ok::<_, anyhow::Error>(())
            });
            procfs::kill(device.server()?, Signal::KILL)?;
            let _ = writer.join();
            drop(direct);
            device.wait_state("dead", patience()).with_context(at)?;
        } else {
            drop(direct);
        }
        device.delete().with_context(at)?;
    }
    cli::nothing_left(secs(10))
}
