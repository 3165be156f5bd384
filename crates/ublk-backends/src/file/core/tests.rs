//! Requests over a fake file that is short, full, broken or slow on request.

use std::collections::VecDeque;
use std::sync::{Arc, Barrier, Mutex, mpsc};
use std::time::Duration;

use super::*;

const LONG: Duration = Duration::from_secs(20);
const SIZE: u64 = 64 << 10;
const BASE: u64 = 4096;

/// The result of the file's next call.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// Transfers at most this many bytes.
    Short(usize),
    Fail(Errno),
}

/// A file in memory that records its calls.
#[derive(Debug, Default)]
struct Fake {
    data: Mutex<Vec<u8>>,
    next: Mutex<VecDeque<Next>>,
    calls: Mutex<Vec<String>>,
    /// Operations that fallocate does not support here.
    refuses: Vec<&'static str>,
    /// Each sync reports that it runs, and waits for its end.
    gate: Option<Gate>,
    /// Direct I/O: transfers must begin at multiples of this, as the kernel demands. 0 or 1 for none.
    unit: usize,
}

#[derive(Debug)]
struct Gate {
    running: Mutex<mpsc::Sender<()>>,
    go_on: Mutex<mpsc::Receiver<Result<(), Errno>>>,
}

impl Fake {
    fn place(&self, at: u64) -> Result<usize, Errno> {
        let at = usize::try_from(at).unwrap();
        if at.is_multiple_of(self.unit.max(1)) {
            Ok(at)
        } else {
            Err(Errno::EINVAL)
        }
    }

    fn step(&self, len: usize) -> Result<usize, Errno> {
        match self.next.lock().unwrap().pop_front() {
            Some(Next::Short(n)) => Ok(n.min(len)),
            Some(Next::Fail(errno)) => Err(errno),
            None => Ok(len),
        }
    }

    fn note(&self, call: &'static str, at: u64, len: u64) -> Result<(), Errno> {
        self.calls
            .lock()
            .unwrap()
            .push(format!("{call} {at} {len}"));
        if self.refuses.contains(&call) {
            return Err(Errno::EOPNOTSUPP);
        }
        let at = usize::try_from(at).unwrap();
        self.data.lock().unwrap()[at..][..usize::try_from(len).unwrap()].fill(0);
        Ok(())
    }
}

impl Layer for Fake {
    fn read(&self, buf: &mut [u8], at: u64) -> Result<usize, Errno> {
        let data = self.data.lock().unwrap();
        let at = self.place(at)?;
        let n = self.step(buf.len())?.min(data.len().saturating_sub(at));
        buf[..n].copy_from_slice(&data[at..][..n]);
        Ok(n)
    }
    fn write(&self, buf: &[u8], at: u64) -> Result<usize, Errno> {
        let at = self.place(at)?;
        let n = self.step(buf.len())?;
        self.data.lock().unwrap()[at..][..n].copy_from_slice(&buf[..n]);
        Ok(n)
    }
    fn sync(&self) -> Result<(), Errno> {
        self.calls.lock().unwrap().push("sync".to_owned());
        let Some(gate) = &self.gate else {
            return Ok(());
        };
        gate.running.lock().unwrap().send(()).unwrap();
        gate.go_on.lock().unwrap().recv_timeout(LONG).unwrap()
    }
    fn discard(&self, at: u64, len: u64) -> Result<(), Errno> {
        self.note("discard", at, len)
    }
    fn unmap(&self, at: u64, len: u64) -> Result<(), Errno> {
        self.note("unmap", at, len)
    }
    fn zero(&self, at: u64, len: u64) -> Result<(), Errno> {
        self.note("zero", at, len)
    }
}

fn core(mut fake: Fake, position: u32) -> Core<Fake> {
    fake.unit = usize::try_from(position).unwrap();
    let whole = usize::try_from(BASE + SIZE).unwrap();
    *fake.data.lock().unwrap() = (0..whole)
        .map(|i| u8::try_from(i / 512).unwrap() ^ 0x5a)
        .collect();
    let alignment = Alignment {
        memory: position,
        position,
    };
    Core::new(fake, BASE, Limits::new(SIZE).fua(true), alignment)
}

fn read(core: &Core<Fake>, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut memory = Aligned::new(len);
    core.read_at(memory.bytes(), offset)?;
    Ok(memory.bytes().to_vec())
}

fn calls(core: &Core<Fake>) -> Vec<String> {
    std::mem::take(&mut *core.layer.calls.lock().unwrap())
}

