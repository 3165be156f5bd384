//! Unprivileged devices: their users can create, use, stop and delete them, and no others.
//!
//! The guest has no udev: a thread acts like the shipped rule, with the same command.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::case::{self, Case};
use crate::cli::{self, Spec, code, failed, patience, ublkctl, ublkctl_json};
use crate::direct_io::Direct;
use crate::run::{self, Output};
use crate::shared_client::SharedBuffers;
use crate::wait::{secs, until};
use crate::{json, pattern, procfs, sysfs};

/// The group that may open the control node, and two users in it.
const GROUP: u32 = 2001;
const ANN: u32 = 1001;
const BOB: u32 = 1002;

const CONTROL: &str = "/dev/ublk-control";
const LIMIT: &str = "/sys/module/ublk_drv/parameters/ublks_max";

pub fn cases() -> Vec<Case> {
    let guest = "it changes the whole machine, which only a test guest allows";
    let mut all = Vec::new();
    for mode in ["copy", "get-data", "copy-batch"] {
        let has = mode != "copy-batch" || sysfs::kernel() >= (7, 0);
        // Not a skip: if the mode is missing, that is reported.
        all.push(Case::new(
            format!("unprivileged_user_owns_a_device_{mode}"),
            move || owns(mode, has),
        ));
    }
    all.push(Case::new("unprivileged_file_device", of_file));
    all.push(Case::new("unprivileged_others_cannot_touch_it", others));
    all.push(Case::new("unprivileged_modes_of_root_are_refused", refused));
    all.push(Case::new(
        "unprivileged_no_access_says_what_to_do",
        no_access,
    ));
    all.push(Case::new(
        "unprivileged_without_the_rule_says_so",
        without_rule,
    ));
    all.push(Case::new("unprivileged_resize_and_gentle_stop", gentle));
    all.push(Case::new("unprivileged_shared_memory", shared));
    all.push(Case::new("l31_unprivileged_server_killed", killed));
    all.push(Case::new("l39_unprivileged_devices_have_a_limit", limit));
    let inside = sysfs::in_guest();
    all.into_iter()
        .map(|case| case.only_if(inside, guest))
        .collect()
}

/// A user with a state directory and files.
struct User {
    id: u32,
    member: bool,
    home: PathBuf,
}

impl User {
    fn new(id: u32, member: bool) -> Result<Self> {
        let home = std::env::temp_dir().join(format!("ublk-e2e-user-{id}"));
        let _ = fs::remove_dir_all(&home);
        fs::create_dir(&home)?;
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700))?;
        chown(&home, Some(id), Some(id))?;
        Ok(Self { id, member, home })
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let (id, group) = (self.id.to_string(), GROUP.to_string());
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id]);
        if self.member {
            command.args(["--groups", &group]);
        } else {
            command.arg("--clear-groups");
        }
        command.arg(program).args(args);
        command.env("XDG_RUNTIME_DIR", &self.home).current_dir("/");
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        run::output(&mut self.command(program, args), secs(60))
    }

    fn ublkctl(&self, args: &[&str]) -> Result<Output> {
        self.run(&cli::program(), args)
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let output = self.ublkctl(&[args, &["--json"]].concat())?.good()?;
        serde_json::from_str(&output.stdout).with_context(|| format!("no JSON: {output}"))
    }

    /// Creates a device; returns its number and node.
    fn add(&self, args: &[&str]) -> Result<(u64, String)> {
        let added = self.json(&[&["add"], args].concat())?;
        Ok((json::number(&added, "id")?, json::text(&added, "path")?))
    }

    /// Creates a file of the user with a pattern.
    fn pattern(&self, name: &str, generation: u64) -> Result<PathBuf> {
        let mut data = vec![0; LEN];
        pattern::fill(&mut data, 0, generation);
        let path = self.home.join(name);
        fs::write(&path, data)?;
        chown(&path, Some(self.id), Some(self.id))?;
        Ok(path)
    }

    /// Writes a pattern to a device and reads it back, as this user.
    fn uses(&self, node: &str) -> Result<()> {
        let want = self.pattern("want", 9)?;
        let want = want.to_str().context("plain")?;
        let to = [format!("if={want}"), format!("of={node}")];
        let args = ["dd", &to[0], &to[1], "bs=64K", "conv=fsync,notrunc"];
        self.run("busybox", &args)?.good()?;
        // It is no longer open, so its page cache is gone: this reads from the server.
        let got = self.home.join("got");
        let got = got.to_str().context("plain")?;
        let from = [format!("if={node}"), format!("of={got}")];
        self.run("busybox", &["dd", &from[0], &from[1], "bs=64K", "count=16"])?
            .good()?;
        let data = fs::read(got)?;
        ensure!(data.len() == LEN, "{} bytes were read", data.len());
        pattern::check(&data, 0, 9)
    }
}

