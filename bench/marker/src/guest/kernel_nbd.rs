//! The kernel's NBD device, set up over a socket of ours by the driver's ioctls.
//!
//! `unsafe` is allowed here for these ioctls (include/uapi/linux/nbd.h); each takes a number.
#![expect(unsafe_code, reason = "ioctls of the nbd driver")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::peer::{self, Socket};

const NBD_SET_SOCK: libc::c_ulong = 0xab00;
const NBD_SET_BLKSIZE: libc::c_ulong = 0xab01;
const NBD_DO_IT: libc::c_ulong = 0xab03;
const NBD_CLEAR_SOCK: libc::c_ulong = 0xab04;
const NBD_SET_SIZE_BLOCKS: libc::c_ulong = 0xab07;
const NBD_DISCONNECT: libc::c_ulong = 0xab08;
const NBD_SET_FLAGS: libc::c_ulong = 0xab0a;

/// Logical block size of the device.
const BLOCK: u64 = 512;
/// How long the device may take to have its size.
const DEADLINE: Duration = Duration::from_secs(30);

/// An NBD device of the kernel; dropping it disconnects it.
#[derive(Debug)]
pub struct KernelNbd {
    device: File,
    /// The thread that is in the driver for as long as the device serves.
    serving: Option<JoinHandle<Result<()>>>,
}

impl KernelNbd {
    /// Path of the device.
    pub const PATH: &'static str = "/dev/nbd0";

    /// Connects to a server and makes the device of its default export, without a scheduler.
    ///
    /// # Errors
    /// No driver, no server, or the device does not get its size in time.
    pub fn new(at: &str) -> Result<Self> {
        let (socket, export) = peer::open(at)?;
        let mut options = File::options();
        let device = options.read(true).write(true).open(Self::PATH);
        let device = device.context(Self::PATH)?;
        command(&device, NBD_SET_BLKSIZE, BLOCK)?;
        command(&device, NBD_SET_SIZE_BLOCKS, export.size / BLOCK)?;
        command(&device, NBD_SET_FLAGS, export.flags.0.into())?;
        let serving = device.try_clone()?;
        let serving = thread::spawn(move || serve(&serving, &socket));
        let made = Self {
            device,
            serving: Some(serving),
        };
        let size = "/sys/block/nbd0/size";
        let until = Instant::now() + DEADLINE;
        while fs::read_to_string(size).context(size)?.trim() == "0" {
            ensure!(Instant::now() < until, "{} has no size", Self::PATH);
            thread::sleep(Duration::from_millis(10));
        }
        let scheduler = "/sys/block/nbd0/queue/scheduler";
        fs::write(scheduler, "none").context(scheduler)?;
        Ok(made)
    }
}

/// Serves until the device is disconnected.
fn serve(device: &File, socket: &Socket) -> Result<()> {
    let descriptor = socket.as_fd().as_raw_fd();
    let descriptor = u64::try_from(descriptor).context("a descriptor")?;
    command(device, NBD_SET_SOCK, descriptor)?;
    let served = command(device, NBD_DO_IT, 0);
    command(device, NBD_CLEAR_SOCK, 0)?;
    served
}

impl Drop for KernelNbd {
    fn drop(&mut self) {
        let _ = command(&self.device, NBD_DISCONNECT, 0);
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}

fn command(device: &File, command: libc::c_ulong, value: u64) -> Result<()> {
    // SAFETY: the commands above take a number; the descriptor is open.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), command, value) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(error).with_context(|| format!("ioctl {command:#x} of the nbd driver"));
    }
    Ok(())
}
