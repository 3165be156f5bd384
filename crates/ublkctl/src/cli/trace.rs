//! The arguments of `trace`.

use super::Device;
use crate::size;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// What to record, and for how long.
#[derive(Debug, Args)]
pub struct Record {
    #[command(flatten)]
    pub device: Device,
    /// The trace to write; an existing file is replaced when the recording ends
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// End after this many seconds
    #[arg(long = "for", value_name = "SECONDS", allow_negative_numbers = true, value_parser = clap::value_parser!(u64).range(1..))]
    pub duration: Option<u64>,
    /// End once the file has this size, or a little more
    #[arg(long, value_name = "SIZE", value_parser = limit)]
    pub limit: Option<u64>,
}

/// A trace to look at.
#[derive(Debug, Args)]
pub struct TraceFile {
    /// The trace: of this project, of fio (iolog 2 or 3), of blktrace (binary), or an MSR Cambridge CSV file
    #[arg(value_name = "FILE", required = true)]
    pub file: Option<PathBuf>,
    /// Also draw the figures, as an SVG file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// The commands of `trace`.
#[derive(Debug, Subcommand)]
pub enum TraceCommand {
    /// Convert a trace to another format
    Convert(Convert),
}

/// A trace to convert.
#[derive(Debug, Args)]
pub struct Convert {
    /// The trace to read, of any format that `trace` reads
    #[arg(value_name = "IN")]
    pub from: PathBuf,
    /// The file to write; an existing one is replaced
    #[arg(value_name = "OUT")]
    pub to: PathBuf,
    /// The format to write
    #[arg(long = "to", value_name = "FORMAT")]
    pub format: Target,
    /// The path that fio is to open, for an iolog
    #[arg(long, value_name = "PATH", default_value = "/dev/ublkb0")]
    pub target: String,
}

/// The formats that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// fio's iolog, version 3, for `fio --read_iolog`; write-zeroes and zone operations are left out
    Iolog,
    /// The format of this project
    Ublk,
}

/// The length of a trace at which its recording ends.
fn limit(text: &str) -> Result<u64, String> {
    match size::parse(text)? {
        0 => {
            Err("a trace of no bytes has no request: give a size, or leave --limit out".to_owned())
        }
        bytes => Ok(bytes),
    }
}
