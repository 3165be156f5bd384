//! Every operation on every backend from and to memory shared with the client, in every mode that allows it (Linux
//! 7.1), cell by cell as in `file_matrix`.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::file_matrix::{OPERATIONS, cut_loop, discard, errno_of, is_left, sync};
use super::shared_memory::{MEMORY, Memory, SIZE, add, counts, exchange, fio, lacks};
use crate::case::{self, Case, cell, measured};
use crate::cli::{self, Device, Spec};
use crate::embed::Embedded;
use crate::shared_client::SharedBuffers;
use crate::volume::{self, Kind, Volume};
use crate::wait::secs;
use crate::{json, pattern, sysfs};

/// The device's mode for data outside that memory.
#[derive(Debug, Clone, Copy)]
struct Mode {
    data: &'static str,
    batch: bool,
}

const fn mode(data: &'static str, batch: bool) -> Mode {
    Mode { data, batch }
}

const MODES: [Mode; 6] = [
    mode("copy", false),
    mode("copy", true),
    mode("user-copy", false),
    mode("zero-copy", false),
    mode("zero-copy-manual", false),
    mode("zero-copy", true),
];

impl Mode {
    fn name(self) -> String {
        format!(
            "shm-{}{}",
            self.data,
            if self.batch { "-batch" } else { "" }
        )
    }

    fn args(self) -> [&'static str; 4] {
        let batch = if self.batch { "on" } else { "off" };
        ["--data", self.data, "--batch", batch]
    }

    /// Whether what a change must pass leaves this cell out: batches and the driver's own modes differ in the matrix without
    /// shared memory, and the kinds of file do there.
    fn is_repeated(self, kind: Kind) -> bool {
        let kept = !self.batch && matches!(self.data, "copy" | "zero-copy");
        case::is_quick() && !(kept && kind == Kind::Tmpfs)
    }

    fn told(self, backend: &str, operation: &str) {
        cell(backend, &self.name(), operation, "ran");
    }

    fn all_told(self, backend: &str, outcome: &str) {
        for operation in OPERATIONS {
            cell(backend, &self.name(), operation, outcome);
        }
    }
}

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for mode in MODES {
        for backend in ["null", "mem"] {
            let name = format!("matrix_{backend}_{}", mode.name());
            all.push(Case::new(name, move || embedded(backend, mode)));
        }
        for kind in Kind::ALL {
            if is_left(kind) || mode.is_repeated(kind) {
                mode.all_told(kind.name(), "left");
                continue;
            }
            let name = format!("matrix_{}_{}", kind.name(), mode.name());
            let case = Case::new(name, move || file(kind, mode));
            all.push(case.only_if(
                kind == Kind::Tmpfs || sysfs::in_guest(),
                "RAM disks are made in the test guest only",
            ));
        }
    }
    all
}

/// Direct I/O with a device from and to shared memory.
struct Client<'a> {
    node: &'a Path,
    buffers: &'a SharedBuffers,
}

impl Client<'_> {
    /// The same place each time, in the middle of a page.
    const PLACE: usize = (1 << 20) + 512;

    fn open(&self, flags: i32) -> Result<std::fs::File> {
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true);
        Ok(options
            .custom_flags(libc::O_DIRECT | flags)
            .open(self.node)?)
    }

    fn write_with(&self, flags: i32, offset: u64, len: usize, generation: u64) -> Result<()> {
        let mut data = vec![0; len];
        pattern::fill(&mut data, offset, generation);
        self.buffers.put(Self::PLACE, &data)?;
        self.buffers
            .write(&self.open(flags)?, Self::PLACE, len, offset)
    }

    fn write(&self, offset: u64, len: usize, generation: u64) -> Result<()> {
        self.write_with(0, offset, len, generation)
    }

    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        // A read that does not fill it is detected.
        self.buffers.put(Self::PLACE, &vec![0xdb; len])?;
        self.buffers
            .read(&self.open(0)?, Self::PLACE, len, offset)?;
        self.buffers.get(Self::PLACE, len)
    }

    fn check(&self, offset: u64, len: usize, generation: u64) -> Result<()> {
        pattern::check(&self.read(offset, len)?, offset, generation)
    }

    /// Discarded ranges read as zeroes, and the neighbours keep their content.
    fn discard(&self) -> Result<()> {
        self.write(0, 256 << 10, 5)?;
        discard(self.node, 65_536, 65_536)?;
        let zeroes = self.read(65_536, 65_536)?;
        ensure!(zeroes.iter().all(|byte| *byte == 0), "not zero");
        self.check(0, 65_536, 5)?;
        self.check(131_072, 65_536, 5)
    }
}

