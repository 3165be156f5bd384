//! The program itself, run as people run it. Needs no ublk; what needs its absence says so.

use std::path::Path;
use std::process::{Command, Output};

fn ublkctl(run_dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ublkctl"))
        .args(args)
        .env("UBLKCTL_RUN_DIR", run_dir)
        .output()
        .unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Processes that were started with this run directory in their environment.
fn processes(run_dir: &Path) -> Vec<String> {
    let mark = format!("UBLKCTL_RUN_DIR={}", run_dir.display());
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| {
            std::fs::read(entry.path().join("environ"))
                .is_ok_and(|env| env.split(|b| *b == 0).any(|v| v == mark.as_bytes()))
        })
        .map(|entry| entry.path().display().to_string())
        .collect()
}

/// Without the driver the error names the module, the exit code is 1, and nothing is left behind.
#[test]
fn without_the_driver_add_names_the_module_and_leaves_nothing() {
    if Path::new("/dev/ublk-control").exists() {
        eprintln!("skipped: this host has the ublk driver");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    for args in [
        &["add", "mem", "--size", "1G", "-q", "4"][..],
        &["add", "null", "--foreground"],
        &["list"],
        &["info", "3"],
        &["info", "data"],
        &["stop", "3"],
        &["delete", "3"],
        &["features"],
    ] {
        let output = ublkctl(&run, args);
        let errors = text(&output.stderr);
        assert_eq!(code(&output), Some(1), "{args:?}: {errors}");
        assert_eq!(text(&output.stdout), "", "{args:?}");
        assert!(errors.contains("modprobe ublk_drv"), "{args:?}: {errors}");
        assert_eq!(
            errors.matches("not loaded").count(),
            1,
            "said once: {errors}"
        );
    }
    assert_eq!(processes(&run), [""; 0]);
    assert_eq!(std::fs::read_dir(&run).unwrap().count(), 0);
}

#[test]
fn without_the_driver_doctor_fails_with_a_fix() {
    if Path::new("/dev/ublk-control").exists() {
        eprintln!("skipped: this host has the ublk driver");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = ublkctl(dir.path(), &["doctor", "--json"]);
    assert_eq!(code(&output), Some(1));
    let checks: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let module = checks.iter().find(|c| c["check"] == "module").unwrap();
    assert_eq!(module["status"], "fail");
    assert!(
        module["fix"]
            .as_str()
            .unwrap()
            .contains("modprobe ublk_drv")
    );
    for check in &checks {
        assert_eq!(check["fix"].is_null(), check["status"] == "ok", "{check}");
        let fix = check["fix"].as_str().unwrap_or_default();
        assert!(!fix.contains('\n'));
    }
}

/// L32 A command without its device does nothing and does not exit 0.
#[test]
fn l32_commands_without_a_device_exit_with_2() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["delete"][..],
        &["stop"],
        &["info"],
        &["delete", ""],
        &["delete", "-1"],
        &["add", "mem"],
        &["add"],
        &[],
    ] {
        let output = ublkctl(dir.path(), args);
        assert_eq!(code(&output), Some(2), "{args:?}");
        assert_eq!(text(&output.stdout), "");
        assert!(!output.stderr.is_empty());
    }
}

/// Bad input has its error and exit code 2, before anything is started.
#[test]
fn bad_devices_exit_with_2_and_say_why() {
    let dir = tempfile::tempdir().unwrap();
    for (flags, why) in [
        ("--size 0", "size 0"),
        ("--size 1001", "multiple of the block size 512"),
        (
            "--size 6K --block-size 4096",
            "multiple of the block size 4096",
        ),
        ("--size 8E", "8 EiB"),
        ("--size 16E", "beyond 64 bits"),
        ("--size ten", "not a size"),
        ("--size 1G -d 0", "0 is not in 1..=4096"),
        ("--size 1G -d 4097", "4097 is not in 1..=4096"),
        ("--size 1G -q 4097", "4097 is not in 1..=4096"),
        ("--size 1G -n 1048576", "1048576 is not in 0..1048576"),
        ("--size 1G --block-size 1000", "block size"),
        ("--size 1G --max-io 64M", "largest I/O"),
        ("--size 1G --max-io 1000", "largest I/O"),
        ("--size 1G --data zero-copy", "no file to forward"),
        ("--size 1G --data zero-copy-manual", "no file to forward"),
        (
            "--size 1G --data get-data --batch on",
            "no get-data command",
        ),
        ("--size 1G --data magic", "possible values: auto, copy"),
    ] {
        let args: Vec<&str> = ["add", "mem"].into_iter().chain(flags.split(' ')).collect();
        let output = ublkctl(dir.path(), &args);
        let errors = text(&output.stderr);
        assert_eq!(code(&output), Some(2), "{flags}: {errors}");
        assert!(errors.contains(why), "{flags}: {errors}");
        assert_eq!(text(&output.stdout), "");
    }
    assert_eq!(processes(dir.path()), [""; 0]);
}

#[test]
fn hidden_roles_are_not_for_people() {
    let dir = tempfile::tempdir().unwrap();
    for role in ["__agent", "__server", "__helper"] {
        let output = ublkctl(dir.path(), &[role]);
        assert_eq!(code(&output), Some(2), "{role}");
        assert!(text(&output.stderr).contains("started by ublkctl itself"));
    }
    let help = text(&ublkctl(dir.path(), &["--help"]).stdout);
    assert!(!help.contains("__"));
    assert!(help.contains("32 no such device") && help.contains("10 GiB"));
}

/// L40 A run directory that others can use is refused.
#[test]
fn l40_an_open_run_directory_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let output = ublkctl(dir.path(), &["add", "null"]);
    assert_eq!(code(&output), Some(1));
    assert!(text(&output.stderr).contains("0700"));
}

/// L45 If the result cannot be printed, the operation is undone: for a full standard output, and for a closed one,
/// which Rust's runtime has replaced by /dev/null.
#[test]
fn l45_nothing_is_printed_to_nobody() {
    for to in [">/dev/full", ">&-"] {
        for args in [
            "--help",
            "--version",
            "list --help",
            "man",
            "completions bash",
        ] {
            let program = env!("CARGO_BIN_EXE_ublkctl");
            let ended = Command::new("/bin/sh")
                .args(["-c", &format!("exec {program} {args} {to}")])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&ended.stderr).into_owned();
            assert_eq!(ended.status.code(), Some(1), "{args} {to}: {said}");
            assert!(
                said.contains("cannot write to standard output"),
                "{args} {to}: {said}"
            );
        }
    }
}
