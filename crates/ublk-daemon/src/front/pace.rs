//! Pauses between starts of a service that fail one after another.
//!
//! A service manager starts a front that failed again at once, which is right after a crash and wrong for a backend
//! that is not there. systemd paces by itself from 254 on (`RestartSteps=`); here it is the front that waits, whatever
//! the manager: from failure to failure twice as long. A good end, or two quiet minutes, and the next start is the first.
#![forbid(unsafe_code)]

use super::notify;
use crate::state::Store;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// The pause before the second of two starts in a row, and the longest.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// A start that comes so long after the one before is no repetition of it. Longer than a start may take and pause.
const QUIET: Duration = Duration::from_secs(120);

/// What the starts of a service were so far, for as long as its front runs.
#[derive(Debug)]
pub struct Pace {
    path: PathBuf,
}

impl Pace {
    /// Waits as long as the starts before this one demand: only where a service manager has started this process. A
    /// signal ends the process meanwhile, as it does any that has nothing to clean up.
    #[must_use]
    pub fn keep(name: &str) -> Option<Self> {
        std::env::var_os("INVOCATION_ID")?;
        let path = Store::of_user().ok()?.starts(name);
        let known = fs::read_to_string(&path).ok();
        let (starts, pause) = next(known.as_deref(), uptime()?);
        if !pause.is_zero() {
            tracing::warn!("{name}: start attempt {starts} in a row, after a pause of {pause:?}");
            notify::waiting(pause, starts);
            std::thread::sleep(pause);
        }
        if let Err(e) = fs::write(&path, format!("{starts} {}", uptime()?.as_millis())) {
            tracing::debug!("{}: {e}", path.display());
        }
        Some(Self { path })
    }

    /// The service ended as it should.
    pub fn forget(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The number of this start in its row, and the pause before it.
fn next(known: Option<&str>, now: Duration) -> (u32, Duration) {
    let parse = |text: &str| -> Option<(u32, Duration)> {
        let (starts, at) = text.split_once(' ')?;
        let at = Duration::from_millis(at.trim().parse().ok()?);
        Some((starts.parse().ok()?, at))
    };
    let Some((starts, at)) = known.and_then(parse) else {
        return (1, Duration::ZERO);
    };
    let since = now.saturating_sub(at);
    if since >= QUIET || at > now {
        return (1, Duration::ZERO);
    }
    let doubled = FIRST.saturating_mul(1 << starts.saturating_sub(1).min(16));
    (starts.saturating_add(1), doubled.min(LONGEST))
}

/// Since boot: clocks of the day jump, and the run directory is as young as the machine's run.
fn uptime() -> Option<Duration> {
    let text = fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = text.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_forgotten() {
        let mut now = Duration::from_secs(1000);
        let mut known: Option<String> = None;
        let mut pauses = Vec::new();
        for start in 1..=12 {
            let (starts, pause) = next(known.as_deref(), now);
            assert_eq!(starts, start);
            now += pause;
            known = Some(format!("{starts} {}", now.as_millis()));
            pauses.push(pause);
            // It fails after a second, and is started again.
            now += Duration::from_secs(1);
        }
        assert_eq!(pauses[0], Duration::ZERO);
        assert_eq!(pauses[1..4], [FIRST, FIRST * 2, FIRST * 4]);
        assert_eq!(pauses[11], LONGEST);
        assert!(pauses.is_sorted());
        let quiet = next(known.as_deref(), now + QUIET);
        assert_eq!(quiet, (1, Duration::ZERO));
        // Of an earlier boot, or none of ours.
        assert_eq!(next(Some("3 9000000"), now), (1, Duration::ZERO));
        assert_eq!(next(Some("garbage"), now), (1, Duration::ZERO));
    }
}