/// Number of bytes written and read.
const LEN: usize = 1 << 20;

impl Drop for User {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.home);
    }
}

/// Acts like the shipped rule: gives the control node to the group, and each new node to its owner.
struct Rule {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Rule {
    fn play() -> Result<Self> {
        control(GROUP, 0o660)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = BTreeMap::new();
            while !stopped.load(Ordering::Relaxed) {
                give(&mut seen)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// The thread's result.
    fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("once")?;
        thread.join().map_err(|_| anyhow::anyhow!("a panic"))?
    }
}

impl Drop for Rule {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = control(0, 0o600);
    }
}

fn control(group: u32, mode: u32) -> Result<()> {
    chown(CONTROL, Some(0), Some(group))?;
    Ok(fs::set_permissions(
        CONTROL,
        fs::Permissions::from_mode(mode),
    )?)
}

/// Gives new nodes to the user named by `udev-owner`; a node of the same name with another inode is new.
fn give(seen: &mut BTreeMap<String, u64>) -> Result<()> {
    for entry in fs::read_dir("/dev")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let ours = name.starts_with("ublkc") || name.starts_with("ublkb");
        let Some(meta) = entry.metadata().ok().filter(|m| ours && !m.is_dir()) else {
            continue;
        };
        if seen.get(&name) == Some(&meta.ino()) {
            continue;
        }
        // It may be gone already.
        let Ok(output) = ublkctl(&["udev-owner", &name])?.good() else {
            continue;
        };
        seen.insert(name, meta.ino());
        let value = |key: &str| {
            let line = output
                .stdout
                .lines()
                .find_map(|l| l.strip_prefix(key)?.strip_prefix('='));
            line.with_context(|| format!("no {key} in {output}"))
        };
        if value("UBLK_UNPRIVILEGED")? == "1" {
            let (uid, gid) = (
                value("UBLK_OWNER_UID")?.parse()?,
                value("UBLK_OWNER_GID")?.parse()?,
            );
            let given = chown(entry.path(), Some(uid), Some(gid));
            let _ = given.and_then(|()| {
                fs::set_permissions(entry.path(), fs::Permissions::from_mode(0o600))
            });
        }
    }
    Ok(())
}

/// The entry of a device in the output of `list`.
fn listed(list: &Value, id: u64) -> Result<&Value> {
    let mut entries = list.as_array().into_iter().flatten();
    let entry = entries.find(|e| e["id"] == id);
    entry.with_context(|| format!("no device {id} in {list}"))
}

fn owns(mode: &str, has: bool) -> Result<()> {
    let rule = Rule::play()?;
    let ann = User::new(ANN, true)?;
    let (data, batch) = match mode.strip_suffix("-batch") {
        Some(data) => (data, "on"),
        None => (mode, "off"),
    };
    let args = [
        "mem", "--size", "16M", "-q", "2", "--name", "mine", "--data", data, "--batch", batch,
    ];
    if !has {
        let args = [&["add"], &args[..]].concat();
        failed(ann.ublkctl(&args)?, code::FAILED, &["7.0"])?;
        return rule.end();
    }
    let roots = Spec::null("1G").add()?;
    let (id, node) = ann.add(&args)?;
    let info = ann.json(&["info", "mine"])?;
    ensure!(
        info["owner"]["uid"] == ANN && info["owner"]["gid"] == ANN,
        "{info}"
    );
    ensure!(
        info["data"] == data && info["batch"] == (batch == "on"),
        "{info}"
    );
    ensure!(
        info["id"] == id && info["name"] == "mine" && info["readable"] == true,
        "{info}"
    );
    ensure!(
        json::find(&info, "granted").is_some_and(|g| g.to_string().contains("UNPRIVILEGED_DEV"))
    );
    ann.uses(&node)?;
    let again = ["add", "null", "--name", "mine"];
    failed(ann.ublkctl(&again)?, code::FAILED, &["belongs to device"])?;
    // A user sees that root's device exists.
    let list = ann.json(&["list"])?;
    let other = listed(&list, roots.id.into())?;
    ensure!(
        other["readable"] == false && other["state"] == "unknown",
        "{other}"
    );
    ensure!(listed(&list, id)?["state"] == "live", "{list}");
    // And root sees the owner of this one.
    let all = ublkctl_json(&["list"])?;
    let entry = listed(&all, id)?;
    ensure!(
        entry["owner"]["uid"] == ANN && entry["foreign"] == true,
        "{entry}"
    );
    for path in [node.as_str(), &node.replace("ublkb", "ublkc")] {
        let meta = fs::metadata(path)?;
        ensure!(
            (meta.uid(), meta.gid(), meta.mode() & 0o777) == (ANN, ANN, 0o600),
            "{path}"
        );
    }
    ann.ublkctl(&["stop", &id.to_string()])?.good()?;
    ensure!(!Path::new(&node).exists(), "{node} is left after stop");
    ann.ublkctl(&["delete", &id.to_string()])?.good()?;
    roots.delete()?;
    rule.end()?;
    ensure!(
        !ann.home.join("ublkctl").join(format!("{id}.json")).exists(),
        "a record is left"
    );
    cli::nothing_left(secs(10))
}

