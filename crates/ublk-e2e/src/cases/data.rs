//! Data read is the data written: patterns, fio, overlapping writers.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::matrix;
use crate::case::Case;
use crate::cli::{Device, Spec, cpus};
use crate::fio::Fio;
use crate::pattern;

const SIZE: u64 = 64 << 20;

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (queues, block) in matrix() {
        all.push(Case::new(
            format!("l02_patterns_first_last_crossing_q{queues}_b{block}"),
            move || patterns(queues, block),
        ));
        all.push(Case::new(
            format!("fio_crc32c_md5_mixed_sizes_q{queues}_b{block}"),
            move || fio(queues, block),
        ));
    }
    for queues in [2, 4] {
        all.push(Case::new(
            format!("l01_each_queue_has_its_own_descriptors_q{queues}"),
            move || each_queue(queues),
        ));
        all.push(Case::new(
            format!("l10_overlapping_writers_on_all_queues_q{queues}"),
            move || overlapping(queues),
        ));
    }
    all.push(Case::new(
        "fio_overlapping_jobs_depth_128_q4",
        fio_overlapping,
    ));
    all.push(Case::new("l13_last_sector_of_a_huge_device", huge));
    all.push(Case::new("l05_fresh_device_reads_zeroes", fresh));
    all
}

fn device(queues: usize, block: u32) -> Result<Device> {
    Spec::mem("64M")
        .queues(queues)
        .depth(128)
        .block_size(block)
        .add()
}

/// L02 Data is stored at the right offset for blocks of any size.
fn patterns(queues: usize, block: u32) -> Result<()> {
    let device = device(queues, block)?;
    let direct = device.open()?;
    let b = u64::from(block);
    let length = usize::try_from(block)?;
    // First, second, last blocks; blocks around a page, a request, and a power of two.
    let mut places = vec![0, b, SIZE - b, SIZE - 2 * b];
    for edge in [4096, 65_536, 512 << 10, 1 << 20, SIZE / 2] {
        places.extend([edge - b, edge, edge + b]);
    }
    places.sort_unstable();
    places.dedup();
    for place in &places {
        direct.write_pattern(*place, length, 1)?;
    }
    for place in &places {
        direct.check_pattern(*place, length, 1)?;
    }
    // Ranges that cross the largest request, by one block and by many.
    let ranges = [
        ((512 << 10) - b, 2 * length),
        ((1 << 20) - b, (512 << 10) + 2 * length),
        (SIZE / 2 - (1 << 20) - b, 1 << 20),
        (SIZE - (1 << 20), 1 << 20),
    ];
    for (generation, (offset, len)) in (2..).zip(ranges) {
        direct.write_pattern(offset, len, generation)?;
        direct.check_pattern(offset, len, generation)?;
        // One block inside is overwritten; its neighbours keep their content.
        let inner = offset + b;
        direct.write_pattern(inner, length, 99)?;
        direct.check_pattern(offset, length, generation)?;
        direct.check_pattern(inner, length, 99)?;
        let after = inner + b;
        let rest = len - 2 * length;
        if rest > 0 {
            direct.check_pattern(after, rest, generation)?;
        }
    }
    // Nothing was written between these places.
    direct.check_zero(8192 + 4 * b, 4096)?;
    // Nothing is beyond the end.
    ensure!(
        direct.read(SIZE, length).is_err(),
        "a read past the end passed"
    );
    ensure!(direct.write_pattern(SIZE, length, 1).is_err());
    // The page cache sees the same.
    drop(direct);
    let mut data = vec![0; length];
    std::fs::File::open(&device.path)?.read_exact_at(&mut data, SIZE - b)?;
    pattern::check(&data, SIZE - b, 5)?;
    device.delete()
}

fn fio(queues: usize, block: u32) -> Result<()> {
    let device = device(queues, block)?;
    let jobs = queues.min(cpus());
    let pin = |fio: Fio| {
        fio.set("numjobs", jobs)
            .set("cpus_allowed", format!("0-{}", jobs - 1))
            .set("cpus_allowed_policy", "split")
    };
    let each = 4_u64 << 20;
    let crc = pin(Fio::new(device.node()))
        .set("rw", "randwrite")
        .set("bs", block.max(4096))
        .set("size", each)
        .set("offset_increment", each)
        .set("iodepth", 128)
        .set("verify", "crc32c")
        .run(jobs)?;
    let total = each * jobs as u64;
    ensure!(crc.written == total && crc.read == total, "{crc:?}");
    let md5 = pin(Fio::new(device.node()))
        .set("rw", "randwrite")
        .set("bsrange", format!("{block}-1m"))
        .set("size", 2 * each)
        .set("offset_increment", 2 * each)
        .set("iodepth", 32)
        .set("verify", "md5")
        .run(jobs)?;
    ensure!(md5.written >= total && md5.read == md5.written, "{md5:?}");
    device.delete()
}

