//! uring-lite alone: a file written, synced and read back through a ring.

use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd;

use uring_lite::{Cqe16, Fd, Ring, op};

fn complete(ring: &mut Ring, wanted: u64) -> Result<i32, Box<dyn Error>> {
    while ring.cq_ready() == 0 {
        ring.enter(1, None)?;
    }
    let cqe: Cqe16 = ring.next_cqe().ok_or("no completion")?;
    ring.release_cqes();
    assert_eq!(cqe.user_data, wanted);
    Ok(cqe.res)
}

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::temp_dir().join(format!("uring-lite-alone-{}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    let mut ring: Ring = Ring::builder(8).build()?;
    let data: Vec<u8> = (0..4096_u32).map(|i| (i % 251) as u8).collect();
    // SAFETY: the file is open to the end of `main`, where everything has been submitted.
    let fd = || unsafe { Fd::raw(file.as_fd()) };

    // SAFETY: `data` lives to the end of `main`, and its write completes in `complete`.
    let write = unsafe { op::write(fd(), data.as_ptr(), 4096, 512) };
    ring.push(&write.user_data(1))?;
    assert_eq!(complete(&mut ring, 1)?, 4096);

    ring.push(&op::fsync(fd(), true).user_data(2))?;
    assert_eq!(complete(&mut ring, 2)?, 0);

    let mut back = vec![0; 4096];
    // SAFETY: `back` lives to the end of `main` and is not accessed until the read has completed.
    let read = unsafe { op::read(fd(), back.as_mut_ptr(), 4096, 512) };
    ring.push(&read.user_data(3))?;
    assert_eq!(complete(&mut ring, 3)?, 4096);
    assert_eq!(back, data);

    // An error is reported: the file is open, but the ring has no such registered file.
    let missing = op::fsync(Fd::registered(5), false).user_data(4);
    ring.push(&missing)?;
    assert!(complete(&mut ring, 4)? < 0);
    println!("uring-lite: 4096 bytes there and back");
    Ok(())
}