/// A user's file, through a user's configuration.
fn of_file() -> Result<()> {
    let rule = Rule::play()?;
    let ann = User::new(ANN, true)?;
    let config = ann.home.join("devices.toml");
    fs::write(
        &config,
        "[device.disk]\nbackend = \"file\"\npath = \"disk.img\"\ncreate = true\nsize = \"4M\"\n",
    )?;
    chown(&config, Some(ANN), Some(ANN))?;
    let config = config.to_str().context("plain")?;
    let up = ann.json(&["up", config])?;
    ensure!(up[0]["outcome"] == "added", "{up}");
    let node = json::text(&up, "path")?;
    ann.uses(&node)?;
    let up = ann.json(&["up", config])?;
    ensure!(up[0]["outcome"] == "unchanged", "{up}");
    let down = ann.json(&["down", config])?;
    ensure!(down[0]["outcome"] == "deleted", "{down}");
    rule.end()?;
    let mut data = fs::read(ann.home.join("disk.img"))?;
    data.truncate(LEN);
    pattern::check(&data, 0, 9).context("in the file")?;
    cli::nothing_left(secs(10))
}

fn others() -> Result<()> {
    let rule = Rule::play()?;
    let (ann, bob) = (User::new(ANN, true)?, User::new(BOB, true)?);
    let (id, node) = ann.add(&["mem", "--size", "16M"])?;
    let number = id.to_string();
    ann.uses(&node)?;
    let args: [&[&str]; 5] = [
        &["stop", &number],
        &["stop", "--force", &number],
        &["delete", &number],
        &["delete", "--async", &number],
        &["info", &number],
    ];
    for args in args {
        let output = failed(
            bob.ublkctl(args)?,
            code::FAILED,
            &["as the user who created"],
        )?;
        ensure!(output.stdout.is_empty(), "{output}");
    }
    failed(bob.ublkctl(&["upgrade", &number])?, code::FAILED, &[])?;
    failed(bob.ublkctl(&["recover", &number])?, code::FAILED, &[])?;
    failed(bob.ublkctl(&["gc", &number])?, code::FAILED, &[])?;
    let from = format!("if={node}");
    let read = bob.run("busybox", &["dd", &from, "of=/dev/null", "count=1"])?;
    ensure!(!read.status.success(), "another user reads it: {read}");
    // Not even if the node's mode would allow it: the driver checks the owner.
    fs::set_permissions(&node, fs::Permissions::from_mode(0o666))?;
    let read = bob.run("busybox", &["dd", &from, "of=/dev/null", "count=1"])?;
    ensure!(!read.status.success(), "another user reads it: {read}");
    let list = bob.json(&["list"])?;
    let entry = listed(&list, id)?;
    ensure!(
        entry["state"] == "unknown" && entry["owner"]["uid"] == ANN,
        "{entry}"
    );
    // Nor by the name of root's.
    let roots = Spec::null("1G").with(&["--name", "roots"]).add()?;
    let config = bob.home.join("a.toml");
    fs::write(&config, "[device.roots]\nbackend = \"null\"\n")?;
    chown(&config, Some(BOB), Some(BOB))?;
    let config = config.to_str().context("plain")?;
    failed(
        bob.ublkctl(&["down", config])?,
        code::FAILED,
        &["did not create"],
    )?;
    failed(
        bob.ublkctl(&["up", config])?,
        code::FAILED,
        &["belongs to device"],
    )?;
    failed(
        bob.ublkctl(&["delete", "roots"])?,
        code::NO_DEVICE,
        &["roots"],
    )?;
    roots.delete()?;
    let (theirs, bobs) = bob.add(&["null"])?;
    bob.ublkctl(&["list"])?.good()?;
    ensure!(theirs != id && bobs != node);
    bob.ublkctl(&["delete", &theirs.to_string()])?.good()?;
    // It has served on, untouched; and root may do everything.
    ensure!(ann.json(&["info", &number])?["state"] == "live");
    ann.uses(&node)?;
    ublkctl_json(&["info", &number])?;
    ublkctl(&["stop", &number])?.good()?;
    ublkctl(&["delete", &number])?.good()?;
    rule.end()?;
    cli::nothing_left(secs(10))
}

