//! The shipped engine as the server of a device with integrity metadata, on the simulated driver: metadata arrives and leaves
//! with its data, on every tier.

#![expect(unsafe_code, reason = "lends memory of the test")]

mod sim;

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, mpsc};

use sim::{ALL_FAULTS, run, run_driven};
use ublk_core::{Backend, Checksum, DataMode, Errno, Integrity, Limits, Op};
use ublk_queue::task::{Async, TaskRequest};
use ublk_queue::{ClientShared, InlineMetadata, MemRef, OwnedRequest, Pool, Request};
use ublk_sim::{Config, Faults};

/// Bytes of data for each byte of metadata.
const SHARE: usize = 64;

/// Data and its metadata.
struct Kept(Mutex<(Vec<u8>, Vec<u8>)>);

impl Kept {
    fn new(config: &Config) -> Arc<Self> {
        let metadata = vec![0xff; config.size / SHARE];
        Arc::new(Self(Mutex::new((vec![0; config.size], metadata))))
    }

    fn answer(&self, mut request: OwnedRequest) {
        let result = self.serve(&mut request);
        request.complete(result);
    }

    fn serve(&self, request: &mut OwnedRequest) -> Result<(), Errno> {
        let offset = request.offset();
        let mut metadata = vec![0; at(request.len()) / SHARE];
        match request.op() {
            Op::Read => {
                self.read_with_metadata(request.data_mut()?, &mut metadata, offset)?;
                match offset / 512 % 2 {
                    0 => request.push_metadata(&metadata),
                    _ => request.push_metadata_from(lent(&mut metadata)),
                }
            }
            Op::Write => {
                match offset / 512 % 2 {
                    0 => request.pull_metadata(&mut metadata)?,
                    _ => request.pull_metadata_into(lent(&mut metadata))?,
                }
                self.write_with_metadata(request.data()?, &metadata, offset, false)
            }
            Op::Flush => Ok(()),
            op => self.erase(op, offset, request.len()),
        }
    }

    fn erase(&self, op: Op, offset: u64, len: u64) -> Result<(), Errno> {
        assert!(matches!(op, Op::Discard | Op::WriteZeroes));
        let (offset, len) = (at(offset), at(len));
        let mut kept = self.0.lock().expect("no panic");
        kept.0[offset..][..len].fill(0);
        kept.1[offset / SHARE..][..len / SHARE].fill(0xff);
        Ok(())
    }
}

/// Memory as a handler lends it that has no slice.
fn lent(bytes: &mut [u8]) -> MemRef<'_> {
    let (first, len) = (NonNull::from(&mut *bytes).cast(), bytes.len());
    // SAFETY: borrowed exclusively for as long as the value lives.
    unsafe { MemRef::new(first, len) }
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("small")
}

impl Backend for Kept {
    fn limits(&self) -> Limits {
        let size = self.0.lock().expect("no panic").0.len() as u64;
        Limits::new(size).integrity(Integrity::new(Checksum::Crc16, 8))
    }

    fn read_at(&self, _buf: &mut [u8], _offset: u64) -> Result<(), Errno> {
        panic!("all requests have metadata")
    }

    fn read_with_metadata(
        &self,
        buf: &mut [u8],
        metadata: &mut [u8],
        offset: u64,
    ) -> Result<(), Errno> {
        let kept = self.0.lock().expect("no panic");
        buf.copy_from_slice(&kept.0[at(offset)..][..buf.len()]);
        metadata.copy_from_slice(&kept.1[at(offset) / SHARE..][..buf.len() / SHARE]);
        Ok(())
    }

