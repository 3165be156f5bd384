//! Discard and write-zeroes: the range reads as zeroes and its memory is freed.

use anyhow::{Result, ensure};
use rustix::fs::{FallocateFlags, fallocate};

use super::matrix;
use crate::case::Case;
use crate::cli::{Device, Spec};
use crate::direct_io::Direct;
use crate::embed::Embedded;
use crate::{procfs, run};

const SIZE: u64 = 32 << 20;

pub fn cases() -> Vec<Case> {
    let mut all: Vec<Case> = matrix()
        .map(|(queues, block)| {
            Case::new(
                format!("l12_discard_and_write_zeroes_q{queues}_b{block}"),
                move || discard(queues, block),
            )
        })
        .collect();
    all.push(Case::new("l12_nounmap_reaches_the_backend", nounmap));
    all
}

/// Ways to zero a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// BLKDISCARD.
    Discard,
    /// BLKZEROOUT: WRITE_ZEROES that may not unmap.
    ZeroOut,
    /// fallocate: WRITE_ZEROES that may.
    PunchHole,
}

fn zero(device: &Device, direct: &Direct, way: Way, offset: u64, len: u64) -> Result<()> {
    let (o, l) = (offset.to_string(), len.to_string());
    let range = ["-o", &o, "-l", &l, device.node()];
    match way {
        Way::Discard => run::good("blkdiscard", &range).map(drop),
        Way::ZeroOut => run::good("blkdiscard", &[&["-z"], &range[..]].concat()).map(drop),
        Way::PunchHole => {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(fallocate(direct.file(), flags, offset, len)?)
        }
    }
}

/// L12 Granularity and alignment are honoured: exactly the range is zeroed, and whole pages are freed.
fn discard(queues: usize, block: u32) -> Result<()> {
    // Few and small tags: their buffers are memory of the server, too, once used.
    let device = Spec::mem("32M")
        .queues(queues)
        .depth(8)
        .block_size(block)
        .with(&["--max-io", "64K"])
        .add()?;
    let direct = device.open()?;
    let b = u64::from(block);
    let server = device.server()?;
    let rss = || procfs::status(server, "VmRSS");
    for way in [Way::Discard, Way::ZeroOut, Way::PunchHole] {
        direct.write_pattern(0, usize::try_from(SIZE)?, 1)?;
        let full = rss()?;
        ensure!(full >= SIZE, "{full} bytes resident with {SIZE} written");
        // In the middle, then single blocks at unaligned places, the first, the last.
        for (offset, len) in [
            (4 << 20, 16 << 20),
            (b, b),
            (3 * b, 5 * b),
            ((2 << 20) - b, 2 * b),
            (SIZE - b, b),
        ] {
            zero(&device, &direct, way, offset, len)?;
            direct.check_zero(offset, usize::try_from(len)?)?;
            direct.check_pattern(offset - b, usize::try_from(b)?, 1)?;
            if offset + len < SIZE {
                direct.check_pattern(offset + len, usize::try_from(b)?, 1)?;
            }
        }
        let left = rss()?;
        let went = full.saturating_sub(left);
        match way {
            Way::ZeroOut => ensure!(went < 1 << 20, "BLKZEROOUT gave {went} bytes back"),
            _ => ensure!(went >= 12 << 20, "{way:?} of 16 MiB gave {went} bytes back"),
        }
        // Everything.
        zero(&device, &direct, way, 0, SIZE)?;
        direct.check_zero(0, usize::try_from(SIZE)?)?;
        if way != Way::ZeroOut {
            let left = rss()?;
            ensure!(
                left < full - (SIZE - (4 << 20)),
                "{left} of {full} are left"
            );
        }
    }
    drop(direct);
    device.delete()
}

/// L12 The flag that forbids unmapping arrives as such, and only if it was set.
fn nounmap() -> Result<()> {
    let mut embedded = Embedded::start(1, &[])?;
    let node = embedded.path.to_string_lossy().into_owned();
    run::good("blkdiscard", &["-z", "-o", "0", "-l", "65536", &node])?;
    let zeroes = embedded.count("write_zeroes")?;
    let kept = embedded.count("no_unmap")?;
    ensure!(
        zeroes >= 1 && kept == zeroes,
        "{kept} of {zeroes} with NOUNMAP"
    );
    let direct = embedded.open()?;
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(direct.file(), flags, 0, 65_536)?;
    ensure!(embedded.count("write_zeroes")? > zeroes);
    ensure!(embedded.count("no_unmap")? == kept);
    ensure!(embedded.count("discards")? == 0);
    run::good("blkdiscard", &["-o", "0", "-l", "65536", &node])?;
    ensure!(embedded.count("discards")? == 1);
    drop(direct);
    embedded.remove()
}
