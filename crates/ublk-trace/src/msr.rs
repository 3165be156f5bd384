//! The CSV of the MSR Cambridge traces, as SNIA hands them out: `Timestamp,Hostname,DiskNumber,Type,Offset,Size,
//! ResponseTime`, times in units of 100 ns, the first since 1601.

use crate::error::Error;
use crate::lines::Lines;
use crate::record::{Op, Record};
use std::io::BufRead;

/// Nanoseconds of a unit of time.
const UNIT: u64 = 100;

/// From 1601 to 1970, in units.
const EPOCH: u64 = 116_444_736_000_000_000;

/// Reads a CSV file.
#[derive(Debug)]
pub struct Msr<R: BufRead> {
    lines: Lines<R>,
    /// The time of the first request, in units.
    began: Option<u64>,
    header_may_come: bool,
    /// Requests that began before the first one of the file.
    early: u64,
}

impl<R: BufRead> Msr<R> {
    /// Reads nothing yet: the first line may be a request.
    pub fn new(input: R) -> Self {
        Self {
            lines: Lines::new(input),
            began: None,
            header_may_come: true,
            early: 0,
        }
    }

    /// When the first request began: nanoseconds since 1970, 0 before one was read.
    #[must_use]
    pub fn began(&self) -> u64 {
        let units = self.began.unwrap_or(0).saturating_sub(EPOCH);
        units.saturating_mul(UNIT)
    }

    /// Number of requests that began before the first one of the file: they are read as if they began with it.
    #[must_use]
    pub const fn early(&self) -> u64 {
        self.early
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
            let header = std::mem::replace(&mut self.header_may_come, false) && is_header(line);
            if header || line.trim().is_empty() {
                continue;
            }
            match parse(line, self.began) {
                Ok((began, early, record)) => {
                    self.began = Some(began);
                    self.early += u64::from(early);
                    return Ok(Some(record));
                }
                Err(what) => return Err(self.lines.error(what)),
            }
        }
    }
}

/// Whether a file that begins with this line is one of these.
pub(crate) fn is_one(line: &str) -> bool {
    is_header(line) || parse(line, None).is_ok()
}

fn is_header(line: &str) -> bool {
    let mut columns = line.split(',').map(str::trim);
    columns
        .next()
        .is_some_and(|c| c.eq_ignore_ascii_case("timestamp"))
        && columns.count() >= 6
}

/// A line: when the trace began, whether the request began before that, and the request.
fn parse(line: &str, began: Option<u64>) -> Result<(u64, bool, Record), String> {
    let mut columns = line.split(',').map(str::trim);
    let mut next = |what: &str| columns.next().ok_or(format!("the {what} is missing"));
    let number = |word: &str, what: &str| {
        let parsed = word.parse::<u64>();
        parsed.map_err(|_| format!("the {what} is not a number"))
    };
    let time = number(next("time")?, "time")?;
    let (_host, _disk) = (next("host")?, next("disk")?);
    let op = next("type")?;
    let op = if op.eq_ignore_ascii_case("read") {
        Op::Read
    } else if op.eq_ignore_ascii_case("write") {
        Op::Write
    } else {
        return Err("the type is neither Read nor Write".to_owned());
    };
    let offset = number(next("offset")?, "offset")?;
    let len = number(next("size")?, "size")?;
    let latency = number(next("response time")?, "response time")?;
    let began = began.unwrap_or(time);
    let record = Record {
        time: time.saturating_sub(began).saturating_mul(UNIT),
        op,
        offset,
        len,
        queue: 0,
        latency: Some(latency.saturating_mul(UNIT)),
        error: None,
    };
    match record.is_sound() {
        true => Ok((began, time < began, record)),
        false => Err("a number is beyond the limits of a trace".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: &str = "128166372003061629,usr,0,Read,7014609920,24576,41286\n\
                         128166372016382155,usr,0,Write,2517696512,4096,963\n";

    #[test]
    fn requests_are_read_with_or_without_a_header() {
        let header = "Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime\n";
        for text in [LINES.to_owned(), format!("{header}{LINES}")] {
            assert!(is_one(text.lines().next().unwrap()));
            let mut csv = Msr::new(text.as_bytes());
            let first = csv.next_record().unwrap().unwrap();
            assert_eq!(
                (first.time, first.op, first.offset),
                (0, Op::Read, 7_014_609_920)
            );
            assert_eq!(first.latency, Some(4_128_600));
            assert_eq!(csv.began() / 1_000_000_000, 1_172_163_600);
            let second = csv.next_record().unwrap().unwrap();
            assert_eq!((second.time, second.len), (1_332_052_600, 4096));
            assert!(csv.next_record().unwrap().is_none());
        }
    }

    #[test]
    fn bad_lines_are_named() {
        let told = |line: &str| {
            Msr::new(line.as_bytes())
                .next_record()
                .unwrap_err()
                .to_string()
        };
        assert_eq!(told("1,usr,0,Read,5"), "line 1: the size is missing");
        assert_eq!(
            told("1,usr,0,Erase,5,5,5"),
            "line 1: the type is neither Read nor Write"
        );
        assert!(told("1,usr,0,Read,-1,5,5").contains("the offset is not a number"));
        assert!(told("1,u,0,Read,1,18446744073709551615,5").contains("limits"));
        assert!(told("1,u,0,Read,1,1,18446744073709551615").contains("limits"));
    }
}
