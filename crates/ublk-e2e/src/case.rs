//! A case: a name, what it does, and when it cannot be done.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow};
use libtest_mimic::{Failed, Trial};

use crate::wait::secs;
use crate::{cli, procfs};

/// The longest a case may take. Slower is a hang: software emulation was allowed for.
const LIMIT: Duration = secs(150);

/// A case to be run.
pub struct Case {
    name: String,
    body: Box<dyn FnOnce() -> Result<()> + Send>,
    skip: Option<String>,
}

impl Case {
    /// A case. Names say what holds; those of a known mistake begin with its number.
    pub fn new(
        name: impl Into<String>,
        body: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            body: Box::new(body),
            skip: None,
        }
    }

    /// Skips the case, with the reason, unless `possible`.
    pub fn only_if(mut self, possible: bool, reason: &str) -> Self {
        if !possible && self.skip.is_none() {
            self.skip = Some(reason.to_owned());
        }
        self
    }

    /// Tells that the case is skipped, if it is: the runner compares these lines with the skips it
    /// expects (L91).
    pub fn announce(&self) {
        if let Some(reason) = &self.skip {
            println!("SKIP {}: {reason}", self.name);
        }
    }

    /// Whether the name contains the filter, or there is none.
    pub fn named(&self, filter: Option<&String>) -> bool {
        filter.is_none_or(|filter| self.name.contains(filter.as_str()))
    }

    /// Whether the case is one of the quick subset.
    pub fn is_simple(&self) -> bool {
        self.name.starts_with("simple_")
    }

    /// What libtest-mimic runs.
    pub fn trial(self) -> Trial {
        let Self { name, body, skip } = self;
        Trial::test(name, move || run(body)).with_ignored_flag(skip.is_some())
    }
}

/// Runs a case on a thread of its own: one that hangs fails, and the others still get their turn.
/// A case that passes must have left nothing of ublk behind; one that fails is cleaned up after.
fn run(body: Box<dyn FnOnce() -> Result<()> + Send>) -> Result<(), Failed> {
    let (sender, end) = channel();
    let thread = std::thread::spawn(move || {
        let result = body();
        let _ = sender.send(());
        result
    });
    let result = match end.recv_timeout(LIMIT) {
        Err(RecvTimeoutError::Timeout) => Err(anyhow!(
            "no end within {} s; in uninterruptible waits: {:?}",
            LIMIT.as_secs(),
            procfs::stuck()
        )),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Ok(result) => result,
            Err(panic) => Err(anyhow!("panic: {}", message(&*panic))),
        },
    };
    let left = cli::nothing_left(secs(10));
    if left.is_err() {
        clean_up();
    }
    result
        .and(left)
        .map_err(|error| Failed::from(format!("{error:#}")))
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}

/// Deletes every device, so that the next case finds an empty machine.
fn clean_up() {
    for path in crate::sysfs::present() {
        if let Some(id) = path.strip_prefix("/dev/ublkc") {
            // Nobody would read this failure; the next case will name what is still there.
            let _ = cli::ublkctl(&["delete", id]);
        }
    }
}

static MEASURED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes a measured value, to be printed when the cases are done.
pub fn measured(text: String) {
    let mut all = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
    all.push(text);
}

static CELLS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes what became of an operation on a backend in a mode: `ran`, `never` (it cannot be), `lacks` (the kernel has
/// no such mode). The runner compares it with what it expects.
pub fn cell(backend: &str, mode: &str, operation: &str, outcome: &str) {
    let mut all = CELLS.lock().unwrap_or_else(PoisonError::into_inner);
    all.push(format!("CELL {backend} {mode} {operation} {outcome}"));
}

/// Prints what was measured, and the cells.
pub fn print_measured() {
    let cells = CELLS.lock().unwrap_or_else(PoisonError::into_inner);
    for line in cells.iter() {
        println!("{line}");
    }
    let all = MEASURED.lock().unwrap_or_else(PoisonError::into_inner);
    for text in all.iter() {
        println!("measured: {text}");
    }
}
