//! A program on a pseudo-terminal, with an emulator that has its screen.
#![allow(dead_code, reason = "each test uses a part of it")]

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a screen or an end is waited for.
const LIMIT: Duration = Duration::from_secs(30);

/// The program and its terminal.
pub struct Session {
    child: Child,
    keyboard: Option<File>,
    line: File,
    emulator: Arc<Mutex<vt100::Parser>>,
    raw: Arc<Mutex<Vec<u8>>>,
}

fn cells(n: u16) -> NonZero<u16> {
    NonZero::new(n).unwrap()
}

const fn size(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

/// A command that runs on a new terminal of this size; `None`, with a word about it, where `setsid` is missing.
pub fn start(
    program: &str,
    columns: u16,
    rows: u16,
    set: impl Fn(&mut Command),
) -> Option<Session> {
    let controller =
        openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new())
        .unwrap()
        .into_string()
        .unwrap();
    // Not the controlling terminal of this process: `setsid` makes it that of the child.
    let line = rustix::fs::open(
        &*name,
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    let line = File::from(line.unwrap());
    tcsetwinsize(&line, size(columns, rows)).unwrap();
    let end = || Stdio::from(line.try_clone().unwrap());
    let mut command = Command::new("setsid");
    command.arg("--ctty").arg(program);
    command.env("TERM", "xterm").env("RUST_BACKTRACE", "0");
    command.env_remove("NO_COLOR");
    command.stdin(end()).stdout(end()).stderr(end());
    set(&mut command);
    let child = match command.spawn() {
        Ok(child) => child,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("skipped: no setsid on this host");
            return None;
        }
        Err(e) => panic!("{e}"),
    };
    drop(command);
    let emulator = Arc::new(Mutex::new(vt100::Parser::new(
        cells(rows),
        cells(columns),
        0,
    )));
    let raw = Arc::new(Mutex::new(Vec::new()));
    let keyboard = File::from(controller);
    let (mut output, to, all) = (
        keyboard.try_clone().unwrap(),
        Arc::clone(&emulator),
        Arc::clone(&raw),
    );
    // Two descriptors of one file: the reader's is closed when the test closes the terminal.
    let reader = move || {
        let mut buffer = [0; 4096];
        while let Ok(n) = output.read(&mut buffer) {
            if n == 0 || buffer[..n].contains(&0) {
                break;
            }
            to.lock().unwrap().process(&buffer[..n]);
            all.lock().unwrap().extend_from_slice(&buffer[..n]);
        }
    };
    std::thread::spawn(reader);
    Some(Session {
        child,
        keyboard: Some(keyboard),
        line,
        emulator,
        raw,
    })
}

impl Session {
    /// The text of the screen.
    pub fn screen(&self) -> String {
        self.emulator.lock().unwrap().screen().contents()
    }

    /// Waits until the screen has this text.
    pub fn until(&self, text: &str) -> String {
        let begun = Instant::now();
        loop {
            let screen = self.screen();
            if screen.contains(text) {
                return screen;
            }
            assert!(begun.elapsed() < LIMIT, "no {text:?} on\n{screen}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Presses keys.
    pub fn press(&mut self, keys: &str) {
        self.keyboard
            .as_mut()
            .unwrap()
            .write_all(keys.as_bytes())
            .unwrap();
    }

    /// Changes the size of the terminal.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.emulator
            .lock()
            .unwrap()
            .screen_mut()
            .set_size(cells(rows), cells(columns));
        tcsetwinsize(&self.line, size(columns, rows)).unwrap();
    }

    /// Sends a signal by its name.
    pub fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let mut kill = Command::new("sh");
        kill.args(["-c", "kill -s \"$1\" \"$2\"", "sh", signal, &id]);
        assert!(kill.status().unwrap().success());
    }

    /// Everything that was written to the terminal.
    pub fn written(&self) -> String {
        String::from_utf8_lossy(&self.raw.lock().unwrap()).into_owned()
    }

    /// Waits for the end of the program.
    pub fn end(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if begun.elapsed() > LIMIT {
                self.child.kill().unwrap();
                panic!("it does not end:\n{}", self.screen());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The terminal is as it was: its first screen, a cursor, lines and echo.
    pub fn is_restored(&self) {
        let begun = Instant::now();
        while self.emulator.lock().unwrap().screen().alternate_screen() {
            assert!(begun.elapsed() < LIMIT, "the second screen is left on");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!self.emulator.lock().unwrap().screen().hide_cursor());
        let modes = tcgetattr(&self.line).unwrap().local_modes;
        assert!(
            modes.contains(LocalModes::ICANON | LocalModes::ECHO),
            "{modes:?}"
        );
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Without effect on a program that was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
