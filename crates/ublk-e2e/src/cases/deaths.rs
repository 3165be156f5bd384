//! The outcome for a device on a file when something of it dies: policy × event × load (L14, L24, L25, L30, L34).
//!
//! Each cell creates a device, puts a load on it, triggers the event, records the device's state, recovers it if
//! possible, and checks every acknowledged write. The runner compares the states with its manifest.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::MountFlags;
use rustix::process::Signal;

use super::recovery::with;
use super::stop::Backing;
use crate::case::{self, Case};
use crate::cli::{self, Device, Spec, code, patience, ublkctl, ublkctl_json};
use crate::direct_io::Direct;
use crate::fs::{Kind, Mounted, compare, fill};
use crate::verifier::{BLOCK, Known, Load};
use crate::wait::{secs, until};
use crate::{json, procfs, run, sysfs};

const MIB: u64 = 1 << 20;
/// Size of each device.
const SIZE: u64 = 64 * MIB;
/// Threads and blocks of a load. Fewer threads than tags: kernels before 6.16 only notice a death through an idle tag.
const THREADS: usize = 4;
const BLOCKS: usize = 128;
/// Number of files synced before something dies.
const FILES: usize = 5;

const POLICIES: [&str; 4] = ["none", "queue", "reissue", "fail"];

/// The event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The server is killed.
    Kill,
    /// The server is terminated.
    Exit,
    /// The backend panics.
    Panic,
    /// A queue's thread ends.
    Thread,
    /// The server is killed, and the next one during recovery.
    KillNext,
}

impl Event {
    const ALL: [Self; 5] = [
        Self::Kill,
        Self::Exit,
        Self::Panic,
        Self::Thread,
        Self::KillNext,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Exit => "exit",
            Self::Panic => "panic",
            Self::Thread => "thread-error",
            Self::KillNext => "kill-next",
        }
    }

    /// The trap for the server's fault.
    const fn trap(self) -> Option<&'static str> {
        match self {
            Self::Panic => Some("panic"),
            Self::Thread => Some("thread"),
            Self::Kill | Self::Exit | Self::KillNext => None,
        }
    }
}

/// The load on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Idle,
    Load,
    Ext4,
}

impl Work {
    const ALL: [Self; 3] = [Self::Idle, Self::Load, Self::Ext4];

    const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Load => "load",
            Self::Ext4 => "ext4",
        }
    }
}

pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for policy in POLICIES {
        for event in Event::ALL {
            for work in Work::ALL {
                let cell = Cell {
                    policy,
                    event,
                    work,
                };
                if cell.is_left() {
                    continue;
                }
                let case = Case::new(cell.name(), move || cell.run());
                all.push(case.only_if(
                    sysfs::in_guest(),
                    "traps and kill points are built for the guest only",
                ));
            }
        }
    }
    all.push(Case::new("l34_death_is_noticed_in_time", noticed));
    all
}

/// How long each death went unnoticed.
static NOTICED: Mutex<Vec<Duration>> = Mutex::new(Vec::new());

/// Reports the longest time of all cells, each within its limit, and the cells that were left out.
fn noticed() -> Result<()> {
    for policy in POLICIES {
        for event in Event::ALL {
            for work in Work::ALL {
                let cell = Cell {
                    policy,
                    event,
                    work,
                };
                if cell.is_left() {
                    cell.tell("left");
                }
            }
        }
    }
    let Ok(times) = NOTICED.lock() else {
        bail!("a cell has panicked");
    };
    if let Some(longest) = times.iter().max() {
        ensure!(*longest <= patience() + secs(1), "{longest:?}");
        case::measured(format!(
            "{} deaths, noticed after at most {} ms (limit {} s)",
            times.len(),
            longest.as_millis(),
            patience().as_secs()
        ));
    }
    Ok(())
}

#[derive(Debug, Clone, Copy)]
struct Cell {
    policy: &'static str,
    event: Event,
    work: Work,
}

