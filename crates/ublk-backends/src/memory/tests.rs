//! The memory backend as the block layer uses it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use ublk_core::{Backend, Errno};

use super::Memory;
use crate::Error;

fn device(size: u64) -> Memory {
    Memory::new(size, 512).expect("a small device")
}

fn read(device: &Memory, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xaa; len];
    device.read_at(&mut buf, offset).expect("inside the device");
    buf
}

fn is(bytes: &[u8], value: u8) -> bool {
    bytes.iter().all(|b| *b == value)
}

/// L05 A read fills the whole buffer: unwritten parts are zeroes, not stale bytes.
#[test]
fn l05_reads_fill_the_whole_buffer() {
    let memory = device(1 << 20);
    assert!(is(&read(&memory, 0, 1 << 20), 0));
    memory.write_at(&[7; 1024], 512, false).expect("inside");
    let found = read(&memory, 0, 2048);
    assert!(is(&found[..512], 0) && is(&found[512..1536], 7) && is(&found[1536..], 0));
}

/// L05 A read that cannot be served completely fails; it does not serve a part.
#[test]
fn l05_a_read_across_the_end_fails_whole() {
    let memory = device(8192);
    memory.write_at(&[7; 8192], 0, false).expect("inside");
    let mut buf = [0xaa; 1024];
    assert_eq!(memory.read_at(&mut buf, 8192 - 512), Err(Errno::EIO));
    assert!(is(&buf, 0xaa), "nothing was copied");
}

#[test]
fn last_sector_is_the_last() {
    // Not a whole number of pages: the mapping is longer than the device.
    let memory = device(8192 + 512);
    memory
        .write_at(&[9; 512], 8192, false)
        .expect("last sector");
    assert!(is(&read(&memory, 8192, 512), 9));
    assert!(is(&read(&memory, 7680, 512), 0));
    assert_eq!(memory.write_at(&[9; 512], 8704, false), Err(Errno::EIO));
    assert_eq!(memory.discard(8192, 1024), Err(Errno::EIO));
    memory.discard(8192, 512).expect("last sector");
    assert!(is(&read(&memory, 8192, 512), 0));
}

/// L12 A discard of any whole sectors zeroes exactly these, whether they are whole pages or not.
#[test]
fn l12_discard_zeroes_exactly_its_sectors() {
    for (first, count) in [
        (0, 1),
        (1, 1),
        (7, 2),
        (7, 10),
        (1, 30),
        (8, 8),
        (9, 7),
        (0, 32),
    ] {
        for how in ["discard", "unmap", "zero"] {
            let memory = device(16384);
            memory.write_at(&[5; 16384], 0, false).expect("inside");
            let (offset, len) = (first * 512, count * 512);
            match how {
                "discard" => memory.discard(offset, len),
                "unmap" => memory.write_zeroes(offset, len, true),
                _ => memory.write_zeroes(offset, len, false),
            }
            .expect("inside");
            let found = read(&memory, 0, 16384);
            for (sector, bytes) in (0_u64..).zip(found.chunks(512)) {
                let inside = (first..first + count).contains(&sector);
                let wanted = if inside { 0 } else { 5 };
                assert!(is(bytes, wanted), "{how} {first}+{count}, sector {sector}");
            }
        }
    }
}

/// L12 Discard does what was declared: whole pages of the granularity free memory.
#[test]
fn l12_discard_gives_memory_back() {
    let memory = device(64 << 20);
    let granularity = u64::from(memory.limits().discard_granularity);
    assert_eq!(
        memory.resident(),
        Ok(0),
        "nothing is populated before a write"
    );
    let data = vec![1; 8 << 20];
    memory.write_at(&data, 0, false).expect("inside");
    let full = memory.resident().expect("mincore");
    assert!(full >= 8 << 20, "{full}");
    memory.discard(0, 4 << 20).expect("inside");
    let half = memory.resident().expect("mincore");
    assert!(half <= full - (4 << 20), "{half} of {full}");
    memory.write_zeroes(4 << 20, 4 << 20, true).expect("inside");
    assert_eq!(memory.resident(), Ok(0));
    // Unaligned: the edges stay, the pages in between are freed.
    memory.write_at(&data, 0, false).expect("inside");
    memory.discard(512, (8 << 20) - 1024).expect("inside");
    let left = memory.resident().expect("mincore");
    assert_eq!(left, 2 * granularity);
    assert!(is(&read(&memory, 0, 512), 1) && is(&read(&memory, 512, 4096), 0));
}

