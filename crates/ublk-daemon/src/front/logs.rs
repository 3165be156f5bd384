//! `logs`: where the messages of a device's processes are, and which of them are written.

use super::ask;
use super::measure::ours;
use crate::failure::Failure;
use crate::link::message::{LogQuestion, Question};
use crate::report::Health;
use crate::state::Store;
use std::path::PathBuf;
use std::time::Duration;
use ublk_core::DevId;

/// Where the messages of a device's agent and server are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPlace {
    /// In this file.
    File(PathBuf),
    /// Wherever the device's service, or the terminal of a foreground device, has them; the journal's field `UBLK_DEVICE` has
    /// this value.
    Journal(String),
}

/// Where the messages of a device are.
///
/// # Errors
/// A device that does not exist or is not ours.
pub fn log_place(id: DevId) -> Result<LogPlace, Failure> {
    let record = ours(&Store::of_user()?, &[id])?.pop();
    Ok(match record.and_then(|(_, record)| record.log) {
        Some(file) => LogPlace::File(file),
        None => LogPlace::Journal(format!("ublkb{id}")),
    })
}

/// Whether a device with this number exists.
#[must_use]
pub fn is_there(id: DevId) -> bool {
    ublk_ctrl::nodes::list_devices().is_ok_and(|ids| ids.contains(&id))
}

/// Makes the agent and the server of a live device write messages from this level on: `error`, `warn`, `info`, `debug` or
/// `trace`. A later server writes from the level that its environment says.
///
/// # Errors
/// A device that does not exist, is not ours, or whose server does not answer.
pub fn set_log_level(id: DevId, level: &str, deadline: Duration) -> Result<(), Failure> {
    ours(&Store::of_user()?, &[id])?;
    let question = Question::Log(LogQuestion {
        log_level: level.to_owned(),
    });
    let answer: Result<Health, _> = ask::ask(id, Some(&question), deadline);
    answer.map(drop).map_err(|silence| silence.of_change(id))
}
