//! Creates loop devices with `LOOP_CONFIGURE`, which sets file and direct I/O in one step; the guest's `losetup`
//! cannot.
//!
//! `unsafe` is allowed here for the driver's ioctls (include/uapi/linux/loop.h); each takes a number or a pointer to
//! memory of the size that the call reads.
#![expect(unsafe_code, reason = "ioctls of the loop driver")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, Result, ensure};

const LOOP_CLR_FD: libc::c_ulong = 0x4C01;
const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_config`: 304 bytes as 32-bit words. Word 0 is the descriptor, word 1 the block
/// size (0: the driver's choice); `struct loop_info64` begins at word 2, and its `lo_flags`, at
/// byte 52, is word 15.
type Config = [u32; 76];
const FLAGS: usize = 15;

/// A loop device; dropping it detaches the file.
#[derive(Debug)]
pub struct Loop {
    device: File,
    path: String,
}

impl Loop {
    /// Creates a loop device on a file.
    ///
    /// # Errors
    /// No loop driver, no such file, or the device differs from the request.
    pub fn new(file: &str, direct: bool) -> Result<Self> {
        let control = read_write("/dev/loop-control")?;
        let number = command(&control, LOOP_CTL_GET_FREE, 0).context("LOOP_CTL_GET_FREE")?;
        let path = format!("/dev/loop{number}");
        let device = read_write(&path)?;
        let backing = read_write(file)?;
        let mut config: Config = [0; 76];
        config[0] = u32::try_from(backing.as_raw_fd()).context("a descriptor")?;
        config[FLAGS] = if direct { LO_FLAGS_DIRECT_IO } else { 0 };
        configure(device.as_raw_fd(), &config).with_context(|| format!("{path} of {file}"))?;
        let made = Self { device, path };
        ensure!(
            made.direct()? == direct,
            "{} of {file} does not use direct I/O as asked: {direct}",
            made.path
        );
        Ok(made)
    }

    /// The path of the device.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether the driver reports direct I/O.
    pub fn direct(&self) -> Result<bool> {
        let name = self.path.trim_start_matches("/dev/");
        let path = format!("/sys/block/{name}/loop/dio");
        let text = fs::read_to_string(&path).context(path)?;
        Ok(text.trim() == "1")
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(error) = command(&self.device, LOOP_CLR_FD, 0) {
            eprintln!("{}: LOOP_CLR_FD: {error}", self.path);
        }
    }
}

fn read_write(path: &str) -> Result<File> {
    let file = File::options().read(true).write(true).open(path);
    file.with_context(|| path.to_owned())
}

fn command(file: &File, request: libc::c_ulong, argument: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: both requests that come here take no pointer, so the kernel touches no memory.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
    checked(answer)
}

fn configure(device: RawFd, config: &Config) -> io::Result<i32> {
    // SAFETY: the kernel reads `sizeof(struct loop_config)`, 304 bytes, from the pointer, which is
    // to an initialised array of that size that lives across the call.
    let answer = unsafe { libc::ioctl(device, LOOP_CONFIGURE, config.as_ptr()) };
    checked(answer)
}

fn checked(answer: i32) -> io::Result<i32> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(answer)
}

const _: () = assert!(size_of::<Config>() == 304);
