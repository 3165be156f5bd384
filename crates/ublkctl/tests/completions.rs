//! Completions, requested as bash, zsh and fish do, if installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use ublk_daemon::state::{Record, Store};

/// A run directory with the record of a device.
fn run_directory(dir: &Path) -> PathBuf {
    let run = dir.join("run");
    let store = Store::at(run.clone());
    store.prepare().unwrap();
    let spec = serde_json::from_value(serde_json::json!({
        "backend": {"kind": "null", "size": 4096}, "id": null, "queues": 1, "depth": 1,
        "block_size": 512, "max_io_bytes": 4096, "read_only": false, "name": "scratch",
    }))
    .unwrap();
    let mut record = Record::new(7, spec);
    record.id = Some(37);
    store.write(&record).unwrap();
    run
}

/// Runs a script in a shell that finds our program first, and returns its output; `None` if the shell is not installed.
fn shell(shell: &[&str], script: &str, run: &Path) -> Option<String> {
    let program = Path::new(env!("CARGO_BIN_EXE_ublkctl")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    let (name, options) = shell.split_first().unwrap();
    let output = Command::new(name)
        .args(options)
        .arg(script)
        .env("PATH", path)
        .env("UBLKCTL_RUN_DIR", run)
        .output();
    let Ok(output) = output else {
        eprintln!("skipped: no {name} on this host");
        return None;
    };
    assert!(output.status.success(), "{name}: {output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Completions that bash offers after these arguments.
fn in_bash(args: &[&str], run: &Path) -> Option<Vec<String>> {
    let last = args.len() - 1;
    let script = format!(
        "set -e; source <(ublkctl completions bash); COMP_WORDS=({}); COMP_CWORD={last}; COMP_TYPE=9; \
         _clap_complete_ublkctl ublkctl '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        args.iter()
            .map(|w| format!("'{w}'"))
            .collect::<Vec<_>>()
            .join(" "),
        args[last],
        args[last - 1],
    );
    let said = shell(&["bash", "--norc", "-c"], &script, run)?;
    Some(said.lines().map(|l| l.trim().to_owned()).collect())
}

#[test]
fn bash_offers_commands_options_and_devices() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_directory(dir.path());
    let Some(commands) = in_bash(&["ublkctl", "re"], &run) else {
        return;
    };
    assert_eq!(commands, ["recover", "resize", "record", "replay"]);
    let options = in_bash(&["ublkctl", "add", "mem", "--read"], &run).unwrap();
    assert_eq!(options, ["--read-only"]);
    let policies = in_bash(&["ublkctl", "add", "null", "--recovery", "re"], &run).unwrap();
    assert_eq!(policies, ["reissue"]);
    for command in [
        "info", "list", "stop", "delete", "rm", "recover", "upgrade", "resize", "gc",
    ] {
        let names = in_bash(&["ublkctl", command, "scr"], &run).unwrap();
        assert_eq!(names, ["scratch"], "{command}");
    }
    let second = in_bash(&["ublkctl", "delete", "0", "3"], &run).unwrap();
    assert!(second.contains(&"37".to_owned()), "{second:?}");
}

#[test]
fn zsh_and_fish_take_their_scripts() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_directory(dir.path());
    let zsh = "autoload -U compinit && compinit -D -u; source <(ublkctl completions zsh) && print $_comps[ublkctl]";
    if let Some(said) = shell(&["zsh", "-f", "-c"], zsh, &run) {
        assert!(said.contains("clap"), "{said}");
    }
    let fish = "ublkctl completions fish | source; complete -C 'ublkctl info scr'; complete -C 'ublkctl reco'";
    if let Some(said) = shell(&["fish", "--no-config", "-c"], fish, &run) {
        assert!(
            said.contains("scratch") && said.contains("recover"),
            "{said}"
        );
    }
}

/// Without a request nothing is printed; a request for a device argument lists the devices.
#[test]
fn completions_are_printed_for_every_shell() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = Command::new(env!("CARGO_BIN_EXE_ublkctl"))
            .args(["completions", shell])
            .env("UBLKCTL_RUN_DIR", dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{shell}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("UBLKCTL_COMPLETE"), "{shell}: {text}");
    }
}