/// Features that the driver reserves for root are refused by name, before anything is created.
fn refused() -> Result<()> {
    let rule = Rule::play()?;
    let ann = User::new(ANN, true)?;
    for mode in ["user-copy", "zero-copy", "zero-copy-manual"] {
        let args = ["add", "null", "--data", mode];
        failed(ann.ublkctl(&args)?, code::USAGE, &[mode, "of root only"])?;
    }
    for policy in ["queue", "reissue", "fail"] {
        let args = ["add", "null", "--recovery", policy];
        failed(ann.ublkctl(&args)?, code::USAGE, &[policy, "of root only"])?;
    }
    let left = cli::left_over();
    ensure!(left.is_empty(), "left: {left:?}");
    let output = ann.ublkctl(&["doctor", "--json"])?.good()?;
    ensure!(
        output.stdout.contains("unprivileged devices only"),
        "{output}"
    );
    rule.end()
}

/// A user outside the group.
fn no_access() -> Result<()> {
    let rule = Rule::play()?;
    let carl = User::new(1003, false)?;
    let roots = Spec::null("1G").add()?;
    let hint = ["60-ublkctl.rules", "group `ublk`"];
    failed(carl.ublkctl(&["add", "null"])?, code::FAILED, &hint)?;
    failed(
        carl.ublkctl(&["delete", &roots.id.to_string()])?,
        code::FAILED,
        &hint,
    )?;
    let list = carl.json(&["list"])?;
    ensure!(
        listed(&list, roots.id.into())?["readable"] == false,
        "{list}"
    );
    ensure!(
        carl.ublkctl(&["list"])?
            .good()?
            .stdout
            .contains("of user 0")
    );
    roots.delete()?;
    ensure!(carl.json(&["list"])? == serde_json::json!([]));
    rule.end()
}

/// Without the rule the owner gets no access to the nodes: the user is notified in time, and root can remove the
/// device.
fn without_rule() -> Result<()> {
    control(GROUP, 0o660)?;
    let ann = User::new(ANN, true)?;
    let output = ann.ublkctl(&["add", "null", "--deadline", "6"]);
    control(0, 0o600)?;
    failed(output?, code::FAILED, &["udev/60-ublkctl.rules"])?;
    for entry in ublkctl_json(&["list"])?.as_array().into_iter().flatten() {
        ensure!(entry["owner"]["uid"] == ANN, "{entry}");
        ublkctl(&["delete", &json::number(entry, "id")?.to_string()])?.good()?;
    }
    cli::nothing_left(secs(10))
}

/// The owner can shrink a device, if the kernel supports it, and stop it only when nobody has it open.
fn gentle() -> Result<()> {
    let rule = Rule::play()?;
    let ann = User::new(ANN, true)?;
    let (id, node) = ann.add(&["null", "--size", "1G"])?;
    let number = id.to_string();
    let size = || sysfs::number(u32::try_from(id)?, "size").map(|sectors| sectors * 512);
    let resize = ["resize", &number, "512M"];
    if sysfs::kernel() >= (6, 16) {
        ann.ublkctl(&resize)?.good()?;
        ensure!(size()? == 512 << 20, "{} bytes", size()?);
        // Growing would need another server, which no user's device can have.
        let more = ["resize", &number, "2G"];
        failed(ann.ublkctl(&more)?, code::FAILED, &["without recovery"])?;
    } else {
        failed(ann.ublkctl(&resize)?, code::FAILED, &["6.16"])?;
    }
    let stop = ["stop", "--if-unused", &number];
    if sysfs::kernel() >= (7, 0) {
        let open = fs::File::open(&node)?;
        failed(ann.ublkctl(&stop)?, code::FAILED, &["open"])?;
        drop(open);
        ann.ublkctl(&stop)?.good()?;
    } else {
        failed(ann.ublkctl(&stop)?, code::FAILED, &["7.0"])?;
    }
    ann.ublkctl(&["delete", &number])?.good()?;
    rule.end()?;
    cli::nothing_left(secs(10))
}

