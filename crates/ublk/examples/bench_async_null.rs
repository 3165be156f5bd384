//! A null device answered by futures: the cost of an async handler.
//!
//! `bench_async_null [-q QUEUES] [-d DEPTH]`, as root with the ublk driver loaded; prints the device's path once it
//! serves, and ends with SIGINT or SIGTERM.
#![forbid(unsafe_code)]

use ublk::Limits;
use ublk::queue::task::TaskRequest;

/// 250 GiB, the default of `ublkctl add null`.
const SIZE: u64 = 250 << 30;

async fn serve(_request: TaskRequest) -> Result<(), ublk::Errno> {
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut queues, mut depth) = (1, 128);
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or("a flag without a value")?.parse()?;
        match flag.as_str() {
            "-q" => queues = value,
            "-d" => depth = value,
            other => return Err(format!("{other}: -q QUEUES or -d DEPTH").into()),
        }
    }
    let limits = Limits::new(SIZE).volatile_cache(false);
    ublk::tasks(limits, serve)
        .queues(queues)
        .depth(depth)
        .run(|device| println!("{}", device.path().display()))?;
    Ok(())
}
