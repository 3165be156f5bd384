//! ublk alone: a custom device, served and read if the driver is loaded; if not, the reason and what to do about it.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;

use ublk::{Backend, Builder, Errno, Limits};

/// A device in which every byte is the number of its sector, modulo 251.
struct Numbers;

fn number(offset: u64) -> u8 {
    (offset / 512 % 251) as u8
}

impl Backend for Numbers {
    fn limits(&self) -> Limits {
        Limits::new(16 << 20).read_only(true).quick(true)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        for (sector, bytes) in (offset..).step_by(512).zip(buf.chunks_mut(512)) {
            bytes.fill(number(sector));
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match Builder::new(Numbers).queues(2).start() {
        Ok(device) => {
            let file = File::open(device.path())?;
            let mut data = vec![0; 1 << 20];
            file.read_exact_at(&mut data, 3 << 20)?;
            for (offset, byte) in (3_u64 << 20..).zip(&data) {
                assert_eq!(*byte, number(offset), "at {offset}");
            }
            drop(file);
            println!("ublk: read 1 MiB of {}", device.path().display());
            device.remove()?;
        }
        Err(ublk::Error::Control(error)) => {
            let there = std::path::Path::new("/dev/ublk-control").exists();
            assert!(
                !there || error.kind() == ublk::ctrl::Kind::Permission,
                "{error}"
            );
            assert!(!error.hint().is_empty());
            println!("ublk: {error}");
        }
        Err(error) => return Err(error.into()),
    }
    // Everything that can be refused without a driver is.
    let refused = Builder::new(Numbers).depth(0).start();
    assert!(refused.is_err());
    Ok(())
}
