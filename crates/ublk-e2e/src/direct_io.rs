//! Direct I/O.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};

use crate::pattern;

/// Alignment for O_DIRECT, with room to spare.
const ALIGN: usize = 4096;

/// A buffer aligned for O_DIRECT.
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Buffer {
    /// A zeroed buffer.
    pub fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Self { memory, start, len }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    /// Its bytes, mutable.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// A file opened with O_DIRECT.
#[derive(Debug)]
pub struct Direct(File);

impl Direct {
    /// Opens for reading and writing.
    pub fn open(path: &Path) -> Result<Self> {
        Self::with(path, true)
    }

    /// Opens for reading.
    pub fn open_read(path: &Path) -> Result<Self> {
        Self::with(path, false)
    }

    fn with(path: &Path, write: bool) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(write)
            .custom_flags(libc::O_DIRECT)
            .open(path)
            .with_context(|| format!("open {}", path.display()))?;
        Ok(Self(file))
    }

    /// The file itself.
    pub const fn file(&self) -> &File {
        &self.0
    }

    /// Writes the pattern of `generation` to a range, in one call.
    pub fn write_pattern(&self, offset: u64, len: usize, generation: u64) -> Result<()> {
        let mut buffer = Buffer::new(len);
        pattern::fill(buffer.bytes_mut(), offset, generation);
        self.0
            .write_all_at(buffer.bytes(), offset)
            .with_context(|| format!("write {offset}+{len}"))
    }

    /// Reads a range in one call.
    pub fn read(&self, offset: u64, len: usize) -> Result<Buffer> {
        let mut buffer = Buffer::new(len);
        self.0
            .read_exact_at(buffer.bytes_mut(), offset)
            .with_context(|| format!("read {offset}+{len}"))?;
        Ok(buffer)
    }

    /// Reads a range and checks that it holds the pattern of `generation`.
    pub fn check_pattern(&self, offset: u64, len: usize, generation: u64) -> Result<()> {
        pattern::check(self.read(offset, len)?.bytes(), offset, generation)
    }

    /// Reads a range and checks that it is zeroes.
    pub fn check_zero(&self, offset: u64, len: usize) -> Result<()> {
        pattern::check_zero(self.read(offset, len)?.bytes(), offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned() {
        for len in [512, 4096, 65536] {
            let mut buffer = Buffer::new(len);
            assert!(buffer.bytes().as_ptr().addr().is_multiple_of(ALIGN));
            assert_eq!(buffer.bytes().len(), len);
            buffer.bytes_mut().fill(1);
            assert_eq!(buffer.bytes(), vec![1; len]);
        }
    }

    /// L90 The check that the cases use detects wrong data on the disk.
    #[test]
    fn l90_a_corrupted_file_is_seen() {
        let path = std::env::temp_dir().join(format!("ublk-e2e-direct-{}", std::process::id()));
        std::fs::write(&path, vec![0; 16384]).expect("a file");
        let run = || -> Result<()> {
            // Not every file system offers O_DIRECT.
            let Ok(file) = Direct::open(&path) else {
                return Ok(());
            };
            file.check_zero(0, 16384)?;
            file.write_pattern(4096, 8192, 5)?;
            file.check_pattern(4096, 8192, 5)?;
            anyhow::ensure!(file.check_pattern(0, 8192, 5).is_err());
            anyhow::ensure!(file.check_zero(8192, 4096).is_err());
            let mut one = file.read(4096, 4096)?;
            one.bytes_mut()[100] ^= 1;
            file.file().write_all_at(one.bytes(), 4096)?;
            anyhow::ensure!(file.check_pattern(4096, 8192, 5).is_err());
            Ok(())
        };
        let result = run();
        std::fs::remove_file(&path).expect("ours");
        result.expect("data as written");
    }
}
