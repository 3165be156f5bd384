//! Sets up the messages of a process, and changes their level while it runs.

use super::journal::{self, Journal};
use super::pace::Pace;
use super::stderr::Stderr;
use std::io::{self, Write};
use std::sync::OnceLock;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, reload};

type SetLevel = Box<dyn Fn(LevelFilter) -> bool + Send + Sync>;

/// Changes the level, once the messages are set up.
static SET_LEVEL: OnceLock<SetLevel> = OnceLock::new();

/// Standard error, unless the journal gets the messages.
#[derive(Debug)]
struct Text;

impl Write for Text {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match journal::is_active() {
            true => Ok(buf.len()),
            false => Stderr.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Sets up the messages of this process: on standard error, which a role moves to its device's log, or in the journal.
/// `role`: messages have times, as log files need them, and ones that repeat too often are suppressed. Does nothing if
/// that was done before.
pub fn start(level: LevelFilter, role: bool) {
    let (filter, handle) = reload::Layer::new(level);
    let set: SetLevel = Box::new(move |level| handle.reload(level).is_ok());
    let text = tracing_subscriber::fmt::layer()
        .with_writer(|| Text)
        .with_target(false)
        .with_ansi(false);
    let text = match role {
        true => text.boxed(),
        // A terminal needs no times.
        false => text.without_time().boxed(),
    };
    let done = tracing_subscriber::registry()
        .with(filter)
        .with(role.then(Pace::default))
        .with(role.then_some(Journal))
        .with(text)
        .try_init();
    if done.is_ok() {
        let _ = SET_LEVEL.set(set);
    }
}

/// Changes the level of this process's messages. False in a program that set up its messages itself.
pub(crate) fn set_level(level: LevelFilter) -> bool {
    let done = SET_LEVEL.get().is_some_and(|set| set(level));
    if done {
        tracing::info!("messages from level {level} on are logged");
    }
    done
}