/// A device with its load.
struct Stage {
    backing: Backing,
    device: Device,
    mounted: Option<Mounted>,
    load: Option<Load>,
}

impl Cell {
    fn name(self) -> String {
        let Self {
            policy,
            event,
            work,
        } = self;
        format!("l34_death_{policy}_{}_{}", event.name(), work.name()).replace('-', "_")
    }

    /// Whether the reduced matrix of a middle kernel leaves this cell out: to the driver a mounted or loaded device is
    /// like an idle one, unless the dying process holds requests.
    fn is_left(self) -> bool {
        let kept = match self.work {
            Work::Idle => true,
            Work::Load => matches!(self.event, Event::Kill | Event::Thread),
            Work::Ext4 => self.event == Event::Kill,
        };
        // The next server's death, and a file system above, are the same to every policy that waits; so is how a server ends.
        let once = self.event == Event::KillNext || self.work == Work::Ext4;
        let killed = self.event == Event::Kill;
        let repeated = match self.policy {
            "reissue" => false,
            "none" => once,
            _ => once || !killed,
        };
        case::reduced() && !kept || case::is_quick() && repeated
    }

    fn tell(self, outcome: &str) {
        case::recovery_cell(self.policy, self.event.name(), self.work.name(), outcome);
    }

    fn run(self) -> Result<()> {
        if self.policy == "fail" && sysfs::kernel() < (6, 13) {
            with(self.policy, || bail!("it lacks the policy"))?;
            self.tell("lacks");
            return cli::nothing_left(secs(5));
        }
        let stage = self.begin()?;
        let outcome = self.happen(&stage)?;
        self.tell(&outcome);
        match outcome.as_str() {
            "live" | "quiesced" | "fail-io" => self.goes_on(stage, &outcome),
            _ => self.is_over(stage, &outcome),
        }?;
        procfs::nothing_stuck(patience())
    }

    /// Creates the device and starts its load.
    fn begin(self) -> Result<Stage> {
        let backing = Backing::new("deaths");
        std::fs::File::create(backing.path())?.set_len(SIZE)?;
        if self.work == Work::Ext4 {
            let path = backing.path().to_str().context("plain")?;
            Kind::Ext4.format(path)?;
        }
        let mut spec = Spec::file(backing.path()).queues(2).depth(16);
        spec = spec.with(&["--recovery", self.policy, "--max-io", "64K"]);
        let args = spec.args();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let mut command = cli::command(&args);
        if let Some(trap) = self.event.trap() {
            command.env("UBLK_TRAP", trap);
        }
        let output = run::output(&mut command, secs(60))?.good()?;
        let device = Device::of(&output, &spec)?;
        let mut stage = Stage {
            backing,
            device,
            mounted: None,
            load: None,
        };
        match self.work {
            Work::Idle => stage.device.open()?.write_pattern(0, 65_536, 3)?,
            Work::Load => {
                let load = Load::start(&stage.device.path, THREADS, BLOCKS)?;
                load.more(100, secs(60))?;
                stage.load = Some(load);
            }
            Work::Ext4 => {
                let mounted = Mounted::new(&stage.device, Kind::Ext4, MountFlags::empty())?;
                fill(&mounted.at, FILES)?;
                let file = mounted.at.join("load");
                let zeroes = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .open(&file)?;
                std::os::unix::fs::FileExt::write_all_at(&zeroes, &vec![0; BLOCKS * BLOCK], 0)?;
                zeroes.sync_all()?;
                // Data synced so far must survive, and so must its directories.
                rustix::fs::sync();
                let load = Load::start(&file, THREADS, BLOCKS)?;
                load.more(50, secs(60))?;
                stage.mounted = Some(mounted);
                stage.load = Some(load);
            }
        }
        Ok(stage)
    }