/// L05 L11 Short transfers are continued until everything is done; no request completes before.
#[test]
fn l05_l11_short_transfers_are_continued() {
    for position in [1, 512] {
        let core = core(Fake::default(), position);
        let want = core.layer.data.lock().unwrap()[4096 + 1024..][..4096].to_vec();
        core.layer
            .next
            .lock()
            .unwrap()
            .extend([Next::Short(1024), Next::Short(512)]);
        assert_eq!(read(&core, 1024, 4096), Ok(want));
        assert!(core.layer.next.lock().unwrap().is_empty(), "both were met");
        core.layer
            .next
            .lock()
            .unwrap()
            .extend([Next::Short(512), Next::Short(3072)]);
        let mut memory = Aligned::new(4096);
        memory.bytes().fill(9);
        assert_eq!(core.write_at(memory.bytes(), 8192, false), Ok(()));
        assert_eq!(read(&core, 8192, 4096), Ok(vec![9; 4096]));
        assert!(core.layer.next.lock().unwrap().is_empty());
    }
}

/// L05 L11 A direct I/O transfer that ends inside a unit continues at the last whole one, and completes in the end.
#[test]
fn l05_l11_a_transfer_that_ends_off_the_unit_goes_on_from_a_whole_one() {
    let core = core(Fake::default(), 512);
    let want = core.layer.data.lock().unwrap()[4096 + 1024..][..4096].to_vec();
    let next = |shorts: &[usize]| {
        let mut next = core.layer.next.lock().unwrap();
        next.extend(shorts.iter().map(|n| Next::Short(*n)));
    };
    next(&[1000, 700]);
    assert_eq!(read(&core, 1024, 4096), Ok(want));
    next(&[513, 2047]);
    let mut memory = Aligned::new(4096);
    memory.bytes().fill(9);
    assert_eq!(core.write_at(memory.bytes(), 8192, false), Ok(()));
    assert_eq!(read(&core, 8192, 4096), Ok(vec![9; 4096]));
    assert!(core.layer.next.lock().unwrap().is_empty(), "all were met");
}

/// L05 The end of the file inside the device is an error, and so is a write without progress; with O_DIRECT an
/// incomplete unit is repeated from its beginning.
#[test]
fn l05_no_progress_is_an_error() {
    for (position, steps) in [
        (1, vec![0]),
        (512, vec![0]),
        (512, vec![512, 100]),
        (1, vec![100, 0]),
    ] {
        for write in [false, true] {
            let core = core(Fake::default(), position);
            core.layer
                .next
                .lock()
                .unwrap()
                .extend(steps.iter().map(|n| Next::Short(*n)));
            let mut memory = Aligned::new(4096);
            let result = if write {
                core.write_at(memory.bytes(), 0, false)
            } else {
                core.read_at(memory.bytes(), 0)
            };
            assert_eq!(result, Err(Errno::EIO), "{position} {steps:?} {write}");
        }
    }
    let core = core(Fake::default(), 512);
    core.layer.data.lock().unwrap().truncate(4096 + 1000);
    assert_eq!(read(&core, 0, 4096), Err(Errno::EIO));
    assert!(read(&core, 0, 512).is_ok());
    core.layer.next.lock().unwrap().push_back(Next::Short(700));
    let data: Vec<u8> = (0..1000_usize)
        .map(|i| u8::try_from(i % 256).unwrap())
        .collect();
    let mut memory = Aligned::new(1000);
    memory.bytes().copy_from_slice(&data);
    assert_eq!(
        core.write_at(memory.bytes(), 0, false),
        Ok(()),
        "from byte 512 on again"
    );
    assert_eq!(core.layer.data.lock().unwrap()[4096..][..1000], data[..]);
}

/// L11 The disk's error is returned unchanged, wherever in the request it occurs.
#[test]
fn l11_errors_stay_what_they_are() {
    for errno in [Errno::ENOSPC, Errno::EIO, Errno::new(122)] {
        for before in [0, 1] {
            let core = core(Fake::default(), 1);
            let script = std::iter::repeat_n(Next::Short(512), before).chain([Next::Fail(errno)]);
            core.layer.next.lock().unwrap().extend(script.clone());
            assert_eq!(core.write_at(&[1; 4096], 0, true), Err(errno));
            assert!(calls(&core).is_empty(), "a failed write needs no sync");
            core.layer.next.lock().unwrap().extend(script);
            assert_eq!(read(&core, 0, 4096), Err(errno));
        }
    }
}

/// Memory that is not aligned for O_DIRECT is copied through a buffer that is.
#[test]
fn misaligned_memory_is_served() {
    let core = core(Fake::default(), 512);
    let mut memory = Aligned::new(2048);
    let odd = &mut memory.bytes()[3..][..1024];
    odd.fill(77);
    assert_eq!(core.write_at(odd, 512, false), Ok(()));
    odd.fill(0);
    assert_eq!(core.read_at(odd, 512), Ok(()));
    assert_eq!(odd, [77; 1024]);
    assert_eq!(
        core.layer.data.lock().unwrap()[4096 + 512..][..1024],
        [77; 1024]
    );
}

