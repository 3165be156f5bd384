//! Every finding of `doctor`, provoked once, and the message of `add` in the same situation.
//!
//! Most cases change the whole machine for a moment, so they only run in the test guest.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::case::Case;
use crate::cli::{self, Spec, code};
use crate::run::{self, Output};
use crate::sysfs::{in_guest, kernel};
use crate::wait::{secs, until};

const CONTROL: &str = "/dev/ublk-control";
const DISABLED: &str = "/proc/sys/kernel/io_uring_disabled";
const LIMIT: &str = "/sys/module/ublk_drv/parameters/ublks_max";
const ADD: [&str; 4] = ["add", "mem", "--size", "16M"];
/// An unprivileged user.
const NOBODY: u32 = 65_534;

pub fn cases() -> Vec<Case> {
    let guest = "it changes the whole machine, which only a test guest allows";
    let module = Path::new("/sys/module/ublk_drv/refcnt").exists();
    vec![
        Case::new("simple_doctor_finds_nothing", finds_nothing),
        Case::new("doctor_module_missing", module_missing)
            .only_if(in_guest(), guest)
            .only_if(module, "the driver is built into the kernel"),
        Case::new("doctor_control_node_missing", node_missing).only_if(in_guest(), guest),
        Case::new("doctor_control_node_without_rights", without_rights),
        Case::new("doctor_io_uring_disabled", io_uring_disabled)
            .only_if(in_guest(), guest)
            .only_if(kernel() >= (6, 6), "the sysctl came with Linux 6.6"),
        Case::new("doctor_locked_memory_is_low", locked_memory),
        Case::new(
            "doctor_contract_io_uring_limited_to_a_group",
            io_uring_limited,
        )
        .only_if(in_guest(), guest)
        .only_if(kernel() >= (6, 6), "the sysctl came with Linux 6.6"),
        Case::new("doctor_contract_names_the_kernel", names_the_kernel),
        Case::new("doctor_device_limit", device_limit).only_if(in_guest(), guest),
    ]
}

/// Restores something at the end of the case, whatever its result.
struct Restore<F: FnMut()>(F);

impl<F: FnMut()> Drop for Restore<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// Runs `doctor --json` and returns the check of this name.
fn check_of(output: &Output, name: &str) -> Result<Value> {
    let all: Value = serde_json::from_str(&output.stdout).with_context(|| output.to_string())?;
    let mut checks = all.as_array().into_iter().flatten();
    let check = checks.find(|c| c["check"] == name).cloned();
    check.with_context(|| format!("no check {name:?} in {output}"))
}

/// Checks that `doctor` reports `name` with this status and a fix that contains `fix`, and that its exit code says
/// whether anything failed.
fn finds(output: &Output, name: &str, status: &str, fix: &str) -> Result<()> {
    let check = check_of(output, name)?;
    ensure!(
        check["status"] == status,
        "{name} should be {status}: {output}"
    );
    let said = check["fix"].as_str().unwrap_or_default();
    ensure!(
        said.contains(fix),
        "the fix of {name} lacks {fix:?}: {check}"
    );
    ensure!(!said.contains('\n'), "a fix is one line: {check}");
    if status == "fail" {
        ensure!(output.code() == code::FAILED, "{output}");
    }
    Ok(())
}

fn doctor() -> Result<Output> {
    cli::ublkctl(&["doctor", "--json"])
}

fn finds_nothing() -> Result<()> {
    let output = doctor()?.good()?;
    for name in [
        "module",
        "control node",
        "io_uring",
        "device limit",
        "permission",
        "driver",
    ] {
        let check = check_of(&output, name)?;
        ensure!(check["status"] == "ok", "{check}");
    }
    let text = cli::ublkctl(&["doctor"])?.good()?.stdout;
    ensure!(text.contains("control node"), "{text}");
    Ok(())
}

fn module_missing() -> Result<()> {
    run::good("busybox", &["rmmod", "ublk_drv"])?;
    let _back = Restore(|| {
        let loaded = run::good("busybox", &["modprobe", "ublk_drv"]);
        let node = until("the control node", secs(10), || {
            Ok(Path::new(CONTROL).exists().then_some(()))
        });
        if let Err(error) = loaded.map(drop).and(node) {
            eprintln!("ublk_drv is not back: {error:#}");
        }
    });
    let output = doctor()?;
    finds(&output, "module", "fail", "modprobe ublk_drv")?;
    finds(&output, "control node", "fail", "modprobe ublk_drv")?;
    cli::fails(&ADD, code::FAILED, &["modprobe ublk_drv"])?;
    cli::fails(&["list"], code::FAILED, &["modprobe ublk_drv"])?;
    cli::fails(&["delete", "0"], code::FAILED, &["modprobe ublk_drv"])?;
    Ok(())
}

fn node_missing() -> Result<()> {
    let away = "/dev/ublk-control.away";
    fs::rename(CONTROL, away)?;
    let _back = Restore(|| {
        if let Err(error) = fs::rename(away, CONTROL) {
            eprintln!("the control node is not back: {error}");
        }
    });
    let output = doctor()?;
    finds(&output, "control node", "fail", "modprobe ublk_drv")?;
    ensure!(check_of(&output, "module")?["status"] == "ok");
    cli::fails(&ADD, code::FAILED, &["ublk-control"])?;
    Ok(())
}

