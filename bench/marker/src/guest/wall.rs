//! Measures a wall-clock row: fio's rate and latency, and the CPU time it took.

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::fio;
use crate::plan::Row;

/// Runs fio for the row's seconds; `server` is the serving process, if there is one.
///
/// # Errors
/// fio fails, or CPU times cannot be read.
pub fn measure(row: &Row, device: &str, server: Option<u64>) -> Result<Value> {
    let before = (Busy::read()?, server.map(run_time).transpose()?);
    let mut result = fio::timed(&row.fio, device, row.seconds)?;
    let after = (Busy::read()?, server.map(run_time).transpose()?);
    // These times include fio's half second of ramp-up, its start and its end. The I/Os of the ramp-up are accounted
    // for by the rate, the start is not.
    result["busy_ticks"] = json!(after.0.0 - before.0.0);
    result["all_ticks"] = json!(after.0.1 - before.0.1);
    if let (Some(before), Some(after)) = (before.1, after.1) {
        result["server_ns"] = json!(after.saturating_sub(before));
    }
    Ok(result)
}

/// Ticks of all processors: busy ones, and all.
struct Busy(u64, u64);

impl Busy {
    fn read() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        busy(&text).context("the first line of /proc/stat")
    }
}

/// Parses `cpu user nice system idle iowait irq softirq steal …`.
fn busy(text: &str) -> Option<Busy> {
    let words = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = words
        .split_whitespace()
        .take(8)
        .map(|word| word.parse().ok())
        .collect::<Option<_>>()?;
    let all: u64 = ticks.iter().sum();
    Some(Busy(all - ticks.get(3)? - ticks.get(4)?, all))
}

/// Run time of all threads of a process in nanoseconds.
fn run_time(pid: u64) -> Result<u64> {
    let directory = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in fs::read_dir(&directory).with_context(|| directory.clone())? {
        let path = task?.path().join("schedstat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let first = text.split_whitespace().next().context("schedstat")?;
        sum += first.parse::<u64>().context("schedstat")?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::{Busy, busy};

    #[test]
    fn idle_and_waiting_are_not_busy() {
        let Some(Busy(some, all)) = busy("cpu  10 0 5 100 7 1 2 0 0 0\ncpu0 1 1\n") else {
            panic!("no ticks");
        };
        assert_eq!((some, all), (18, 125));
        assert!(busy("intr 5").is_none());
    }
}
