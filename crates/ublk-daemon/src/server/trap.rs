//! A file backend that a test can make fail from within: only with the feature `kill-points`, which release builds
//! lack.
//!
//! An environment variable of the server selects what a read of exactly the last 4096 bytes does: `UBLK_TRAP=panic`
//! panics in the backend, `UBLK_TRAP=thread` panics in a way that the engine does not contain, so that the queue's
//! thread ends (L24).

use std::sync::Arc;

use ublk_backends::File;
use ublk_core::{Backend, Errno, Limits};

/// Length of the selected read in bytes.
const LEN: usize = 4096;

/// What happens to the selected read.
#[derive(Debug, Clone, Copy)]
enum Effect {
    Panic,
    Thread,
}

/// The backend.
#[derive(Debug)]
pub(crate) struct Trap {
    file: Arc<File>,
    effect: Effect,
}

impl Trap {
    /// The trap that the environment selects.
    pub(crate) fn from_env(file: &Arc<File>) -> Option<Arc<Self>> {
        let word = std::env::var("UBLK_TRAP").ok()?;
        let effect = match word.as_str() {
            "panic" => Effect::Panic,
            "thread" => Effect::Thread,
            _ => return None,
        };
        let file = Arc::clone(file);
        Some(Arc::new(Self { file, effect }))
    }
}

impl Backend for Trap {
    fn limits(&self) -> Limits {
        // Called on the queue's own thread, where the panic must happen.
        self.file.limits().quick(true)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        if buf.len() == LEN && offset + LEN as u64 == self.file.limits().size {
            match self.effect {
                Effect::Panic => panic!("a test's panic in the backend"),
                Effect::Thread => std::panic::panic_any(ublk_queue::EndThread),
            }
        }
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        self.file.write_at(buf, offset, fua)
    }

    fn flush(&self) -> Result<(), Errno> {
        self.file.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.file.discard(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        self.file.write_zeroes(offset, len, may_unmap)
    }
}
