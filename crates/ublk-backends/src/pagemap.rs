//! Reports which pages of this process's memory are populated.

#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Number of entries read at a time.
const ENTRIES: usize = 512;

/// Bits of an entry (Documentation/admin-guide/mm/pagemap.rst): the page is in memory, or swapped out.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// The kernel's page map of this process.
#[derive(Debug)]
pub(crate) struct Pagemap {
    table: File,
}

impl Pagemap {
    /// Opens the page map of this process.
    pub(crate) fn open() -> io::Result<Self> {
        let table = File::open("/proc/self/pagemap")?;
        Ok(Self { table })
    }

    /// Calls `each` with start and length, in pages, of every run of populated pages among `count` pages from page
    /// number `first` on. Pages of unknown state count as populated.
    pub(crate) fn present(&self, first: usize, count: usize, mut each: impl FnMut(usize, usize)) {
        let mut bytes = [0; ENTRIES * 8];
        let mut run: Option<usize> = None;
        let mut page = first;
        let end = first + count;
        while page < end {
            let part = (end - page).min(ENTRIES);
            let entries = &mut bytes[..part * 8];
            let known = self.table.read_exact_at(entries, page as u64 * 8).is_ok();
            for (index, entry) in entries.as_chunks::<8>().0.iter().enumerate() {
                let there = !known || u64::from_ne_bytes(*entry) & (PRESENT | SWAPPED) != 0;
                match (there, run) {
                    (true, None) => run = Some(page + index),
                    (false, Some(begin)) => {
                        each(begin, page + index - begin);
                        run = None;
                    }
                    _ => {}
                }
            }
            page += part;
        }
        if let Some(begin) = run {
            each(begin, end - begin);
        }
    }
}
