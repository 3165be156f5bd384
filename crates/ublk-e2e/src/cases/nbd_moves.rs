//! Moves of NBD devices whose command, agent or server dies: the record of a device says where its data is.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::JoinHandle;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::nbd::{Disk, Nbdkit, nbd, socket, spec};
use crate::case::Case;
use crate::cli::{self, Device, ublkctl, ublkctl_json};
use crate::wait::{secs, until};
use crate::{json, procfs, run, sysfs};

pub fn cases() -> Vec<Case> {
    let guest = "sockets and servers of the test guest";
    [
        Case::new("nbd_moves_are_recorded_without_their_command", recorded),
        Case::new("nbd_devices_between_two_servers_wait_for_a_word", between),
        Case::new("nbd_devices_without_a_process_move", offline),
    ]
    .map(|case| case.only_if(sysfs::in_guest(), guest))
    .into()
}

/// Two servers with a disk each, which held the same when the device was added, and the device, on the first. Writes on that
/// take eight seconds if it is slow.
struct Two {
    device: Device,
    first: Nbdkit,
    second: Nbdkit,
    disks: [Disk; 2],
}

impl Two {
    fn new(name: &str, slow: bool) -> Result<Self> {
        let disks = [
            Disk::new(&format!("{name}-1"))?,
            Disk::new(&format!("{name}-2"))?,
        ];
        let words = disks.each_ref().map(Disk::word);
        let at = |number: u8| socket(&format!("{name}-{number}"));
        let first = match slow {
            true => vec!["--filter=delay", "file", &words[0], "wdelay=8"],
            false => vec!["file", &words[0]],
        };
        let first = Nbdkit::start(Some(&at(1)), &first)?;
        let second = Nbdkit::start(Some(&at(2)), &["file", &words[1]])?;
        let device = spec(&first.uri()).with(&["--recovery", "reissue"]).add()?;
        Ok(Self {
            device,
            first,
            second,
            disks,
        })
    }

    fn id(&self) -> String {
        self.device.id.to_string()
    }

    fn agent(&self) -> Result<u32> {
        let agent = json::number(&self.device.query()?, "agent_pid")?;
        Ok(u32::try_from(agent)?)
    }

    /// Begins a write that takes its time.
    fn write_slowly(&self) -> Result<JoinHandle<Result<()>>> {
        let path = self.device.path.clone();
        let slow = std::thread::spawn(move || write(&path, b"slow"));
        until("a request", secs(60), || {
            let info = self.device.query()?;
            Ok((json::number(&info, "in_hand")? > 0).then_some(()))
        })?;
        Ok(slow)
    }

    /// Begins a move, as a command that is killed once the device has been told.
    fn begin(&self) -> Result<()> {
        let mut command = cli::command(&["nbd", "move", &self.id(), &self.second.uri()]);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let told = until("a device that moves", secs(60), || {
            let moving = nbd(&self.device, "moving")?.as_u64() != Some(0);
            let moved = nbd(&self.device, "uri")? == self.second.uri().as_str();
            Ok((moving || moved).then_some(()))
        });
        child.kill()?;
        child.wait()?;
        told
    }

    /// Waits until the device is on the second server, as its record says, too.
    fn arrived(&self) -> Result<()> {
        until("the second server", secs(60), || {
            let info = self.device.query()?;
            let backing = json::find(&info, "backing").cloned().unwrap_or_default();
            let there = backing["path"] == self.second.uri().as_str();
            Ok((there && backing["moving_to"].is_null()).then_some(()))
        })
    }

    /// Writes through the device, replaces its server, and finds the data on the second disk alone.
    fn lives_on_the_second(self, word: &[u8]) -> Result<()> {
        let path = &self.device.path;
        write(path, word)?;
        self.device.kill_server("quiesced")?;
        ublkctl(&["recover", &self.id()])?.good()?;
        ensure!(read(path, word.len())? == word, "after the recovery");
        ublkctl(&["upgrade", &self.id()])?.good()?;
        ensure!(read(path, word.len())? == word, "after the upgrade");
        self.device.delete()?;
        ensure!(read(&self.disks[1].0, word.len())? == word);
        ensure!(read(&self.disks[0].0, word.len())? != word);
        procfs::nothing_stuck(cli::patience())
    }
}

/// Writes the first block of a device.
fn write(path: &Path, word: &[u8]) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(path)?;
    file.write_all_at(word, 0)?;
    Ok(file.sync_all()?)
}

fn read(path: &Path, len: usize) -> Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; len];
    fs::File::open(path)?.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// The command is killed while a slow request keeps the device on its old server, or has given up on a server process that
/// is stopped: the device moves, and its record with it.
fn recorded() -> Result<()> {
    let two = Two::new("killed", true)?;
    let slow = two.write_slowly()?;
    two.begin()?;
    ensure!(nbd(&two.device, "moving_to")? == two.second.uri().as_str());
    // It may be at either: no other server process now.
    cli::fails(&["upgrade", &two.id()], 1, &["is moving from"])?;
    slow.join().map_err(|_| anyhow::anyhow!("a panic"))??;
    two.arrived()?;
    // What the first server had stays there.
    two.lives_on_the_second(b"after")?;

    let two = Two::new("stopped", false)?;
    let server = two.device.server_now()?;
    procfs::kill(server, Signal::STOP)?;
    let gave_up = cli::command(&[
        "nbd",
        "move",
        &two.id(),
        &two.second.uri(),
        "--deadline",
        "3",
    ]);
    let gave_up = run::output(&mut { gave_up }, secs(60))?;
    ensure!(gave_up.code() == 3, "{gave_up:?}");
    procfs::kill(server, Signal::CONT)?;
    two.arrived()?;
    two.lives_on_the_second(b"on two")
}

/// All processes of a moving device die: it is not known which server has its last writes, and nothing is assumed.
fn between() -> Result<()> {
    let mut two = Two::new("between", true)?;
    let slow = two.write_slowly()?;
    two.begin()?;
    procfs::kill(two.agent()?, Signal::KILL)?;
    two.device.kill_server("quiesced")?;
    let id = two.id();
    cli::fails(
        &["recover", &id],
        1,
        &["either may have its last writes", "nbd move"],
    )?;
    let info = ublkctl(&["info", &id])?.good()?.stdout;
    ensure!(info.contains(&two.second.uri()), "{info}");
    // The server is the first, as its state shows to who looks.
    ublkctl(&["nbd", "move", &id, &two.first.uri()])?.good()?;
    ublkctl(&["recover", &id])?.good()?;
    slow.join().map_err(|_| anyhow::anyhow!("a panic"))??;
    ensure!(read(&two.device.path, 4)? == b"slow");
    two.second.kill()?;
    two.device.delete()
}

/// A device whose server process and NBD server have died gets another NBD server.
fn offline() -> Result<()> {
    let mut two = Two::new("offline", false)?;
    let id = two.id();
    two.first.kill()?;
    two.device.kill_server("quiesced")?;
    cli::fails(&["recover", &id], 1, &["cannot connect", "nbd move"])?;
    let small = Nbdkit::start(Some(&socket("small")), &["memory", "1M"])?;
    cli::fails(
        &["nbd", "move", &id, &small.uri()],
        1,
        &["1048576 bytes", "stays with"],
    )?;
    let moved = ublkctl_json(&["nbd", "move", &id, &two.second.uri()])?;
    ensure!(json::text(&moved, "uri")? == two.second.uri(), "{moved}");
    ublkctl(&["recover", &id])?.good()?;
    two.arrived()?;
    two.lives_on_the_second(b"on two")
}
