//! A CPU-bound backend on one or several threads per queue: the benefit of more threads.
//!
//! `bench_busy [-q QUEUES] [-d DEPTH] [-t THREADS_PER_QUEUE]`, as root with the ublk driver loaded; prints the device's
//! path once it serves, and ends with SIGINT or SIGTERM.
#![forbid(unsafe_code)]

use std::hash::{DefaultHasher, Hasher};
use std::hint::black_box;

use ublk::{Backend, Builder, Errno, Limits};

const SIZE: u64 = 1 << 30;

/// How often a request's data is hashed: half a millisecond for 4 KiB, which dwarfs the cost of the request itself.
const ROUNDS: usize = 512;

/// Computes for each request and stores nothing.
struct Busy;

fn work(data: &[u8]) {
    for _ in 0..ROUNDS {
        let mut hasher = DefaultHasher::new();
        hasher.write(black_box(data));
        black_box(hasher.finish());
    }
}

impl Backend for Busy {
    fn limits(&self) -> Limits {
        // It never waits, so the queue's own threads may call it.
        Limits::new(SIZE).volatile_cache(false).quick(true)
    }
    fn read_at(&self, buf: &mut [u8], _offset: u64) -> Result<(), Errno> {
        buf.fill(0);
        work(buf);
        Ok(())
    }
    fn write_at(&self, buf: &[u8], _offset: u64, _fua: bool) -> Result<(), Errno> {
        work(buf);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut queues, mut depth, mut threads) = (1, 128, 1);
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        let value = args.next().ok_or("a flag without a value")?.parse()?;
        match flag.as_str() {
            "-q" => queues = value,
            "-d" => depth = value,
            "-t" => threads = value,
            other => {
                return Err(format!("{other}: -q QUEUES, -d DEPTH or -t THREADS_PER_QUEUE").into());
            }
        }
    }
    Builder::new(Busy)
        .queues(queues)
        .depth(depth)
        .threads_per_queue(threads)
        .run(|device| println!("{}", device.path().display()))?;
    Ok(())
}
