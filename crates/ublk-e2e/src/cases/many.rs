//! Many devices at once, and one after the other.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::case::{self, Case, measured};
use crate::cli::{self, Device, Spec, ublkctl_json};
use crate::embed::Embedded;
use crate::json;
use crate::sysfs;
use crate::wait::secs;

/// The driver's limit, which can be changed at run time.
const LIMIT: &str = "/sys/module/ublk_drv/parameters/ublks_max";

pub fn cases() -> Vec<Case> {
    let guest = "the driver's limit is changed in the test guest only";
    vec![
        Case::new("many_devices_of_the_tool", of_the_tool).only_if(sysfs::in_guest(), guest),
        Case::new("many_devices_in_one_process", in_one_process).only_if(sysfs::in_guest(), guest),
        Case::new("l23_a_hundred_rounds_leave_nothing", many_rounds),
    ]
}

/// Raises the limit, and restores it on drop.
pub(super) struct Raised(String);

impl Raised {
    pub(super) fn new(to: usize) -> Result<Self> {
        let before = std::fs::read_to_string(LIMIT).context(LIMIT)?;
        std::fs::write(LIMIT, to.to_string()).context(LIMIT)?;
        Ok(Self(before.trim().to_owned()))
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        // The next case that needs the usual limit will fail.
        let _ = std::fs::write(LIMIT, &self.0);
    }
}

/// Devices of the tool, each with its own processes, all at the same time.
fn of_the_tool() -> Result<()> {
    let count = case::rounds(16, 64);
    // Linux 6.3 to 6.14 count all devices, and 64 is the usual limit.
    let _raised = Raised::new(count + 8)?;
    let start = Instant::now();
    let mut devices: Vec<Device> = Vec::new();
    for number in 0..count {
        let device = Spec::mem("4M").depth(8).with(&["--max-io", "16K"]).add();
        devices.push(device.with_context(|| format!("device {number}"))?);
    }
    let rate = per_second(count, start);
    let listed = ublkctl_json(&["list"])?;
    ensure!(
        listed.as_array().is_some_and(|l| l.len() == count),
        "{listed}"
    );
    for (number, device) in (1..).zip(&devices) {
        device.open()?.write_pattern(0, 16_384, number)?;
    }
    for (number, device) in (1..).zip(&devices) {
        device.open()?.check_pattern(0, 16_384, number)?;
    }
    let start = Instant::now();
    for device in devices {
        device.delete()?;
    }
    measured(format!(
        "{count} devices of the tool at once: {rate:.1} added and {:.1} deleted a second",
        per_second(count, start)
    ));
    cli::nothing_left(secs(10))
}

/// Raises the descriptor limit of this process and its children to `count`: a soak has more devices than the usual
/// limit allows.
pub(super) fn descriptors(count: usize) -> Result<()> {
    let most = getrlimit(Resource::Nofile);
    if most.current.is_some_and(|now| now < count as u64) {
        let limit = Some(count as u64);
        let (current, maximum) = (limit, most.maximum.max(limit));
        setrlimit(Resource::Nofile, Rlimit { current, maximum }).context("ulimit -n")?;
    }
    Ok(())
}

pub(super) fn per_second(count: usize, since: Instant) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / since.elapsed().as_secs_f64()
}

/// Devices of one process, as many as memory allows.
fn in_one_process() -> Result<()> {
    let count = case::rounds(64, 500);
    // Rings and nodes of the queues, and a command ring for each.
    descriptors(8 * count)?;
    let _raised = Raised::new(count + 8)?;
    let args = ["null=true", "direct=true", "depth=4", "size=1048576"];
    let mut embedded = Embedded::idle(&args)?;
    let answer = embedded.ask(&format!("many {count}"))?;
    ensure!(
        json::number(&answer, "devices")? == count as u64,
        "{answer}"
    );
    ensure!(answer["before"] == answer["after"], "{answer}");
    measured(format!(
        "{count} devices of one process at once: {} ms to make, {} ms to remove, {} KiB of memory each",
        json::number(&answer, "made_ms")?,
        json::number(&answer, "removed_ms")?,
        json::number(&answer, "kib_each")?
    ));
    embedded.end()?;
    ensure!(!Path::new("/dev/ublkb0").exists(), "a node is left");
    cli::nothing_left(secs(10))
}

/// L23 Device after device: no descriptor, mapping, thread or node stays behind, and memory does not grow.
fn many_rounds() -> Result<()> {
    let mut embedded = Embedded::idle(&["queues=2"])?;
    let hundreds = case::rounds(0, 9);
    // The first hundred settle one-time allocations.
    let mut memory = None;
    for hundred in 0..=hundreds {
        let answer = embedded.ask("rounds 100")?;
        let (before, after) = (&answer["before"], &answer["after"]);
        ensure!(
            before.is_array() && before == after && before[1] == 0,
            "hundred {hundred}: [descriptors, of rings and nodes, threads] before: {before}, after: {after}"
        );
        let kib = json::number(&answer, "kib")?;
        let first = *memory.get_or_insert(kib);
        ensure!(
            kib <= first + 4096,
            "{first} KiB after the first hundred, {kib} KiB after {hundred} more"
        );
        measured(format!(
            "rounds of add, start, stop, delete: {:.1} a second",
            100_000.0 / f64::from(u32::try_from(json::number(&answer, "ms")?)?)
        ));
    }
    ensure!(sysfs::present().is_empty(), "left: {:?}", sysfs::present());
    embedded.end()
}
