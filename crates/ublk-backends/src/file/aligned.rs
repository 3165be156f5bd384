//! Memory aligned for O_DIRECT.

#![forbid(unsafe_code)]

/// A page, which satisfies every file system.
const ALIGN: usize = 4096;

/// Zeroes to be written, aligned for every file.
#[repr(align(4096))]
struct Zeroes([u8; 64 << 10]);

static ZEROES: Zeroes = Zeroes([0; 64 << 10]);

/// 64 KiB of zeroes.
pub(crate) fn zeroes() -> &'static [u8] {
    &ZEROES.0
}

/// A buffer aligned to 4096 bytes.
#[derive(Debug)]
pub(crate) struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// A zeroed buffer.
    pub(crate) fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Self { memory, start, len }
    }

    /// Its bytes.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_suit() {
        for len in [1, 512, 70_000] {
            let mut buffer = Aligned::new(len);
            assert_eq!(buffer.bytes().as_ptr().addr() % ALIGN, 0);
            assert_eq!(buffer.bytes(), vec![0; len]);
        }
        assert_eq!(zeroes().as_ptr().addr() % ALIGN, 0);
    }
}
