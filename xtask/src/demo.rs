//! `demo`: the main job on real input, for first-time users.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::guest::accel::Choice;
use crate::guest::image::Contents;
use crate::guest::image::Image;
use crate::vm::Vm;
use crate::{build, cmd, host, paths, vm};

/// Directories without sources.
const NO_SOURCES: [&str; 4] = ["target", ".git", "artifacts", "coverage"];

/// Shows the life of a device: on this host if it has the ublk driver and permits it, else in a guest.
///
/// # Errors
/// The demonstration cannot be set up, or a check failed.
pub fn run(choice: Choice) -> Result<()> {
    let sources = tempfile::tempdir()?;
    copy(paths::root(), sources.path())?;
    if host::root() && Path::new("/dev/ublk-control").exists() {
        println!("This host has the ublk driver: the demonstration runs right here.");
        return on_host(sources.path());
    }
    println!(
        "This host has no ublk driver that we may use: the demonstration runs in a virtual \
         machine.\nWhat it needs is fetched and built now; later runs find it there."
    );
    in_guest(sources.path(), choice)
}

fn on_host(sources: &Path) -> Result<()> {
    vm::set_up()?;
    let built = build::host(&[("ublk-guest", "ublk-demo"), ("ublkctl", "ublkctl")])?;
    let work = tempfile::tempdir()?;
    let mut command = Command::new(&built[0]);
    cmd::run(command.arg(&built[1]).arg(sources).arg(work.path()))
}

fn in_guest(sources: &Path, choice: Choice) -> Result<()> {
    let manifest = vm::set_up()?;
    let programs = [("ublkctl", "ublkctl"), ("ublk-guest", "ublk-demo")];
    let mut built = build::guest(&vm::with_init(&programs))?;
    let contents = Contents {
        init: built.remove(0),
        programs: built,
        tools: manifest.tools.keys().cloned().collect(),
        plugins: manifest.plugins.clone(),
        tree: Some((sources.to_owned(), "/root/sources".to_owned())),
    };
    let image = Image::build(&contents, &paths::vm().join("images/demo.cpio"))?;
    let vm = Vm {
        manifest,
        image,
        kind: crate::vm::Kind::Plain,
        choice,
    };
    let kernels = vm.kernels(&["newest".to_owned()])?;
    let program = [
        "/usr/bin/ublk-demo",
        "/usr/bin/ublkctl",
        "/root/sources",
        "/mnt/demo",
    ];
    let (guest, accel, _lock) = vm.guest(&kernels[0], &program, Duration::from_secs(300))?;
    println!("\nBooting Linux {} under {accel}.", kernels[0].release);
    let outcome = guest.run(&mut |line| println!("{line}"))?;
    if !outcome.verdict.is_good() {
        bail!("{}", outcome.report());
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let (name, kind) = (entry.file_name(), entry.file_type()?);
        if kind.is_dir() {
            if !NO_SOURCES.iter().any(|other| name == *other) {
                fs::create_dir(to.join(&name))?;
                copy(&entry.path(), &to.join(&name))?;
            }
        } else if kind.is_file() {
            fs::copy(entry.path(), to.join(&name))
                .with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}
