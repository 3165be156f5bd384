//! Lines of a text file, each of bounded length.

use crate::error::Error;
use std::io::{BufRead, Read};

/// The longest line, in bytes; paths have at most 4096.
const MAX: u64 = 8192;

/// Reads lines one by one and counts them.
#[derive(Debug)]
pub(crate) struct Lines<R: BufRead> {
    input: R,
    line: Vec<u8>,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            line: Vec::new(),
            number: 0,
        }
    }

    /// The next line without its end; `None` behind the last one.
    pub fn next_line(&mut self) -> Result<Option<&str>, Error> {
        self.line.clear();
        let mut input = (&mut self.input).take(MAX);
        let got = input.read_until(b'\n', &mut self.line)?;
        if got == 0 {
            return Ok(None);
        }
        self.number += 1;
        if self.line.last() == Some(&b'\n') {
            self.line.pop();
            if self.line.last() == Some(&b'\r') {
                self.line.pop();
            }
        } else if u64::try_from(got).is_ok_and(|got| got == MAX) {
            return Err(self.error("the line is too long"));
        }
        match std::str::from_utf8(&self.line) {
            Ok(line) => Ok(Some(line)),
            Err(_) => Err(Error::Line {
                line: self.number,
                what: "the line is not UTF-8 text".to_owned(),
            }),
        }
    }

    /// An error in the line that was read last.
    pub fn error(&self, what: impl Into<String>) -> Error {
        Error::Line {
            line: self.number,
            what: what.into(),
        }
    }
}
