//! A backend that may block: a file, accessed with ordinary system calls. These run on a pool of threads, so that the
//! queue continues while one of them waits for the disk.
//!
//! `file PATH`, as root with the ublk driver loaded; Ctrl-C stops it. The device has the size of the file.
//! (`ublk::backends::File` does more: direct I/O, discard, windows, shared syncs.)
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use ublk::{Backend, Builder, Errno, Limits};

struct PlainFile {
    file: File,
    size: u64,
}

impl Backend for PlainFile {
    /// The default is a volatile cache: completed writes may be in the page cache only, and the kernel calls `flush` to
    /// make them durable. Not `quick`, so calls run on the pool.
    fn limits(&self) -> Limits {
        Limits::new(self.size)
    }
    /// Fill all of `buf` or fail: `read_exact_at` continues after short reads, and fails at the end of the file.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        Ok(self.file.read_exact_at(buf, offset)?)
    }
    fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> Result<(), Errno> {
        Ok(self.file.write_all_at(buf, offset)?)
    }
    fn flush(&self) -> Result<(), Errno> {
        Ok(self.file.sync_data()?)
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("give the path of a file")?;
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let size = file.metadata()?.len() / 512 * 512;
    Builder::new(PlainFile { file, size })
        .queues(2)
        .pool_threads(8)
        .run(|device| println!("{}", device.path().display()))?;
    Ok(())
}
