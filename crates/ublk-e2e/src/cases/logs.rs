//! The messages of a device's processes.

use std::fs::File;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::case::Case;
use crate::cli::{self, Spec};
use crate::procfs;
use crate::wait::{secs, until};

pub fn cases() -> Vec<Case> {
    vec![Case::new(
        "logs_are_followed_and_change_their_level",
        levels,
    )]
}

/// `logs` shows what agent and server have written, and what they write from now on; another level is in force in both at
/// once, without another server.
fn levels() -> Result<()> {
    let device = Spec::null("1M").add()?;
    let id = device.id.to_string();
    let server = device.server()?;
    let text = cli::ublkctl(&["logs", &id])?.good()?.stdout;
    ensure!(
        text.contains("serves") && text.contains("is live"),
        "{text}"
    );
    let last = cli::ublkctl(&["logs", &id, "-n", "1"])?.good()?.stdout;
    ensure!(last.lines().count() == 1, "{last}");
    let lines = cli::ublkctl_json(&["logs", &id])?;
    ensure!(lines.to_string().contains("serves"), "{lines}");
    let path = std::env::temp_dir().join(format!("ublk-logs-{id}"));
    let mut follow = cli::command(&["logs", &id, "--follow", "-n", "1"]);
    let follow = follow.stdin(Stdio::null()).stdout(File::create(&path)?);
    let mut follow = follow.spawn().context("logs --follow")?;
    // It has read what was there before.
    let begun = until("the last line so far", secs(20), || {
        Ok((std::fs::metadata(&path)?.len() > 0).then_some(()))
    });
    let told = |level: &str, times: usize| {
        cli::ublkctl(&["logs", &id, "--level", level])?.good()?;
        let line = format!("messages from level {level} on are logged");
        until("the new level in the log", secs(20), || {
            let text = std::fs::read_to_string(&path)?;
            Ok((text.matches(&line).count() == times).then_some(()))
        })
    };
    let done = begun
        .and_then(|()| told("debug", 2))
        .and_then(|()| told("info", 2));
    procfs::kill(follow.id(), Signal::TERM)?;
    let status = follow.wait()?;
    done?;
    ensure!(status.success(), "logs --follow: {status}");
    std::fs::remove_file(&path)?;
    ensure!(device.server()? == server, "another server");
    device.delete()
}
