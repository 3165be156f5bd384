//! What a device's processes inherit from their caller, and what they may do (L45 to L47).

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::case::Case;
use crate::cli::{self, Device, Spec, nothing_left, patience, program, ublkctl, ublkctl_json};
use crate::wait::{secs, until};
use crate::{json, procfs, run};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("l45_surroundings_are_not_kept", careless),
        Case::new("l45_surroundings_locks_are_let_go", caller_lock),
        Case::new("l46_surroundings_without_room_for_messages", unwritable),
        Case::new("l47_surroundings_of_another_pid_namespace", namespace),
        Case::new("surroundings_without_new_nodes_in_dev", no_new_nodes),
        Case::new("surroundings_see_processes_by_name", named),
        Case::new("surroundings_hang_up_and_no_device_ends", hang_up),
        Case::new("surroundings_in_front_are_one_session", terminal),
        Case::new("l31_surroundings_interrupt_an_add", interrupted),
        Case::new("surroundings_are_closed_to_servers", confined),
        Case::new("surroundings_by_a_relative_directory", relative),
        Case::new("surroundings_with_records_of_another_version", versions),
    ]
}

/// A directory of a case, removed on drop.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Result<Self> {
        let path = PathBuf::from(format!("/tmp/ublk-e2e-{name}"));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a shell script, with the tool's path as `$T`.
fn shell(directory: &Path, script: &str) -> Result<run::Output> {
    let mut command = Command::new("sh");
    command.args(["-c", script]).env("T", program());
    run::output(command.current_dir(directory), secs(60))
}

/// The processes of a device: server and agent.
fn processes(device: &Device) -> Result<[u32; 2]> {
    let agent = json::number(&device.query()?, "agent_pid")?;
    Ok([device.server_now()?, u32::try_from(agent)?])
}