/// Runs the tool as an unprivileged user with a state directory.
fn as_nobody(args: &[&str]) -> Result<Output> {
    let directory = std::env::temp_dir().join("ublk-e2e-nobody");
    fs::create_dir_all(&directory)?;
    std::os::unix::fs::chown(&directory, Some(NOBODY), Some(NOBODY))?;
    let mut command = cli::command(args);
    command
        .env("XDG_RUNTIME_DIR", &directory)
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/");
    let output = run::output(&mut command, secs(60));
    let _ = fs::remove_dir_all(&directory);
    output
}

fn without_rights() -> Result<()> {
    let output = as_nobody(&["doctor", "--json"])?;
    finds(&output, "control node", "fail", "root")?;
    finds(&output, "permission", "fail", "root")?;
    cli::failed(as_nobody(&ADD)?, code::FAILED, &["root"])?;
    ensure!(cli::left_over().is_empty(), "left: {:?}", cli::left_over());
    Ok(())
}

fn io_uring_disabled() -> Result<()> {
    fs::write(DISABLED, "2")?;
    let _back = Restore(|| {
        if let Err(error) = fs::write(DISABLED, "0") {
            eprintln!("{DISABLED}: {error}");
        }
    });
    let output = doctor()?;
    finds(&output, "io_uring", "fail", "io_uring_disabled=0")?;
    finds(&output, "driver", "fail", "io_uring_disabled")?;
    cli::fails(&ADD, code::FAILED, &["io_uring_disabled"])?;
    // Every command that fails because of it names it, with its kind.
    for args in [
        &ADD[..],
        &["list"],
        &["info", "0"],
        &["info", "a-name"],
        &["stop", "0"],
        &["delete", "0"],
        &["recover", "0"],
        &["recover", "--all"],
        &["upgrade", "0"],
        &["resize", "0", "1G"],
        &["gc"],
        &["features"],
    ] {
        let output = cli::ublkctl(&[args, &["--json"]].concat())?;
        let value = cli::one_value(&output)?;
        ensure!(output.code() == code::FAILED, "{output}");
        let error = &value["error"];
        ensure!(error["kind"] == "io-uring-disabled", "{output}");
        let said = error["hint"].as_str().unwrap_or_default();
        ensure!(said.contains("io_uring_disabled=0"), "{output}");
    }
    Ok(())
}

/// With the sysctl at 1 it depends on the user: root may, a member of the group may, others learn what to do.
fn io_uring_limited() -> Result<()> {
    fs::write(DISABLED, "1")?;
    let _back = Restore(|| {
        if let Err(error) = fs::write(DISABLED, "0") {
            eprintln!("{DISABLED}: {error}");
        }
    });
    let output = doctor()?;
    finds(&output, "io_uring", "ok", "")?;
    let said = check_of(&output, "io_uring")?["detail"].to_string();
    ensure!(said.contains("and this process may"), "{said}");
    Spec::mem("16M").add()?.delete()?;
    let output = as_nobody(&["doctor", "--json"])?;
    finds(&output, "io_uring", "fail", "io_uring_disabled=0")?;
    Ok(())
}

/// The kernel's release is checked for known bugs; no kernel tested here has one that fails the check.
fn names_the_kernel() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let check = check_of(&doctor()?, "kernel")?;
    ensure!(check["status"] != "fail", "{check}");
    let said = check["detail"].as_str().unwrap_or_default();
    ensure!(said.starts_with(release.trim()), "{check}");
    Ok(())
}

fn locked_memory() -> Result<()> {
    let script = format!("ulimit -l 64 && exec {} doctor --json", cli::program());
    let output = run::output(Command::new("sh").args(["-c", &script]), secs(60))?;
    finds(&output, "locked memory", "warn", "ulimit -l unlimited")?;
    output.good().context("a warning is no failure")?;
    Ok(())
}

/// L39 The limit of devices is reported, with a remedy.
fn device_limit() -> Result<()> {
    let before = fs::read_to_string(LIMIT)?;
    fs::write(LIMIT, "1")?;
    let _back = Restore(|| {
        if let Err(error) = fs::write(LIMIT, before.trim()) {
            eprintln!("{LIMIT}: {error}");
        }
    });
    let device = Spec::mem("16M").add()?;
    finds(&doctor()?, "device limit", "warn", "ublks_max")?;
    // Kernels from 6.3 to 6.14 count root's devices, too, and refuse the second; 6.12 miscounts over time and may not.
    let second = cli::ublkctl(&ADD)?;
    if second.status.success() {
        cli::Device::of(&second, &Spec::mem("16M").depth(128))?.delete()?;
    } else {
        ensure!(crate::sysfs::kernel() < (6, 15), "refused: {second}");
        cli::failed(second, code::FAILED, &["ublks_max"])?;
    }
    device.delete()
}
