//! Syncs of a side file that fail while others wait for theirs.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ublk_core::{Checksum, Errno, Integrity};

use super::beside::{self, Beside, Side, Use};
use super::header::{BITMAP_AT, Header, REGION};
use super::store::Store;
use crate::Memory;
use crate::file::Layer;

/// How long a thread may take.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    /// The next sync waits until this is `Some` of its result; none waits otherwise.
    gate: Option<Option<Result<(), Errno>>>,
    waiting: bool,
    /// Words of the bitmap that were written.
    words: usize,
}

/// A file in memory whose syncs are held.
#[derive(Debug, Default, Clone)]
struct Held(Arc<(Mutex<State>, Condvar)>);

impl Held {
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
        done
    }

    fn wait(&self, until: impl Fn(&State) -> bool) {
        let state = self.0.0.lock().unwrap();
        let waited = self.0.1.wait_timeout_while(state, PATIENCE, |s| !until(s));
        assert!(!waited.unwrap().1.timed_out(), "a thread hangs");
    }
}

impl Layer for Held {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<usize, Errno> {
        let at = usize::try_from(at).unwrap();
        self.change(|state| buf.copy_from_slice(&state.bytes[at..at + buf.len()]));
        Ok(buf.len())
    }

    fn write(&self, buf: &[u8], at: u64) -> Result<usize, Errno> {
        let place = usize::try_from(at).unwrap();
        self.change(|state| {
            state.bytes[place..place + buf.len()].copy_from_slice(buf);
            state.words += usize::from(at >= BITMAP_AT);
        });
        Ok(buf.len())
    }

    fn sync(&self) -> Result<(), Errno> {
        let held = self.change(|state| {
            state.waiting = state.gate.is_some();
            state.waiting
        });
        if !held {
            return Ok(());
        }
        self.wait(|state| state.gate != Some(None));
        self.change(|state| state.gate.take().flatten().unwrap_or(Ok(())))
    }

    fn discard(&self, _at: u64, _len: u64) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn unmap(&self, _at: u64, _len: u64) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    fn zero(&self, _at: u64, _len: u64) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP)
    }
}

impl Side for Held {
    fn lock(&self, _read_only: bool) -> bool {
        true
    }

    fn is_named(&self) -> bool {
        true
    }

    fn length(&self) -> Result<u64, Errno> {
        Ok(self.change(|state| state.bytes.len() as u64))
    }

    fn set_length(&self, bytes: u64) -> Result<(), Errno> {
        self.change(|state| state.bytes.resize(usize::try_from(bytes).unwrap(), 0));
        Ok(())
    }
}

/// The kernel tells a failed sync once, and the pages of all that wrote before it are then clean: whoever wrote before it fails,
/// even if the own sync succeeds.
#[test]
fn a_failed_sync_fails_all_that_wrote_before_it() {
    let memory = Memory::new(4 * REGION, 512).unwrap();
    let header = Header::new(4 * REGION, 0, 512, Integrity::new(Checksum::Crc16, 8));
    let usage = Use {
        read_only: false,
        same: false,
        resize: false,
        most: 8,
    };
    type Change = fn(&Beside<Held>, &Memory) -> Result<(), Errno>;
    let changes: [Change; 2] = [
        |side, memory| side.begin((2 * REGION, 512), memory),
        |side, _| side.erase_durably(64, 8),
    ];
    for change in changes {
        let file = Held::default();
        beside::make(&file, &header).unwrap();
        let side = Beside::open(file.clone(), header, usage).unwrap();
        side.start(&memory, Duration::ZERO).unwrap();
        file.change(|state| state.gate = Some(None));
        std::thread::scope(|scope| {
            let first = scope.spawn(|| side.begin((0, 512), &memory));
            file.wait(|state| state.waiting);
            let words = file.change(|state| state.words);
            let second = scope.spawn(|| change(&side, &memory));
            file.wait(|state| state.words > words);
            file.change(|state| state.gate = Some(Some(Err(Errno::EIO))));
            assert_eq!(first.join().unwrap(), Err(Errno::EIO));
            assert_eq!(second.join().unwrap(), Err(Errno::EIO));
        });
        // Whoever writes again may go on.
        assert_eq!(change(&side, &memory), Ok(()));
        side.begin((0, 512), &memory).unwrap();
    }
}
