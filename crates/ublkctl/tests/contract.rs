//! The contract for scripts: with `--json` every outcome of every subcommand is exactly one JSON value on standard
//! output, without duplicate keys, and failures state their kind. Runs with and without the driver.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

fn ublkctl(run_dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ublkctl"))
        .args(args)
        .env("UBLKCTL_RUN_DIR", run_dir)
        .output()
        .unwrap()
}

/// The only JSON value of an output.
fn value(args: &[&str], output: &Output) -> Value {
    let text = std::str::from_utf8(&output.stdout).unwrap();
    let line = text.strip_suffix('\n').unwrap_or_default();
    let value: Value = serde_json::from_str(line)
        .unwrap_or_else(|e| panic!("{args:?}: {e}: {text:?}, code {:?}", output.status.code()));
    // Both are written without blanks, so a duplicate key would show in the text only.
    let again = serde_json::to_string(&value).unwrap();
    assert_eq!(again.len(), line.len(), "{args:?}: a key twice? {line}");
    value
}

/// A failure has all fields, consistent with the exit code.
fn is_failure(args: &[&str], value: &Value, code: Option<i32>) {
    let error = value["error"].as_object();
    let error = error.unwrap_or_else(|| panic!("{args:?}: no error in {value}"));
    for key in [
        "kind",
        "message",
        "hint",
        "errno",
        "errno_name",
        "exit_code",
    ] {
        assert!(error.contains_key(key), "{args:?}: no {key} in {value}");
    }
    let message = error["message"].as_str().unwrap();
    assert!(!message.is_empty() && !message.contains('\n'), "{value}");
    assert_eq!(error["exit_code"], code.unwrap(), "{args:?}: {value}");
    let kind = error["kind"].as_str().unwrap();
    let codes = [("usage", 2), ("timed-out", 3), ("no-such-device", 32)];
    let wanted = codes
        .iter()
        .find(|(k, _)| *k == kind)
        .map_or(1, |(_, c)| *c);
    assert_eq!(error["exit_code"], wanted, "{args:?}: {value}");
}

/// Traces and loads, which need no driver.
const LOADS: &[&str] = &[
    "trace",
    "trace /no/such/trace",
    "trace /dev/null",
    "trace /proc/self/exe",
    "trace Cargo.toml --svg /no/such/dir/x.svg",
    "trace convert",
    "trace convert /no/such/trace /tmp/x",
    "trace convert /no/such/trace /tmp/x --to iolog",
    "trace convert Cargo.toml Cargo.toml --to ublk",
    "replay",
    "replay /no/such/trace /dev/null",
    "replay Cargo.toml /dev/null",
    "replay Cargo.toml /dev/null --speed slow",
    "bench",
    "bench /no/such/disk",
    "bench /dev/null",
    "bench no-such-name",
    "bench Cargo.toml --size 1000",
    "bench Cargo.toml --rw write",
    "bench Cargo.toml --compare /no/such/disk",
    "bench Cargo.toml --sweep depth --compare /no/such/disk",
];

/// The other commands.
const COMMANDS: &[&str] = &[
    "",
    "frobnicate",
    "add",
    "add mem",
    "add mem --size ten",
    "add mem --size 1G --data zero-copy",
    "add null -n 1048575",
    "add null --foreground -n 1048575",
    "add file /no/such/file",
    "add nbd",
    "add nbd http://host/",
    "add nbd nbd+unix:///?socket=/no/such/socket",
    "up",
    "up /no/such.toml",
    "up --foreground /no/such.toml",
    "down",
    "down /no/such.toml",
    "check",
    "check /no/such.toml",
    "list",
    "ls",
    "list 1048574",
    "list no-such-name",
    "info",
    "info 1048574",
    "info no-such-name",
    "info 1048574 no-such-name",
    "stop",
    "stop 1048574",
    "stop 1048574 no-such-name",
    "delete",
    "rm 1048574",
    "delete 1048574 no-such-name /dev/null",
    "delete --all 3",
    "recover",
    "recover 1048574",
    "recover no-such-name 1048574",
    "quiesce",
    "quiesce 1048574",
    "quiesce no-such-name 1048574",
    "upgrade",
    "upgrade 1048574",
    "resize 1048574 1G",
    "resize 1048574",
    "gc 1048574",
    "nbd",
    "nbd retry 1048574 5",
    "nbd retry 1048574 soon",
    "nbd move no-such-name nbd://host/",
    "nbd info nbd+unix:///?socket=/no/such/socket",
    "nbd list nbd+unix:///?socket=/no/such/socket",
    "gc no-such-name",
    "stats 1048574",
    "stats no-such-name",
    "top",
    "top no-such-name",
    "metrics 1048574 off",
    "record",
    "record 1048574 /tmp/x",
    "record 1048574 /no/such/dir/x",
    "record 1048574 /tmp/x --for 0",
    "record 1048574 /tmp/x --limit much",
    "metrics no-such-name many",
    "exporter",
    "exporter --listen nowhere",
    "features",
    "doctor",
    "udev-owner sda",
    "udev-owner ublkc1048574",
    "completions bash",
    "completions tcsh",
    "man",
    "man /proc/no/such",
    "help",
    "help add",
    "--help",
    "--version",
    "add --help",
    "__server",
];

