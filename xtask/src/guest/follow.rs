//! Follows a guest to its end: from bytes of console and channel to a verdict.

use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::Verdict;
use super::lines::{Splitter, fault, verdict};

/// How long the kernel may keep printing after a fault before the guest is killed.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long a guest may take to power off after its verdict.
const POWER_OFF: Duration = Duration::from_secs(30);

/// An event of a guest.
pub enum Event {
    /// Bytes of the console.
    Console(Vec<u8>),
    /// QEMU has closed the console.
    ConsoleEnd,
    /// Bytes of the result channel.
    Channel(Vec<u8>),
    /// QEMU has closed the channel, or never opened it.
    ChannelEnd,
}

/// The state of a guest so far.
#[derive(Debug)]
pub struct Follow<'a> {
    nonce: &'a str,
    harmless: &'a [String],
    deadline: Duration,
    end: Instant,
    fault: Option<String>,
    verdicts: Vec<Verdict>,
    timed_out: bool,
    lines: Vec<String>,
}

impl<'a> Follow<'a> {
    /// Starts the clock.
    pub fn new(nonce: &'a str, harmless: &'a [String], deadline: Duration) -> Self {
        Self {
            nonce,
            harmless,
            deadline,
            end: Instant::now() + deadline,
            fault: None,
            verdicts: Vec::new(),
            timed_out: false,
            lines: Vec::new(),
        }
    }

    /// Handles events until both streams have ended or the deadline passes; writes the bytes to `logs` (console,
    /// channel).
    ///
    /// # Errors
    /// A log cannot be written.
    pub fn until_end(
        &mut self,
        events: &Receiver<Event>,
        logs: &mut (impl Write, impl Write),
        each: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let (mut console, mut channel) = (Splitter::default(), Splitter::default());
        let mut open = 2;
        while open > 0 {
            let left = self.end.saturating_duration_since(Instant::now());
            match events.recv_timeout(left) {
                Ok(Event::Console(bytes)) => {
                    logs.0.write_all(&bytes)?;
                    console
                        .push(&bytes)
                        .iter()
                        .for_each(|line| self.console(line));
                }
                Ok(Event::Channel(bytes)) => {
                    logs.1.write_all(&bytes)?;
                    for line in channel.push(&bytes) {
                        self.channel(line, each);
                    }
                }
                Ok(Event::ConsoleEnd | Event::ChannelEnd) => open -= 1,
                Err(RecvTimeoutError::Timeout) => {
                    self.timed_out = true;
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if let Some(line) = console.finish() {
            self.console(&line);
        }
        if let Some(line) = channel.finish() {
            self.channel(line, each);
        }
        Ok(())
    }

    fn console(&mut self, line: &str) {
        if self.fault.is_none()
            && let Some(fault) = fault(line, self.harmless)
        {
            self.fault = Some(fault);
            self.end = self.end.min(Instant::now() + LAST_WORDS);
        }
    }

    fn channel(&mut self, line: String, each: &mut dyn FnMut(&str)) {
        if let Some(verdict) = verdict(&line, self.nonce) {
            self.verdicts.push(verdict);
            self.end = self.end.min(Instant::now() + POWER_OFF);
        } else {
            each(&line);
            self.lines.push(line);
        }
    }

    /// The verdict, and the channel's lines. A kernel fault takes precedence over the program's own status.
    pub fn conclude(self) -> (Verdict, Vec<String>) {
        let verdict = match (self.fault, self.verdicts.as_slice()) {
            (Some(fault), _) => Verdict::KernelFault(fault),
            (None, []) if self.timed_out => Verdict::TimedOut(self.deadline),
            (None, []) => Verdict::Missing,
            (None, [one]) => one.clone(),
            (None, _) => Verdict::Several,
        };
        (verdict, self.lines)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::{Event, Follow};
    use crate::guest::Verdict;

    fn of(events: Vec<Event>) -> (Verdict, Vec<String>) {
        let (sender, receiver) = mpsc::channel();
        for event in events {
            sender.send(event).unwrap();
        }
        drop(sender);
        let mut follow = Follow::new("n", &[], Duration::from_secs(60));
        let mut logs = (Vec::new(), Vec::new());
        follow.until_end(&receiver, &mut logs, &mut |_| ()).unwrap();
        follow.conclude()
    }

    fn console(text: &str) -> Event {
        Event::Console(text.as_bytes().to_vec())
    }

    fn channel(text: &str) -> Event {
        Event::Channel(text.as_bytes().to_vec())
    }

    #[test]
    fn a_verdict_and_the_lines_before_it() {
        let (verdict, lines) = of(vec![
            console("[ 1.0] hello\n"),
            channel("one\ntw"),
            channel("o\n\n@verdict n exit 0\n"),
            Event::ChannelEnd,
            Event::ConsoleEnd,
        ]);
        assert_eq!(verdict, Verdict::Exit(0));
        assert!(verdict.is_good());
        assert_eq!(lines, ["one", "two", ""]);
    }

    /// L90 A successful exit does not hide a kernel fault, before or after it.
    #[test]
    fn l90_a_fault_outweighs_a_good_exit() {
        let warning = || console("[ 1.0] WARNING: CPU: 0 PID: 1 at a.c:1 f\n");
        let exit = || channel("@verdict n exit 0\n");
        for events in [vec![warning(), exit()], vec![exit(), warning()]] {
            let (verdict, _) = of(events);
            assert!(matches!(verdict, Verdict::KernelFault(_)), "{verdict}");
        }
        let (cut, _) = of(vec![exit(), console("[ 1.0] Kernel panic - not syncing")]);
        assert!(
            matches!(cut, Verdict::KernelFault(_)),
            "a last line without an end: {cut}"
        );
    }

    #[test]
    fn the_verdict_is_one_and_of_this_run() {
        assert_eq!(of(vec![channel("@verdict m exit 0\n")]).0, Verdict::Missing);
        let twice = of(vec![channel("@verdict n exit 0\n@verdict n exit 0\n")]);
        assert_eq!(twice.0, Verdict::Several);
        assert_eq!(
            of(vec![channel("@verdict n exit 101\n")]).0,
            Verdict::Exit(101)
        );
    }
}