/// L12 Ranges are sent to the file in bytes, with the window's offset added. Storage is deallocated if that is allowed,
/// and kept if it must be; if the file supports neither, zeroes are written. An unsupported operation is tried once.
#[test]
fn l12_zeroes_by_the_best_way_there_is() {
    let range = (8192, 12_288);
    let zeroed = |core: &Core<Fake>| {
        assert_eq!(read(core, range.0, 12_288), Ok(vec![0; 12_288]));
        assert_ne!(read(core, range.0 - 512, 512), Ok(vec![0; 512]));
        assert_ne!(read(core, range.0 + range.1, 512), Ok(vec![0; 512]));
    };
    let with = |refuses: &[&'static str]| {
        core(
            Fake {
                refuses: refuses.to_vec(),
                ..Fake::default()
            },
            512,
        )
    };
    let all = with(&[]);
    assert_eq!(all.discard(range.0, range.1), Ok(()));
    zeroed(&all);
    assert_eq!(calls(&all), ["discard 12288 12288"]);
    for (may_unmap, refuses, wanted) in [
        (true, &[][..], &["unmap 12288 12288"][..]),
        (false, &[], &["zero 12288 12288"]),
        (true, &["unmap"], &["unmap 12288 12288", "zero 12288 12288"]),
        (
            true,
            &["unmap", "zero"],
            &["unmap 12288 12288", "zero 12288 12288"],
        ),
        (false, &["zero"], &["zero 12288 12288"]),
    ] {
        let core = with(refuses);
        assert_eq!(core.write_zeroes(range.0, range.1, may_unmap), Ok(()));
        zeroed(&core);
        assert_eq!(calls(&core), wanted);
        core.write_zeroes(range.0, range.1, may_unmap).unwrap();
        let again = calls(&core);
        assert!(
            !again
                .iter()
                .any(|c| refuses.iter().any(|r| c.starts_with(r))),
            "{again:?}"
        );
    }
}

/// L13 Nothing outside the window is accessed, and nothing wraps.
#[test]
fn l13_ranges_are_checked() {
    let core = core(Fake::default(), 1);
    for (offset, len) in [
        (SIZE, 1),
        (SIZE - 511, 512),
        (u64::MAX, 1),
        (u64::MAX - 511, 512),
        (1, u64::MAX),
    ] {
        assert_eq!(core.discard(offset, len), Err(Errno::EIO), "{offset}+{len}");
        assert_eq!(core.write_zeroes(offset, len, true), Err(Errno::EIO));
    }
    assert_eq!(core.read_at(&mut [0; 512], SIZE - 511), Err(Errno::EIO));
    assert_eq!(
        core.write_at(&[0; 512], u64::MAX - 100, false),
        Err(Errno::EIO)
    );
    assert!(read(&core, SIZE - 512, 512).is_ok());
    assert!(calls(&core).is_empty());
}

/// A file whose syncs report that they run, and block until they are told how to end.
type Gated = (
    Arc<Core<Fake>>,
    mpsc::Receiver<()>,
    mpsc::Sender<Result<(), Errno>>,
);

fn gated() -> Gated {
    let (running, runs) = mpsc::channel();
    let (go_on, ends) = mpsc::channel();
    let gate = Gate {
        running: Mutex::new(running),
        go_on: Mutex::new(ends),
    };
    let fake = Fake {
        gate: Some(gate),
        ..Fake::default()
    };
    (Arc::new(core(fake, 1)), runs, go_on)
}

/// Waits until this many calls need a sync: the kernel has no event for a thread that waits.
fn wanted(core: &Core<Fake>, count: u64) {
    let begun = std::time::Instant::now();
    while core.syncs.counts().0 < count {
        assert!(begun.elapsed() < LONG, "{:?}", core.syncs.counts());
        std::thread::yield_now();
    }
}

