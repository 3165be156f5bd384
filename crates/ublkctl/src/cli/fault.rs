//! The arguments of `add fault`.

use crate::size;
use clap::{Args, ValueEnum};
use std::ops::Range;
use ublk_core::Errno;
use ublk_daemon::spec::{FaultOp, FaultPlan};

/// What happens to the requests of a fault device.
#[derive(Debug, Args)]
pub struct Faults {
    /// Delay of each selected request: a number with us, ms or s
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = microseconds)]
    delay: u64,
    /// Percentage of the selected requests that fail, with up to four decimals
    #[arg(long, value_name = "PERCENT", default_value = "0", value_parser = per_million)]
    error_rate: u32,
    /// Errno of a failed request; the block layer passes on EIO, ENOSPC, ETIMEDOUT, ENOMEM and a few others
    #[arg(long, value_name = "NAME", default_value = "EIO", value_parser = errno)]
    errno: i32,
    /// Operations that are selected [default: all]
    #[arg(long, value_enum, value_name = "OP", value_delimiter = ',')]
    on: Vec<On>,
    /// Only requests that touch this range of the device are selected
    #[arg(long, value_name = "OFFSET:LENGTH", value_parser = range)]
    range: Option<Range<u64>>,
    /// Decides which requests fail: the same sequence of requests fails in the same places
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    seed: u64,
}

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum On {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

impl Faults {
    /// The plan of the backend.
    pub fn plan(&self) -> FaultPlan {
        let op = |on: &On| match on {
            On::Read => FaultOp::Read,
            On::Write => FaultOp::Write,
            On::Flush => FaultOp::Flush,
            On::Discard => FaultOp::Discard,
            On::WriteZeroes => FaultOp::WriteZeroes,
        };
        FaultPlan {
            delay_us: self.delay,
            errors_per_million: self.error_rate,
            errno: self.errno,
            ops: self.on.iter().map(op).collect(),
            range: self.range.clone(),
            seed: self.seed,
        }
    }
}

fn microseconds(text: &str) -> Result<u64, String> {
    let units = [("us", 1), ("ms", 1000), ("s", 1_000_000)];
    let found = units
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let time = found.and_then(|(number, factor)| number.parse::<u64>().ok()?.checked_mul(factor));
    // The block layer's own limit is 30 s; an hour is plenty.
    time.filter(|time| *time <= 3_600_000_000).ok_or_else(|| {
        format!("`{text}` is not a time up to an hour: give for example 500us, 20ms or 1s")
    })
}

fn per_million(text: &str) -> Result<u32, String> {
    let wrong = || {
        format!(
            "`{text}` is not a percentage: give a number from 0 to 100 with up to four decimals"
        )
    };
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if decimals.len() > 4 || whole.is_empty() || !digits(whole) || !digits(decimals) {
        return Err(wrong());
    }
    let number = format!("{whole}{decimals:0<4}").parse::<u32>().ok();
    number.filter(|n| *n <= 1_000_000).ok_or_else(wrong)
}

fn errno(name: &str) -> Result<i32, String> {
    let errno = Errno::named(name).map(Errno::get);
    errno.ok_or_else(|| {
        format!("`{name}` is no errno: give a name such as EIO, ENOSPC or ETIMEDOUT")
    })
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let wrong = || format!("`{text}` is not a range: give OFFSET:LENGTH, such as 1M:64K");
    let (offset, length) = text.split_once(':').ok_or_else(wrong)?;
    let (offset, length) = (size::parse(offset)?, size::parse(length)?);
    let end = offset.checked_add(length).filter(|_| length != 0);
    end.map(|end| offset..end).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_exactly() {
        for (text, wanted) in [
            ("500us", 500),
            ("20ms", 20_000),
            ("1s", 1_000_000),
            ("0ms", 0),
        ] {
            assert_eq!(microseconds(text), Ok(wanted));
        }
        for text in [
            "",
            "5",
            "-1ms",
            "1.5s",
            "2h",
            "3601s",
            "99999999999999999999s",
        ] {
            assert!(microseconds(text).is_err(), "{text}");
        }
        for (text, wanted) in [
            ("0", 0),
            ("100", 1_000_000),
            ("0.5", 5000),
            ("0.0001", 1),
            ("7.25", 72_500),
        ] {
            assert_eq!(per_million(text), Ok(wanted), "{text}");
        }
        for text in ["", ".5", "101", "100.1", "0.00001", "1e1", "-1", "5%"] {
            assert!(per_million(text).is_err(), "{text}");
        }
        assert_eq!(errno("ENOSPC"), Ok(28));
        assert!(errno("28").is_err() && errno("EWHAT").is_err());
        assert_eq!(range("1M:4K"), Ok(1 << 20..(1 << 20) + 4096));
        assert!(range("1M").is_err() && range("1M:0").is_err());
    }
}
