//! The plugin's arguments.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::path::PathBuf;

/// The arguments, checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Args {
    /// First address of the server's text.
    pub lo: u64,
    /// First address after it.
    pub hi: u64,
    /// File of the snapshots.
    pub out: PathBuf,
    /// File of the server's executed blocks.
    pub hot: Option<PathBuf>,
    /// The kernel's routine that copies from and to user memory.
    pub user_copy: Range<u64>,
    /// The kernel's routine that copies between its own pages.
    pub page_copy: Range<u64>,
}

impl Args {
    /// Reads `name=value` words.
    ///
    /// # Errors
    /// A text that names the missing, unknown or malformed argument.
    pub fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Result<Self, String> {
        let (mut lo, mut hi, mut out, mut hot) = (None, None, None, None);
        // An empty range contains no instruction.
        let (mut user_copy, mut page_copy) = (0..0, 0..0);
        for word in words {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| format!("argument without a value: {word}"))?;
            match name {
                "lo" => lo = Some(address(value)?),
                "hi" => hi = Some(address(value)?),
                "out" => out = Some(PathBuf::from(value)),
                "hot" => hot = Some(PathBuf::from(value)),
                "user-copy" => user_copy = range(value)?,
                "page-copy" => page_copy = range(value)?,
                _ => return Err(format!("unknown argument: {name}")),
            }
        }
        let args = Self {
            lo: lo.ok_or("no lo=ADDRESS")?,
            hi: hi.ok_or("no hi=ADDRESS")?,
            out: out.ok_or("no out=PATH")?,
            hot,
            user_copy,
            page_copy,
        };
        if args.lo >= args.hi {
            return Err(format!(
                "no address between {:x} and {:x}",
                args.lo, args.hi
            ));
        }
        Ok(args)
    }
}

fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|error| format!("{text}: {error}"))
}

/// Two addresses separated by `-`: the first, and the one after the last.
fn range(text: &str) -> Result<Range<u64>, String> {
    let (start, end) = text
        .split_once('-')
        .ok_or_else(|| format!("no range of addresses: {text}"))?;
    let range = address(start)?..address(end)?;
    if range.is_empty() {
        return Err(format!("no address in {text}"));
    }
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::Args;

    #[test]
    fn addresses_are_hexadecimal() {
        let args = Args::parse(["lo=10000000", "hi=0x14000000", "out=/x/y"].into_iter()).unwrap();
        assert_eq!((args.lo, args.hi), (0x1000_0000, 0x1400_0000));
        assert_eq!(args.out.to_str(), Some("/x/y"));
        assert_eq!(args.hot, None);
        assert!(args.user_copy.is_empty() && args.page_copy.is_empty());
        let words = [
            "lo=1",
            "hi=2",
            "out=x",
            "user-copy=ffffffff81000000-ffffffff81000100",
        ];
        let args = Args::parse(words.into_iter()).unwrap();
        assert_eq!(args.user_copy, 0xffff_ffff_8100_0000..0xffff_ffff_8100_0100);
    }

    #[test]
    fn what_is_missing_or_wrong_is_told() {
        for words in [
            &["lo=1", "hi=2"][..],
            &["lo=1", "out=x"],
            &["hi=2", "out=x"],
            &["lo=2", "hi=2", "out=x"],
            &["lo=g", "hi=2", "out=x"],
            &["lo=1", "hi=2", "out=x", "more=1"],
            &["lo=1", "hi=2", "out=x", "page-copy=5"],
            &["lo=1", "hi=2", "out=x", "page-copy=5-5"],
            &["lo"],
        ] {
            assert!(Args::parse(words.iter().copied()).is_err(), "{words:?}");
        }
    }
}
