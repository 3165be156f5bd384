//! A load that knows the valid contents of a disk: every block holds its position, its generation and a checksum, and
//! an acknowledged generation must be found.
//!
//! Each block belongs to one thread, which has one request in flight for it at a time. A failed write may or may not
//! have taken effect: from then on the block may hold either generation, until a read or a later write settles it; a
//! settled block never reverts. No block may be torn, misplaced, or older.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::direct_io::{Buffer, Direct};
use crate::pattern;
use crate::wait::until;

/// Size of a block in bytes.
pub const BLOCK: usize = 4096;

/// Generation of a block that was never written.
const NEVER: u64 = 0;

/// A magic number that other data does not contain by chance.
const MARK: u64 = 0x7562_6c6b_5f76_6572;

/// Builds a block: magic number, number of the run, offset, generation, data, checksum.
fn make(bytes: &mut [u8], run: u64, offset: u64, generation: u64) {
    pattern::fill(bytes, offset, generation);
    for (at, word) in [MARK, run, offset, generation].into_iter().enumerate() {
        bytes[at * 8..at * 8 + 8].copy_from_slice(&word.to_le_bytes());
    }
    let sum = checksum(&bytes[..BLOCK - 8]);
    bytes[BLOCK - 8..].copy_from_slice(&sum.to_le_bytes());
}

/// The generation of a block; an error if it is torn or misplaced.
fn generation(bytes: &[u8], run: u64, offset: u64) -> Result<u64> {
    if bytes.iter().all(|b| *b == 0) {
        return Ok(NEVER);
    }
    let word = |at: usize| {
        let bytes = bytes[at * 8..at * 8 + 8].try_into().unwrap_or_default();
        u64::from_le_bytes(bytes)
    };
    ensure!(word(0) == MARK, "block at {offset}: no block of ours");
    ensure!(
        (word(1), word(2)) == (run, offset),
        "block at {offset}: that of run {} at {}",
        word(1),
        word(2)
    );
    let mut wanted = vec![0; BLOCK];
    make(&mut wanted, run, offset, word(3));
    ensure!(
        wanted == bytes,
        "block at {offset}: torn or changed, generation {}",
        word(3)
    );
    Ok(word(3))
}

fn checksum(bytes: &[u8]) -> u64 {
    // FNV-1a.
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What a block may hold: the last known generation, and those of failed writes since.
type Possible = Vec<u64>;

/// A running load.
pub struct Load {
    threads: Vec<JoinHandle<Result<Vec<Possible>>>>,
    shared: Arc<LoadState>,
    path: PathBuf,
    run: u64,
}

#[derive(Debug, Default)]
struct LoadState {
    stop: AtomicBool,
    writes: AtomicU64,
    reads: AtomicU64,
    errors: AtomicU64,
}

/// Counters of a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Writes acknowledged.
    pub writes: u64,
    /// Reads compared.
    pub reads: u64,
    /// Requests that failed.
    pub errors: u64,
}

/// A stopped load, and its knowledge of the blocks.
pub struct Known {
    blocks: Vec<Possible>,
    threads: usize,
    run: u64,
    /// Its counters.
    pub done: Done,
}

impl Load {
    /// Starts `threads` threads on the first `blocks` blocks of a device or file, which must be zeroes.
    pub fn start(path: &Path, threads: usize, blocks: usize) -> Result<Self> {
        let shared = Arc::new(LoadState::default());
        let run = u64::from(std::process::id()) << 20 | blocks as u64;
        let mut load = Self {
            threads: Vec::new(),
            shared: Arc::clone(&shared),
            path: path.to_owned(),
            run,
        };
        for thread in 0..threads {
            let file = Direct::open(path)?;
            let shared = Arc::clone(&shared);
            let mine = (thread..blocks).step_by(threads).collect();
            let name = format!("load-{thread}");
            let body = move || work(&file, &shared, mine, run, thread as u64);
            load.threads
                .push(std::thread::Builder::new().name(name).spawn(body)?);
        }
        Ok(load)
    }

    /// The counters so far.
    pub fn done(&self) -> Done {
        let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
        Done {
            writes: get(&self.shared.writes),
            reads: get(&self.shared.reads),
            errors: get(&self.shared.errors),
        }
    }

    /// Waits until this many more writes were acknowledged; returns early if a thread has found wrong data.
    pub fn more(&self, writes: u64, limit: Duration) -> Result<()> {
        let from = self.done().writes;
        until(&format!("{writes} writes of the load"), limit, || {
            if self.threads.iter().any(JoinHandle::is_finished) {
                bail!("a thread of the load has ended");
            }
            Ok((self.done().writes >= from + writes).then_some(()))
        })
    }

    /// Ends the load. An error if it has found wrong data, or a thread hangs.
    pub fn stop(mut self, limit: Duration) -> Result<Known> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let done = || self.threads.iter().all(JoinHandle::is_finished);
        until("the end of the load", limit, || Ok(done().then_some(())))?;
        let threads = self.threads.len();
        let mut each = Vec::new();
        for thread in self.threads.drain(..) {
            let blocks = thread.join().map_err(|_| anyhow::anyhow!("a panic"))?;
            each.push(blocks.with_context(|| self.path.display().to_string())?);
        }
        let count = each.iter().map(Vec::len).sum();
        let at = |block: usize| each[block % threads][block / threads].clone();
        Ok(Known {
            blocks: (0..count).map(at).collect(),
            threads,
            run: self.run,
            done: self.done(),
        })
    }
}

