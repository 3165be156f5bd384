//! A client whose I/O brings and takes integrity metadata: io_uring's attributes (Linux 6.13).
#![expect(unsafe_code, reason = "names its memory to the kernel")]

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use uring_lite::{Cqe16, Fd, Ring, Sqe64, op};

use crate::direct_io::Buffer;
use crate::wait::secs;

/// `IORING_RW_ATTR_FLAG_PI`.
const PI: u64 = 1;

/// `struct io_uring_attr_pi`; the kernel checks nothing of the metadata without flags.
#[repr(C)]
#[derive(Default)]
struct Attribute {
    flags: u16,
    app_tag: u16,
    len: u32,
    addr: u64,
    seed: u64,
    reserved: u64,
}

/// Writes data and its metadata. The inner error is the kernel's.
pub fn write(
    device: &File,
    offset: u64,
    data: &Buffer,
    metadata: &[u8],
) -> Result<Result<(), i32>> {
    let attribute = attribute(metadata.as_ptr() as u64, metadata.len())?;
    // SAFETY: the file outlives `completed`, which waits for the completion.
    let fd = unsafe { Fd::raw(device.as_fd()) };
    let bytes = data.bytes();
    let len = u32::try_from(bytes.len())?;
    // SAFETY: the slices outlive `completed`, which waits for the completion; the kernel only reads them.
    let entry = unsafe { op::write(fd, bytes.as_ptr(), len, offset) };
    completed(entry, &attribute, len)
}

/// Reads data and its metadata. The inner error is the kernel's.
pub fn read(
    device: &File,
    offset: u64,
    data: &mut Buffer,
    metadata: &mut [u8],
) -> Result<Result<(), i32>> {
    let attribute = attribute(metadata.as_mut_ptr() as u64, metadata.len())?;
    // SAFETY: as in `write`.
    let fd = unsafe { Fd::raw(device.as_fd()) };
    let bytes = data.bytes_mut();
    let len = u32::try_from(bytes.len())?;
    // SAFETY: the slices are borrowed exclusively until `completed`, which waits for the completion, returns.
    let entry = unsafe { op::read(fd, bytes.as_mut_ptr(), len, offset) };
    completed(entry, &attribute, len)
}

fn attribute(addr: u64, len: usize) -> Result<Attribute> {
    Ok(Attribute {
        len: u32::try_from(len)?,
        addr,
        ..Attribute::default()
    })
}

/// Sends an entry with its attribute and waits for it. An operation that does not complete in time ends the process, since
/// the kernel still has the memory.
fn completed(entry: Sqe64, attribute: &Attribute, len: u32) -> Result<Result<(), i32>> {
    let mut ring: Ring<Sqe64, Cqe16> = Ring::builder(2).build().context("io_uring")?;
    // SAFETY: the attribute is read while the entry is submitted, and the memory that it names outlives the completion.
    let entry = unsafe { entry.with_payload([std::ptr::from_ref(attribute) as u64, PI]) };
    ring.push(&entry).context("a new ring has room")?;
    let entered = ring.enter(1, Some(secs(30)));
    let Some(done) = ring.next_cqe() else {
        eprintln!("I/O with metadata does not complete: {entered:?}");
        std::process::abort();
    };
    if done.res < 0 {
        return Ok(Err(-done.res));
    }
    ensure!(
        u32::try_from(done.res) == Ok(len),
        "{} bytes of {len}",
        done.res
    );
    Ok(Ok(()))
}