/// L07 Requests that arrive while a sync runs are not served by it but by the next one, which serves all of them: 1 + 8
/// requests are 2 syncs. Half of them are FUA writes, whose data is written before the sync begins.
#[test]
fn l07_who_comes_during_a_sync_waits_for_the_next() {
    let (core, runs, go_on) = gated();
    let flush = |n: u64| {
        let core = Arc::clone(&core);
        std::thread::spawn(move || match n % 2 {
            0 => core.flush(),
            _ => core.write_at(&[200; 512], n * 512, true),
        })
    };
    let first = flush(0);
    runs.recv_timeout(LONG).expect("the first sync runs");
    let others: Vec<_> = (1..=8).map(flush).collect();
    wanted(&core, 9);
    go_on.send(Ok(())).expect("it waits");
    assert_eq!(first.join().unwrap(), Ok(()));
    runs.recv_timeout(LONG).expect("a second sync runs");
    assert!(
        others.iter().all(|t| !t.is_finished()),
        "the running sync served late-comers"
    );
    for n in [1, 3, 5, 7] {
        assert_eq!(
            core.layer.data.lock().unwrap()[usize::try_from(BASE + n * 512).unwrap()],
            200
        );
    }
    go_on.send(Ok(())).expect("it waits");
    for other in others {
        assert_eq!(other.join().unwrap(), Ok(()));
    }
    assert_eq!(core.syncs.counts(), (9, 2));
    assert_eq!(calls(&core), ["sync", "sync"]);
}

/// L07 A sync that fails fails all requests that waited for it, and only them.
#[test]
fn l07_a_failed_sync_is_told_to_all_who_waited() {
    let (core, runs, go_on) = gated();
    let flush = || {
        let core = Arc::clone(&core);
        std::thread::spawn(move || core.flush())
    };
    let first = flush();
    runs.recv_timeout(LONG).expect("it runs");
    let others = [flush(), flush()];
    wanted(&core, 3);
    go_on.send(Ok(())).unwrap();
    assert_eq!(first.join().unwrap(), Ok(()));
    runs.recv_timeout(LONG).expect("it runs");
    go_on.send(Err(Errno::ENOSPC)).unwrap();
    for other in others {
        assert_eq!(other.join().unwrap(), Err(Errno::ENOSPC));
    }
    let last = flush();
    runs.recv_timeout(LONG).expect("it runs");
    go_on.send(Ok(())).unwrap();
    assert_eq!(last.join().unwrap(), Ok(()));
}

/// A sync that panics leaves no waiter behind.
#[test]
fn a_sync_that_panics_ends() {
    let syncs = Syncs::default();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        syncs.wait(|| panic!("on order"))
    }));
    assert!(panicked.is_err());
    assert_eq!(syncs.wait(|| Ok(())), Ok(()));
    assert_eq!(syncs.counts(), (2, 2));
}

/// Many threads, many syncs: each flush is covered by a sync that began after it, as the file's own clock shows: a
/// flush that began at time t is completed by a sync that began later.
#[test]
fn l07_every_flush_has_a_sync_that_began_after_it() {
    use std::sync::atomic::AtomicU64;
    let (clock, last_begin) = (AtomicU64::new(0), AtomicU64::new(0));
    let syncs = Syncs::default();
    let barrier = Barrier::new(8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..500 {
                    let came = clock.fetch_add(1, Ordering::SeqCst);
                    let done = syncs.wait(|| {
                        let begin = clock.fetch_add(1, Ordering::SeqCst);
                        std::thread::yield_now();
                        last_begin.fetch_max(begin, Ordering::SeqCst);
                        Ok(())
                    });
                    assert_eq!(done, Ok(()));
                    assert!(last_begin.load(Ordering::SeqCst) > came);
                }
            });
        }
    });
    let (wanted, ran) = syncs.counts();
    assert_eq!(wanted, 4000);
    assert!((1..=4000).contains(&ran), "{ran}");
}

/// L83 Parts of a disk's unit at either end are written, the rest is sent as a whole; a discard of less than a unit
/// does nothing.
#[test]
fn l83_odd_ends_are_written() {
    for (at, len, call) in [
        (0, 8192, Some("4096 8192")),
        (512, 512, None),
        (512, 8192, Some("8192 4096")),
        (3584, 1024, None),
        (512, 3584 + 4096, Some("8192 4096")),
        (4096, 4608, Some("8192 4096")),
    ] {
        for way in ["unmap", "zero", "discard"] {
            let mut core = core(Fake::default(), 1).unit(4096);
            core.base = BASE;
            let before = core.layer.data.lock().unwrap().clone();
            match way {
                "discard" => core.discard(at, len),
                _ => core.write_zeroes(at, len, way == "unmap"),
            }
            .unwrap();
            let calls = calls(&core);
            let wanted: Vec<_> = call.iter().map(|call| format!("{way} {call}")).collect();
            assert_eq!(calls, wanted, "{at}+{len}");
            if way == "discard" {
                continue;
            }
            let data = core.layer.data.lock().unwrap();
            for (place, (is, was)) in (0_u64..).zip(data.iter().zip(&before)) {
                let inside = (BASE + at..BASE + at + len).contains(&place);
                assert_eq!(
                    *is,
                    if inside { 0 } else { *was },
                    "{way} {at}+{len} at {place}"
                );
            }
        }
    }
}
