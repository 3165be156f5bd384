//! A backend that may wait: a file of one's own, by ordinary calls. They run on a pool of threads, so that the queue
//! goes on while one of them waits for the disk.
//!
//! `file PATH`, as root with the ublk driver loaded; Ctrl-C stops it. The size is that of the file.
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
    /// A volatile cache is declared by default: completed writes may sit in the page cache, and `flush` is called
    /// when somebody wants them on disk. Not `quick`, hence the pool.
    fn limits(&self) -> Limits {
        Limits::new(self.size)
    }
    /// All of `buf` or an error: `read_exact_at` goes on after short reads, and fails where the file ends.
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
