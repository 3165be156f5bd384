//! Servers of others, as processes on unix sockets.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Why a pair cannot be tried here, or why it failed.
#[derive(Debug)]
pub enum Stop {
    /// What is missing on this host.
    Skip(String),
    /// What went wrong.
    Fail(String),
}

impl<E: std::error::Error> From<E> for Stop {
    fn from(error: E) -> Self {
        Self::Fail(error.to_string())
    }
}

/// A directory with a server's files, socket and log; all go with the value, and so does the server.
pub struct Server {
    child: Option<Child>,
    /// A server that went into the background.
    daemon: Option<String>,
    pub directory: TempDir,
    export: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Server {
    /// Room for a server that is started later.
    pub fn new() -> Result<Self, Stop> {
        Ok(Self {
            child: None,
            daemon: None,
            directory: TempDir::with_prefix("nbd-client-")?,
            export: String::new(),
        })
    }

    /// The path of a file of the server.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Makes a file of so many bytes.
    pub fn disk(&self, size: u64) -> Result<String, Stop> {
        let path = self.file("disk");
        fs::File::create(&path)?.set_len(size)?;
        Ok(path.display().to_string())
    }

    fn socket(&self) -> PathBuf {
        self.file("socket")
    }

    /// The URI of the export.
    pub fn uri(&self) -> String {
        format!(
            "nbd+unix:///{}?socket={}",
            self.export,
            self.socket().display()
        )
    }

    pub fn export(&self) -> &str {
        &self.export
    }

    fn command(&self, program: &str, args: &[impl AsRef<OsStr>]) -> Result<Child, Stop> {
        let log = fs::File::create(self.file("log"))?;
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        child.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Stop::Skip(format!("no {program} on this host")),
            _ => Stop::Fail(format!("{program}: {e}")),
        })
    }

    /// Starts nbdkit with these arguments, the plugin and the filters by their names.
    pub fn nbdkit(&mut self, filters: &[&str], plugin: &str, args: &[String]) -> Result<(), Stop> {
        let libraries = std::env::var("INTEROP_NBDKIT").unwrap_or_default();
        let place = |kind: &str, name: &str| match libraries.as_str() {
            "" => name.to_owned(),
            root => format!("{root}/{kind}s/nbdkit-{name}-{kind}.so"),
        };
        let mut all = ["--foreground", "--exit-with-parent", "--exportname="]
            .map(str::to_owned)
            .to_vec();
        all.push(format!("--unix={}", self.socket().display()));
        for filter in filters {
            all.push(format!("--filter={}", place("filter", filter)));
        }
        // Options of nbdkit itself come before the plugin.
        let (options, parameters): (Vec<_>, Vec<_>) =
            args.iter().cloned().partition(|arg| arg.starts_with("--"));
        all.extend(options);
        all.push(place("plugin", plugin));
        all.extend(parameters);
        self.child = Some(self.command("nbdkit", &all)?);
        self.export.clear();
        self.listens()
    }

    /// Starts qemu-nbd with these arguments and the image.
    pub fn qemu_nbd(&mut self, args: &[&str], image: &Path) -> Result<(), Stop> {
        let mut all = ["--persistent", "--shared=8", "--export-name=disk"]
            .map(str::to_owned)
            .to_vec();
        all.push(format!("--socket={}", self.socket().display()));
        all.extend(args.iter().map(|arg| (*arg).to_owned()));
        all.push(image.display().to_string());
        self.child = Some(self.command("qemu-nbd", &all)?);
        "disk".clone_into(&mut self.export);
        self.listens()
    }

    /// Starts nbd-server with these lines for its export.
    pub fn nbd_server(&mut self, lines: &str) -> Result<(), Stop> {
        let (conf, pid) = (self.file("conf"), self.file("pid"));
        let text = format!(
            "[generic]\nunixsock = {}\nallowlist = true\n[disk]\n{lines}\n",
            self.socket().display()
        );
        fs::File::create(&conf)?.write_all(text.as_bytes())?;
        let words = ["-C", &conf.display().to_string(), "-p"].map(str::to_owned);
        let words = [&words[..], &[pid.display().to_string()]].concat();
        // It goes into the background at once.
        let status = self.command("nbd-server", &words)?.wait()?;
        if !status.success() {
            return Err(Stop::Fail(format!("nbd-server: {status}: {}", self.log())));
        }
        "disk".clone_into(&mut self.export);
        self.listens()?;
        self.daemon = Some(fs::read_to_string(pid)?.trim().to_owned());
        Ok(())
    }

    /// What the server wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("log")).unwrap_or_default()
    }

    fn listens(&mut self) -> Result<(), Stop> {
        let begun = Instant::now();
        loop {
            if self.file("socket").exists() && self.connect().is_ok() {
                return Ok(());
            }
            if let Some(status) = self.ended()? {
                return Err(Stop::Fail(format!("it ended, {status}: {}", self.log())));
            }
            if begun.elapsed() > PATIENCE {
                return Err(Stop::Fail(format!("it does not listen: {}", self.log())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How a server in the foreground ended, if it did.
    pub fn ended(&mut self) -> Result<Option<String>, Stop> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.map(|status| status.to_string())),
            None => Ok(None),
        }
    }

    /// Connects to it.
    pub fn connect(&self) -> Result<UnixStream, Stop> {
        let stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    /// Ends it: politely, so that it writes what it has, or by force if it does not go.
    pub fn stop(&mut self) {
        if let Some(pid) = self.daemon.take() {
            let _ = Command::new("kill").arg(pid).status();
        }
        if let Some(mut child) = self.child.take() {
            if matches!(child.try_wait(), Ok(None)) {
                let _ = Command::new("kill").arg(child.id().to_string()).status();
            }
            let begun = Instant::now();
            while begun.elapsed() < PATIENCE && matches!(child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(2));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_file(self.socket());
    }
}

/// Runs a program to its end and gives what it printed.
pub fn output(program: &str, args: &[&str]) -> Result<String, Stop> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Stop::Skip(format!("no {program} on this host")));
        }
        Err(e) => return Err(e.into()),
    };
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(Stop::Fail(format!("{program} {args:?}: {said}")))
        }
    }
}