    /// Triggers the event and returns the device's state.
    fn happen(self, stage: &Stage) -> Result<String> {
        let device = &stage.device;
        let state = match self.policy {
            "none" => "dead",
            "fail" => "fail-io",
            _ => "quiesced",
        };
        let start = Instant::now();
        let dead = || -> Result<()> {
            device.wait_state(state, patience())?;
            if let Ok(mut times) = NOTICED.lock() {
                times.push(start.elapsed());
            }
            let info = device.query()?;
            ensure!(json::text(&info, "next")?.contains("ublkctl"), "{info}");
            until("an orphan", secs(10), || {
                Ok((device.query()?["orphan"] == true).then_some(()))
            })
        };
        match self.event {
            Event::Kill => {
                procfs::kill(device.server_now()?, Signal::KILL)?;
                dead()?;
            }
            Event::KillNext => {
                procfs::kill(device.server_now()?, Signal::KILL)?;
                dead()?;
                let id = device.id.to_string();
                let mut recover = cli::command(&["recover", &id, "--deadline", "20"]);
                recover.env("UBLK_KILL_AT", "server:armed");
                let output = run::output(&mut recover, secs(60))?;
                ensure!(output.code() == code::FAILED, "{output}");
                device.wait_state(state, patience())?;
            }
            Event::Thread => {
                // The result of this read is ignored: it fails, or waits for the next server.
                let trap = spring(device);
                dead().context("after the end of a queue's thread")?;
                if self.policy == "none" || self.policy == "fail" {
                    ensure!(ended(trap)?.is_err(), "the read passed without its thread");
                }
            }
            Event::Panic => {
                let answer = ended(spring(device))?;
                let error = answer.err().context("the read passed")?;
                let errno = error
                    .downcast_ref::<std::io::Error>()
                    .and_then(std::io::Error::raw_os_error);
                ensure!(errno == Some(libc::EIO), "{error:#}");
                let info = device.query()?;
                ensure!(json::number(&info, "panics")? == 1, "{info}");
                if let Some(load) = &stage.load {
                    load.more(50, secs(60))?;
                }
            }
            Event::Exit => {
                let server = device.server_now()?;
                procfs::kill(server, Signal::TERM)?;
                if self.policy == "none" {
                    // If somebody has it open, its number stays in use until it is closed.
                    until("the end of the disk", secs(30), || {
                        Ok((!sysfs::directory(device.id).exists()).then_some(()))
                    })?;
                    return Ok("gone".to_owned());
                }
                dead()?;
            }
        }
        Ok(json::text(&device.query()?, "state")?.to_owned())
    }

    /// The number of requests that may have failed by now.
    fn errors(self, known: &Known, outcome: &str) -> Result<()> {
        let errors = known.done.errors;
        // Each server that died may have held one request of each thread.
        let in_hand = 2 * THREADS as u64;
        // Linux 6.16 holds back new requests while a server is terminated.
        let drained = self.event == Event::Exit && sysfs::kernel() >= (6, 16);
        let good = match (self.policy, outcome) {
            (_, "live") | ("reissue", _) => errors == 0,
            ("queue", _) if drained => errors == 0,
            // A file system whose log write failed accepts no more writes.
            ("queue", _) => errors <= in_hand || self.work == Work::Ext4,
            _ => errors > 0,
        };
        ensure!(good, "{errors} requests failed: {outcome}");
        Ok(())
    }

    /// The device is served again, or still: no acknowledged write is lost, and it continues.
    fn goes_on(self, mut stage: Stage, outcome: &str) -> Result<()> {
        let id = stage.device.id.to_string();
        if outcome != "live" {
            ublkctl(&["recover", &id])?.good()?;
            stage.device.wait_state("live", secs(1))?;
        }
        let whole = self.policy == "reissue" || outcome == "live";
        if let Some(load) = stage.load.take() {
            if whole || self.work == Work::Load {
                load.more(50, secs(60)).context("after the recovery")?;
            }
            let known = load.stop(patience() + secs(30))?;
            self.errors(&known, outcome)?;
            if self.work == Work::Load {
                known
                    .check(&stage.device.path)
                    .context("through the device")?;
                stage.device.delete()?;
                return known.check(stage.backing.path()).context("in the file");
            }
            if let Some(mounted) = stage.mounted.take() {
                mounted.unmount()?;
            }
            check_fs(stage.device.node(), whole)?;
            return stage.look(Some(&known));
        }
        let direct = stage.device.open()?;
        direct.check_pattern(0, 65_536, 3)?;
        direct.write_pattern(MIB, 65_536, 4)?;
        direct.check_pattern(MIB, 65_536, 4)?;
        drop(direct);
        stage.device.delete()
    }

