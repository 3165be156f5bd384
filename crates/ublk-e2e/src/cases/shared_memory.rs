//! Memory shared with clients (Linux 7.1): direct I/O from it arrives with its position and without a copy, everything
//! else as usual; data is correct both ways, and counted.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::case::Case;
use crate::cli::{self, Device, Spec, code, ublkctl};
use crate::fio::Fio;
use crate::shared_client::SharedBuffers;
use crate::volume::{Kind, Volume};
use crate::wait::secs;
use crate::{json, pattern, sysfs};

/// Size of the memory, and of the devices.
pub(super) const MEMORY: usize = 4 << 20;
pub(super) const SIZE: u64 = 16 << 20;

/// The first kernel that supports it.
const SINCE: (u32, u32) = (7, 1);

/// Offset and length of requests in the memory, and their offset on the device: whole pages and parts of them, more
/// than the largest request, and the memory's last block.
const RANGES: [(usize, usize, u64); 7] = [
    (0, 4096, 0),
    (512, 512, 4096),
    (4096 + 1024, 8192, 8192),
    (64 << 10, 128 << 10, 1 << 20),
    ((1 << 20) + 512, 300 << 10, 3 << 20),
    (2 << 20, 1 << 20, 8 << 20),
    (MEMORY - 512, 512, SIZE - 512),
];

pub fn cases() -> Vec<Case> {
    let mut all = vec![Case::new("shm_mem_keeps_data", keeps_data)];
    all.push(Case::new("shm_memfd_by_its_descriptor", memfd));
    all.push(Case::new("shm_null_serves_from_nowhere", null));
    all.push(
        Case::new("shm_huge_pages", huge_pages)
            .only_if(sysfs::in_guest(), "huge pages are this machine's own"),
    );
    all.push(Case::new("shm_several_threads_and_queues", threads));
    all.push(Case::new("l34_shm_outlives_the_server", recovered));
    all.push(Case::new("shm_read_only_is_for_writes", read_only));
    all.push(Case::new("shm_is_refused_with_the_reason", refused));
    all
}

/// A file in memory, removed on drop.
pub(super) struct Memory(PathBuf);

