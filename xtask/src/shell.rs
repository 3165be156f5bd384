//! `vm-shell`: a guest to look around in.

use std::time::Duration;

use anyhow::Result;

use crate::guest::accel::Choice;
use crate::vm::Vm;

/// Boots the kernel and gives its console to the user.
///
/// # Errors
/// The guest cannot be set up or started.
pub fn run(kernel: &str, choice: Choice) -> Result<()> {
    let vm = Vm::new(choice)?;
    let kernels = vm.kernels(&[kernel.to_owned()])?;
    let shell = ["/usr/bin/busybox", "setsid", "cttyhack", "/bin/sh", "-l"];
    let (mut guest, accel, _lock) = vm.guest(&kernels[0], &shell, Duration::MAX)?;
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
