//! fio's iolog: version 2 (waits between requests) and version 3 (a time for each), as `fio --write_iolog` writes it and
//! `fio --read_iolog` replays it.

use crate::error::Error;
use crate::lines::Lines;
use crate::record::{Op, Record};
use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};

/// How every version begins.
pub(crate) const PREFIX: &str = "fio version ";

/// The most files of a log whose names are kept.
const MAX_FILES: usize = 1024;

/// Nanoseconds of a time in the log, which is in microseconds.
const UNIT: u64 = 1000;

/// Reads a log.
#[derive(Debug)]
pub struct Iolog<R: BufRead> {
    lines: Lines<R>,
    timestamps: bool,
    /// The sum of the waits of version 2.
    now: u64,
    files: BTreeSet<String>,
}

impl<R: BufRead> Iolog<R> {
    /// Reads the first line.
    ///
    /// # Errors
    /// [`Error::UnknownFormat`], [`Error::Version`] for version 1, which fio does not read either.
    pub fn new(input: R) -> Result<Self, Error> {
        let mut lines = Lines::new(input);
        let first = lines.next_line()?.unwrap_or_default();
        let version = first.strip_prefix(PREFIX).ok_or(Error::UnknownFormat)?;
        let version = version.strip_suffix(" iolog").unwrap_or(version).trim();
        let timestamps = match version.parse() {
            Ok(2) => false,
            Ok(3) => true,
            other => {
                return Err(Error::Version {
                    format: "fio iolog",
                    version: other.unwrap_or(0),
                    supported: "2 and 3",
                });
            }
        };
        Ok(Self {
            lines,
            timestamps,
            now: 0,
            files: BTreeSet::new(),
        })
    }

    /// Number of files with requests; all of them are read as one.
    #[must_use]
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// The next request.
    ///
    /// # Errors
    /// [`Error::Line`] for a line that makes no sense; those of the input.
    pub fn next_record(&mut self) -> Result<Option<Record>, Error> {
        loop {
            let Some(line) = self.lines.next_line()? else {
                return Ok(None);
            };
            let parsed = parse(line, self.timestamps, &mut self.now);
            let parsed = parsed.map(|p| p.map(|(file, record)| (file.to_owned(), record)));
            match parsed {
                Ok(None) => {}
                Ok(Some((file, record))) => {
                    if self.files.len() < MAX_FILES {
                        self.files.insert(file);
                    }
                    return Ok(Some(record));
                }
                Err(what) => return Err(self.lines.error(what)),
            }
        }
    }
}

/// A line: a request and its file, or nothing.
fn parse<'a>(
    line: &'a str,
    timestamps: bool,
    now: &mut u64,
) -> Result<Option<(&'a str, Record)>, String> {
    let mut words = line.split_whitespace();
    let mut next = |what: &str| words.next().ok_or(format!("{what} is missing"));
    if line.trim().is_empty() {
        return Ok(None);
    }
    let number = |word: &str| {
        let parsed = word.parse::<u64>();
        parsed.map_err(|_| format!("`{word}` is not a number"))
    };
    let in_range = |time: u64| time.checked_mul(UNIT).ok_or("a time is too large");
    let time = match timestamps {
        true => in_range(number(next("the time")?)?)?,
        false => *now,
    };
    let file = next("the file")?;
    let action = next("the action")?;
    let op = match action {
        "add" | "open" | "close" => return Ok(None),
        "wait" if timestamps => return Err("version 3 has no `wait`".to_owned()),
        "wait" => {
            let wait = in_range(number(next("the time to wait")?)?)?;
            *now = now.saturating_add(wait);
            return Ok(None);
        }
        "read" => Op::Read,
        "write" => Op::Write,
        "sync" | "datasync" => Op::Flush,
        "trim" => Op::Discard,
        other => return Err(format!("unknown action `{}`", short(other))),
    };
    let (offset, len) = match op {
        // Their range means nothing, and old logs have none.
        Op::Flush => (0, 0),
        _ => (number(next("the offset")?)?, number(next("the length")?)?),
    };
    let record = Record {
        time,
        op,
        offset,
        len,
        queue: 0,
        latency: None,
        error: None,
    };
    match record.is_sound() {
        true => Ok(Some((file, record))),
        false => Err("a number is beyond the limits of a trace".to_owned()),
    }
}

/// The begin of a word, for a message.
fn short(word: &str) -> &str {
    word.char_indices()
        .nth(20)
        .map_or(word, |(at, _)| word.get(..at).unwrap_or(word))
}

/// Writes a log of version 3 for one file. Give it the records in the order of their times.
#[derive(Debug)]
pub struct IologWriter<W: Write> {
    out: W,
    file: String,
    last: u64,
    skipped: u64,
}

