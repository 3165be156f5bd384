//! A device with metadata on files that lose power at every step, against what may be there afterwards.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ublk_core::{Backend, Checksum, Errno, Integrity, Limits};

use super::Protected;
use super::beside::{self, Beside, Side, Use};
use super::fake::{Fake, Power, Random};
use super::guard::{self, Verdict};
use super::header::Header;
use super::store::{Checked, ESCAPE, Kept, Store};
use crate::error::{Error, SideFileError};
use crate::file::{Alignment, FileCore, Layer};

const BLOCK: u64 = 512;
const BLOCKS: u64 = 64;
/// Small, so that few blocks make many regions.
const REGION: u64 = 2048;

fn at(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

/// Data and metadata of a block.
type Content = (Vec<u8>, Vec<u8>);

/// The two files of a device.
#[derive(Debug, Clone)]
struct Disk {
    data: Fake,
    side: Fake,
    format: Integrity,
}

impl Disk {
    fn new(format: Integrity, blocks: u64) -> Self {
        let power = Power::on(u64::MAX);
        let (data, side) = (Fake::new(&power), Fake::new(&power));
        data.set_length(blocks * BLOCK).unwrap();
        data.sync().unwrap();
        let disk = Self { data, side, format };
        beside::make(&disk.side, &disk.header(blocks)).unwrap();
        disk
    }

    fn header(&self, blocks: u64) -> Header {
        let mut header = Header::new(blocks * BLOCK, 0, 512, self.format);
        header.region = REGION;
        header
    }

    fn device(&self, blocks: u64, resize: bool) -> Result<Protected<FileCore<Fake>>, Error> {
        let usage = Use {
            read_only: false,
            same: false,
            resize,
            most: 3,
        };
        let beside = Beside::open(self.side.clone(), self.header(blocks), usage)?;
        let limits = Limits::new(blocks * BLOCK).fua(true).discard(1 << 20, 512);
        let limits = limits.write_zeroes(1 << 20);
        let alignment = Alignment {
            memory: 1,
            position: 1,
        };
        let core = FileCore::new(self.data.clone(), 0, limits, alignment);
        Protected::new(core, self.format, Box::new(beside))
    }

    /// As the next server finds it: checked, if the power lasts.
    fn started(&self) -> Result<(Protected<FileCore<Fake>>, Checked), Error> {
        let device = self.device(BLOCKS, false)?;
        let checked = device.start(Duration::ZERO)?;
        Ok((device, checked))
    }

    fn crash(&self, random: &mut Random, steps: u64) -> Self {
        let power = Power::on(steps);
        Self {
            data: self.data.after_crash(&power, random),
            side: self.side.after_crash(&power, random),
            format: self.format,
        }
    }
}

impl Kept for FileCore<Fake> {
    type Store = Box<dyn Store>;
}

/// What a block may have: what was made durable, and what was written since.
#[derive(Debug, Clone)]
struct Block {
    settled: Option<Content>,
    since: Vec<Content>,
}

struct Model {
    format: Integrity,
    blocks: Vec<Block>,
    written: u32,
}

impl Model {
    fn new(format: Integrity) -> Self {
        let empty = (vec![0; 512], vec![ESCAPE; format.metadata.into()]);
        let block = Block {
            settled: Some(empty),
            since: Vec::new(),
        };
        Self {
            format,
            blocks: (0..BLOCKS).map(|_| block.clone()).collect(),
            written: 0,
        }
    }

    /// Makes a request; false once the power is off.
    fn request(&mut self, device: &Protected<FileCore<Fake>>, random: &mut Random) -> bool {
        let first = random.below(BLOCKS);
        let count = 1 + random.below((BLOCKS - first).min(9));
        let (offset, len) = (first * BLOCK, count * BLOCK);
        let kind = random.below(12);
        if kind < 2 {
            let done = device.flush().is_ok();
            if done {
                (0..BLOCKS).for_each(|n| self.settle(n));
            }
            return done;
        }
        let escape = vec![ESCAPE; self.format.metadata.into()];
        let new: Vec<Content> = (0..count)
            .map(|_| {
                self.written += 1;
                let data = match kind {
                    2 | 3 => vec![0; 512],
                    _ => self.written.to_le_bytes().repeat(128),
                };
                let metadata = match kind {
                    2..=4 => escape.clone(),
                    _ => guard::make(&self.format, &data, self.written.to_le_bytes()[0]),
                };
                (data, metadata)
            })
            .collect();
        let data: Vec<u8> = new.iter().flat_map(|(data, _)| data.clone()).collect();
        let metadata: Vec<u8> = new.iter().flat_map(|(_, m)| m.clone()).collect();
        for (block, content) in (self.blocks.iter_mut().skip(at(first))).zip(new) {
            block.since.push(content);
        }
        let fua = kind > 9 || random.below(8) == 0;
        let done = match kind {
            2 => device.discard(offset, len),
            3 => device.write_zeroes(offset, len, random.below(2) == 0),
            4 => device.write_at(&data, offset, fua),
            _ => device.write_with_metadata(&data, &metadata, offset, fua),
        };
        if done.is_ok() && fua && kind > 3 {
            (first..first + count).for_each(|n| self.settle(n));
        }
        done.is_ok()
    }

    fn settle(&mut self, number: u64) {
        let block = &mut self.blocks[at(number)];
        if let Some(last) = block.since.pop() {
            *block = Block {
                settled: Some(last),
                since: Vec::new(),
            };
        }
    }

    /// Compares every block after a crash, and goes on from what is there.
    fn check(&mut self, device: &Protected<FileCore<Fake>>, what: &str) {
        for (number, block) in (0..BLOCKS).zip(&mut self.blocks) {
            let found = content(device, number, self.format);
            if block.since.is_empty()
                && let Some(settled) = &block.settled
            {
                assert_eq!(&found, settled, "{what}: block {number} was durable");
                continue;
            }
            let may = block.since.iter().chain(&block.settled);
            let known = may.clone().any(|(data, _)| *data == found.0);
            assert!(known, "{what}: block {number} has other data");
            let verdict = guard::judge(&self.format, &found.0, &found.1);
            let wrong = verdict == Verdict::Wrong;
            assert!(!wrong, "{what}: block {number} would be corrupt");
            *block = Block {
                settled: None,
                since: vec![found],
            };
        }
    }
}

fn content(device: &Protected<FileCore<Fake>>, number: u64, format: Integrity) -> Content {
    let (mut data, mut metadata) = (vec![0; 512], vec![0; format.metadata.into()]);
    device
        .read_with_metadata(&mut data, &mut metadata, number * BLOCK)
        .expect("the power is on");
    (data, metadata)
}

/// Runs requests until the power goes after `steps`, then recovers, with another loss of power after `again` steps, and ends
/// cleanly. True if the power was never lost.
fn run(format: Integrity, seed: u64, steps: u64, again: u64) -> bool {
    let what = format!("{format}, seed {seed}, power for {steps} and {again} steps");
    let mut random = Random::new(seed);
    let mut model = Model::new(format);
    let mut disk = Disk::new(format, BLOCKS);
    let mut lost = 0;
    for steps in [steps, again, u64::MAX] {
        disk = disk.crash(&mut Random::new(seed ^ steps), steps);
        let Ok((device, _)) = disk.started() else {
            lost += 1;
            continue;
        };
        model.check(&device, &what);
        if !(0..24).all(|_| model.request(&device, &mut random)) {
            lost += 1;
        }
    }
    let (_, checked) = disk.started().expect("the power is on");
    assert_eq!(checked, Checked::default(), "{what}: it ended cleanly");
    lost == 0
}

/// Whatever of the unsynced writes to both files a loss of power leaves, at whatever step: blocks that were flushed have their
/// own metadata, and no block has metadata that does not match its data.
#[test]
fn power_may_fail_at_every_step() {
    let formats = [
        Integrity::new(Checksum::Crc16, 8),
        Integrity::new(Checksum::Crc64, 24).reference_tag(true),
        Integrity::new(Checksum::Ip, 130),
    ];
    for (format, seed) in formats.into_iter().cycle().zip(1..=12) {
        let steps = (1..).find(|steps| run(format, seed, *steps, u64::MAX));
        assert!(steps.is_some_and(|steps| steps > 60), "{steps:?}");
        // The second loss of power is while the first one is recovered from, or soon after.
        for steps in (5..80).step_by(5) {
            for again in 1..24 {
                run(format, seed, steps, again);
            }
        }
    }
}

fn crc16() -> Integrity {
    Integrity::new(Checksum::Crc16, 64)
}

fn written(device: &impl Backend, number: u64, fill: u8, fua: bool) -> Result<(), Errno> {
    let data = [fill; 512];
    let metadata = guard::make(&crc16(), &data, fill);
    device.write_with_metadata(&data, &metadata, number * BLOCK, fua)
}

/// A full disk fails writes with ENOSPC; no block has metadata that does not match, even if nothing can be erased.
#[test]
fn a_full_disk_leaves_nothing_inconsistent() {
    let disk = Disk::new(crc16(), BLOCKS);
    let (device, _) = disk.started().unwrap();
    written(&device, 0, 1, true).unwrap();
    written(&device, 1, 2, true).unwrap();
    disk.side.full.store(true, Ordering::Relaxed);
    written(&device, 1, 3, true).unwrap();
    assert_eq!(written(&device, 40, 3, false), Err(Errno::ENOSPC));
    let escape = vec![ESCAPE; 64];
    assert_eq!(content(&device, 40, crc16()).1, escape);
    disk.side.broken.store(true, Ordering::Relaxed);
    assert_eq!(written(&device, 0, 4, false), Err(Errno::ENOSPC));
    let (data, metadata) = content(&device, 0, crc16());
    assert_eq!((data, metadata), (vec![4; 512], escape.clone()), "lost");
    assert_eq!(content(&device, 20, crc16()).1, escape);
    disk.side.broken.store(false, Ordering::Relaxed);
    drop(device);
    // The next opening tells which of them match.
    let (device, checked) = disk.started().unwrap();
    assert_eq!((checked.regions, checked.dropped), (1, 1));
    let (data, metadata) = content(&device, 1, crc16());
    assert_eq!(metadata, guard::make(&crc16(), &data, 3));
    assert_eq!(content(&device, 0, crc16()).1, escape);
}

fn resize(device: &Protected<FileCore<Fake>>, blocks: u64) {
    let size = blocks * BLOCK;
    device.data().size.store(size, Ordering::Relaxed);
    device.store.resize(size).unwrap();
}

/// A device keeps its metadata when it grows, and what it loses when it shrinks does not come
/// back with other data.
#[test]
fn a_resize_keeps_metadata() {
    let disk = Disk::new(crc16(), BLOCKS);
    let (device, _) = disk.started().unwrap();
    let last = BLOCKS - 1;
    written(&device, 3, 1, false).unwrap();
    written(&device, last, 2, false).unwrap();
    std::mem::forget(device);
    let sized = |blocks: u64| {
        disk.data.set_length(4 * BLOCKS * BLOCK).unwrap();
        let refused = disk.device(blocks, false).expect_err("another size");
        let refused = matches!(refused, Error::SideFile(SideFileError::Size { .. }));
        assert!(refused, "unless it is asked for");
        let device = disk.device(blocks, true).unwrap();
        let checked = device.start(Duration::ZERO).unwrap();
        (device, checked)
    };
    let (device, checked) = sized(4 * BLOCKS);
    assert_eq!((checked.regions, checked.kept), (2, 2));
    written(&device, 4 * BLOCKS - 1, 3, true).unwrap();
    for (number, fill) in [(3, 1), (last, 2), (4 * BLOCKS - 1, 3)] {
        let wanted = (vec![fill; 512], guard::make(&crc16(), &[fill; 512], fill));
        assert_eq!(content(&device, number, crc16()), wanted);
    }
    drop(device);
    let (device, _) = sized(BLOCKS - 4);
    assert_ne!(content(&device, 3, crc16()).1, [ESCAPE; 64]);
    // While it serves, too.
    resize(&device, 4 * BLOCKS);
    assert_eq!(content(&device, last, crc16()).1, [ESCAPE; 64]);
    written(&device, 4 * BLOCKS - 1, 4, true).unwrap();
    resize(&device, 2 * BLOCKS);
    resize(&device, 4 * BLOCKS);
    assert_eq!(content(&device, 4 * BLOCKS - 1, crc16()).1, [ESCAPE; 64]);
    drop(device);
    let device = disk.device(4 * BLOCKS, false).unwrap();
    assert_eq!(device.start(Duration::ZERO), Ok(Checked::default()));
}

/// Two servers never have the file at once, and one that does not have it writes nothing.
#[test]
fn one_server_at_a_time() {
    let disk = Disk::new(crc16(), BLOCKS);
    disk.side.locked.store(true, Ordering::Relaxed);
    let device = disk.device(BLOCKS, false).unwrap();
    let refused = device.start(Duration::from_millis(5));
    assert_eq!(refused, Err(SideFileError::Locked.into()));
    assert_eq!(written(&device, 0, 1, false), Err(Errno::EIO));
    disk.side.locked.store(false, Ordering::Relaxed);
    device.start(Duration::ZERO).unwrap();
    written(&device, 0, 1, false).unwrap();
}

/// A file of another device, of another kind, or cut off is refused by name.
#[test]
fn other_files_are_refused() {
    let opened = |disk: &Disk| match disk.device(BLOCKS, false).map(drop) {
        Err(Error::SideFile(error)) => Some(error),
        other => {
            other.unwrap();
            None
        }
    };
    let disk = Disk::new(crc16(), BLOCKS);
    assert_eq!(opened(&disk), None);
    let mut other = disk.clone();
    other.format = Integrity::new(Checksum::Crc16, 8);
    let found = opened(&other);
    assert!(
        matches!(found, Some(SideFileError::Format { .. })),
        "{found:?}"
    );
    assert!(found.is_some_and(|e| {
        e.to_string()
            .contains("--integrity crc16:64 --block-size 512")
    }));
    let mut header = disk.header(BLOCKS);
    header.base = 4096;
    disk.side.write(&header.encode(), 0).unwrap();
    let found = opened(&disk);
    assert!(
        matches!(found, Some(SideFileError::Offset { .. })),
        "{found:?}"
    );
    disk.side.write(&[1], 9).unwrap();
    assert_eq!(opened(&disk), Some(SideFileError::Damaged));
    disk.side.write(&[1], 0).unwrap();
    assert_eq!(opened(&disk), Some(SideFileError::Foreign));
    header.base = 0;
    disk.side.write(&header.encode(), 0).unwrap();
    disk.side.set_length(header.file_bytes() - 1).unwrap();
    let found = opened(&disk);
    assert!(
        matches!(found, Some(SideFileError::Truncated { .. })),
        "{found:?}"
    );
    disk.side.set_length(100).unwrap();
    assert_eq!(opened(&disk), Some(SideFileError::Foreign));
}
