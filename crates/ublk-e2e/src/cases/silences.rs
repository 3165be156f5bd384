//! Processes that do not answer questions: each command says which one, why, and what to do.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::case::Case;
use crate::cli::{self, Spec, code};
use crate::json;
use crate::procfs;
use crate::wait::{secs, until};

pub fn cases() -> Vec<Case> {
    vec![Case::new("l24_each_silence_has_its_cause", told)]
}

/// A stopped process, which goes on when this is dropped.
struct Stopped(u32);

impl Stopped {
    fn new(pid: u32) -> Result<Self> {
        procfs::stop(pid)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = procfs::kill(self.0, Signal::CONT);
    }
}

/// What commands say of a device one of whose processes is stopped or gone. A change ends with `code`: one that may still be
/// made has timed out.
fn expect(id: &str, words: &str, next: &str, code: i32) -> Result<()> {
    let changes = [
        &["metrics", id, "latencies", "--deadline", "2"][..],
        &["logs", id, "--level", "debug", "--deadline", "2"],
    ];
    for change in changes {
        cli::fails(change, code, &[words, next])?;
    }
    let record = ["record", id, "/tmp/ublk-silences", "--for", "1"];
    cli::fails(&record, code::FAILED, &[words, next])?;
    let info = cli::ublkctl_json(&["info", id])?;
    let text = |key: &str| info.get(key).and_then(Value::as_str).unwrap_or_default();
    ensure!(
        text("health_error").contains(words) && text("next").contains(next),
        "{info}"
    );
    let stats = cli::ublkctl_json(&["stats", id])?;
    let text = |key: &str| stats.get(key).and_then(Value::as_str).unwrap_or_default();
    ensure!(
        text("cause").contains(words) && text("next").contains(next),
        "{stats}"
    );
    ensure!(stats.get("in_flight").is_none(), "figures: {stats}");
    Ok(())
}

/// A stopped server, a stopped agent and a killed agent are told apart; a change that was asked for is made when the server
/// goes on; whoever follows the log hears of the end of the device.
fn told() -> Result<()> {
    let device = Spec::mem("16M").add()?;
    let id = device.id.to_string();
    let server = device.server()?;
    let info = cli::ublkctl_json(&["info", &id])?;
    let agent = u32::try_from(json::number(&info, "agent_pid")?)?;
    for (pid, what) in [(server, "server"), (agent, "agent")] {
        let stopped = Stopped::new(pid)?;
        let words =
            format!("the {what} of device {id}, process {pid}, does not answer: it is stopped");
        expect(&id, &words, &format!("kill -CONT {pid}"), code::TIMED_OUT)?;
        drop(stopped);
    }
    until("the level that was asked for", secs(20), || {
        let stats = cli::ublkctl_json(&["stats", &id])?;
        let level = stats.get("level").and_then(Value::as_str);
        Ok((level == Some("latencies")).then_some(()))
    })?;
    procfs::kill(agent, Signal::KILL)?;
    until("an agent less", secs(20), || {
        let info = cli::ublkctl_json(&["info", &id])?;
        Ok((info.get("agent_alive") == Some(&Value::Bool(false))).then_some(()))
    })?;
    let words = format!("the agent of device {id} is gone");
    expect(&id, &words, &format!("ublkctl recover {id}"), code::FAILED)?;
    cli::ublkctl(&["recover", &id])?.good()?;
    ensure!(device.server()? == server, "another server");
    let mut follow = cli::command(&["logs", &id, "--follow"]);
    let mut follow = follow
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("logs --follow")?;
    device.delete()?;
    let ended = until("the end of logs --follow", secs(20), || {
        Ok(follow.try_wait()?)
    });
    let _ = follow.kill();
    ensure!(
        ended?.code() == Some(32),
        "logs --follow of a deleted device"
    );
    Ok(())
}
