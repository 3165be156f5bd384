//! One command for several devices: each one is tried, each has its result, and the worst determines the exit code.

use crate::output::{ErrorBody, Worst, print_failure, put};
use crate::target::Target;
use serde::Serialize;
use std::process::ExitCode;
use ublk_daemon::failure::Failure;
use ublk_daemon::front::{self, ListEntry};

/// The result of one of several devices.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Outcome<T> {
    Done(T),
    Failed {
        /// The word that the user gave.
        device: String,
        error: ErrorBody,
    },
}

/// Devices, and whether the caller named exactly one of them: its result is then printed by itself, not as a list.
pub struct Chosen {
    targets: Vec<Target>,
    /// Devices that may belong to the selection, and why that is unknown.
    unknown: Vec<(u32, Failure)>,
    one: bool,
}

impl Chosen {
    /// The devices that were named.
    pub fn named(targets: &[Target]) -> Self {
        Self {
            targets: targets.to_vec(),
            unknown: Vec::new(),
            one: targets.len() == 1,
        }
    }

    /// Devices that were selected together.
    pub fn all(found: impl IntoIterator<Item = front::Target>) -> Self {
        Self {
            targets: found.into_iter().map(Target::from).collect(),
            unknown: Vec::new(),
            one: false,
        }
    }

    /// Adds those whose record cannot be read; each counts as a failure.
    pub fn and_unknown<'a>(mut self, entries: impl IntoIterator<Item = &'a ListEntry>) -> Self {
        let unknown = entries.into_iter().filter_map(|e| {
            let why = e.record_error.as_ref()?;
            let failure = Failure::failed(format!(
                "skipped device {}: its record cannot be read: {why}",
                e.id
            ));
            Some((e.id, failure.hint(e.next.clone().unwrap_or_default())))
        });
        self.unknown = unknown.collect();
        self
    }

    /// Runs an action for each device, and prints the results as `text` formats them, or all as one JSON value.
    ///
    /// # Errors
    /// The failure of a single device. Otherwise only that nothing can be printed: failures are part of the results.
    pub fn each<T: Serialize>(
        &self,
        json: bool,
        mut act: impl FnMut(front::Target) -> Result<T, Failure>,
        text: impl Fn(&T) -> String,
    ) -> Result<ExitCode, Failure> {
        if let (true, [target]) = (self.one, self.targets.as_slice()) {
            let value = act(target.resolve()?)?;
            put(json, &value, || text(&value))?;
            return Ok(ExitCode::SUCCESS);
        }
        let (mut results, mut worst) = (Vec::new(), Worst::default());
        for (id, failure) in &self.unknown {
            print_failure(failure);
            worst.add(failure.kind.exit_code());
            results.push(Outcome::Failed {
                device: id.to_string(),
                error: ErrorBody::from(failure),
            });
        }
        for target in &self.targets {
            match target.resolve().and_then(&mut act) {
                Ok(value) => {
                    if !json {
                        put(false, &value, || text(&value))?;
                    }
                    results.push(Outcome::Done(value));
                }
                Err(failure) => {
                    print_failure(&failure);
                    worst.add(failure.kind.exit_code());
                    results.push(Outcome::Failed {
                        device: target.to_string(),
                        error: ErrorBody::from(&failure),
                    });
                }
            }
        }
        if json {
            put(true, &results, String::new)?;
        }
        Ok(worst.code())
    }
}