impl<W: Write> IologWriter<W> {
    /// Begins a log of requests to `file`: the path that fio opens, unless it is told another with `--replay_redirect`.
    ///
    /// # Errors
    /// [`Error::Limits`] for a path that the format cannot express: empty, or with blanks. Those of the output.
    pub fn new(mut out: W, file: &str) -> Result<Self, Error> {
        if file.is_empty() || file.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Error::Limits(format!(
                "`{}` cannot be written to an iolog: the path may have no blanks",
                file.escape_debug()
            )));
        }
        write!(out, "fio version 3 iolog\n0 {file} add\n0 {file} open\n")?;
        Ok(Self {
            out,
            file: file.to_owned(),
            last: 0,
            skipped: 0,
        })
    }

    /// Adds a request. What fio has no action for is skipped.
    ///
    /// # Errors
    /// Those of the output.
    pub fn push(&mut self, record: &Record) -> io::Result<()> {
        let action = match record.op {
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "sync",
            Op::Discard => "trim",
            _ => {
                self.skipped += 1;
                return Ok(());
            }
        };
        // fio takes a time that goes back for one far ahead.
        self.last = self.last.max(record.time / UNIT);
        let (last, file) = (self.last, &self.file);
        let (offset, len) = (record.offset, record.len);
        writeln!(self.out, "{last} {file} {action} {offset} {len}")
    }

    /// Number of requests that were skipped.
    #[must_use]
    pub const fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Ends the log.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<W> {
        writeln!(self.out, "{} {} close", self.last, self.file)?;
        self.out.flush()?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Record>, Error> {
        let mut log = Iolog::new(text.as_bytes())?;
        let mut records = Vec::new();
        while let Some(record) = log.next_record()? {
            records.push(record);
        }
        Ok(records)
    }

    fn shape(records: &[Record]) -> Vec<(u64, Op, u64, u64)> {
        let shape = |r: &Record| (r.time, r.op, r.offset, r.len);
        records.iter().map(shape).collect()
    }

    #[test]
    fn version_2_waits_add_up() {
        let text = "fio version 2 iolog\n/dev/a add\n/dev/a open\n/dev/a read 0 4096\n/dev/a wait 150 0\n\
                    /dev/a write 8192 512\n/dev/a wait 100 0\n/dev/a datasync 0 0\n/dev/a close\n";
        let wanted = [
            (0, Op::Read, 0, 4096),
            (150_000, Op::Write, 8192, 512),
            (250_000, Op::Flush, 0, 0),
        ];
        assert_eq!(shape(&read(text).unwrap()), wanted);
    }

    #[test]
    fn version_3_has_times() {
        let text =
            "fio version 3 iolog\r\n0 f add\r\n1 f open\r\n2 f trim 4096 8192\r\n9 f sync\r\n";
        let wanted = [(2000, Op::Discard, 4096, 8192), (9000, Op::Flush, 0, 0)];
        assert_eq!(shape(&read(text).unwrap()), wanted);
    }

    #[test]
    fn what_is_written_is_read() {
        let record = |time, op, offset, len| Record {
            time,
            op,
            offset,
            len,
            queue: 0,
            latency: Some(7),
            error: None,
        };
        let mut writer = IologWriter::new(Vec::new(), "/dev/x").unwrap();
        for (time, op) in [
            (5_000, Op::Read),
            (4_000, Op::Write),
            (9_999, Op::WriteZeroes),
            (12_345, Op::Discard),
            (13_000, Op::Flush),
        ] {
            writer.push(&record(time, op, 4096, 512)).unwrap();
        }
        assert_eq!(writer.skipped(), 1);
        let text = String::from_utf8(writer.finish().unwrap()).unwrap();
        let wanted = [
            (5_000, Op::Read, 4096, 512),
            (5_000, Op::Write, 4096, 512),
            (12_000, Op::Discard, 4096, 512),
            (13_000, Op::Flush, 0, 0),
        ];
        assert_eq!(shape(&read(&text).unwrap()), wanted);
        assert!(IologWriter::new(Vec::new(), "/my disk").is_err());
    }

    #[test]
    fn bad_lines_are_named() {
        let told = |body: &str| {
            read(&format!("fio version 3 iolog\n0 f add\n{body}"))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(told("1 f read 4096"), "line 3: the length is missing");
        assert_eq!(told("1 f read x 1"), "line 3: `x` is not a number");
        assert!(told("1 f wait 5").contains("version 3 has no"));
        assert!(told("1 f frobnicate").contains("unknown action `frobnicate`"));
        assert!(told("1 f read 18446744073709551615 1").contains("limits"));
        assert!(told("18446744073709551615 f sync").contains("too large"));
        assert!(told(&"x".repeat(10_000)).contains("too long"));
        let old = read("fio version 1 iolog\n").unwrap_err();
        assert!(matches!(old, Error::Version { version: 1, .. }), "{old}");
    }
}
