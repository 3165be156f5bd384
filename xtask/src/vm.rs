//! The common set-up of tasks with guests: host, programs, image, kernels.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::guest::accel::{self, Accel, Choice};
use crate::guest::image::{Contents, Image};
use crate::guest::{FUNCTIONAL_CMDLINE, Guest, system};
use crate::kernel::{self, Kernel};
use crate::manifest::Manifest;
use crate::{build, host, paths};

/// Our programs in every guest.
pub const PROGRAMS: [(&str, &str); 15] = [
    ("ublkctl", "ublkctl"),
    ("ublk-e2e", "ublk-e2e"),
    ("ublk-guest", "ublk-demo"),
    ("ublk", "examples/null"),
    ("ublk", "examples/ramdisk"),
    ("ublk", "examples/async_file"),
    ("ublk", "examples/async_remote"),
    ("ublk", "examples/raw_epoll"),
    ("ublk-tokio", "examples/tokio_ramdisk"),
    ("ublk", "examples/file"),
    ("ublk", "examples/mapped"),
    ("ublk", "examples/threads"),
    ("ublk", "examples/many"),
    ("ublk", "examples/zoned"),
    ("ublk", "examples/integrity"),
];

/// The images of guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// A bare init that runs one program.
    #[default]
    Plain,
    /// The distribution's systemd and udev.
    Systemd,
}

/// An environment for running guests.
#[derive(Debug)]
pub struct Vm {
    /// The manifest.
    pub manifest: Manifest,
    /// The image with our programs and the host's tools.
    pub image: Image,
    /// Which one that is.
    pub kind: Kind,
    /// The user's choice of accelerator.
    pub choice: Choice,
}

impl Vm {
    /// Sets up the host, builds our programs, and writes the image.
    ///
    /// # Errors
    /// A processor other than x86-64, a missing requirement, or a failed build.
    pub fn new(choice: Choice) -> Result<Self> {
        Self::plain(set_up()?, choice, "functional")
    }

    /// Like [`Vm::new`], with further programs of the host in an image of its own.
    ///
    /// # Errors
    /// As for [`Vm::new`].
    pub fn with_tools(
        choice: Choice,
        tools: &BTreeMap<String, String>,
        image: &str,
    ) -> Result<Self> {
        let mut manifest = Manifest::load()?;
        manifest.tools.extend(tools.clone());
        check_host()?;
        host::set_up(&manifest)?;
        Self::plain(manifest, choice, image)
    }

    fn plain(manifest: Manifest, choice: Choice, image: &str) -> Result<Self> {
        let mut built = build::guest(&with_init(&PROGRAMS))?;
        let contents = Contents {
            init: built.remove(0),
            programs: built,
            tools: manifest.tools.keys().cloned().collect(),
            plugins: manifest.plugins.clone(),
            tree: None,
        };
        let path = paths::vm().join(format!("images/{image}.cpio"));
        let image = Image::build(&contents, &path)?;
        Ok(Self {
            manifest,
            image,
            kind: Kind::Plain,
            choice,
        })
    }

    /// Like [`Vm::new`] with the systemd image; the error is [`system::NoPackages`] if its packages are not available.
    ///
    /// # Errors
    /// As for [`Vm::new`], and that.
    pub fn systemd(choice: Choice) -> Result<Self> {
        let manifest = set_up()?;
        // All of them, though the first few go in: built together they share their dependencies with the other image, while
        // for a part of them cargo chooses other features and compiles most of them once more.
        let mut built = build::guest(&with_init(&PROGRAMS))?;
        let contents = system::Contents {
            init: built.remove(0),
            programs: built.into_iter().take(2).collect(),
        };
        let path = paths::vm().join("images/systemd.cpio");
        let image = system::build(&manifest, &contents, &path)?;
        Ok(Self {
            manifest,
            image,
            kind: Kind::Systemd,
            choice,
        })
    }

    /// Either of the two.
    ///
    /// # Errors
    /// As for these.
    pub fn of(kind: Kind, choice: Choice) -> Result<Self> {
        match kind {
            Kind::Plain => Self::new(choice),
            Kind::Systemd => Self::systemd(choice),
        }
    }