    /// The device is gone: acknowledged writes are in the file.
    fn is_over(self, mut stage: Stage, outcome: &str) -> Result<()> {
        let known = match stage.load.take() {
            Some(load) => Some(load.stop(patience() + secs(30))?),
            None => None,
        };
        if let Some(known) = &known {
            self.errors(known, outcome)?;
        }
        if let Some(mounted) = stage.mounted.take() {
            mounted.unmount()?;
        }
        let Stage {
            backing, device, ..
        } = stage;
        if outcome == "gone" {
            until("nothing of the device", secs(20), || {
                let listed = ublkctl_json(&["list"])?;
                Ok(listed.as_array().is_some_and(Vec::is_empty).then_some(()))
            })?;
            device.forget();
        } else {
            // It cannot be recovered.
            let id = device.id.to_string();
            cli::fails(&["recover", &id], code::FAILED, &["without recovery"])?;
            device.delete()?;
        }
        match (self.work, known) {
            (Work::Load, Some(known)) => known.check(backing.path()).context("in the file"),
            (Work::Ext4, known) => {
                check_fs(backing.path().to_str().context("plain")?, false)?;
                let device = Spec::file(backing.path()).add()?;
                let stage = Stage {
                    backing,
                    device,
                    mounted: None,
                    load: None,
                };
                stage.look(known.as_ref())
            }
            _ => {
                let direct = Direct::open_read(backing.path())?;
                direct.check_pattern(0, 65_536, 3)
            }
        }
    }
}

impl Stage {
    /// Mounts the file system and compares all synced and all acknowledged data.
    fn look(self, known: Option<&Known>) -> Result<()> {
        let mounted = Mounted::new(&self.device, Kind::Ext4, MountFlags::empty())?;
        compare(&mounted.at, FILES).context("files that were synced")?;
        if let Some(known) = known {
            known.check(&mounted.at.join("load"))?;
        }
        mounted.unmount()?;
        self.device.delete()?;
        drop(self.backing);
        Ok(())
    }
}

/// Checks an ext4 file system. If it may have been cut off, its log is replayed and it may need repairs, which must be
/// possible without questions.
fn check_fs(path: &str, whole: bool) -> Result<()> {
    let mut command = Command::new("e2fsck");
    if whole {
        command.args(["-f", "-n", path]);
    } else {
        command.args(["-f", "-p", path]);
    }
    let output = run::output(&mut command, secs(60))?;
    // 1: errors were corrected, such as the count of free blocks.
    let good: &[i32] = if whole { &[0] } else { &[0, 1] };
    ensure!(good.contains(&output.code()), "{output}");
    Ok(())
}

/// The read that triggers the trap, on its own thread.
fn spring(device: &Device) -> std::thread::JoinHandle<Result<()>> {
    let path: PathBuf = device.path.clone();
    std::thread::spawn(move || {
        let last = SIZE - BLOCK as u64;
        Direct::open_read(&path)?.read(last, BLOCK)?;
        Ok(())
    })
}

fn ended(thread: std::thread::JoinHandle<Result<()>>) -> Result<Result<()>> {
    until("the end of a read", patience() + secs(10), || {
        Ok(thread.is_finished().then_some(()))
    })?;
    thread.join().map_err(|_| anyhow::anyhow!("a panic"))
}
