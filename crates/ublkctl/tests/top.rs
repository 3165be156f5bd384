//! `ublkctl top` without devices, and without a terminal.

mod pty;

use std::process::{Command, Stdio};

const PROGRAM: &str = env!("CARGO_BIN_EXE_ublkctl");

#[test]
fn nothing_to_see_is_said_and_any_size_served() {
    let dir = tempfile::tempdir().unwrap();
    let start = |columns, rows| {
        pty::start(PROGRAM, columns, rows, |command| {
            command.arg("top").env("UBLKCTL_RUN_DIR", dir.path());
        })
    };
    for (columns, rows, text) in [
        (80, 24, "no devices of this user"),
        (200, 60, "no devices of this user"),
        (20, 5, "top needs 50x10"),
    ] {
        let Some(mut session) = start(columns, rows) else {
            return;
        };
        session.until(text);
        session.press("q");
        assert!(session.end().success());
        session.is_restored();
    }
}

#[test]
fn without_a_terminal_it_says_what_to_use() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(PROGRAM);
    command.arg("top").env("UBLKCTL_RUN_DIR", dir.path());
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("needs a terminal"), "{message}");
    assert!(message.contains("ublkctl stats --interval 1"), "{message}");
    assert!(output.stdout.is_empty());
}