    /// Prepares the named kernels, or the manifest's default ones if none is named.
    ///
    /// # Errors
    /// As for [`kernel::prepare`].
    pub fn kernels(&self, names: &[String]) -> Result<Vec<Kernel>> {
        let names = if names.is_empty() {
            &self.manifest.default
        } else {
            names
        };
        names
            .iter()
            .map(|name| kernel::prepare(&self.manifest, name))
            .collect()
    }

    /// A functional guest that runs `program`, and the lock on its directory.
    ///
    /// # Errors
    /// No directory for the run, or KVM was requested and does not work.
    pub fn guest<'a>(
        &'a self,
        kernel: &'a Kernel,
        program: &[&str],
        deadline: Duration,
    ) -> Result<(Guest<'a>, Accel, RunLock)> {
        let accel = accel::choose(self.choice, kernel, &self.image)?;
        let (directory, lock) = run_directory(&match self.kind {
            Kind::Plain => kernel.name.clone(),
            Kind::Systemd => format!("{}-systemd", kernel.name),
        })?;
        let load = |name: &String| (name.clone(), String::new());
        let mut cmdline = FUNCTIONAL_CMDLINE.map(str::to_owned).to_vec();
        // An emulated processor that waits for its turn on a busy host is not a kernel fault.
        let (hung, watchdog) = match accel {
            Accel::Kvm => ("60", "10"),
            Accel::Tcg => ("120", "40"),
        };
        if accel == Accel::Tcg {
            cmdline.push("rcupdate.rcu_cpu_stall_timeout=90".to_owned());
            // The kernel calibrates the timer against its processor; on a busy host the interrupts come too late for it, and
            // it panics. KVM guests skip the check by themselves.
            cmdline.push("no_timer_check".to_owned());
        }
        let mut modules: Vec<_> = self.manifest.modules.iter().map(load).collect();
        if self.kind == Kind::Systemd {
            cmdline.extend(system::CMDLINE.map(str::to_owned));
            modules.extend(self.manifest.system.modules.iter().map(load));
        }
        let sets = [
            ("/proc/sys/kernel/hung_task_timeout_secs", hung),
            ("/proc/sys/kernel/watchdog_thresh", watchdog),
        ];
        let guest = Guest {
            kernel,
            image: &self.image,
            machine: accel.machine(),
            cmdline,
            modules,
            sets: sets
                .map(|(path, value)| (path.to_owned(), value.to_owned()))
                .to_vec(),
            files: Vec::new(),
            program: program.iter().map(|word| (*word).to_owned()).collect(),
            env: [("RUST_BACKTRACE", "1"), ("TERM", "dumb")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec(),
            deadline,
            directory,
            harmless: crate::expected::harmless(&self.manifest.harmless, &kernel.series),
        };
        Ok((guest, accel, lock))
    }
}

/// Checks the host and installs missing requirements.
///
/// # Errors
/// A processor other than x86-64, or a missing requirement that cannot be installed here.
pub fn set_up() -> Result<Manifest> {
    check_host()?;
    let manifest = Manifest::load()?;
    host::set_up(&manifest)?;
    Ok(manifest)
}

fn check_host() -> Result<()> {
    paths::check_space("a guest", 3)?;
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        bail!("the virtual machine tests run on x86-64 Linux hosts only");
    }
    Ok(())
}

/// The init first, then the others.
pub fn with_init<'a>(programs: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut all = vec![("ublk-guest", "guest-init")];
    all.extend_from_slice(programs);
    all
}

/// Held while a run's directory is in use.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

/// Creates a directory for a run, `target/vm/NAME`, or `NAME.2` and so on if another run holds it.
///
/// # Errors
/// The directory cannot be created.
pub fn run_directory(name: &str) -> Result<(PathBuf, RunLock)> {
    for number in 1..100 {
        let name = if number == 1 {
            name.to_owned()
        } else {
            format!("{name}.{number}")
        };
        let directory = paths::vm().join(name);
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let file = File::create(directory.join("lock"))?;
        match file.try_lock() {
            Ok(()) => return Ok((directory, RunLock { _file: file })),
            Err(fs::TryLockError::WouldBlock) => {}
            Err(fs::TryLockError::Error(error)) => return Err(error).context("lock"),
        }
    }
    bail!("a hundred runs at once");
}