/// Runs `body` on a thread pinned to one CPU, hence on the queue of that CPU.
fn on_cpu<T: Send>(cpu: usize, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let mut set = CpuSet::new();
            set.set(cpu);
            sched_setaffinity(None, &set).context("stay on a CPU")?;
            body()
        });
        thread.join().map_err(|_| anyhow!("panic"))?
    })
}

/// L01 With a wrong descriptor stride every queue would serve queue 0's requests. Depths that do and do not fill pages
/// of descriptors.
fn each_queue(queues: usize) -> Result<()> {
    for depth in [1, 128, 171, 512] {
        let device = Spec::mem("64M")
            .queues(queues)
            .depth(depth)
            .with(&["--max-io", "64K"])
            .add()?;
        let direct = device.open()?;
        let part = |cpu: usize| (cpu as u64) << 20;
        for cpu in 0..cpus() {
            on_cpu(cpu, || {
                for piece in 0..16 {
                    direct.write_pattern(part(cpu) + piece * 4096, 4096, cpu as u64 + 1)?;
                }
                Ok(())
            })?;
        }
        for cpu in 0..cpus() {
            let writer = (cpu + 1) % cpus();
            on_cpu(cpu, || {
                direct.check_pattern(part(writer), 65_536, writer as u64 + 1)
            })
            .with_context(|| format!("depth {depth}, CPU {cpu}"))?;
        }
        drop(direct);
        device.delete()?;
    }
    Ok(())
}

/// L10 Writers on all queues overlap at random; in the end every word is one that some writer wrote to that place.
fn overlapping(queues: usize) -> Result<()> {
    const AREA: u64 = 1 << 20;
    let device = device(queues, 512)?;
    let direct = device.open()?;
    direct.write_pattern(0, 1 << 20, 0)?;
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..cpus())
            .map(|cpu| {
                let direct = &direct;
                scope.spawn(move || {
                    on_cpu(cpu, || {
                        let generation = cpu as u64 + 1;
                        for round in 0..150 {
                            let dice = pattern::word(round, generation);
                            let offset = (dice >> 8) % (AREA / 512) * 512;
                            let most = (AREA - offset).min(128 << 10);
                            let len = (dice >> 40) % (most / 512) * 512 + 512;
                            direct.write_pattern(offset, usize::try_from(len)?, generation)?;
                        }
                        Ok(())
                    })
                })
            })
            .collect();
        writers
            .into_iter()
            .try_for_each(|w| w.join().map_err(|_| anyhow!("panic"))?)
    })?;
    let generations: Vec<u64> = (0..=cpus() as u64).collect();
    pattern::check_any(direct.read(0, 1 << 20)?.bytes(), 0, &generations)?;
    ensure!(
        direct.check_pattern(0, 1 << 20, 0).is_err(),
        "nobody wrote anything"
    );
    drop(direct);
    device.delete()
}

fn fio_overlapping() -> Result<()> {
    let device = device(4, 512)?;
    let jobs = cpus().min(4);
    let fio = || {
        Fio::new(device.node())
            .set("iodepth", 128)
            .set("size", "2m")
    };
    let done = fio()
        .set("rw", "randrw")
        .set("bsrange", "512-64k")
        .set("numjobs", jobs)
        .set("loops", 4)
        .run(jobs)?;
    ensure!(done.written > 0 && done.read > 0, "{done:?}");
    let done = fio()
        .set("rw", "randwrite")
        .set("bs", "4k")
        .set("verify", "crc32c")
        .run(1)?;
    ensure!(done.read == 2 << 20, "{done:?}");
    device.delete()
}

/// L13 Near 8 EiB nothing wraps: the last block is served, the one after it is not.
fn huge() -> Result<()> {
    let size = (1_u64 << 63) - 4096;
    for block in [512, 4096] {
        let device = Spec::null(&size.to_string()).block_size(block).add()?;
        let direct = device.open()?;
        direct.read(size - 4096, 4096)?;
        direct.write_pattern(size - u64::from(block), usize::try_from(block)?, 1)?;
        ensure!(
            direct.read(size, 4096).is_err(),
            "a read past the end passed"
        );
        drop(direct);
        device.delete()?;
    }
    Ok(())
}

/// L05 A new device contains nothing of an earlier device or of the server.
fn fresh() -> Result<()> {
    for block in [512, 4096] {
        let device = Spec::mem("8M").queues(2).block_size(block).add()?;
        let direct = device.open()?;
        direct.check_zero(0, 8 << 20)?;
        direct.write_pattern(0, 8 << 20, 7)?;
        drop(direct);
        device.delete()?;
        // The buffers of a null device's tags belong to a new server: zeroes before the first write.
        let device = Spec::null("8M").queues(2).block_size(block).add()?;
        let direct = device.open()?;
        direct.check_zero(0, 8 << 20)?;
        drop(direct);
        device.delete()?;
    }
    Ok(())
}
