//! `vm-shell`: an interactive guest, or one command in a guest.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::guest::accel::Choice;
use crate::vm::{Kind, Vm};

/// Boots the kernel and connects its console to the terminal, or runs one shell command and shows its output.
///
/// # Errors
/// The guest cannot be set up or started; the command fails, or the kernel reports a fault.
pub fn run(kernel: &str, image: Kind, choice: Choice, command: &[String]) -> Result<()> {
    let vm = Vm::of(image, choice)?;
    let kernels = vm.kernels(&[kernel.to_owned()])?;
    if !command.is_empty() {
        let command = command.join(" ");
        let shell = ["/bin/sh", "-c", &command];
        let (guest, _, _lock) = vm.guest(&kernels[0], &shell, Duration::from_secs(30 * 60))?;
        let outcome = guest.run(&mut |line| println!("{line}"))?;
        if !outcome.verdict.is_good() {
            bail!("{}", outcome.report());
        }
        return Ok(());
    }
    let shell = ["/usr/bin/busybox", "setsid", "cttyhack", "/bin/sh", "-l"];
    let (mut guest, accel, _lock) = vm.guest(&kernels[0], &shell, Duration::MAX)?;
    guest.env.push(("TERM".to_owned(), "linux".to_owned()));
    guest.cmdline.retain(|word| !word.starts_with("loglevel"));
    guest.cmdline.push("loglevel=5".to_owned());
    println!(
        "kernel {} under {accel}; ublkctl and the tools are in the path, modprobe has {} modules; \
         leave with `exit` or, hard, with Ctrl-A X",
        kernels[0].release,
        kernels[0].modules.len(),
    );
    guest.interactive()
}
