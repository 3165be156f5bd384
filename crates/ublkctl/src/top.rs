//! `top`: a live view of all devices.
//!
//! One thread looks at the devices, so that keys are answered while an agent is not; this one draws. The terminal is
//! restored however the program ends: by a key, a signal, a panic, or because the terminal itself is gone.

mod draw;
mod heat;
mod model;
#[cfg(test)]
mod tests;

use crate::target::Target;
use model::{Action, Model};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::time::{Duration, Instant};
use ublk_core::DevId;
use ublk_daemon::failure::{Failure, FailureKind};
use ublk_daemon::front::{self, Measured};
use ublk_daemon::signals::Signals;

/// How long a key, a signal or a new look may wait.
const TURN: Duration = Duration::from_millis(50);

/// How long the drawing thread may take to end after a signal. It never ends by itself if the terminal hangs.
const END: Duration = Duration::from_secs(1);

type Look = Result<Vec<Measured>, Failure>;

/// Shows the devices until a key or a signal ends it.
///
/// # Errors
/// Standard input or output is no terminal; a named device that does not exist or is not ours.
pub fn top(devices: &[Target], interval: Duration, json: bool) -> Result<ExitCode, Failure> {
    let usage = |text: &str| {
        let hint = "for scripts and files: `ublkctl stats --interval 1`, with --json if wanted";
        Failure::new(FailureKind::Usage, text).hint(hint)
    };
    if json {
        return Err(usage("`top` draws on a terminal and has no JSON"));
    }
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(usage(
            "`top` needs a terminal for its standard input and output",
        ));
    }
    let ids = devices.iter().map(|it| it.resolve().map(|found| found.id));
    let ids: Vec<DevId> = ids.collect::<Result<_, _>>()?;
    front::measured(&ids, false)?;
    show(move || front::measured(&ids, true), interval)?;
    Ok(ExitCode::SUCCESS)
}

/// Draws what `look` finds, until the end.
fn show(look: impl FnMut() -> Look + Send + 'static, interval: Duration) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::failed(format!("cannot go on showing devices: {e}"));
    let signals = Signals::take_in_front()
        .map_err(|e| Failure::failed(format!("cannot handle signals: {e}")))?;
    let over = Arc::new(AtomicBool::new(false));
    let looks = looking(look, interval)?;
    let screen = Screen::take().map_err(failed)?;
    watching(signals, &over)?;
    let mut terminal = Terminal::new(CrosstermBackend::new(io::stdout())).map_err(failed)?;
    let done = drive(&mut terminal, &looks, interval, &over);
    drop(screen);
    match done {
        // The terminal is gone: nobody is left to be told.
        Err(_) if over.load(Ordering::Relaxed) => Ok(()),
        done => done.map_err(failed),
    }
}

/// A thread that looks at the devices once in each interval.
fn looking(
    mut look: impl FnMut() -> Look + Send + 'static,
    interval: Duration,
) -> Result<Receiver<Look>, Failure> {
    let (send, receive) = sync_channel(1);
    let work = move || {
        let mut next = Instant::now();
        while send.send(look()).is_ok() {
            next = (next + interval).max(Instant::now());
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    };
    start("look", work)?;
    Ok(receive)
}

/// A thread that ends the program after a signal or when the terminal is gone.
fn watching(signals: Signals, over: &Arc<AtomicBool>) -> Result<(), Failure> {
    let over = Arc::clone(over);
    let work = move || {
        while !signals.came() && io::stdin().is_terminal() {
            std::thread::sleep(TURN);
        }
        over.store(true, Ordering::Relaxed);
        std::thread::sleep(END);
        restore();
        std::process::exit(1);
    };
    start("signals", work)
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Failure> {
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work);
    let failed = |e| Failure::failed(format!("cannot start a thread: {e}"));
    thread.map(drop).map_err(failed)
}

fn drive(
    terminal: &mut Terminal<CrosstermBackend<io::Stdout>>,
    looks: &Receiver<Look>,
    interval: Duration,
    over: &AtomicBool,
) -> io::Result<()> {
    // https://no-color.org
    let colour = std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty());
    let mut model = Model::new(interval);
    let mut fresh = true;
    while !over.load(Ordering::Relaxed) {
        match looks.try_recv() {
            Ok(look) => {
                fresh = true;
                model.take(look);
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                return Err(io::Error::other(
                    "the thread that looks at the devices panicked",
                ));
            }
        }
        if fresh {
            terminal.draw(|frame| {
                draw::draw(&model, frame.area(), frame.buffer_mut(), colour);
            })?;
        }
        fresh = event::poll(TURN)?;
        if fresh {
            let action = match event::read()? {
                Event::Key(key) => action(key),
                _ => None,
            };
            if action.is_some_and(|it| !model.act(it)) {
                break;
            }
        }
    }
    Ok(())
}

fn action(key: KeyEvent) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    Some(match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Action::Quit,
        KeyCode::Char('q') => Action::Quit,
        KeyCode::Char('j') | KeyCode::Down => Action::Move(1),
        KeyCode::Char('k') | KeyCode::Up => Action::Move(-1),
        KeyCode::PageDown => Action::Move(10),
        KeyCode::PageUp => Action::Move(-10),
        KeyCode::Char('s') => Action::Sort,
        KeyCode::Char('r') => Action::Reverse,
        KeyCode::Char('p' | ' ') => Action::Pause,
        KeyCode::Enter => Action::Detail,
        KeyCode::Esc => Action::Back,
        KeyCode::Char('?' | 'h') => Action::Keys,
        _ => return None,
    })
}

/// The terminal in raw mode with the second screen. Its drop restores it; a panic does so before its message.
struct Screen;

impl Screen {
    fn take() -> io::Result<Self> {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            before(panic);
        }));
        enable_raw_mode()?;
        TAKEN.store(true, Ordering::Relaxed);
        let screen = Self;
        execute!(io::stdout(), EnterAlternateScreen)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Whether the terminal has to be restored. A second time would put the cursor back onto the message of a panic.
static TAKEN: AtomicBool = AtomicBool::new(false);

fn restore() {
    if !TAKEN.swap(false, Ordering::Relaxed) {
        return;
    }
    // There is nothing to do about a terminal that refuses.
    let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}