impl Memory {
    pub(super) fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("ublk-e2e-shm-{}", std::process::id()));
        let file = File::create(&path)?;
        file.set_len(MEMORY as u64)?;
        Ok(Self(path))
    }

    pub(super) fn open(&self) -> Result<File> {
        let file = File::options().read(true).write(true).open(&self.0)?;
        Ok(file)
    }

    pub(super) fn path(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Whether the kernel cannot share memory: then `add` must say so, with the name of the feature.
pub(super) fn lacks(spec: &Spec, shm: &str) -> Result<bool> {
    if sysfs::kernel() >= SINCE {
        return Ok(false);
    }
    let args = spec.clone().with(&["--shm", shm]).args();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    cli::fails(&args, code::FAILED, &["lacks", "SHMEM_ZC", "7.1"])?;
    cli::nothing_left(secs(10))?;
    Ok(true)
}

/// Adds the device, unless the kernel lacks it.
pub(super) fn add(spec: &Spec, shm: &str) -> Result<Option<Device>> {
    match lacks(spec, shm)? {
        true => Ok(None),
        false => spec.clone().with(&["--shm", shm]).add().map(Some),
    }
}

/// Requests inside and outside the memory.
pub(super) fn counts(device: &Device) -> Result<(u64, u64)> {
    let info = device.query()?;
    let health = json::find(&info, "health").context("health")?;
    let shm = &health["shm"];
    ensure!(shm["bytes"] == MEMORY as u64, "{info}");
    Ok((json::number(shm, "hits")?, json::number(shm, "fallbacks")?))
}

/// Writes and reads between the device and the memory, and checks the result from the other side.
pub(super) fn exchange(device: &Device, buffers: &SharedBuffers, seed: u64) -> Result<()> {
    let direct = device.open()?;
    let (hits, misses) = counts(device)?;
    for (generation, (at, len, offset)) in (seed..).zip(RANGES) {
        let mut data = vec![0; len];
        pattern::fill(&mut data, offset, generation);
        buffers.put(at, &data)?;
        buffers.write(direct.file(), at, len, offset)?;
        // From memory that is not shared.
        direct.check_pattern(offset, len, generation)?;
        direct.write_pattern(offset, len, generation + 100)?;
        buffers.read(direct.file(), at, len, offset)?;
        pattern::check(&buffers.get(at, len)?, offset, generation + 100)
            .with_context(|| format!("read {offset}+{len} to {at}"))?;
        // A write that was served there has not changed it, nor other parts of the memory.
        let other = (at + len + 4096) % (MEMORY - 4096);
        buffers.put(other, &[0x5a; 512])?;
        buffers.read(direct.file(), at, len.min(512), offset)?;
        if other + 512 <= at || other >= at + len {
            ensure!(
                buffers.get(other, 512)? == [0x5a; 512],
                "a neighbour has changed"
            );
        }
    }
    let (hits_now, misses_now) = counts(device)?;
    ensure!(
        hits_now - hits >= 3 * RANGES.len() as u64,
        "{hits} hits before, {hits_now} now"
    );
    ensure!(misses_now > misses, "no request from elsewhere was counted");
    Ok(())
}

/// Runs fio with its buffers in the memory; it verifies what it reads.
pub(super) fn fio(node: &str, memory: &str) -> Result<()> {
    let done = Fio::new(node)
        .set("rw", "randwrite")
        .set("bsrange", "512-64k")
        .set("size", "4m")
        .set("iodepth", 8)
        .set("direct", 1)
        .set("verify", "crc32c")
        .set("mem", format!("mmapshared:{memory}"))
        .run(1)?;
    ensure!(done.written > 0 && done.read == done.written, "{done:?}");
    Ok(())
}

/// A memory device of the tool; other backends and modes: `shared_matrix`.
fn keeps_data() -> Result<()> {
    let memory = Memory::new()?;
    if let Some(device) = add(&Spec::mem("16M"), memory.path())? {
        let buffers = SharedBuffers::map(&memory.open()?)?;
        exchange(&device, &buffers, 1)?;
        fio(device.node(), memory.path())?;
        exchange(&device, &buffers, 50)?;
        device.delete()?;
    }
    cli::nothing_left(secs(10))
}

/// A memfd, which only has a name through its owner's descriptor, sealed against shrinking.
fn memfd() -> Result<()> {
    let memory = File::from(memfd_create(
        "ublk-e2e",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?);
    memory.set_len(MEMORY as u64)?;
    rustix::fs::fcntl_add_seals(&memory, rustix::fs::SealFlags::SHRINK)?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
    if let Some(device) = add(&Spec::mem("16M"), &path)? {
        exchange(&device, &SharedBuffers::map(&memory)?, 1)?;
        device.delete()?;
    }
    cli::nothing_left(secs(10))
}

/// A null device ignores the data: a read leaves the client's memory as it is.
fn null() -> Result<()> {
    let memory = Memory::new()?;
    for data in ["copy", "zero-copy"] {
        let spec = Spec::null("16M").with(&["--data", data]);
        let Some(device) = add(&spec, memory.path())? else {
            return Ok(());
        };
        let buffers = SharedBuffers::map(&memory.open()?)?;
        let direct = device.open()?;
        buffers.put(8192, &[0x77; 65536])?;
        buffers.write(direct.file(), 8192, 65536, 0)?;
        buffers.read(direct.file(), 8192, 65536, 0)?;
        ensure!(
            buffers.get(8192, 65536)? == vec![0x77; 65536],
            "{data}: touched"
        );
        drop(direct);
        let (hits, _) = counts(&device)?;
        ensure!(hits >= 2, "{data}: {hits} hits");
        device.delete()?;
    }
    cli::nothing_left(secs(10))
}

/// Memory that the server may only read: what is written from it is not copied, what is read into it is; another server goes
/// on so.
fn read_only() -> Result<()> {
    const LEN: usize = 64 << 10;
    let memory = Memory::new()?;
    let storage = Volume::new(Kind::Tmpfs, 32 << 20)?;
    let spec = Spec::file(&storage.file("disk.img", SIZE)?);
    let spec = spec.with(&["--shm-read-only", "--recovery", "reissue", "--data", "copy"]);
    let Some(device) = add(&spec, memory.path())? else {
        return storage.remove();
    };
    let buffers = SharedBuffers::map(&memory.open()?)?;
    let direct = device.open()?;
    let mut data = vec![0; LEN];
    for generation in [1, 2] {
        let (hits, misses) = counts(&device)?;
        pattern::fill(&mut data, 4096, generation);
        buffers.put(8192, &data)?;
        buffers.write(direct.file(), 8192, LEN, 4096)?;
        let (written, unchanged) = counts(&device)?;
        ensure!(
            (written, unchanged) == (hits + 1, misses),
            "a write: {hits} hits, {written} now, {misses} misses, {unchanged} now"
        );
        buffers.put(8192, &vec![0x5a; LEN])?;
        buffers.read(direct.file(), 8192, LEN, 4096)?;
        pattern::check(&buffers.get(8192, LEN)?, 4096, generation)?;
        ensure!(counts(&device)? == (written, misses + 1), "a read");
        if generation == 1 {
            device.kill_server("quiesced")?;
            ublkctl(&["recover", &device.id.to_string()])?.good()?;
        }
    }
    drop(direct);
    device.delete()?;
    storage.remove()
}

/// hugetlbfs: pages of 2 MiB.
fn huge_pages() -> Result<()> {
    let at = std::env::temp_dir().join("ublk-e2e-huge");
    let pages = Path::new("/proc/sys/vm/nr_hugepages");
    fs::write(pages, "4")?;
    fs::create_dir_all(&at)?;
    mount("none", &at, "hugetlbfs", MountFlags::empty(), None).context("mount hugetlbfs")?;
    let done = (|| {
        let path = at.join("memory");
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)?;
        file.set_len(MEMORY as u64)?;
        let spec = Spec::mem("16M");
        if let Some(device) = add(&spec, path.to_str().unwrap_or_default())? {
            exchange(&device, &SharedBuffers::map(&file)?, 1)?;
            device.delete()?;
        }
        fs::remove_file(&path)?;
        Ok(())
    })();
    unmount(&at, UnmountFlags::DETACH)?;
    fs::write(pages, "0")?;
    let _ = fs::remove_dir(&at);
    done.and_then(|()| cli::nothing_left(secs(10)))
}

/// Any thread finds the data of its requests.
fn threads() -> Result<()> {
    let memory = Memory::new()?;
    for batch in ["off", "on"] {
        let args = ["--threads", "2", "--batch", batch];
        let spec = Spec::mem("16M").queues(2).with(&args);
        let Some(device) = add(&spec, memory.path())? else {
            return Ok(());
        };
        exchange(&device, &SharedBuffers::map(&memory.open()?)?, 1)?;
        fio(device.node(), memory.path())?;
        device.delete()?;
    }
    cli::nothing_left(secs(10))
}

/// L34 The driver keeps the memory of a device whose server died: the next server maps the same file and refuses
/// another file at the same path.
fn recovered() -> Result<()> {
    let memory = Memory::new()?;
    let place = Volume::new(Kind::Tmpfs, 64 << 20)?;
    let path = place.file("disk.img", SIZE)?;
    let spec = Spec::file(&path).with(&["--recovery", "reissue"]);
    if let Some(device) = add(&spec, memory.path())? {
        let buffers = SharedBuffers::map(&memory.open()?)?;
        let id = device.id.to_string();
        exchange(&device, &buffers, 1)?;
        device.kill_server("quiesced")?;
        let aside = memory.0.with_extension("aside");
        fs::rename(&memory.0, &aside)?;
        File::create(&memory.0)?.set_len(MEMORY as u64)?;
        cli::fails(&["recover", &id], code::FAILED, &["not the file"])?;
        fs::rename(&aside, &memory.0)?;
        cli::ublkctl(&["recover", &id])?.good()?;
        exchange(&device, &buffers, 20)?;
        cli::ublkctl(&["upgrade", &id])?.good()?;
        exchange(&device, &buffers, 40)?;
        device.delete()?;
    }
    place.remove()?;
    cli::nothing_left(secs(10))
}

/// Memory that cannot be shared is refused before a device exists, or with nothing left behind.
fn refused() -> Result<()> {
    let memory = Memory::new()?;
    let args = ["add", "mem", "--size", "16M", "--shm"];
    let get_data = [&args[..], &[memory.path(), "--data", "get-data"]].concat();
    cli::fails(&get_data, code::USAGE, &["get-data"])?;
    let missing = [&args[..], &["/no/such/memory"]].concat();
    cli::fails(&missing, code::FAILED, &["/no/such/memory"])?;
    let node = [&args[..], &["/dev/null"]].concat();
    cli::fails(&node, code::FAILED, &["memory"])?;
    if sysfs::kernel() >= SINCE && sysfs::in_guest() {
        // A file on a disk's file system is not memory.
        let place = Volume::new(Kind::Ext4, 0)?;
        let path = place.file("memory", MEMORY as u64)?;
        let on_disk = [&args[..], &[path.to_str().unwrap_or_default()]].concat();
        cli::fails(&on_disk, code::FAILED, &["memory can be shared"])?;
        place.remove()?;
    }
    cli::nothing_left(secs(10))
}
