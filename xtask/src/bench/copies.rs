//! The kernel's copies, counted separately so that totals can be compared.
//!
//! Without ERMS and FSRM the emulated processor copies from and to user memory with `rep movsq`, which counts one
//! instruction per 8 bytes, and between kernel pages with a loop of 12 instructions per 32 bytes. On hardware both are
//! `rep movsb`. An "alike" total counts both as one instruction per 8 bytes.

use anyhow::{Context, Result, bail};

/// The kernel's function that copies from and to user memory (arch/x86/lib/copy_user_64.S).
pub const USER: &str = "rep_movs_alternative";
/// The kernel's function that copies between its own pages (arch/x86/lib/memcpy_64.S).
pub const PAGES: &str = "memcpy_orig";

/// Bytes per instruction of the user copy.
const USER_BYTES: f64 = 8.0;
/// Bytes per instruction of the page copy, on average.
const PAGE_BYTES: f64 = 32.0 / 12.0;

/// Address ranges of both routines in a kernel: first address, and the one after the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routines {
    user: (u64, u64),
    pages: (u64, u64),
}

impl Routines {
    /// Parses the guest's lines `@symbol NAME START END`.
    ///
    /// # Errors
    /// A line is missing or malformed.
    pub fn parse(lines: &[String]) -> Result<Self> {
        Ok(Self {
            user: place(lines, USER)?,
            pages: place(lines, PAGES)?,
        })
    }

    /// The plugin's arguments.
    pub fn arguments(&self) -> String {
        let ((user, user_end), (pages, pages_end)) = (self.user, self.pages);
        format!("user-copy={user:x}-{user_end:x},page-copy={pages:x}-{pages_end:x}")
    }
}

fn place(lines: &[String], name: &str) -> Result<(u64, u64)> {
    let start = format!("@symbol {name} ");
    let line = lines.iter().find_map(|line| line.strip_prefix(&start));
    let line = line.with_context(|| format!("the guest does not report the address of {name}"))?;
    let Some((start, end)) = line.split_once(' ') else {
        bail!("malformed line of the guest: {line}");
    };
    Ok((
        u64::from_str_radix(start, 16)?,
        u64::from_str_radix(end, 16)?,
    ))
}

/// Instructions of the kernel's copies per I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Copies {
    /// From and to user memory.
    pub user: f64,
    /// Between kernel pages.
    pub pages: f64,
}

impl Copies {
    /// Bytes copied.
    pub fn bytes(self) -> f64 {
        self.user * USER_BYTES + self.pages * PAGE_BYTES
    }

    /// A total as if each copy took one instruction per 8 bytes.
    pub fn alike(self, total: f64) -> f64 {
        total - self.user - self.pages + self.bytes() / USER_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::{Copies, Routines};

    #[test]
    fn routines_come_from_the_guest() {
        let lines = [
            "@symbol memcpy_orig ffffffff82000100 ffffffff82000200",
            "@symbol rep_movs_alternative ffffffff82000300 ffffffff82000340",
        ];
        let lines = lines.map(str::to_owned);
        assert_eq!(
            Routines::parse(&lines).unwrap().arguments(),
            "user-copy=ffffffff82000300-ffffffff82000340,page-copy=ffffffff82000100-ffffffff82000200"
        );
        assert!(Routines::parse(&lines[..1]).is_err());
        assert!(Routines::parse(&["@symbol memcpy_orig x".to_owned()]).is_err());
    }

    /// 128 KiB between pages is 49,152 instructions, counted alike as 16,384, its cost from user memory.
    #[test]
    fn copies_count_alike() {
        let pages = Copies {
            user: 0.0,
            pages: 49_152.0,
        };
        assert_eq!(pages.bytes().round(), 131_072.0);
        assert_eq!(pages.alike(98_800.0).round(), 66_032.0);
        let user = Copies {
            user: 16_384.0,
            pages: 0.0,
        };
        assert_eq!((user.bytes(), user.alike(50_000.0)), (131_072.0, 50_000.0));
    }
}
