//! Many devices in one program, served by a few threads: RAM disks that are rarely busy at the same time.
//!
//! `many [DEVICES] [THREADS] [SIZE_IN_BYTES]`, as root with the ublk driver loaded; Ctrl-C stops them all.
#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use ublk::backends::Memory;
use ublk::ctrl::ControlThread;
use ublk::{Builder, Device, Threads};

const DEADLINE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let count = args.next().map_or(Ok(16), |arg| arg.parse())?;
    let threads = args.next().map_or(Ok(2), |arg| arg.parse())?;
    let size = args.next().map_or(Ok(16 << 20), |arg| arg.parse())?;
    let mut signals = Signals::new([SIGINT, SIGTERM])?;

    // One thread for the control commands of all devices, and a few for the requests.
    let control = Arc::new(Mutex::new(ControlThread::start(DEADLINE)?));
    let threads = Threads::start(threads)?;
    let mut devices: Vec<Device> = Vec::with_capacity(count);
    for _ in 0..count {
        let device = Builder::new(Memory::new(size, 512)?)
            .controller(Arc::clone(&control))
            .shared_threads(&threads)
            .start()?;
        println!("{}", device.path().display());
        devices.push(device);
    }
    signals.forever().next();
    for device in devices {
        device.remove()?;
    }
    Ok(())
}
