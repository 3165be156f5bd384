//! A device that answers every request without doing anything, to measure the cost of the path itself.
//!
//! `null [SIZE_IN_BYTES] [QUEUES]`, as root with the ublk driver loaded; Ctrl-C stops it.
#![forbid(unsafe_code)]

use ublk::{Builder, backends::Null};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let size = args.next().map_or(Ok(1 << 30), |arg| arg.parse())?;
    let queues = args.next().map_or(Ok(1), |arg| arg.parse())?;
    let null = Null::new(size, 512)?;
    Builder::new(null)
        .queues(queues)
        .run(|device| println!("{}", device.path().display()))?;
    Ok(())
}
