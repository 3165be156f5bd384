use super::*;
use crate::format::Reader;
use crate::record::Op;
use std::num::NonZeroU16;

fn record(n: u64) -> Record {
    Record {
        time: n * 1000,
        op: Op::ALL[usize::try_from(n % 8).unwrap()],
        offset: n * 4096,
        len: 4096,
        queue: u16::try_from(n % 3).unwrap(),
        latency: n.is_multiple_of(2).then_some(n),
        error: NonZeroU16::new(u16::from(n.is_multiple_of(5))),
    }
}

/// Memory that the test keeps.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Vec<u8>>>);

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn read(disk: &Disk) -> (Vec<Record>, u64, bool) {
    let bytes = disk.0.lock().unwrap();
    let mut reader = Reader::new(&bytes[..]).unwrap();
    let mut records = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        records.push(record);
    }
    (records, reader.lost(), reader.damage().is_none())
}

#[test]
fn a_full_ring_loses_and_counts() {
    let (mut tap, mut drain) = channel(5);
    assert_eq!(drain.capacity(), 8);
    let pushed = (0..20).filter(|n| tap.push(&record(*n))).count();
    assert_eq!((pushed, drain.lost()), (8, 12));
    assert!((0..8).all(|n| drain.pop() == Some(record(n))));
    assert_eq!(drain.pop(), None);
    assert!(tap.push(&record(99)));
    assert_eq!(drain.pop(), Some(record(99)));
}

/// Two threads, a small ring: what comes out is what went in, whole and in order.
#[test]
fn records_cross_threads_whole_and_in_order() {
    const N: u64 = 200_000;
    let (mut tap, mut drain) = channel(64);
    let producer = thread::spawn(move || (0..N).filter(|n| tap.push(&record(*n))).count());
    let mut last = None;
    let mut popped = 0_usize;
    loop {
        let over = producer.is_finished();
        while let Some(found) = drain.pop() {
            let n = found.time / 1000;
            assert!(last < Some(n) && found == record(n));
            last = Some(n);
            popped += 1;
        }
        if over {
            break;
        }
    }
    assert_eq!(popped, producer.join().unwrap());
    assert_eq!(u64::try_from(popped).unwrap() + drain.lost(), N);
}

#[test]
fn a_recording_has_every_request_or_its_loss() {
    let disk = Disk::default();
    let (taps, drains): (Vec<_>, Vec<_>) = (0..3).map(|_| channel(256)).unzip();
    let recording = Recording::start(disk.clone(), &Header::default(), drains, u64::MAX).unwrap();
    let producers = taps.into_iter().map(|mut tap| {
        thread::spawn(move || {
            for n in 0..5000 {
                tap.push(&record(n));
                if n % 200 == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        })
    });
    producers
        .collect::<Vec<_>>()
        .into_iter()
        .for_each(|p| p.join().unwrap());
    let status = recording.stop();
    let (records, lost, whole) = read(&disk);
    assert_eq!(status.failed, None);
    assert!(whole && !records.is_empty());
    assert_eq!(u64::try_from(records.len()).unwrap(), status.written);
    assert_eq!((lost, status.written + status.lost), (status.lost, 15_000));
}

/// A disk that is full ends the writing; the rings are drained on, and the loss is counted.
#[test]
fn a_full_disk_does_not_stop_the_queues() {
    let disk = Disk::default();
    let (mut tap, drain) = channel(1 << 14);
    let recording =
        Recording::start(disk.clone(), &Header::default(), vec![drain], 20_000).unwrap();
    for n in 0..10_000 {
        tap.push(&record(n));
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while recording.status().failed.is_none() {
        assert!(Instant::now() < deadline, "{:?}", recording.status());
        thread::sleep(Duration::from_millis(5));
    }
    for n in 0..50 {
        assert!(tap.push(&record(n)), "the ring is drained on");
    }
    let status = recording.stop();
    assert!(
        status.failed.as_deref().unwrap().contains("limit"),
        "{status:?}"
    );
    let (records, _, whole) = read(&disk);
    assert!(!whole && !records.is_empty());
    assert_eq!(u64::try_from(records.len()).unwrap(), status.written);
    assert_eq!(status.written + status.lost, 10_050, "{status:?}");
    assert!(Recording::start(Disk::default(), &Header::default(), Vec::new(), 10).is_err());
}