/// Null and memory devices behind the fault backend.
fn embedded(backend: &'static str, mode: Mode) -> Result<()> {
    let null = backend == "null";
    let memory = Memory::new()?;
    let told = |operation: &str| mode.told(backend, operation);
    let spec = if null {
        Spec::null("16M")
    } else {
        Spec::mem("16M")
    };
    let spec = spec.with(&mode.args());
    if !null && mode.data.starts_with("zero-copy") {
        let args = spec.with(&["--shm", memory.path()]).args();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        cli::fails(&args, cli::code::USAGE, &["no file to forward"])?;
        mode.all_told(backend, "never");
        return Ok(());
    }
    if lacks(&spec, memory.path())? {
        mode.all_told(backend, "lacks");
        return Ok(());
    }
    let args = [
        format!("data={}", mode.data),
        format!("batch={}", mode.batch),
        format!("null={null}"),
        format!("shm={}", memory.path()),
    ];
    let args = args.each_ref().map(String::as_str);
    let more = ["cache=true", "fua=true", "size=16777216"];
    let mut device = Embedded::start(1, &[&args[..], &more].concat())?;
    let node = device.path.clone();
    let buffers = SharedBuffers::map(&memory.open()?)?;
    let client = Client {
        node: &node,
        buffers: &buffers,
    };
    client.write(4096, 300 << 10, 1)?;
    told("write");
    if null {
        // Behind the fault backend, null holds bytes, all zero.
        let place = client.read(4096, 300 << 10)?;
        ensure!(place.iter().all(|byte| *byte == 0), "not zero");
        told("read");
        cell(backend, &mode.name(), "verify", "never");
        discard(&node, 65_536, 65_536)?;
    } else {
        client.check(4096, 300 << 10, 1)?;
        told("read");
        fio(&node.to_string_lossy(), memory.path())?;
        told("verify");
        client.discard()?;
    }
    ensure!(device.count("discards")? > 0, "no discard arrived");
    told("discard");
    let before = device.count("flushes")?;
    sync(&node)?;
    ensure!(device.count("flushes")? > before, "no flush arrived");
    told("flush");
    let before = device.count("fua_writes")?;
    client.write_with(libc::O_DSYNC, 8192, 4096, 3)?;
    ensure!(device.count("fua_writes")? > before, "no FUA arrived");
    told("fua");
    for (operation, errno) in [("write", libc::ENOSPC), ("read", libc::ETIMEDOUT)] {
        device.ask(&format!("fail {operation} {errno} 1"))?;
        let result = match operation {
            "write" => client.write(0, 4096, 1),
            _ => client.read(0, 4096).map(drop),
        };
        ensure!(errno_of(result)? == Some(errno), "{operation}");
        client.write(0, 4096, 2)?;
        client.read(0, 4096)?;
    }
    told("error");
    let health = device.ask("health")?;
    let hits = json::number(&health, "shm_hits")?;
    ensure!(hits >= 8, "{health}");
    device.remove()?;
    cli::nothing_left(secs(10))
}

/// A device of the tool over a file.
fn file(kind: Kind, mode: Mode) -> Result<()> {
    let memory = Memory::new()?;
    let place = Volume::new(kind, 64 << 20)?;
    let path = place.file("disk.img", SIZE)?;
    let size = SIZE.to_string();
    let spec = Spec::file(&path).with(&mode.args());
    let spec = spec.with(&["--length", &size]);
    let Some(device) = add(&spec, memory.path())? else {
        mode.all_told(kind.name(), "lacks");
        return place.remove();
    };
    let told = |operation: &str| mode.told(kind.name(), operation);
    let buffers = SharedBuffers::map(&memory.open()?)?;
    exchange(&device, &buffers, 1)?;
    told("write");
    told("read");
    fio(device.node(), memory.path())?;
    told("verify");
    let node = device.path.clone();
    let client = Client {
        node: &node,
        buffers: &buffers,
    };
    client.discard()?;
    told("discard");
    let syncs = |device: &Device| json::number(&device.query()?, "syncs");
    let before = syncs(&device)?;
    client.write(0, 4096, 6)?;
    sync(&node)?;
    ensure!(syncs(&device)? > before, "no sync");
    told("flush");
    let before = syncs(&device)?;
    client.write_with(libc::O_DSYNC, 8192, 4096, 3)?;
    ensure!(syncs(&device)? > before, "no sync");
    volume::check_behind(&path, 8192, 4096, 8192, 3)?;
    told("fua");
    let (hits, misses) = counts(&device)?;
    measured(format!(
        "{} {}: {hits} hits, {misses} misses",
        kind.name(),
        mode.name()
    ));
    if kind == Kind::Block {
        device.delete()?;
        let args = [&mode.args()[..], &["--shm", memory.path()]].concat();
        cut_loop(&args, &|node, offset, len| {
            let buffers = &buffers;
            Client { node, buffers }.read(offset, len).map(drop)
        })
        .context("error")?;
    } else {
        // L05 A truncated file.
        let file = OpenOptions::new().write(true).open(&path)?;
        file.set_len(1 << 20)?;
        let gone = errno_of(client.read(2 << 20, 65_536).map(drop))?;
        ensure!(gone == Some(libc::EIO), "errno {gone:?}");
        file.set_len(SIZE)?;
        client.write(2 << 20, 65_536, 7)?;
        client.check(2 << 20, 65_536, 7)?;
        device.delete()?;
    }
    told("error");
    place.remove()?;
    cli::nothing_left(secs(10))
}

const _: () = assert!(Client::PLACE + (512 << 10) < MEMORY);