impl Known {
    /// Compares the content of a device or file with the known generations.
    pub fn check(&self, path: &Path) -> Result<()> {
        let data = std::fs::File::open(path).with_context(|| path.display().to_string())?;
        let mut bytes = vec![0; BLOCK];
        let mut written = 0;
        for (block, possible) in self.blocks.iter().enumerate() {
            let offset = (block * BLOCK) as u64;
            std::os::unix::fs::FileExt::read_exact_at(&data, &mut bytes, offset)?;
            let found = generation(&bytes, self.run, offset)?;
            ensure!(
                possible.contains(&found),
                "block at {offset} (thread {}): generation {found}, possible are {possible:?}",
                block % self.threads
            );
            written += u64::from(found != NEVER);
        }
        ensure!(written > 0, "no block was ever written");
        Ok(())
    }
}

/// The work of one thread on its blocks.
fn work(
    file: &Direct,
    shared: &LoadState,
    mine: Vec<usize>,
    run: u64,
    seed: u64,
) -> Result<Vec<Possible>> {
    use std::os::unix::fs::FileExt;
    let mut known: Vec<Possible> = vec![vec![NEVER]; mine.len()];
    let mut buffer = Buffer::new(BLOCK);
    let mut random = seed.wrapping_mul(2).wrapping_add(1);
    let mut next = NEVER;
    while !shared.stop.load(Ordering::Relaxed) {
        random = pattern::word(random, seed + 1);
        let at = usize::try_from(random >> 8).unwrap_or(0) % mine.len();
        let offset = (mine[at] * BLOCK) as u64;
        let failed = if random & 0x60 == 0 {
            match file.file().read_exact_at(buffer.bytes_mut(), offset) {
                Ok(()) => {
                    let found = generation(buffer.bytes(), run, offset)?;
                    ensure!(
                        known[at].contains(&found),
                        "block at {offset}: generation {found}, possible are {:?}",
                        known[at]
                    );
                    known[at] = vec![found];
                    shared.reads.fetch_add(1, Ordering::Relaxed);
                    false
                }
                Err(_) => true,
            }
        } else {
            next += 1;
            make(buffer.bytes_mut(), run, offset, next);
            match file.file().write_all_at(buffer.bytes(), offset) {
                Ok(()) => {
                    known[at] = vec![next];
                    shared.writes.fetch_add(1, Ordering::Relaxed);
                    false
                }
                Err(_) => {
                    known[at].push(next);
                    true
                }
            }
        };
        if failed {
            shared.errors.fetch_add(1, Ordering::Relaxed);
            // A device that fails at once must not be hit a million times a second.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// L90 The load detects a lost write, an older one, a torn one and a misplaced one.
    #[test]
    fn l90_wrong_blocks_are_found() {
        let path = std::env::temp_dir().join(format!("ublk-e2e-verifier-{}", std::process::id()));
        std::fs::write(&path, vec![0; 4 * BLOCK]).expect("a file");
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .expect("ours");
        let mut block = vec![0; BLOCK];
        let known = |second: Possible| Known {
            blocks: vec![vec![5], second, vec![NEVER], vec![NEVER, 1]],
            threads: 2,
            run: 9,
            done: Done {
                writes: 2,
                reads: 0,
                errors: 0,
            },
        };
        make(&mut block, 9, 0, 5);
        file.write_all_at(&block, 0).expect("written");
        make(&mut block, 9, BLOCK as u64, 7);
        file.write_all_at(&block, BLOCK as u64).expect("written");
        known(vec![7]).check(&path).expect("as written");
        known(vec![6, 7]).check(&path).expect("either");
        assert!(known(vec![8]).check(&path).is_err(), "older");
        for broken in [[0; 16], [1; 16]] {
            file.write_all_at(&broken, BLOCK as u64 + 1000)
                .expect("written");
            assert!(known(vec![7]).check(&path).is_err(), "torn");
        }
        make(&mut block, 9, 0, 7);
        file.write_all_at(&block, BLOCK as u64).expect("written");
        assert!(known(vec![7]).check(&path).is_err(), "another place");
        file.write_all_at(&vec![0; BLOCK], BLOCK as u64)
            .expect("written");
        assert!(known(vec![7]).check(&path).is_err(), "lost");
        std::fs::remove_file(&path).expect("ours");
    }

    /// L90 A load on a plain file passes, and fails if the file is changed behind its back.
    #[test]
    fn l90_a_load_knows_its_file() {
        let path = std::env::temp_dir().join(format!("ublk-e2e-load-{}", std::process::id()));
        std::fs::write(&path, vec![0; 16 * BLOCK]).expect("a file");
        // Not every file system offers O_DIRECT.
        if Direct::open(&path).is_ok() {
            let load = Load::start(&path, 3, 16).expect("threads");
            load.more(100, Duration::from_secs(60)).expect("work");
            let known = load.stop(Duration::from_secs(60)).expect("right");
            known.check(&path).expect("right");
            assert_eq!(known.done.errors, 0);
            std::fs::write(&path, vec![0; 16 * BLOCK]).expect("ours");
            assert!(known.check(&path).is_err());
        }
        std::fs::remove_file(&path).expect("ours");
    }
}
