//! Deadlines that do not overflow.

use core::time::Duration;
use std::time::Instant;

/// The moment that lies `length` in the future; a length beyond the clock's range counts as a century.
#[must_use]
pub fn deadline_in(length: Duration) -> Instant {
    let now = Instant::now();
    let century = Duration::from_secs(100 * 365 * 86_400);
    now.checked_add(length).unwrap_or(now + century)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L13 The longest wait has a deadline, where the plain sum would panic.
    #[test]
    fn l13_the_longest_wait_has_a_deadline() {
        assert!(deadline_in(Duration::MAX) > Instant::now() + Duration::from_secs(1 << 30));
        assert!(deadline_in(Duration::ZERO) <= Instant::now());
    }
}
