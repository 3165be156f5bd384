//! Limits how often one message is written: a fault that repeats must neither fill a disk nor hide other messages.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tracing::callsite::Identifier;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// How many times a place in the program may write at once.
const AT_ONCE: u32 = 50;

/// Time after which it may write once more.
const EACH: Duration = Duration::from_millis(200);

/// What one place in the program has written.
#[derive(Debug)]
struct Place {
    /// How many times it may write now.
    left: u32,
    /// When that number last grew.
    since: Instant,
    /// Messages that were suppressed since the last one.
    suppressed: u64,
}

impl Place {
    const fn new(now: Instant) -> Self {
        Self {
            left: AT_ONCE,
            since: now,
            suppressed: 0,
        }
    }

    /// Whether it may write now.
    fn may_write(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since);
        let more = u32::try_from(passed.as_millis() / EACH.as_millis()).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(AT_ONCE);
            self.since = now;
        }
        let left = self.left.checked_sub(1);
        match left {
            Some(left) => self.left = left,
            None => self.suppressed += 1,
        }
        left.is_some()
    }
}

/// The layer that suppresses messages, and says how many they were with the next one of their kind.
#[derive(Debug, Default)]
pub(super) struct Pace {
    places: Mutex<HashMap<Identifier, Place>>,
}

impl<S: Subscriber> Layer<S> for Pace {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let now = Instant::now();
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(event.metadata().callsite());
        place.or_insert_with(|| Place::new(now)).may_write(now)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.get_mut(&event.metadata().callsite());
        let suppressed = place.map_or(0, |place| std::mem::take(&mut place.suppressed));
        drop(places);
        if suppressed > 0 {
            tracing::warn!("{suppressed} messages like the next one were suppressed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place may write many times at once, then a few times per second; what it did not write is counted.
    #[test]
    fn a_place_that_repeats_itself_is_slowed_down() {
        let start = Instant::now();
        let mut place = Place::new(start);
        let written = (0..1000).filter(|_| place.may_write(start)).count();
        assert_eq!(written, AT_ONCE as usize);
        assert_eq!(place.suppressed, 1000 - u64::from(AT_ONCE));
        assert!(place.may_write(start + EACH));
        assert!(!place.may_write(start + EACH));
        let later = start + Duration::from_secs(3600);
        let written = (0..1000).filter(|_| place.may_write(later)).count();
        assert_eq!(written, AT_ONCE as usize, "not more after a long pause");
    }

    /// What was suppressed is told with the next message, and other messages are not affected.
    #[test]
    fn suppressed_messages_are_told() {
        use tracing_subscriber::layer::SubscriberExt;
        let lines = Lines::default();
        let seen = lines.0.clone();
        let text = tracing_subscriber::fmt::layer().with_writer(move || Lines(lines.0.clone()));
        let all = tracing_subscriber::registry()
            .with(Pace::default())
            .with(text.without_time().with_ansi(false));
        tracing::subscriber::with_default(all, || {
            let storm = || tracing::error!("a storm");
            (0..200).for_each(|_| storm());
            tracing::error!("another message");
            std::thread::sleep(EACH * 2);
            storm();
        });
        let text = String::from_utf8(seen.lock().unwrap().clone()).unwrap();
        assert_eq!(
            text.matches("a storm").count(),
            AT_ONCE as usize + 1,
            "{text}"
        );
        assert_eq!(text.matches("another message").count(), 1);
    }

    #[derive(Default)]
    struct Lines(std::sync::Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
