//! A file as a device, served by futures: every operation runs on the queue's own ring, and no thread waits for it.
//!
//! `async_file PATH [QUEUES [MODE]]`, as root with the ublk driver loaded; Ctrl-C stops it. In the mode `zero-copy` the
//! same program transfers data between the client's pages and the file: operations use the registered buffer
//! automatically.
#![forbid(unsafe_code)]

use std::fs::File;

use ublk::core::{DataMode, Mode, Op};
use ublk::queue::task::{SharedFd, TaskRequest};
use ublk::{Errno, Limits};

/// `FALLOC_FL_*`, linux/falloc.h.
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const ZERO_RANGE: u32 = 16;

async fn serve(mut request: TaskRequest, file: SharedFd) -> Result<(), Errno> {
    let (offset, len) = (request.offset(), request.len());
    let ring = request.ring();
    match request.op() {
        Op::Read => request.read_from(&file, offset).await,
        Op::Write => {
            request.write_to(&file, offset).await?;
            if request.flags().fua() {
                ring.fdatasync(&file).await?;
            }
            Ok(())
        }
        Op::Flush => ring.fdatasync(&file).await,
        Op::WriteZeroes if request.flags().no_unmap() => {
            ring.fallocate(&file, ZERO_RANGE | KEEP_SIZE, offset, len)
                .await
        }
        Op::Discard | Op::WriteZeroes => {
            ring.fallocate(&file, PUNCH_HOLE | KEEP_SIZE, offset, len)
                .await
        }
        _ => Err(Errno::EOPNOTSUPP),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("async_file PATH [QUEUES [MODE]]")?;
    let queues = args.next().map_or(Ok(1), |arg| arg.parse())?;
    let data = args
        .next()
        .map_or(Ok(DataMode::Copy), |arg| arg.parse::<DataMode>())?;
    let file = File::options().read(true).write(true).open(path)?;
    let limits = Limits::new(file.metadata()?.len())
        .fua(true)
        .discard(1 << 30, 4096)
        .write_zeroes(1 << 30);
    let file = SharedFd::new(file);
    ublk::tasks(limits, move |request| serve(request, file.clone()))
        .queues(queues)
        .mode(Mode::new(data))
        .run(|device| println!("{}", device.path().display()))?;
    Ok(())
}