/// L12 NOUNMAP keeps the storage allocated.
#[test]
fn l12_write_zeroes_without_unmap_keeps_memory() {
    let memory = device(8 << 20);
    memory
        .write_at(&vec![1; 4 << 20], 0, false)
        .expect("inside");
    let before = memory.resident().expect("mincore");
    memory.write_zeroes(0, 4 << 20, false).expect("inside");
    assert_eq!(memory.resident(), Ok(before));
    assert!(is(&read(&memory, 0, 4 << 20), 0));
    memory
        .write_zeroes(4 << 20, 4 << 20, false)
        .expect("inside");
    assert_eq!(memory.resident(), Ok(before), "and allocates nothing");
}

/// L12 Zeroes that keep storage do not populate pages: neither on a sparse device larger than this machine, nor after
/// reads. Only the bytes of the range become zeroes.
#[test]
fn l12_zeroes_over_nothing_take_nothing() {
    let size = 1 << 40;
    let memory = device(size);
    for at in [0, 1 << 30, size - 4096] {
        memory.write_at(&[7; 4096], at, false).expect("inside");
    }
    let before = memory.resident().expect("mincore");
    assert!(is(&read(&memory, 1 << 20, 8 << 20), 0));
    let rss = || {
        let status = std::fs::read_to_string("/proc/self/status").expect("of this process");
        let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
        let number = line.and_then(|l| l.trim().strip_suffix(" kB"));
        number
            .and_then(|n| n.parse::<u64>().ok())
            .expect("a number")
    };
    let anonymous = rss();
    memory.write_zeroes(512, 64 << 20, false).expect("inside");
    memory
        .write_zeroes(1 << 30, 1 << 30, false)
        .expect("inside");
    memory
        .write_zeroes(size - 1024, 512, false)
        .expect("inside");
    assert!(
        rss() < anonymous + (16 << 10),
        "{} kB before, {} after",
        anonymous,
        rss()
    );
    assert!(memory.resident().expect("mincore") <= before + (16 << 20));
    let first = read(&memory, 0, 4096);
    assert!(is(&first[..512], 7) && is(&first[512..], 0));
    assert!(is(&read(&memory, 1 << 30, 4096), 0));
    let last = read(&memory, size - 4096, 4096);
    assert!(is(&last[..3072], 7) && is(&last[3072..3584], 0) && is(&last[3584..], 7));
}

