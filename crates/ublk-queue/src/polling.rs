//! How long a queue polls its completion queue before it sleeps.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use ublk_core::Errno;

use crate::port::traits::PollPort;

/// What a queue does before it sleeps.
///
/// A sleep and the wake-up that ends it are two context switches, more than all the work of a request at queue depth 1.
/// A queue that polls answers sooner and burns the CPU meanwhile. That only pays if latency matters more than the CPU,
/// and if the queue does not take the CPU from its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
#[non_exhaustive]
pub enum Polling {
    /// Sleeps at once.
    #[default]
    Off,
    /// Polls for this long, then sleeps.
    Fixed(Duration),
    /// Polls for about as long as recent requests took to arrive, and at most for this long: a queue whose requests
    /// arrive later than that soon stops polling.
    Adaptive(Duration),
}

impl Polling {
    /// The default limit: about the cost of the two context switches that polling saves.
    pub const DEFAULT: Duration = Duration::from_micros(50);
}

impl fmt::Display for Polling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Fixed(most) => write!(f, "fixed:{}", most.as_micros()),
            Self::Adaptive(most) => write!(f, "adaptive:{}", most.as_micros()),
        }
    }
}

/// No polling is written so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown polling mode {0:?}; use off, fixed or adaptive, the latter two optionally with :MICROSECONDS (1 to 10000)"
)]
pub struct UnknownPolling(String);

impl FromStr for Polling {
    type Err = UnknownPolling;

    fn from_str(text: &str) -> Result<Self, UnknownPolling> {
        let unknown = || UnknownPolling(text.to_owned());
        let (name, most) = match text.split_once(':') {
            None => (text, Self::DEFAULT),
            Some((name, micros)) => {
                let micros = micros.parse().ok().filter(|us| (1..=10_000).contains(us));
                (name, Duration::from_micros(micros.ok_or_else(unknown)?))
            }
        };
        match name {
            "off" if text == name => Ok(Self::Off),
            "fixed" => Ok(Self::Fixed(most)),
            "adaptive" => Ok(Self::Adaptive(most)),
            _ => Err(unknown()),
        }
    }
}

#[cfg(feature = "serde")]
impl TryFrom<String> for Polling {
    type Error = UnknownPolling;

    fn try_from(text: String) -> Result<Self, UnknownPolling> {
        text.parse()
    }
}

#[cfg(feature = "serde")]
impl From<Polling> for String {
    fn from(polling: Polling) -> Self {
        polling.to_string()
    }
}

/// The polling time of one queue, adapted to its requests.
#[derive(Debug, Clone, Copy)]
pub struct Spin {
    most: Duration,
    now: Duration,
    adapts: bool,
    hits: u64,
    misses: u64,
}

/// Shorter polling is not worth its two clock reads.
const LEAST: Duration = Duration::from_micros(1);

impl Spin {
    /// `None` if polling is off.
    #[must_use]
    pub fn new(polling: Polling) -> Option<Self> {
        let (most, adapts) = match polling {
            Polling::Off => return None,
            Polling::Fixed(most) => (most, false),
            Polling::Adaptive(most) => (most, true),
        };
        Some(Self {
            most,
            now: most,
            adapts,
            hits: 0,
            misses: 0,
        })
    }

    /// Submits, polls for a while, then sleeps. Adapts the next polling time.
    ///
    /// # Errors
    /// As [`enter`](crate::port::traits::Port::enter).
    #[inline(never)]
    pub fn wait<P: PollPort>(
        mut self,
        port: &mut P,
        want: u32,
        timeout: Option<Duration>,
    ) -> Result<Self, Errno> {
        port.enter(0, None)?;
        let begun = Instant::now();
        let length = self.length();
        let found = loop {
            if port.has_work() {
                break true;
            }
            if begun.elapsed() >= length {
                break false;
            }
            std::hint::spin_loop();
        };
        if found {
            self.hits += 1;
            // The notice first, then the work it announces: a wake-up in between leaves another notice.
            port.take_notice();
            port.enter(0, None)?;
        } else {
            self.misses += 1;
            port.sleep(want, timeout)?;
        }
        self.waited(begun.elapsed());
        Ok(self)
    }

    /// Polls that found work, and those that ended in a sleep.
    pub(crate) const fn counts(&self) -> (u64, u64) {
        (self.hits, self.misses)
    }

    /// The present polling time.
    pub(crate) const fn length(&self) -> Duration {
        self.now
    }

    /// Adapts to a request that arrived after this time, whether it was spent polling or asleep.
    pub(crate) fn waited(&mut self, time: Duration) {
        if !self.adapts {
            return;
        }
        if time <= self.most {
            // Twice the time it took: the next request may be a little later.
            self.now = (time * 2).max(LEAST).min(self.most);
        } else {
            // Halved, so that several long pauses stop polling, but not a single one.
            self.now /= 2;
            if self.now < LEAST {
                self.now = Duration::ZERO;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Duration = Duration::from_micros(1);

    #[test]
    fn names_are_read_as_written() {
        for polling in [
            Polling::Off,
            Polling::Fixed(7 * US),
            Polling::Adaptive(100 * US),
        ] {
            assert_eq!(polling.to_string().parse(), Ok(polling));
        }
        assert_eq!("adaptive".parse(), Ok(Polling::Adaptive(Polling::DEFAULT)));
        for wrong in ["", "on", "off:3", "fixed:", "fixed:0", "adaptive:99999"] {
            assert!(wrong.parse::<Polling>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_fixed_spin_stays() {
        let mut spin = Spin::new(Polling::Fixed(50 * US)).expect("spins");
        spin.waited(Duration::from_secs(1));
        assert_eq!(spin.length(), 50 * US);
        assert!(Spin::new(Polling::Off).is_none());
    }

    /// L55 An idle queue stops polling.
    #[test]
    fn l55_long_pauses_end_an_adaptive_spin() {
        let mut spin = Spin::new(Polling::Adaptive(50 * US)).expect("spins");
        for _ in 0..8 {
            spin.waited(Duration::from_millis(1));
        }
        assert_eq!(spin.length(), Duration::ZERO);
    }

    /// A polling time below the minimum works.
    #[test]
    fn a_spin_below_a_microsecond_does_not_panic() {
        for nanos in [0, 1, 300, 999, 1000] {
            let most = Duration::from_nanos(nanos);
            let mut spin = Spin::new(Polling::Adaptive(most)).expect("spins");
            for time in [Duration::ZERO, most, US, most] {
                spin.waited(time);
                assert!(spin.length() <= most);
            }
        }
    }

    #[test]
    fn an_adaptive_spin_follows_the_requests() {
        let mut spin = Spin::new(Polling::Adaptive(50 * US)).expect("spins");
        spin.waited(5 * US);
        assert_eq!(spin.length(), 10 * US);
        spin.waited(Duration::from_millis(1));
        assert_eq!(spin.length(), 5 * US);
        spin.waited(40 * US);
        assert_eq!(spin.length(), 50 * US);
    }
}
