//! Test guests: an image, a machine, one program, one verdict.
//!
//! [`Guest`] describes a run; [`Guest::run`] boots it and returns the [`Outcome`]: the verdict, the lines of the result
//! channel and the path of the console log. [`image::Image`] is the initramfs shared by runs; a run's own files are
//! laid over it.

pub mod accel;
mod follow;
pub mod image;
mod lines;
mod qemu;
pub mod system;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::kernel::Kernel;
use image::Image;

/// The virtual hardware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The QEMU program.
    pub qemu: String,
    /// Value of `-accel`, such as `kvm` or `tcg,thread=multi`.
    pub accel: String,
    /// Value of `-cpu`.
    pub cpu: String,
    /// Number of processors.
    pub cpus: usize,
    /// Memory in MiB.
    pub memory: usize,
    /// Further arguments of QEMU.
    pub extra: Vec<String>,
}

/// One run of one program in one guest.
#[derive(Debug)]
pub struct Guest<'a> {
    /// The kernel to boot.
    pub kernel: &'a Kernel,
    /// The image to boot it with.
    pub image: &'a Image,
    /// The hardware.
    pub machine: Machine,
    /// The whole kernel command line, except for the console and `rdinit`, which are added.
    pub cmdline: Vec<String>,
    /// Modules to load by name, with their parameters, in order.
    pub modules: Vec<(String, String)>,
    /// Guest files to write before the modules are loaded (`/proc/sys/…`), with values.
    pub sets: Vec<(String, String)>,
    /// Host files to lay over the image: path in the guest, path on the host.
    pub files: Vec<(String, PathBuf)>,
    /// The program and its arguments.
    pub program: Vec<String>,
    /// Its environment.
    pub env: Vec<(String, String)>,
    /// Time after which the guest is killed.
    pub deadline: Duration,
    /// Directory of the run: console, channel, QEMU's own output.
    pub directory: PathBuf,
    /// Parts of console lines that are harmless.
    pub harmless: Vec<String>,
}

/// The command line of functional tests. All kernel messages go to the console, since a WARN that is not printed cannot
/// fail a run.
pub const FUNCTIONAL_CMDLINE: [&str; 6] = [
    "loglevel=7",
    "mitigations=off",
    "panic=-1",
    "oops=panic",
    "nokaslr",
    "random.trust_cpu=on",
];

/// Why a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The program exited with this status.
    Exit(i32),
    /// A signal ended the program.
    Signal(i32),
    /// The guest could not run the program.
    GuestError(String),
    /// The kernel reported a fault: this console line.
    KernelFault(String),
    /// The deadline passed.
    TimedOut(Duration),
    /// The guest ended without a verdict: it crashed, or QEMU did not start.
    Missing,
    /// More than one verdict: something other than our init writes them.
    Several,
}

impl Verdict {
    /// Whether the program exited with status 0 and the kernel reported nothing.
    pub fn is_good(&self) -> bool {
        *self == Self::Exit(0)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(status) => write!(f, "the program exited with status {status}"),
            Self::Signal(signal) => write!(f, "signal {signal} ended the program"),
            Self::GuestError(text) => write!(f, "the guest could not run the program: {text}"),
            Self::KernelFault(line) => write!(f, "the kernel reported: {line}"),
            Self::TimedOut(after) => write!(f, "no end after {} s, killed", after.as_secs()),
            Self::Missing => f.write_str("the guest ended without a verdict"),
            Self::Several => f.write_str("more than one verdict on the result channel"),
        }
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Why it ended.
    pub verdict: Verdict,
    /// The program's output, line by line.
    pub lines: Vec<String>,
    /// The console log.
    pub console: PathBuf,
    /// Time from QEMU's start to its end.
    pub elapsed: Duration,
    /// The QEMU command.
    pub command: String,
}

impl Outcome {
    /// The report of a failed run: verdict, end of the console, files, command.
    pub fn report(&self) -> String {
        let console = std::fs::read(&self.console).unwrap_or_default();
        let console = String::from_utf8_lossy(&console).into_owned();
        let tail: Vec<_> = console.lines().rev().take(25).collect();
        let mut text = format!("{}\nthe end of {}:\n", self.verdict, self.console.display());
        for line in tail.iter().rev() {
            text += &format!("    {line}\n");
        }
        if let Some(last) = self.lines.iter().rev().find(|line| !line.is_empty()) {
            text += &format!("the program's last line: {last}\n");
        }
        let qemu = self.console.with_file_name("qemu.log");
        if let Ok(messages) = std::fs::read_to_string(qemu)
            && !messages.trim().is_empty()
        {
            text += &format!(
                "QEMU says:\n    {}\n",
                messages.trim().replace('\n', "\n    ")
            );
        }
        text + &format!("command: {}\n", self.command)
    }
}
