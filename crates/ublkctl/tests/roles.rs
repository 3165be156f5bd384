//! What a role keeps of its caller's state (L45), and what happens to messages that cannot be written (L46).

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use ublk_daemon::link::Link;

/// A careless caller: sets as much state as possible and then becomes the requested role.
const CARELESS: &str = r#"
exec 7<"$0" 8>&1 9<.
umask 0
trap '' INT QUIT HUP TERM USR1 CHLD
ulimit -S -n 64
ulimit -S -c unlimited 2>/dev/null
exec env --block-signal=TERM --block-signal=USR2 "$@"
"#;

/// A role started by such a caller, and our end of its link.
struct Started {
    child: Child,
    _link: Link,
}

impl Started {
    fn new(role: &str, directory: &Path) -> Self {
        let (near, far) = Link::pair().unwrap();
        let script = directory.join("careless");
        fs::write(&script, CARELESS).unwrap();
        let child = Command::new("sh")
            .arg(&script)
            .args([env!("CARGO_BIN_EXE_ublkctl"), role])
            .env("UBLKCTL_RUN_DIR", directory.join("run"))
            .current_dir(directory)
            .stdin(Stdio::from(near.into_fd()))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, _link: far }
    }

    fn read(&self, name: &str) -> String {
        let bytes = fs::read(format!("/proc/{}/{name}", self.child.id())).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until a condition holds.
    fn wait(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(Instant::now() < until, "{what}: {}", self.read("status"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn limit(&self, name: &str) -> Vec<String> {
        let limits = self.read("limits");
        let line = limits.lines().find_map(|l| l.strip_prefix(name));
        let args = line.unwrap_or_default().split_whitespace();
        args.map(str::to_owned).collect()
    }

    fn status(&self, key: &str) -> String {
        let text = self.read("status");
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    }

    /// The signals in a line of /proc/PID/status.
    fn signals(&self, key: &str) -> Vec<u32> {
        let word = u64::from_str_radix(&self.status(key), 16).unwrap();
        // The C library reserves 32 and 33.
        let all = (1..=64).filter(|s| !(32..34).contains(s));
        all.filter(|s| word & (1 << (s - 1)) != 0).collect()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// L45 Descriptors, signals, directory, umask, session, limits: nothing is inherited from the caller.
#[test]
fn l45_a_role_keeps_nothing_of_its_caller() {
    let dir = tempfile::tempdir().unwrap();
    for role in ["server", "helper", "agent"] {
        let started = Started::new(&format!("__{role}"), dir.path());
        // The last thing that is set.
        started.wait("the limit of descriptors", |s| {
            let open = s.limit("Max open files");
            s.read("comm").starts_with("ublkctl") && open.len() > 1 && open[0] == open[1]
        });
        let pid = started.child.id();
        // Read repeatedly: an agent may be opening files of its own.
        let links: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .flatten()
            .filter_map(|e| fs::read_link(e.path()).ok())
            .collect();
        let kept = |path: &Path| path.starts_with(dir.path());
        assert!(!links.iter().any(|l| kept(l)), "{role}: {links:?}");
        assert_eq!(started.signals("SigBlk"), [0; 0], "{role}");
        // SIGHUP, SIGPIPE, SIGXFSZ.
        assert_eq!(started.signals("SigIgn"), [1, 13, 25], "{role}");
        assert_eq!(started.status("Umask"), "0077", "{role}");
        let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
        assert_eq!(cwd, Path::new("/"), "{role}");
        let stat = started.read("stat");
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        assert_eq!(fields[3], pid.to_string(), "{role}: the session");
        assert_eq!(
            started.limit("Max core file size")[..2],
            ["0", "0"],
            "{role}"
        );
    }
}

/// `ps` shows the role; only a role's own arguments are overwritten.
#[test]
fn roles_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let (near, far) = Link::pair().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_ublkctl"));
    std::os::unix::process::CommandExt::arg0(&mut command, "ublkctl: server");
    let child = command
        .arg("__server")
        .env("UBLKCTL_RUN_DIR", dir.path())
        .env("UBLK_LAST", "here")
        .stdin(Stdio::from(near.into_fd()))
        .spawn()
        .unwrap();
    let started = Started { child, _link: far };
    started.wait("the name", |s| s.read("comm") == "ublk-server\n");
    let line = started.read("cmdline");
    assert_eq!(line.trim_end_matches('\0'), "ublkctl: server");
    assert!(started.read("environ").contains("UBLK_LAST=here\0"));
}

/// L46 A standard error that cannot be written to changes nothing but the messages.
#[test]
fn l46_messages_that_cannot_be_written_change_no_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let run = |stderr: Stdio| {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ublkctl"))
            .args(["add", "mem", "--size", "17"])
            .env("UBLKCTL_RUN_DIR", dir.path().join("run"))
            .env("UBLKCTL_LOG", "trace")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match child.try_wait().unwrap() {
                Some(status) => return status.code(),
                None if Instant::now() > until => {
                    let _ = child.kill();
                    return None;
                }
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    };
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(run(full.into()), Some(2), "a full disk");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    assert_eq!(run(writer.into()), Some(2), "a closed pipe");
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // A pipe without a reader, filled completely.
    let brim = std::thread::spawn({
        let mut writer = writer.try_clone().unwrap();
        move || std::io::Write::write_all(&mut writer, &[b'x'; 1 << 20])
    });
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(
        run(writer.try_clone().unwrap().into()),
        Some(2),
        "a full pipe"
    );
    let _ = std::io::Write::flush(&mut writer);
    drop(writer);
    let _ = reader.read_to_end(&mut Vec::new());
    let _ = brim.join();
}

/// Control characters in a name are escaped.
#[test]
fn control_characters_of_names_are_not_printed() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_ublkctl"))
        .args(["add", "null", "--name", "a\u{1b}[31mb"])
        .env("UBLKCTL_RUN_DIR", dir.path().join("run"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(!output.stderr.contains(&0x1b), "{:?}", output.stderr);
    assert!(String::from_utf8_lossy(&output.stderr).contains("\\x1b[31mb"));
}
