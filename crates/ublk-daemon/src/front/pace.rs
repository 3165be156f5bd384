//! Pauses between consecutive starts of a service that keep failing.
//!
//! A service manager restarts a failed front at once. That is right after a crash, but wrong for a missing backend.
//! systemd can pace restarts from version 254 on (`RestartSteps=`); here the front itself waits, under any manager,
//! twice as long after each failure. A normal end, or two quiet minutes, resets the pause.
#![forbid(unsafe_code)]

use super::notify;
use crate::state::Store;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// The first and the longest pause.
const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// A start this long after the previous one is not a repetition. Longer than a start and its pause can take.
const QUIET: Duration = Duration::from_secs(120);

/// The recorded starts of a service, kept while its front runs.
#[derive(Debug)]
pub struct Pace {
    path: PathBuf,
}

impl Pace {
    /// Waits as long as the previous starts require, if a service manager started this process. A signal ends the
    /// process meanwhile: there is nothing to clean up yet.
    #[must_use]
    pub fn keep(name: &str) -> Option<Self> {
        std::env::var_os("INVOCATION_ID")?;
        let path = Store::of_user().ok()?.starts(name);
        let known = fs::read_to_string(&path).ok();
        let (starts, pause) = next(known.as_deref(), uptime()?);
        if !pause.is_zero() {
            tracing::warn!("{name}: start attempt {starts}, after a pause of {pause:?}");
            notify::waiting(pause, starts);
            std::thread::sleep(pause);
        }
        if let Err(e) = fs::write(&path, format!("{starts} {}", uptime()?.as_millis())) {
            tracing::debug!("{}: {e}", path.display());
        }
        Some(Self { path })
    }

    /// Forgets the starts: the service ended normally.
    pub fn forget(self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The number of this start in the series, and the pause before it.
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

/// Time since boot: wall clocks jump, and the run directory does not survive a reboot either.
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
            // It fails after a second and is restarted.
            now += Duration::from_secs(1);
        }
        assert_eq!(pauses[0], Duration::ZERO);
        assert_eq!(pauses[1..4], [FIRST, FIRST * 2, FIRST * 4]);
        assert_eq!(pauses[11], LONGEST);
        assert!(pauses.is_sorted());
        let quiet = next(known.as_deref(), now + QUIET);
        assert_eq!(quiet, (1, Duration::ZERO));
        // From an earlier boot, or not our record.
        assert_eq!(next(Some("3 9000000"), now), (1, Duration::ZERO));
        assert_eq!(next(Some("garbage"), now), (1, Duration::ZERO));
    }
}
