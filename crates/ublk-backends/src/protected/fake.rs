//! Files of a machine that loses its power.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ublk_core::Errno;

use super::beside::Side;
use super::header::SECTOR;
use crate::file::Layer;

/// The machine's power: on for a number of steps.
#[derive(Debug)]
pub(super) struct Power {
    left: AtomicU64,
    off: AtomicBool,
}

impl Power {
    pub(super) fn on(steps: u64) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU64::new(steps),
            off: AtomicBool::new(false),
        })
    }

    fn step(&self) -> Result<(), Errno> {
        let less = |left: u64| left.checked_sub(1);
        let used = (self.left).fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if used.is_err() {
            self.off.store(true, Ordering::Relaxed);
        }
        self.is_on()
    }

    fn is_on(&self) -> Result<(), Errno> {
        match self.off.load(Ordering::Relaxed) {
            true => Err(Errno::EIO),
            false => Ok(()),
        }
    }
}

type Sectors = BTreeMap<u64, [u8; SECTOR]>;

/// Part of a sector that was written and not synced.
#[derive(Debug, Clone)]
struct Piece {
    sector: u64,
    at: usize,
    bytes: Vec<u8>,
}

#[derive(Debug, Default, Clone)]
struct State {
    durable: Sectors,
    cache: Sectors,
    pending: Vec<Piece>,
    length: u64,
    synced_length: u64,
}

/// A file in the page cache of a machine.
#[derive(Debug, Clone)]
pub(super) struct Fake {
    power: Arc<Power>,
    state: Arc<Mutex<State>>,
    /// The file system has no room for new sectors, or for nothing at all.
    pub(super) full: Arc<AtomicBool>,
    pub(super) broken: Arc<AtomicBool>,
    pub(super) locked: Arc<AtomicBool>,
}

fn patch(sectors: &mut Sectors, piece: &Piece) {
    let sector = sectors.entry(piece.sector).or_insert([0; SECTOR]);
    sector[piece.at..piece.at + piece.bytes.len()].copy_from_slice(&piece.bytes);
}

impl Fake {
    pub(super) fn new(power: &Arc<Power>) -> Self {
        Self {
            power: Arc::clone(power),
            state: Arc::default(),
            full: Arc::default(),
            broken: Arc::default(),
            locked: Arc::default(),
        }
    }

    /// What is on the disk after a loss of power: any of the pieces that were not synced.
    pub(super) fn after_crash(&self, power: &Arc<Power>, random: &mut Random) -> Self {
        let mut state = self.state.lock().unwrap().clone();
        let manner = random.below(4);
        for piece in std::mem::take(&mut state.pending) {
            let kept = match manner {
                0 => false,
                1 => true,
                _ => random.below(2) == 0,
            };
            if kept {
                patch(&mut state.durable, &piece);
            }
        }
        if manner != 1 {
            state.length = state.synced_length;
        }
        state.synced_length = state.length;
        state.cache = state.durable.clone();
        Self {
            state: Arc::new(Mutex::new(state)),
            ..Self::new(power)
        }
    }

    /// Replaces bytes, in the cache only.
    fn put(state: &mut State, mut at: u64, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let within = usize::try_from(at % SECTOR as u64).unwrap();
            let len = bytes.len().min(SECTOR - within);
            let piece = Piece {
                sector: at / SECTOR as u64,
                at: within,
                bytes: bytes[..len].to_vec(),
            };
            patch(&mut state.cache, &piece);
            state.pending.push(piece);
            (at, bytes) = (at + len as u64, &bytes[len..]);
        }
    }
}

impl Layer for Fake {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<usize, Errno> {
        self.power.is_on()?;
        let state = self.state.lock().unwrap();
        if at >= state.length {
            return Ok(0);
        }
        let within = usize::try_from(at % SECTOR as u64).unwrap();
        let len = buf.len().min(SECTOR - within);
        match state.cache.get(&(at / SECTOR as u64)) {
            Some(sector) => buf[..len].copy_from_slice(&sector[within..within + len]),
            None => buf[..len].fill(0),
        }
        Ok(len)
    }

    fn write(&self, buf: &[u8], at: u64) -> Result<usize, Errno> {
        self.power.step()?;
        if self.broken.load(Ordering::Relaxed) {
            return Err(Errno::ENOSPC);
        }
        let mut state = self.state.lock().unwrap();
        // Short at random places, but not at random times.
        let within = usize::try_from(at % SECTOR as u64).unwrap();
        let len = buf.len().min(3 * SECTOR - within);
        let sectors = at / SECTOR as u64..(at + len as u64).div_ceil(SECTOR as u64);
        if self.full.load(Ordering::Relaxed)
            && sectors.clone().any(|n| !state.cache.contains_key(&n))
        {
            return Err(Errno::ENOSPC);
        }
        Self::put(&mut state, at, &buf[..len]);
        Ok(len)
    }

    fn sync(&self) -> Result<(), Errno> {
        self.power.step()?;
        let mut state = self.state.lock().unwrap();
        state.pending.clear();
        state.durable = state.cache.clone();
        state.synced_length = state.length;
        Ok(())
    }

    fn discard(&self, at: u64, len: u64) -> Result<(), Errno> {
        self.unmap(at, len)
    }

    fn unmap(&self, at: u64, len: u64) -> Result<(), Errno> {
        self.power.step()?;
        let mut state = self.state.lock().unwrap();
        let all = state.cache.keys().copied();
        let range = at / SECTOR as u64..(at + len) / SECTOR as u64;
        let there: Vec<u64> = all.filter(|n| range.contains(n)).collect();
        for sector in there {
            Self::put(&mut state, sector * SECTOR as u64, &[0; SECTOR]);
        }
        Ok(())
    }

    fn zero(&self, at: u64, len: u64) -> Result<(), Errno> {
        self.unmap(at, len)
    }
}

impl Side for Fake {
    fn lock(&self, _read_only: bool) -> bool {
        !self.locked.load(Ordering::Relaxed)
    }

    fn is_named(&self) -> bool {
        true
    }

    fn length(&self) -> Result<u64, Errno> {
        Ok(self.state.lock().unwrap().length)
    }

    fn set_length(&self, bytes: u64) -> Result<(), Errno> {
        self.power.step()?;
        self.state.lock().unwrap().length = bytes;
        Ok(())
    }
}

/// xorshift64*: the same numbers for the same seed.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % end
    }
}