fn text(pid: u32, name: &str) -> Result<String> {
    let bytes =
        fs::read(format!("/proc/{pid}/{name}")).with_context(|| format!("{name} of {pid}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// L45 Descriptors, limits, umask, nice value, CPUs, directory, environment, signals: all are reset to the machine's
/// defaults.
fn careless() -> Result<()> {
    let directory = Directory::new("careless")?;
    let script = "exec 7>kept; umask 0; ulimit -f 8; ulimit -n 50; trap '' HUP INT CHLD USR1; \
                  export SECRET=kept; exec nice -n 5 $T add mem --size 16M";
    let output = shell(&directory.0, script)?.good()?;
    let device = Device::of(
        &output,
        &Spec {
            depth: 128,
            ..Spec::mem("16M")
        },
    )?;
    for pid in processes(&device)? {
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
            let link = fs::read_link(entry.path()).unwrap_or_default();
            ensure!(
                !link.starts_with(&directory.0),
                "{} is open",
                link.display()
            );
        }
        ensure!(!text(pid, "environ")?.contains("SECRET"));
        ensure!(fs::read_link(format!("/proc/{pid}/cwd"))? == Path::new("/"));
        let limits = text(pid, "limits")?;
        let limit = |name: &str| {
            let line = limits.lines().find_map(|l| l.strip_prefix(name));
            line.unwrap_or_default()
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        ensure!(limit("Max file size") == "unlimited", "{limits}");
        ensure!(limit("Max core file size") == "0", "{limits}");
        ensure!(
            limit("Max open files").parse::<u64>()? >= 100_000,
            "{limits}"
        );
        let stat = text(pid, "stat")?;
        let fields: Vec<&str> = stat
            .rsplit_once(") ")
            .context("fields")?
            .1
            .split(' ')
            .collect();
        // Fields 6 and 19 of proc(5), counted from the third.
        ensure!(fields[16] == "0", "nice {}", fields[16]);
        ensure!(fields[3] != "0" && fields[4] == "0", "a terminal: {stat}");
        let status = text(pid, "status")?;
        ensure!(status.contains("Umask:\t0077"), "{status}");
    }
    device.delete()
}

/// L45 `flock FILE ublkctl add` holds the lock while the command runs, and no longer.
fn caller_lock() -> Result<()> {
    let directory = Directory::new("flock")?;
    let file = directory.join("lock");
    let lock = file.to_string_lossy().into_owned();
    let tool = program();
    let args = [
        lock.as_str(),
        &tool,
        "add",
        "null",
        "--size",
        "16M",
        "--depth",
        "64",
    ];
    let output = run::good("flock", &args)?;
    let device = Device::of(&output, &Spec::null("16M"))?;
    let locked = rustix::fs::flock(
        fs::File::open(&file)?.as_fd(),
        rustix::fs::FlockOperation::NonBlockingLockExclusive,
    );
    locked.context("the lock is kept")?;
    device.delete()
}

/// L46 Standard error on a full disk, a log on one, a log that is a FIFO without a reader: the device serves, and a
/// dead server is replaced as usual.
fn unwritable() -> Result<()> {
    let directory = Directory::new("unwritable")?;
    let image = directory.join("image");
    fs::File::create(&image)?.set_len(16 << 20)?;
    let fifo = directory.join("fifo");
    run::good("mkfifo", &[&*fifo.to_string_lossy()])?;
    let fifo = fifo.to_string_lossy().into_owned();
    for log in ["/dev/full", &fifo] {
        let args = ["--recovery", "reissue", "--supervise", "--log", log];
        let spec = Spec::file(&image).with(&args);
        let mut command = cli::command(&[]);
        command.args(spec.args()).env("UBLKCTL_LOG", "trace");
        let full = fs::File::options().write(true).open("/dev/full")?;
        command.stdout(Stdio::piped()).stderr(full);
        let output = command.output()?;
        ensure!(output.status.success(), "{log}: {output:?}");
        let path = String::from_utf8(output.stdout)?;
        let id = path
            .trim()
            .strip_prefix("/dev/ublkb")
            .context("a path")?
            .to_owned();
        let pid = |key: &str| -> Result<u32> {
            let info = ublkctl_json(&["info", &id])?;
            Ok(u32::try_from(json::number(&info, key)?)?)
        };
        let (server, agent) = (pid("server_pid")?, pid("agent_pid")?);
        procfs::kill(server, Signal::KILL)?;
        until("another server", patience() + secs(10), || {
            let info = ublkctl_json(&["info", &id])?;
            let live = json::text(&info, "state")? == "live";
            let other = json::number(&info, "server_pid").is_ok_and(|now| now != u64::from(server));
            Ok((live && other).then_some(()))
        })
        .with_context(|| log.to_owned())?;
        ensure!(pid("agent_pid")? == agent, "{log}: the agent is another");
        ublkctl(&["delete", &id])?.good()?;
    }
    Ok(())
}

/// L47 If no process of a device is visible, the device still is no orphan, and `gc --all` removes nothing.
fn namespace() -> Result<()> {
    let device = Spec::mem("16M").add()?;
    let id = device.id.to_string();
    let tool = program();
    let inside = |args: &[&str]| {
        let unshare = ["--pid", "--fork", "--mount-proc", tool.as_str()];
        run::good("unshare", &[&unshare, args].concat())
    };
    let listed: serde_json::Value = serde_json::from_str(&inside(&["list", "--json"])?.stdout)?;
    let entry = &listed[0];
    ensure!(
        entry["orphan"] == false && entry["server_alive"] == true,
        "{entry}"
    );
    inside(&["gc", "--all"])?;
    ensure!(json::text(&device.query()?, "state")? == "live");
    let again = inside(&["gc", &id]);
    ensure!(again.is_err(), "it was removed by its number");
    let server = device.server()?;
    ensure!(device.server_now()? == server);
    device.delete()
}

/// A `/dev` that gets no new nodes, as in a container: `add` reports that at once and removes its device, and a working
/// server is not replaced by one that could not open its node.
fn no_new_nodes() -> Result<()> {
    let directory = Directory::new("dev")?;
    let dev = directory.0.to_string_lossy().into_owned();
    let inside = |args: &str| {
        let script = format!(
            "mount -t tmpfs dev {dev} && cp -a /dev/null /dev/zero /dev/urandom /dev/ublk-control {dev} && \
             mount --bind {dev} /dev && exec {} {args}",
            program()
        );
        let mut command = Command::new("unshare");
        run::output(command.args(["--mount", "sh", "-c", &script]), secs(120))
    };
    let begun = std::time::Instant::now();
    let output = inside("add mem --size 16M --deadline 100")?;
    let parts = ["there is no /dev/ublkc0", "devtmpfs"];
    cli::failed(output, cli::code::FAILED, &parts)?;
    ensure!(begun.elapsed() < secs(50), "{:?}", begun.elapsed());
    nothing_left(secs(5))?;
    let device = Spec::null("16M").with(&["--recovery", "reissue"]).add()?;
    let server = device.server()?;
    let output = inside(&format!("upgrade {}", device.id))?;
    cli::failed(output, cli::code::FAILED, &parts)?;
    ensure!(device.server_now()? == server, "another server");
    device.open()?.read(0, 4096)?;
    device.delete()
}

/// `ps` shows the role of a process, and its device.
fn named() -> Result<()> {
    let device = Spec::mem("16M").add()?;
    let id = device.id;
    for (pid, role) in processes(&device)?.into_iter().zip(["server", "agent"]) {
        let line = text(pid, "cmdline")?;
        ensure!(
            line.trim_end_matches('\0') == format!("ublkctl: {role} {id}"),
            "{line:?}"
        );
        ensure!(text(pid, "comm")? == format!("ublk-{role}-{id}\n"));
    }
    device.delete()
}

/// SIGHUP is for processes with a terminal: neither agent nor server end by it.
fn hang_up() -> Result<()> {
    let device = Spec::mem("16M").add()?;
    let both = processes(&device)?;
    for pid in both {
        procfs::kill(pid, Signal::HUP)?;
    }
    std::thread::sleep(Duration::from_millis(300));
    ensure!(processes(&device)? == both, "other processes");
    device.open()?;
    device.delete()
}

/// Process group and session of a process: fields 5 and 6 of proc(5).
fn standing(pid: u32) -> Result<[u32; 2]> {
    let stat = text(pid, "stat")?;
    let (_, fields) = stat.rsplit_once(") ").context("fields")?;
    let mut fields = fields.split(' ').skip(2).map(str::parse);
    let mut next = || fields.next().context("too few fields")?.context("a number");
    Ok([next()?, next()?])
}

/// In the foreground all processes share the session, so that the scheduler groups them; control-C reaches only the
/// front, which removes its device. A background device has left the session.
fn terminal() -> Result<()> {
    let device = Spec::mem("16M").add()?;
    let [server, agent] = processes(&device)?;
    ensure!(standing(agent)? == [agent, agent]);
    ensure!(standing(server)? == [server, agent]);
    device.delete()?;
    let spec = Spec::mem("16M").with(&["--foreground"]);
    let args = spec.args();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let mut child = cli::command(&args)
        .process_group(0)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut path = String::new();
    BufReader::new(child.stdout.take().context("piped")?).read_line(&mut path)?;
    let info = ublkctl_json(&["info", path.trim()])?;
    let front = child.id();
    let [group, session] = standing(front)?;
    ensure!(group == front, "{group}");
    for role in ["agent_pid", "server_pid"] {
        let pid = u32::try_from(json::number(&info, role)?)?;
        ensure!(
            standing(pid)? == [pid, session],
            "{role}: {:?}",
            standing(pid)?
        );
    }
    let group = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process_group(group, Signal::INT)?;
    let ended = until(
        "the end after control-C",
        secs(20),
        || Ok(child.try_wait()?),
    )?;
    ensure!(ended.success(), "it ended with {ended}");
    nothing_left(secs(5))
}

/// L31 An `add` that is interrupted, at any moment, has either printed its device or removes it; so does one whose
/// output cannot be read.
fn interrupted() -> Result<()> {
    let add = ["add", "mem", "--size", "16M"];
    let signals = [Signal::INT, Signal::TERM, Signal::HUP, Signal::KILL];
    for (round, signal) in (0..16).zip(signals.into_iter().cycle()) {
        let mut command = cli::command(&add);
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        std::thread::sleep(Duration::from_millis(30 * round));
        procfs::kill(child.id(), signal)?;
        let output = child.wait_with_output()?;
        let path = String::from_utf8(output.stdout)?;
        match path.trim().strip_prefix("/dev/ublkb") {
            Some(id) => {
                let deleted = ublkctl(&["delete", id])?;
                let gone = [0, cli::code::NO_DEVICE].contains(&deleted.code());
                ensure!(gone, "round {round}: {deleted}");
            }
            None => ensure!(!output.status.success(), "round {round}: nothing was said"),
        }
        nothing_left(secs(20)).with_context(|| format!("round {round}, {signal:?}"))?;
    }
    let full = fs::File::options().write(true).open("/dev/full")?;
    let output = cli::command(&add).stdout(full).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(cli::code::FAILED),
        "{output:?}"
    );
    ensure!(said.contains("was removed again"), "{said}");
    nothing_left(secs(20))
}

/// Every thread of a server has no capabilities and is filtered, whatever it serves; the agent keeps those it needs.
fn confined() -> Result<()> {
    let directory = Directory::new("confined")?;
    let image = directory.join("image");
    fs::File::create(&image)?.set_len(16 << 20)?;
    for spec in [Spec::mem("16M").queues(2), Spec::file(&image)] {
        let device = spec.add()?;
        let [server, _] = processes(&device)?;
        let threads = procfs::threads(server);
        ensure!(threads.len() >= 2, "{threads:?}");
        for thread in threads {
            let status = text(server, &format!("task/{}/status", thread.id))?;
            for line in [
                "CapInh:\t0000000000000000",
                "CapPrm:\t0000000000000000",
                "CapEff:\t0000000000000000",
                "CapBnd:\t0000000000000000",
                "CapAmb:\t0000000000000000",
                "NoNewPrivs:\t1",
                "Seccomp:\t2",
            ] {
                ensure!(status.contains(line), "no {line}: {status}");
            }
        }
        // Confined, it still serves: data, syncs, discards.
        let node = device.node();
        run::good("mkfs.ext4", &["-q", "-F", node])?;
        run::good("e2fsck", &["-f", "-n", node])?;
        device.delete()?;
    }
    Ok(())
}

/// A state directory given as a relative path: every process finds it.
fn relative() -> Result<()> {
    let directory = Directory::new("relative")?;
    let here = |args: &[&str]| {
        let mut command = cli::command(args);
        command
            .current_dir(&directory.0)
            .env("UBLKCTL_RUN_DIR", "run");
        run::output(&mut command, secs(60))?.good()
    };
    let path = here(&["add", "mem", "--size", "16M"])?.stdout;
    let id = path
        .trim()
        .strip_prefix("/dev/ublkb")
        .context("a path")?
        .to_owned();
    ensure!(directory.join("run").join(format!("{id}.json")).exists());
    ensure!(!Path::new("/run").join(format!("{id}.json")).exists());
    let info = here(&["info", &id, "--json"])?.stdout;
    ensure!(
        info.contains("\"foreign\":false") && info.contains("\"health\":{"),
        "{info}"
    );
    here(&["delete", &id])?;
    Ok(())
}

/// A record of another version, or a damaged one, is reported, and does not keep a command from the other devices.
fn versions() -> Result<()> {
    let (one, two) = (Spec::mem("16M").add()?, Spec::mem("16M").add()?);
    let record = PathBuf::from(format!("/run/ublkctl/{}.json", one.id));
    let text = fs::read_to_string(&record)?;
    let mut other: serde_json::Value = serde_json::from_str(&text)?;
    other["version"] = 99.into();
    for bad in [other.to_string(), "{".to_owned()] {
        ensure!(bad != text);
        fs::write(&record, bad)?;
        let listed = ublkctl(&["list", "--json"])?.good()?;
        ensure!(
            listed.stderr.contains(&*record.to_string_lossy()),
            "{listed}"
        );
        let listed: serde_json::Value = serde_json::from_str(&listed.stdout)?;
        ensure!(
            listed.as_array().is_some_and(|all| all.len() == 2),
            "{listed}"
        );
        let known = listed.as_array().into_iter().flatten();
        ensure!(
            known.filter(|e| e["foreign"] == false).count() == 1,
            "{listed}"
        );
        ublkctl(&["gc", "--all"])?.good()?;
        ensure!(record.exists() && json::text(&two.query()?, "state")? == "live");
    }
    fs::write(&record, text)?;
    one.delete()?;
    two.delete()?;
    nothing_left(secs(10))
}
