//! Finds out which accelerator works here, by booting a guest with it.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use super::image::Image;
use super::{FUNCTIONAL_CMDLINE, Guest, Machine, Verdict};
use crate::kernel::Kernel;
use crate::{cmd, host, paths};

/// The user's choice of accelerator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Choice {
    /// KVM if it works, else software emulation.
    #[default]
    Auto,
    /// KVM or nothing.
    Kvm,
    /// Software emulation.
    Tcg,
}

/// The accelerator of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The host's kernel and processor.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "software emulation",
        })
    }
}

impl Accel {
    /// The machine of functional tests: four processors, since the driver gives a device no more queues than there are
    /// processors.
    pub fn machine(self) -> Machine {
        let (accel, cpu) = match self {
            Self::Kvm => ("kvm", "host"),
            Self::Tcg => ("tcg,thread=multi", "max"),
        };
        Machine {
            qemu: "qemu-system-x86_64".to_owned(),
            accel: accel.to_owned(),
            cpu: cpu.to_owned(),
            cpus: 4,
            memory: 3072,
            extra: Vec::new(),
        }
    }
}

/// Tries it: a short boot under KVM with a deadline. The answer is cached for this host kernel and this QEMU.
///
/// # Errors
/// KVM was requested and does not work.
pub fn choose(choice: Choice, kernel: &Kernel, image: &Image) -> Result<Accel> {
    if choice == Choice::Tcg {
        return Ok(Accel::Tcg);
    }
    let memory = paths::vm().join("accel");
    let key = key();
    let known = fs::read_to_string(&memory).unwrap_or_default();
    let works = match known.split_once('\n') {
        Some((of, answer)) if of == key => answer.trim() == "kvm",
        _ => {
            let answer = probe(kernel, image);
            let (works, why) = match answer {
                Ok(()) => (true, "it boots".to_owned()),
                Err(error) => (false, format!("{error:#}")),
            };
            println!("KVM on this host: {why}");
            fs::create_dir_all(paths::vm())?;
            fs::write(
                &memory,
                format!("{key}\n{}\n", if works { "kvm" } else { "tcg" }),
            )?;
            works
        }
    };
    match (works, choice) {
        (true, _) => Ok(Accel::Kvm),
        (false, Choice::Kvm) => bail!(
            "KVM does not work on this host; try --accel tcg (`cargo xtask vm-reset` forgets \
             this answer)"
        ),
        (false, _) => Ok(Accel::Tcg),
    }
}

fn probe(kernel: &Kernel, image: &Image) -> Result<()> {
    if !Path::new("/dev/kvm").exists() {
        bail!("no /dev/kvm");
    }
    if fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        bail!("/dev/kvm cannot be opened by this user");
    }
    let guest = Guest {
        kernel,
        image,
        machine: Accel::Kvm.machine(),
        cmdline: FUNCTIONAL_CMDLINE.map(str::to_owned).to_vec(),
        modules: Vec::new(),
        sets: Vec::new(),
        files: Vec::new(),
        program: vec!["/usr/bin/busybox".to_owned(), "true".to_owned()],
        env: Vec::new(),
        deadline: Duration::from_secs(20),
        directory: paths::vm().join("probe-kvm"),
        harmless: Vec::new(),
    };
    match guest.run(&mut |_| ())?.verdict {
        Verdict::Exit(0) => Ok(()),
        verdict => bail!("does not work, {verdict}"),
    }
}

/// The inputs that the answer depends on.
fn key() -> String {
    let kernel = fs::read_to_string("/proc/version").unwrap_or_default();
    let qemu = cmd::output(host::command("qemu-system-x86_64").arg("--version"));
    let qemu = qemu.unwrap_or_default();
    format!("{} | {}", kernel.trim(), qemu.lines().next().unwrap_or(""))
}
