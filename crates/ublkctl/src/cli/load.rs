//! The arguments of `replay` and `bench`.

use crate::size;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;
use ublk_load::{Fill, Speed};

/// What to replay, and how.
#[derive(Debug, Args)]
pub struct Replay {
    /// The trace, of any format that `trace` reads
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    #[command(flatten)]
    pub target: LoadTarget,
    /// How many times as fast as recorded, or max: as fast as the target takes the requests
    #[arg(long, value_name = "FACTOR|max", default_value = "1", allow_negative_numbers = true, value_parser = speed)]
    pub speed: Speed,
    /// The most requests in flight
    #[arg(long, short = 'd', value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub depth: u32,
    /// Also send requests that change data; without it only reads are sent
    #[arg(long)]
    pub write: bool,
    /// Write this byte everywhere instead of a pattern made from the offset
    #[arg(long, value_name = "BYTE", requires = "write", value_parser = byte)]
    pub fill: Option<u8>,
}

impl Replay {
    /// What writes write.
    pub const fn filling(&self) -> Fill {
        match self.fill {
            Some(byte) => Fill::Byte(byte),
            None => Fill::Pattern,
        }
    }
}

/// What to measure, and how.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(flatten)]
    pub target: LoadTarget,
    /// Measure another target in turns with this one, after this one with itself for the noise
    #[arg(long, value_name = "TARGET", conflicts_with = "sweep")]
    pub compare: Option<PathBuf>,
    /// Which requests
    #[arg(long, value_name = "HOW", default_value = "randread")]
    pub rw: Rw,
    /// The size of a request
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = request_size)]
    pub size: u32,
    /// Requests in flight
    #[arg(long, short = 'd', value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub depth: u32,
    /// Measure at several depths (1 to 256) or sizes (4K to 1M)
    #[arg(long, value_name = "WHAT")]
    pub sweep: Option<Sweep>,
    /// Seconds to measure [default: 5; 2 for each point of a sweep; 16 for a comparison]
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, value_parser = seconds)]
    pub time: Option<Duration>,
    /// Seconds of load before anything counts
    #[arg(long, value_name = "SECONDS", default_value = "1", allow_negative_numbers = true, value_parser = warm_up)]
    pub warm_up: Duration,
    /// Use only this much of the target, from its begin [default: all]
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub span: Option<u64>,
    /// Use the page cache even if direct I/O is available
    #[arg(long)]
    pub buffered: bool,
    /// Also draw the figures, as an SVG file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// A file or block device to put load on.
#[derive(Debug, Args)]
pub struct LoadTarget {
    /// A file, a block device, or a ublk device by its number or name
    #[arg(value_name = "TARGET")]
    pub path: PathBuf,
    /// Write even if the target is in use or holds data, which is lost
    #[arg(long)]
    pub force: bool,
    /// Seconds after which a request that has not completed ends the command (exit code 3)
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub deadline: u64,
}

impl LoadTarget {
    /// How long a request may take.
    pub const fn patience(&self) -> Duration {
        Duration::from_secs(self.deadline)
    }
}

/// Which requests `bench` sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rw {
    /// Reads at random places
    Randread,
    /// Writes at random places
    Randwrite,
    /// 70 % reads and 30 % writes at random places
    Randrw,
    /// Reads one after the other
    Read,
    /// Writes one after the other
    Write,
}

/// What a sweep varies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sweep {
    /// The number of requests in flight
    Depth,
    /// The size of requests
    Size,
}

fn speed(text: &str) -> Result<Speed, String> {
    if text == "max" {
        return Ok(Speed::Max);
    }
    match text.parse::<f64>() {
        Ok(factor) if (1e-3..=1e6).contains(&factor) => Ok(Speed::Times(factor)),
        _ => Err("give a factor from 0.001 to 1000000, or max".to_owned()),
    }
}

/// Seconds with a fraction if need be.
fn seconds(text: &str) -> Result<Duration, String> {
    within(text, 0.1).ok_or_else(|| "give seconds from 0.1 to 3600".to_owned())
}

fn warm_up(text: &str) -> Result<Duration, String> {
    within(text, 0.0).ok_or_else(|| "give seconds from 0 to 3600".to_owned())
}

fn within(text: &str, least: f64) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    (least..=3600.0)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}

fn byte(text: &str) -> Result<u8, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u8::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "give a byte: 0 to 255, or 0x00 to 0xff".to_owned())
}

fn request_size(text: &str) -> Result<u32, String> {
    let size = size::parse(text)?;
    match u32::try_from(size) {
        Ok(size) if (512..=1 << 24).contains(&size) && size.is_multiple_of(512) => Ok(size),
        _ => Err("give a multiple of 512 bytes, from 512 to 16M".to_owned()),
    }
}