/// L13 Offsets near the end of 64 bits do not wrap, and huge sizes are refused with a hint.
#[test]
fn l13_offsets_and_sizes_do_not_wrap() {
    let memory = device(1 << 20);
    let last = u64::MAX - 511;
    assert_eq!(memory.write_at(&[0; 512], last, false), Err(Errno::EIO));
    assert_eq!(memory.read_at(&mut [0; 1024], last), Err(Errno::EIO));
    assert_eq!(memory.discard(1 << 19, last), Err(Errno::EIO));
    assert_eq!(memory.discard(512, last), Err(Errno::EIO));
    assert_eq!(memory.write_zeroes(last, last, true), Err(Errno::EIO));
    assert_eq!(memory.write_zeroes(last, last, false), Err(Errno::EIO));
    for offset in [1, 511, 513] {
        assert_eq!(memory.read_at(&mut [0; 512], offset), Err(Errno::EINVAL));
        assert_eq!(memory.discard(offset, 512), Err(Errno::EINVAL));
    }
    assert_eq!(memory.read_at(&mut [0; 100], 0), Err(Errno::EINVAL));
    // More than x86-64 can address, less than the limit of block devices.
    for size in [(1 << 63) - 4096, 1 << 62, 1 << 56] {
        let error = Memory::new(size, 4096).expect_err("no such address space");
        assert!(matches!(error, Error::Reserve { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("give a smaller size"), "{text}");
    }
    let error = Memory::new(1 << 63, 512).expect_err("8 EiB");
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
}

#[test]
fn sparse_device_larger_than_the_machine() {
    let Ok(memory) = Memory::new(1 << 42, 4096) else {
        // This process has an address space limit: nothing to test.
        return;
    };
    memory
        .write_at(&[3; 4096], (1 << 42) - 4096, false)
        .expect("last block");
    assert!(is(&read(&memory, (1 << 42) - 4096, 4096), 3));
    memory.discard(0, 1 << 42).expect("all of it");
    assert!(is(&read(&memory, (1 << 42) - 4096, 4096), 0));
}

#[test]
fn limits_say_what_it_is() {
    let memory = Memory::new(1 << 20, 4096).expect("valid");
    let limits = memory.limits();
    assert!(limits.quick && !limits.volatile_cache && !limits.fua && !limits.read_only);
    assert_eq!((limits.size, limits.logical_block_size), (1 << 20, 4096));
    assert!(limits.max_discard > 0 && limits.max_write_zeroes > 0);
    assert!(memory.read_only(true).limits().read_only);
}

/// Stops the writers even if the reader panics; otherwise the test would hang.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Overlapping reads, writes and discards of several threads: no crash, no foreign byte. Run it with feature
/// `atomic-copy` and `-Zsanitizer=thread` to see that no plain access races.
#[test]
fn overlapping_requests_of_many_threads() {
    const SIZE: usize = 64 << 10;
    let memory = device(SIZE as u64);
    let stop = AtomicBool::new(false);
    // A byte identifies its position and its writer: the low four bits the position, the high ones the writer.
    let byte = |writer: usize, place: usize| -> u8 {
        u8::try_from((writer << 4) | (place / 512 % 16)).expect("below 256")
    };
    std::thread::scope(|scope| {
        for writer in 1..=3 {
            let (memory, stop) = (&memory, &stop);
            scope.spawn(move || {
                let data: Vec<u8> = (0..SIZE).map(|i| byte(writer, i)).collect();
                for round in 0.. {
                    if stop.load(Relaxed) {
                        break;
                    }
                    let start = (round * 7 + writer * 3) % 60 * 512;
                    let len = (1 + round % 64) * 512;
                    let end = (start + len).min(SIZE);
                    memory
                        .write_at(&data[start..end], start as u64, false)
                        .expect("inside");
                    if round % 5 == 0 {
                        memory
                            .discard(start as u64, (end - start) as u64)
                            .expect("inside");
                    }
                }
            });
        }
        let rounds = if cfg!(feature = "atomic-copy") {
            200
        } else {
            2000
        };
        let _stop = StopAtEnd(&stop);
        let mut seen = [false; 4];
        for _ in 0..rounds {
            for (place, found) in read(&memory, 0, SIZE).iter().enumerate() {
                let writer = usize::from(*found >> 4);
                assert!(writer <= 3, "byte {found:#x} at {place}");
                if writer > 0 {
                    assert_eq!(*found, byte(writer, place), "at {place}");
                }
                seen[writer] = true;
            }
        }
        assert!(seen[1..].iter().any(|s| *s), "the writers did write");
    });
}

/// L83 Locked memory, which the kernel does not free, also reads as zeroes after a discard.
#[test]
#[expect(unsafe_code, reason = "locks memory")]
fn l83_locked_memory_is_zeroed() {
    let memory = device(64 << 10);
    memory.write_at(&[7; 64 << 10], 0, false).expect("inside");
    let place: *mut u8 = memory.mapping.at(0, 64 << 10).as_ptr().cast();
    // The system call itself: AddressSanitizer makes libc's wrapper do nothing.
    // SAFETY: the range is the device's mapping; locking changes no byte.
    if unsafe { libc::syscall(libc::SYS_mlock, place, 64usize << 10) } != 0 {
        eprintln!("not run: 64 KiB cannot be locked (ulimit -l)");
        return;
    }
    assert!(!memory.mapping.give_back(4096, 4096), "locked");
    memory.discard(512, 32 << 10).expect("inside");
    let found = read(&memory, 0, 64 << 10);
    assert!(is(&found[..512], 7) && is(&found[512..512 + (32 << 10)], 0));
    assert!(is(&found[512 + (32 << 10)..], 7));
    memory
        .write_zeroes(48 << 10, 8 << 10, true)
        .expect("inside");
    assert!(is(&read(&memory, 48 << 10, 8 << 10), 0));
}
