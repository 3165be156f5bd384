//! A trace of any format that can be read.

use crate::error::Error;
use crate::format::{Header, MAGIC, Reader};
use crate::record::Record;
use crate::units::counted;
use crate::{blktrace, iolog, msr};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// The formats that are recognised by how a file begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Our own: [`crate::format`].
    Ublk,
    /// fio's iolog, version 2 or 3.
    Iolog,
    /// blktrace's binary stream.
    Blktrace,
    /// The CSV of the MSR Cambridge traces.
    Msr,
}

impl Format {
    /// Finds out which format begins with these bytes; 4096 are enough.
    #[must_use]
    pub fn of(begin: &[u8]) -> Option<Self> {
        if begin.starts_with(&MAGIC) {
            return Some(Self::Ublk);
        }
        if blktrace::is_one(begin) {
            return Some(Self::Blktrace);
        }
        let line = begin.split(|b| *b == b'\n').next().unwrap_or_default();
        let line = std::str::from_utf8(line).ok()?.trim_end();
        if line.starts_with(iolog::PREFIX) {
            return Some(Self::Iolog);
        }
        msr::is_one(line).then_some(Self::Msr)
    }

    /// The name for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ublk => "ublk trace",
            Self::Iolog => "fio iolog",
            Self::Blktrace => "blktrace",
            Self::Msr => "MSR Cambridge CSV",
        }
    }
}

#[derive(Debug)]
enum Inner<R: BufRead> {
    Ublk(Reader<R>),
    Iolog(iolog::Iolog<R>),
    Blktrace(blktrace::Blktrace<R>),
    Msr(msr::Msr<R>),
}

/// Reads a trace of any format as a stream.
#[derive(Debug)]
pub struct Source<R: BufRead> {
    inner: Inner<R>,
}

impl Source<BufReader<File>> {
    /// Opens a file.
    ///
    /// # Errors
    /// As [`Source::new`]; those of the file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::new(BufReader::with_capacity(1 << 16, File::open(path)?))
    }
}

impl<R: BufRead> Source<R> {
    /// Recognises the format by its first bytes.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::UnknownFormat`]; what the format's own header is refused for; those of the input.
    pub fn new(mut input: R) -> Result<Self, Error> {
        let begin = input.fill_buf()?;
        if begin.is_empty() {
            return Err(Error::Empty);
        }
        let format = Format::of(begin).ok_or(Error::UnknownFormat)?;
        let inner = match format {
            Format::Ublk => Inner::Ublk(Reader::new(input)?),
            Format::Iolog => Inner::Iolog(iolog::Iolog::new(input)?),
            Format::Blktrace => Inner::Blktrace(blktrace::Blktrace::new(input)),
            Format::Msr => Inner::Msr(msr::Msr::new(input)),
        };
        Ok(Self { inner })
    }

    /// The format.
    #[must_use]
    pub const fn format(&self) -> Format {
        match &self.inner {
            Inner::Ublk(_) => Format::Ublk,
            Inner::Iolog(_) => Format::Iolog,
            Inner::Blktrace(_) => Format::Blktrace,
            Inner::Msr(_) => Format::Msr,
        }
    }

    /// What the trace tells of its device. When an MSR trace began is known after its first record.
    #[must_use]
    pub fn header(&self) -> Header {
        match &self.inner {
            Inner::Ublk(reader) => *reader.header(),
            Inner::Msr(csv) => Header {
                began: csv.began(),
                ..Header::default()
            },
            _ => Header::default(),
        }
    }

    /// The next request. The order is that of the source: of completion for most.
    ///
    /// # Errors
    /// What makes no sense in the source; what was read before is sound. Those of the input.
    pub fn next_record(&mut self) -> Result<Option<Record>, Error> {
        match &mut self.inner {
            Inner::Ublk(reader) => Ok(reader.next_record()?),
            Inner::Iolog(log) => log.next_record(),
            Inner::Blktrace(trace) => trace.next_record(),
            Inner::Msr(csv) => csv.next_record(),
        }
    }

    /// Number of requests that the recorder lost, as far as the trace has been read.
    #[must_use]
    pub const fn lost(&self) -> u64 {
        match &self.inner {
            Inner::Ublk(reader) => reader.lost(),
            _ => 0,
        }
    }

    /// After the last record: where the file stops being what was written. One that just ends is no error but warned of.
    #[must_use]
    pub fn damage(&self) -> Option<Error> {
        let Inner::Ublk(reader) = &self.inner else {
            return None;
        };
        let damage = reader.damage().filter(|damage| !damage.is_cut)?;
        Some(Error::Bytes {
            at: damage.at,
            what: damage.what.to_owned(),
        })
    }

    /// After the last record: what the reader of the figures has to know, a sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut warn = |n: u64, text: &str| {
            if n > 0 {
                warnings.push(format!("{}, {text}", counted(n, "request")));
            }
        };
        match &self.inner {
            Inner::Ublk(reader) => {
                warn(reader.lost(), "not recorded: the recorder did not keep up");
                if let Some(damage) = reader.damage() {
                    warnings.push(damage.to_string());
                }
            }
            Inner::Iolog(log) if log.files() > 1 => {
                warnings.push(format!(
                    "requests to {} files are taken as to one",
                    log.files()
                ));
            }
            Inner::Iolog(_) => {}
            Inner::Blktrace(trace) => warn(
                trace.unmatched(),
                "without latency: begin or completion is not in the trace",
            ),
            Inner::Msr(csv) => warn(
                csv.early(),
                "begun before the first one of the file: taken as if begun with it",
            ),
        }
        warnings
    }
}
