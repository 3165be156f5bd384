//! A zoned device in memory, with zones of 4 MiB that are written sequentially or appended to.
//!
//! `zoned [ZONES [batch]]`, as root with the ublk driver loaded, Linux 6.6 with CONFIG_BLK_DEV_ZONED; Ctrl-C stops it
//! and prints the number of appends.
#![forbid(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets are inside the zones"
)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use ublk::core::{DataMode, Mode, Zone, ZoneAction, ZoneCondition, ZoneReport, Zones};
use ublk::{Backend, Builder, Errno, Limits};

const ZONE: u64 = 4 << 20;

/// A zone's written data, whose length is the write pointer.
struct Written {
    data: Vec<u8>,
    condition: ZoneCondition,
}

struct Zoned {
    zones: Vec<Mutex<Written>>,
    appends: Arc<AtomicU64>,
}

impl Zoned {
    fn zone(&self, offset: u64) -> MutexGuard<'_, Written> {
        self.zones[(offset / ZONE) as usize].lock().unwrap()
    }
}

impl Written {
    /// Writes at the write pointer, if that is at `at`.
    fn write(&mut self, at: usize, buf: &[u8]) -> Result<(), Errno> {
        if at != self.data.len() || at + buf.len() > ZONE as usize {
            return Err(Errno::EIO);
        }
        self.data.extend_from_slice(buf);
        self.condition = match self.condition {
            _ if self.data.len() == ZONE as usize => ZoneCondition::Full,
            ZoneCondition::ExplicitlyOpen => ZoneCondition::ExplicitlyOpen,
            _ => ZoneCondition::ImplicitlyOpen,
        };
        Ok(())
    }

    fn reset(&mut self) {
        self.data = Vec::new();
        self.condition = ZoneCondition::Empty;
    }
}

impl Backend for Zoned {
    fn limits(&self) -> Limits {
        Limits::new(self.zones.len() as u64 * ZONE)
            .block_size(4096)
            .volatile_cache(false)
            .quick(true)
            .zones(Zones::new(ZONE, 1 << 20))
    }

    /// Unwritten blocks read as zeroes.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        let zone = self.zone(offset);
        let from = zone.data.get((offset % ZONE) as usize..).unwrap_or(&[]);
        let len = from.len().min(buf.len());
        buf[..len].copy_from_slice(&from[..len]);
        buf[len..].fill(0);
        Ok(())
    }

    fn write_at(&self, buf: &[u8], offset: u64, _fua: bool) -> Result<(), Errno> {
        self.zone(offset).write((offset % ZONE) as usize, buf)
    }

    fn zone_append(&self, buf: &[u8], zone: u64) -> Result<u64, Errno> {
        let mut written = self.zone(zone);
        let at = written.data.len();
        written.write(at, buf)?;
        self.appends.fetch_add(1, Ordering::Relaxed);
        Ok(zone + at as u64)
    }

    fn report_zones(&self, offset: u64, report: &mut ZoneReport<'_>) -> Result<(), Errno> {
        let mut start = offset / ZONE * ZONE;
        while start < self.zones.len() as u64 * ZONE {
            let written = self.zone(start);
            // A full zone has no valid write pointer: use its end.
            let pointer = start + written.data.len() as u64;
            if !report.push(&Zone::sequential(start, ZONE, pointer, written.condition)) {
                break;
            }
            start += ZONE;
        }
        Ok(())
    }

    fn manage_zone(&self, action: ZoneAction, zone: u64) -> Result<(), Errno> {
        let mut written = self.zone(zone);
        let is_empty = written.data.is_empty();
        match action {
            ZoneAction::Reset => written.reset(),
            // Unwritten blocks of a full zone read as zeroes.
            ZoneAction::Finish => {
                written.data.resize(ZONE as usize, 0);
                written.condition = ZoneCondition::Full;
            }
            _ if written.condition == ZoneCondition::Full => {}
            ZoneAction::Open => written.condition = ZoneCondition::ExplicitlyOpen,
            ZoneAction::Close if is_empty => written.condition = ZoneCondition::Empty,
            ZoneAction::Close => written.condition = ZoneCondition::Closed,
            _ => return Err(Errno::EOPNOTSUPP),
        }
        Ok(())
    }

    fn reset_all_zones(&self) -> Result<(), Errno> {
        self.zones
            .iter()
            .for_each(|zone| zone.lock().unwrap().reset());
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let zones = args.next().map_or(Ok(64), |arg| arg.parse())?;
    // Data goes through `pread` and `pwrite` of the character device: the driver has no copy mode for zoned devices.
    let mode = Mode::new(DataMode::UserCopy).batched(args.next().is_some_and(|arg| arg == "batch"));
    let empty = || {
        Mutex::new(Written {
            data: Vec::new(),
            condition: ZoneCondition::Empty,
        })
    };
    let appends = Arc::new(AtomicU64::new(0));
    let disk = Zoned {
        zones: (0..zones).map(|_: u64| empty()).collect(),
        appends: Arc::clone(&appends),
    };
    Builder::new(disk)
        .mode(mode)
        .queues(2)
        .run(|device| println!("{}", device.path().display()))?;
    println!("{} appends", appends.load(Ordering::Relaxed));
    Ok(())
}
