//! Polls for conditions that the kernel has no event for.
#![forbid(unsafe_code)]

use core::time::Duration;
use std::time::Instant;

pub use ublk_core::deadline_in;

/// First pause between two checks.
const FIRST: Duration = Duration::from_micros(100);
/// Longest pause between two checks.
const LONGEST: Duration = Duration::from_millis(5);

/// Calls `look` until it finds something, with pauses from 100 µs doubling to 5 ms, and once more at the deadline.
/// `None` if the deadline passed.
///
/// Only for conditions without a kernel event: a node that udev creates, a file that another process closes.
///
/// # Errors
/// The first error of `look`.
pub fn until<T, E>(
    deadline: Instant,
    mut look: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    let mut pause = FIRST;
    loop {
        let found = look()?;
        let left = deadline.saturating_duration_since(Instant::now());
        if found.is_some() || left.is_zero() {
            return Ok(found);
        }
        std::thread::sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L21 No fixed sleeps: an immediate result costs nothing, a later one is noticed soon.
    #[test]
    fn l21_waits_no_longer_than_needed() {
        let begun = Instant::now();
        let found = until(deadline_in(Duration::MAX), || Ok::<_, ()>(Some(1)));
        assert_eq!(found, Ok(Some(1)));
        assert!(begun.elapsed() < Duration::from_millis(250));
        let mut looks = 0;
        let found = until(deadline_in(Duration::from_secs(60)), || {
            looks += 1;
            Ok::<_, ()>((looks == 4).then_some(looks))
        });
        // 100 + 200 + 400 µs of pauses.
        assert_eq!(found, Ok(Some(4)));
        assert!(begun.elapsed() < Duration::from_millis(900));
    }

    #[test]
    fn ends_at_the_deadline_and_at_an_error() {
        let mut looks = 0;
        let found = until(deadline_in(Duration::from_millis(100)), || {
            looks += 1;
            Ok::<Option<()>, ()>(None)
        });
        assert_eq!(found, Ok(None));
        assert!((2..40).contains(&looks), "{looks}");
        let found = until(deadline_in(Duration::MAX), || Err::<Option<()>, _>("no"));
        assert_eq!(found, Err("no"));
        let past = until(Instant::now(), || Ok::<_, ()>(Some(2)));
        assert_eq!(past, Ok(Some(2)), "one look even past the deadline");
    }
}
