//! Memory that the simulated client shares with the server: a file with a place for each tag.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ublk_core::{SharedBuffer, SharedTable};
use ublk_sys::word::ShmemAddr;

/// Indices of the two halves, as a driver might have assigned them.
const HALVES: [u16; 2] = [9, 3];

/// Distance of a tag's data from the start of its part of the file: client memory may begin anywhere.
const SKEW: usize = 1024;

/// The client's memory.
#[derive(Debug, Clone)]
pub(crate) struct ClientMemory {
    pub(crate) file: Arc<File>,
    half: usize,
    stride: usize,
}

impl ClientMemory {
    pub(crate) fn new(tags: usize, max_io_bytes: usize) -> io::Result<Self> {
        static FILES: AtomicUsize = AtomicUsize::new(0);
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let name = format!("ublk-sim-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let options = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .to_owned();
        let file = options.open(&path)?;
        std::fs::remove_file(&path)?;
        let stride = (max_io_bytes + 2 * SKEW).next_multiple_of(4096);
        let half = stride * tags.div_ceil(2);
        file.set_len(u64::try_from(2 * half).unwrap_or(u64::MAX))?;
        Ok(Self {
            file: Arc::new(file),
            half,
            stride,
        })
    }

    pub(crate) fn table(&self) -> SharedTable {
        let half = u64::try_from(self.half).unwrap_or(u64::MAX);
        let [first, second] = HALVES;
        let buffer = |index, offset| SharedBuffer::new(index, offset, half);
        SharedTable::new(&[buffer(first, 0), buffer(second, half)])
    }

    /// Offset of a tag's data in the file.
    pub(crate) fn place(&self, number: usize) -> usize {
        number * self.stride + SKEW
    }

    /// The same in a descriptor's encoding.
    pub(crate) fn addr(&self, place: usize) -> u64 {
        let index = HALVES[usize::from(place >= self.half)];
        let offset = u32::try_from(place % self.half).unwrap_or(u32::MAX);
        ShmemAddr { index, offset }.encode()
    }

    pub(crate) fn write(&self, place: usize, data: &[u8]) {
        let at = u64::try_from(place).unwrap_or(u64::MAX);
        self.file.write_all_at(data, at).expect("a file of ours");
    }

    pub(crate) fn read(&self, place: usize, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let at = u64::try_from(place).unwrap_or(u64::MAX);
        self.file
            .read_exact_at(&mut data, at)
            .expect("a file of ours");
        data
    }
}