    fn write_with_metadata(
        &self,
        buf: &[u8],
        metadata: &[u8],
        offset: u64,
        _fua: bool,
    ) -> Result<(), Errno> {
        let mut kept = self.0.lock().expect("no panic");
        kept.0[at(offset)..][..buf.len()].copy_from_slice(buf);
        kept.1[at(offset) / SHARE..][..buf.len() / SHARE].copy_from_slice(metadata);
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.erase(Op::Discard, offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> Result<(), Errno> {
        self.erase(Op::WriteZeroes, offset, len)
    }
}

fn config(seed: u64) -> Config {
    Config {
        data: DataMode::UserCopy,
        metadata: true,
        batch: seed % 2 == 1,
        queues: 1 + (seed % 3) as u16,
        faults: if seed.is_multiple_of(4) {
            Faults::default()
        } else {
            ALL_FAULTS
        },
        ..Config::new(seed)
    }
}

/// A blocking backend on the queue's thread gets metadata with each write, and what it returns goes with each read.
#[test]
fn metadata_goes_with_its_data() {
    for seed in 0..8 {
        let config = config(seed);
        let kept = Kept::new(&config);
        let make = || InlineMetadata::new(Arc::clone(&kept));
        run(config.clone(), make).assert_clean(1000);
        let kept = Kept::new(&config);
        let make = || InlineMetadata::new(Arc::clone(&kept));
        run_driven(config, make).assert_clean(1000);
    }
}

/// The same from the threads of a pool.
#[test]
fn metadata_goes_with_its_data_in_a_pool() {
    for seed in 0..8 {
        let config = config(seed);
        let pool = Pool::start(&Kept::new(&config), 3, 64).expect("threads");
        run(config, || pool.handler()).assert_clean(1000);
    }
}

/// The same for tokens that are held, on the queue's thread and on another.
#[test]
fn metadata_goes_with_its_data_in_tokens() {
    for seed in 0..8 {
        let config = config(seed);
        let kept = Kept::new(&config);
        let (requests, taken) = mpsc::channel::<OwnedRequest>();
        let theirs = Arc::clone(&kept);
        let other = std::thread::spawn(move || taken.iter().for_each(|r| theirs.answer(r)));
        let make = || {
            let (requests, kept) = (requests.clone(), Arc::clone(&kept));
            move |request: Request<'_>| match request.tag().get() % 2 {
                0 => drop(requests.send(request.keep().detach())),
                _ => kept.answer(request.detach()),
            }
        };
        run(config, make).assert_clean(1000);
        drop(requests);
        other.join().expect("no panic");
    }
}

/// The same for futures.
#[test]
fn metadata_goes_with_its_data_in_futures() {
    for seed in 0..8 {
        let config = config(seed);
        let kept = Kept::new(&config);
        let answer = async |kept: Arc<Kept>, mut request: TaskRequest| {
            let offset = request.offset();
            let mut metadata = vec![0; at(request.len()) / SHARE];
            match request.op() {
                Op::Read => {
                    kept.read_with_metadata(request.data_mut()?, &mut metadata, offset)?;
                    request.push_metadata(&metadata)
                }
                Op::Write => {
                    request.pull_metadata(&mut metadata)?;
                    kept.write_with_metadata(request.data()?, &metadata, offset, false)
                }
                Op::Flush => Ok(()),
                op => kept.erase(op, offset, request.len()),
            }
        };
        let make = || {
            let kept = Arc::clone(&kept);
            Async::new(move |request| answer(Arc::clone(&kept), request))
        };
        run(config, make).assert_clean(1000);
    }
}

/// Data in memory shared with the client has its metadata in the device all the same.
#[test]
fn metadata_goes_with_shared_data() {
    for seed in 0..8 {
        let config = Config {
            shared_percent: 50,
            ..config(seed)
        };
        let kept = Kept::new(&config);
        let make = || ClientShared(InlineMetadata::new(Arc::clone(&kept)));
        run(config, make).assert_clean(1000);
    }
}

/// Metadata of another length, of the other direction, or of a request without any is an error, not somebody's bytes.
#[test]
fn other_metadata_is_refused() {
    for metadata in [false, true] {
        let config = Config {
            metadata,
            batch: false,
            ..config(0)
        };
        let run = run(config, || {
            |mut request: Request<'_>| {
                let mut bytes = vec![0; at(request.len()) / SHARE + 1];
                let wrong = match request.op() {
                    Op::Read => request.pull_metadata(&mut bytes),
                    _ => request.push_metadata(&bytes),
                };
                assert_eq!(wrong, Err(Errno::EINVAL));
                let long = match request.op() {
                    Op::Read => request.push_metadata(&bytes),
                    _ => request.pull_metadata(&mut bytes),
                };
                let has = request.flags().has_metadata();
                assert_eq!(
                    has,
                    metadata && matches!(request.op(), Op::Read | Op::Write)
                );
                let wanted = if has { Errno::EIO } else { Errno::EINVAL };
                assert_eq!(long, Err(wanted));
                request.complete(Err(Errno::EILSEQ));
            }
        });
        assert_eq!(run.report.violations, Vec::<String>::new());
        assert_eq!(run.lanes[0].counters().panics, 0);
        assert!(run.report.failed > 100);
    }
}
