//! The only wait function of the cases, for states without a kernel event.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Polls `ready` until it returns a value, first after 100 µs, then at doubling intervals up to 5 ms; an error after
/// `limit`. `what` names the condition.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(100);
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if start.elapsed() >= limit {
            bail!("{what}: not within {:.1} s", limit.as_secs_f64());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(5));
    }
}

/// Seconds, for the many limits.
pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_and_gives_up() {
        let mut asked = 0;
        let found = until("three", secs(20), || {
            asked += 1;
            Ok((asked == 3).then_some(asked))
        });
        assert_eq!(found.expect("the third time"), 3);
        let never = until::<()>("never", Duration::from_millis(2), || Ok(None));
        assert!(never.is_err_and(|e| e.to_string().contains("never: not within")));
        let error = until::<()>("x", secs(20), || bail!("broken"));
        assert!(error.is_err_and(|e| e.to_string() == "broken"));
    }
}