/// Messages of devices.
const LOGS: &[&str] = &[
    "logs",
    "logs 1048574",
    "logs 1048574 --follow",
    "logs 1048574 --level loud",
    "logs no-such-name --level debug",
];

/// Every subcommand of clap, called in valid and invalid ways.
fn calls() -> Vec<Vec<&'static str>> {
    let args = |line: &'static str| line.split(' ').filter(|w| !w.is_empty()).collect();
    let all = COMMANDS.iter().chain(LOADS).chain(LOGS);
    all.copied().map(args).collect()
}

#[test]
fn every_outcome_is_one_json_value() {
    let dir = tempfile::tempdir().unwrap();
    for args in calls() {
        // Before and after the command.
        for args in [
            [&["--json"], &args[..]].concat(),
            [&args[..], &["--json"]].concat(),
        ] {
            let output = ublkctl(dir.path(), &args);
            let value = value(&args, &output);
            let code = output.status.code();
            match &value {
                Value::Object(fields) if fields.contains_key("error") => {
                    is_failure(&args, &value, code);
                }
                // A failure in a list, or of a check.
                Value::Array(all) if code != Some(0) => {
                    let failed = |v: &&Value| v["error"].is_object() || v["status"] == "fail";
                    assert!(all.iter().any(|v| failed(&v)), "{args:?}: {value}");
                }
                _ => assert_eq!(code, Some(0), "{args:?}: {value}"),
            }
        }
    }
}

/// Every subcommand of the tool is in the list above, so that a new one is not forgotten.
#[test]
fn every_subcommand_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let help = ublkctl(dir.path(), &["--help"]).stdout;
    let help = String::from_utf8(help).unwrap();
    let commands = help.split("Commands:\n").nth(1).unwrap();
    let commands = commands.split("\n\n").next().unwrap();
    let mut seen = 0;
    for line in commands.lines() {
        // Names are indented by two blanks.
        let Some(name) = line.strip_prefix("  ").filter(|l| !l.starts_with(' ')) else {
            continue;
        };
        let name = name.split(' ').next().unwrap();
        assert!(
            calls().iter().any(|c| c.first() == Some(&name)),
            "{name} is not called"
        );
        seen += 1;
    }
    assert!(seen >= 15, "{seen} commands in {help}");
}

/// A missing device is exit code 32, for every command and every way to name it; only usage errors are 2.
#[test]
fn what_is_not_there_is_32_for_every_command() {
    if !Path::new("/dev/ublk-control").exists() {
        eprintln!("skipped: this host has no ublk driver; vm-e2e has the same as a case");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for command in [
        "list", "info", "stop", "delete", "quiesce", "recover", "upgrade", "gc",
    ] {
        for word in [
            "1048574",
            "1048576",
            "no-such-name",
            "/dev/null",
            "/dev/ublkb1048574p1",
        ] {
            let output = ublkctl(dir.path(), &[command, word]);
            assert_eq!(output.status.code(), Some(32), "{command} {word}");
        }
    }
}

/// A file whose size differs from the configuration is detected without the driver.
#[test]
fn check_sees_a_changed_size_under_create() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("devices.toml");
    let text = |size: &str| {
        let text = format!(
            "[device.a]\nbackend = \"file\"\npath = \"a.img\"\ncreate = true\nsize = \"{size}\"\n"
        );
        std::fs::write(&config, text).unwrap();
    };
    let check = || {
        let args = ["check", config.to_str().unwrap(), "--json"];
        let output = ublkctl(&dir.path().join("run"), &args);
        (output.status.code(), value(&args, &output))
    };
    text("1M");
    assert_eq!(check().0, Some(0), "a file that is yet to be made");
    std::fs::write(dir.path().join("a.img"), vec![0; 1 << 20]).unwrap();
    assert_eq!(check().0, Some(0), "the size it has");
    text("2M");
    let (code, value) = check();
    assert_eq!(code, Some(1), "{value}");
    let message = value[0]["error"]["message"].as_str().unwrap();
    assert!(
        message.contains("1048576 bytes instead of 2097152"),
        "{value}"
    );
    let output = ublkctl(
        &dir.path().join("run"),
        &["check", config.to_str().unwrap()],
    );
    let message = String::from_utf8(output.stderr).unwrap();
    let place = format!("ublkctl: {}:1: a: ", config.display());
    assert!(message.starts_with(&place), "{message}");
    assert_eq!(
        std::fs::read(dir.path().join("a.img")).unwrap().len(),
        1 << 20
    );
}