/// A user's memory can be shared with that user's device (Linux 7.1); another user's cannot.
fn shared() -> Result<()> {
    let rule = Rule::play()?;
    let ann = User::new(ANN, true)?;
    let memory = std::env::temp_dir().join("ublk-e2e-user-memory");
    fs::File::create(&memory)?.set_len(1 << 20)?;
    let path = memory.to_str().context("plain")?.to_owned();
    let args = ["mem", "--size", "4M", "--shm", &path];
    let add = [&["add"], &args[..]].concat();
    failed(ann.ublkctl(&add)?, code::FAILED, &[&path])?;
    chown(&memory, Some(ANN), Some(ANN))?;
    if sysfs::kernel() < (7, 1) {
        failed(ann.ublkctl(&add)?, code::FAILED, &["SHMEM_ZC", "7.1"])?;
    } else {
        let (id, node) = ann.add(&args)?;
        ann.uses(&node)?;
        let buffers =
            SharedBuffers::map(&OpenOptions::new().read(true).write(true).open(&memory)?)?;
        let direct = Direct::open(Path::new(&node))?;
        let mut data = vec![0; 65_536];
        pattern::fill(&mut data, 0, 3);
        buffers.put(4096, &data)?;
        buffers.write(direct.file(), 4096, data.len(), 0)?;
        direct.check_pattern(0, 65_536, 3)?;
        drop(direct);
        let info = ann.json(&["info", &id.to_string()])?;
        let shm = &json::find(&info, "health").context("health")?["shm"];
        ensure!(json::number(shm, "hits")? >= 1, "{info}");
        ann.ublkctl(&["delete", &id.to_string()])?.good()?;
    }
    fs::remove_file(&memory)?;
    rule.end()?;
    cli::nothing_left(secs(10))
}

fn killed() -> Result<()> {
    let rule = Rule::play()?;
    let ann = User::new(ANN, true)?;
    let (id, _) = ann.add(&["null", "-q", "2"])?;
    let number = id.to_string();
    let server = json::number(&ann.json(&["info", &number])?, "server_pid")?;
    procfs::kill(u32::try_from(server)?, Signal::KILL)?;
    until("the death", patience(), || {
        let entry = ann.json(&["info", &number])?;
        Ok((entry["state"] == "dead" && entry["orphan"] == true).then_some(()))
    })?;
    let found = ann.json(&["gc", "--all"])?;
    ensure!(found["removed"] == serde_json::json!([id]), "{found}");
    rule.end()?;
    cli::nothing_left(secs(10))
}

/// Restores the limit.
struct Limit(String);

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = fs::write(LIMIT, &self.0);
    }
}

/// L39 The limit of devices is reported by name, at once, and deleting a device makes room.
fn limit() -> Result<()> {
    let rule = Rule::play()?;
    let before = Limit(fs::read_to_string(LIMIT)?.trim().to_owned());
    fs::write(LIMIT, "2")?;
    let ann = User::new(ANN, true)?;
    let first = ann.add(&["null"])?.0.to_string();
    let second = ann.add(&["null"])?.0.to_string();
    let begun = std::time::Instant::now();
    failed(
        ann.ublkctl(&["add", "null"])?,
        code::FAILED,
        &["ublks_max", "unprivileged users"],
    )?;
    ensure!(begun.elapsed() < secs(20), "it took {:?}", begun.elapsed());
    let roots = ublkctl(&["add", "null"])?;
    // Whether kernels from 6.3 to 6.14 count root's, too, shows here; later ones do not.
    let counted = !roots.status.success();
    case::measured(format!("ublks_max counts root's devices: {counted}"));
    if counted {
        ensure!(sysfs::kernel() < (6, 15), "root's device: {roots}");
        failed(roots, code::FAILED, &["ublks_max"])?;
    } else {
        let spec = Spec::null("250G").depth(128);
        cli::Device::of(&roots, &spec)?.delete()?;
    }
    ann.ublkctl(&["delete", &first])?.good()?;
    let third = ann.add(&["null"])?.0.to_string();
    drop(before);
    for id in [second, third] {
        ann.ublkctl(&["delete", &id])?.good()?;
    }
    rule.end()?;
    cli::nothing_left(secs(10))
}
