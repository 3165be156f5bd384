//! Requests in flight on one file: one ring, one thread, one buffer for each.
//!
//! # Why there is `unsafe` here
//! An entry names memory that the kernel accesses until its completion. The memory is that of [`Buffers`]: allocated once,
//! never moved, and reached only through a raw pointer. A slot is either free, and then nobody but this module touches its
//! part, or in flight, and then nobody but the kernel does: [`Engine::submit`] takes a slot off the free list before it
//! builds the entry, and only the completion with the slot's number puts it back. An engine that ends with requests in
//! flight leaks the memory, because closing a ring is no barrier.
#![expect(unsafe_code, reason = "memory that the kernel accesses: see above")]

use crate::error::Error;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::fs::File;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::time::{Duration, Instant};
use ublk_core::Errno;
use uring_lite::{Cqe16, Fd, Ring, Sqe64, op};

/// The alignment of every buffer in bytes: enough for direct I/O on any block device.
const ALIGN: usize = 4096;

/// The most requests in flight.
pub const MAX_DEPTH: u32 = 4096;

/// The most memory of an engine's buffers in bytes.
const MAX_MEMORY: usize = 1 << 30;

/// `fallocate(2)` modes, of include/uapi/linux/falloc.h.
const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const ZERO_RANGE: u32 = 16;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes what the buffer was filled with.
    Write,
    /// `fdatasync(2)`.
    Flush,
    /// Deallocates: punches a hole.
    Discard,
    /// Zeroes a range.
    WriteZeroes,
}

impl Kind {
    /// Its name, for messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
            Self::Discard => "discard",
            Self::WriteZeroes => "write-zeroes",
        }
    }

    /// Whether it needs a buffer.
    const fn moves_data(self) -> bool {
        matches!(self, Self::Read | Self::Write)
    }
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Io {
    /// What it does.
    pub kind: Kind,
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes. Reads and writes: at most the engine's largest.
    pub len: u64,
}

/// A request that came back.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// The request.
    pub io: Io,
    /// When it was handed over.
    pub begun: Instant,
    /// How long it took.
    pub took: Duration,
    /// The bytes moved, or why it failed. Less than the length is an error of the target.
    pub result: Result<u32, Errno>,
}

impl Done {
    /// Whether it did all that it was to do.
    ///
    /// # Errors
    /// What failed, and where; a short transfer is EIO.
    pub fn check(&self) -> Result<(), Error> {
        let moved = self.result.and_then(|moved| {
            let whole = !self.io.kind.moves_data() || u64::from(moved) == self.io.len;
            if whole { Ok(()) } else { Err(Errno::EIO) }
        });
        moved.map_err(|errno| Error::Failed {
            what: self.io.kind.name(),
            offset: self.io.offset,
            len: u32::try_from(self.io.len).unwrap_or(u32::MAX),
            errno,
        })
    }
}

/// Memory for every request, each part page-aligned.
#[derive(Debug)]
struct Buffers {
    memory: NonNull<u8>,
    layout: Layout,
    each: usize,
}

impl Buffers {
    fn new(count: u32, each: u32) -> Result<Self, Error> {
        let too_large = || {
            let text = format!("{count} requests of {each} bytes need more than 1 GiB of memory");
            Error::Plan(text)
        };
        let each = usize::try_from(each).map_err(|_| too_large())?;
        let each = each.max(1).next_multiple_of(ALIGN);
        let count = usize::try_from(count).map_err(|_| too_large())?;
        let size = each.checked_mul(count).filter(|size| *size <= MAX_MEMORY);
        let layout = size.and_then(|size| Layout::from_size_align(size, ALIGN).ok());
        let layout = layout.filter(|l| l.size() > 0).ok_or_else(too_large)?;
        // SAFETY: the layout's size is not zero, checked above.
        let memory = unsafe { alloc_zeroed(layout) };
        let memory = NonNull::new(memory).ok_or_else(|| {
            Error::Plan(format!("no memory for buffers of {} bytes", layout.size()))
        })?;
        Ok(Self {
            memory,
            layout,
            each,
        })
    }

    /// The first byte of a slot's part.
    fn part(&self, slot: usize) -> *mut u8 {
        let at = slot * self.each;
        assert!(
            at + self.each <= self.layout.size(),
            "a slot of this engine"
        );
        // SAFETY: the offset is inside the allocation, checked above.
        unsafe { self.memory.as_ptr().add(at) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` by the same allocator with this layout; the engine drops this only with nothing in
        // flight, so the kernel does not access it any more.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

/// Keeps requests in flight on one file.
#[derive(Debug)]
pub struct Engine {
    // Before the buffers and the file: it is closed first.
    ring: Ring<Sqe64, Cqe16>,
    buffers: Option<Buffers>,
    _file: File,
    slots: Vec<Option<(Io, Instant)>>,
    free: Vec<u32>,
    max_len: u32,
    patience: Duration,
}

impl Engine {
    /// Takes a file over, for up to `depth` requests of up to `max_len` bytes. A request that takes longer than
    /// `patience` is an error.
    ///
    /// # Errors
    /// [`Error::Plan`] for a depth of 0 or above 4096, or buffers of more than 1 GiB; [`Error::Ring`].
    pub fn new(file: File, depth: u32, max_len: u32, patience: Duration) -> Result<Self, Error> {
        if !(1..=MAX_DEPTH).contains(&depth) {
            let text = format!("a depth of {depth} is not between 1 and {MAX_DEPTH}");
            return Err(Error::Plan(text));
        }
        let buffers = Buffers::new(depth, max_len)?;
        let ring = Ring::builder(depth).build();
        let mut ring: Ring<Sqe64, Cqe16> = ring.map_err(|e| Error::Ring(e.to_string()))?;
        let registered = ring.register_files(&[file.as_fd()]);
        registered.map_err(|e| Error::Ring(e.to_string()))?;
        Ok(Self {
            ring,
            buffers: Some(buffers),
            _file: file,
            slots: vec![None; usize::try_from(depth).unwrap_or(0)],
            free: (0..depth).rev().collect(),
            max_len,
            patience,
        })
    }

    /// Number of requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        u32::try_from(self.slots.len() - self.free.len()).unwrap_or(u32::MAX)
    }

    /// Whether one more request may be submitted.
    #[must_use]
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Takes a request; the next [`wait`](Self::wait) hands it to the kernel together with others. `fill` gets the buffer
    /// of a write.
    ///
    /// # Errors
    /// [`Error::Plan`] if there is no room, or the request is longer than the engine's largest.
    pub fn submit(&mut self, io: Io, fill: impl FnOnce(&mut [u8])) -> Result<(), Error> {
        let len = u32::try_from(io.len)
            .ok()
            .filter(|len| *len <= self.max_len);
        let (Some(slot), Some(buffers)) = (self.free.last().copied(), &self.buffers) else {
            return Err(Error::Plan("all requests are in flight".to_owned()));
        };
        let place = usize::try_from(slot).unwrap_or(usize::MAX);
        let part = buffers.part(place);
        let len = match (io.kind.moves_data(), len) {
            (true, None) => {
                let text = format!("a {} of {} bytes is too long", io.kind.name(), io.len);
                return Err(Error::Plan(text));
            }
            (_, len) => len.unwrap_or(0),
        };
        let fd = Fd::registered(0);
        let entry = match io.kind {
            Kind::Read => {
                // SAFETY: `part` is valid for `max_len` bytes and more until the engine frees the buffers, which it does
                // only with nothing in flight; the slot leaves the free list below, so nobody else uses this part.
                unsafe { op::read(fd, part, len, io.offset) }
            }
            Kind::Write => {
                let length = usize::try_from(len).unwrap_or(0);
                // SAFETY: the slot is free: neither the kernel nor another reference uses its part, which is initialised
                // (zeroed once, written by the kernel and by `fill` only) and at least `len` bytes long.
                let buf = unsafe { std::slice::from_raw_parts_mut(part, length) };
                fill(buf);
                // SAFETY: as for a read; the reference above is gone.
                unsafe { op::write(fd, part, len, io.offset) }
            }
            Kind::Flush => op::fsync(fd, true),
            Kind::Discard => op::fallocate(fd, PUNCH_HOLE | KEEP_SIZE, io.offset, io.len),
            Kind::WriteZeroes => op::fallocate(fd, ZERO_RANGE | KEEP_SIZE, io.offset, io.len),
        };
        let pushed = self.ring.push(&entry.user_data(slot.into()));
        pushed.map_err(|_| Error::Ring("the submission queue is full".to_owned()))?;
        self.free.pop();
        if let Some(slot) = self.slots.get_mut(place) {
            *slot = Some((io, Instant::now()));
        }
        Ok(())
    }

    /// Hands over what was submitted, and waits until `want` requests came back or it is `until`. Those that came back are
    /// appended to `done`. With nothing in flight it only waits for the time.
    ///
    /// # Errors
    /// [`Error::Stuck`] if a request is in flight for longer than the engine's patience; [`Error::Ring`].
    pub fn wait(
        &mut self,
        want: u32,
        until: Option<Instant>,
        done: &mut Vec<Done>,
    ) -> Result<(), Error> {
        let want = want.min(self.in_flight());
        let begun = done.len();
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            // A look at the oldest request now and then is enough.
            let nap = left
                .unwrap_or(Duration::from_secs(1))
                .min(Duration::from_secs(1));
            let got = u32::try_from(done.len() - begun).unwrap_or(u32::MAX);
            let more = want.saturating_sub(got);
            let enough = more == 0 && (want > 0 || left.is_none_or(|left| left.is_zero()));
            let entered = match (enough, want == 0 && until.is_some()) {
                (true, _) => self.ring.submit().map(drop),
                // One that comes back before the time is taken along. With nothing in flight only the time ends this.
                (false, true) => self.ring.enter(1, Some(nap)).map(drop),
                (false, false) => self.ring.enter(more, Some(nap)).map(drop),
            };
            match entered {
                Ok(()) => {}
                Err(e) if e.is_transient() => {}
                Err(e) => return Err(Error::Ring(e.to_string())),
            }
            self.reap(done);
            let got = u32::try_from(done.len() - begun).unwrap_or(u32::MAX);
            let now = Instant::now();
            if (want > 0 && got >= want) || until.is_some_and(|until| now >= until) || enough {
                return Ok(());
            }
            self.check_patience(now)?;
        }
    }

    /// Takes completions off the ring.
    fn reap(&mut self, done: &mut Vec<Done>) {
        while let Some(cqe) = self.ring.next_cqe() {
            let now = Instant::now();
            let place = usize::try_from(cqe.user_data).unwrap_or(usize::MAX);
            let Some((io, begun)) = self.slots.get_mut(place).and_then(Option::take) else {
                continue;
            };
            self.free.push(u32::try_from(place).unwrap_or(0));
            let result = u32::try_from(cqe.res);
            done.push(Done {
                io,
                begun,
                took: now.saturating_duration_since(begun),
                result: result.map_err(|_| Errno::new(cqe.res.wrapping_neg())),
            });
        }
        self.ring.release_cqes();
    }

    fn check_patience(&self, now: Instant) -> Result<(), Error> {
        let in_flight = self.slots.iter().flatten();
        match in_flight.min_by_key(|(_, begun)| *begun) {
            Some((io, begun)) if now.saturating_duration_since(*begun) > self.patience => {
                Err(Error::Stuck {
                    what: io.kind.name(),
                    offset: io.offset,
                    within: self.patience,
                })
            }
            _ => Ok(()),
        }
    }

    /// Waits for everything in flight.
    ///
    /// # Errors
    /// As [`Engine::wait`].
    pub fn drain(&mut self, done: &mut Vec<Done>) -> Result<(), Error> {
        while self.in_flight() > 0 {
            self.wait(self.in_flight(), None, done)?;
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // What was submitted and is not back may be accessed by the kernel at any time.
        if self.in_flight() > 0 {
            std::mem::forget(self.buffers.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    fn io(kind: Kind, offset: u64, len: u64) -> Io {
        Io { kind, offset, len }
    }

    #[test]
    fn what_is_written_is_read() {
        let file = file();
        file.set_len(1 << 20).unwrap();
        let mut engine = Engine::new(file.try_clone().unwrap(), 8, 4096, PATIENCE).unwrap();
        let mut done = Vec::new();
        for i in 0..8_u8 {
            let write = io(Kind::Write, u64::from(i) * 4096, 4096);
            engine.submit(write, |buf| buf.fill(i + 1)).unwrap();
        }
        assert!(!engine.has_room());
        assert!(matches!(
            engine.submit(io(Kind::Read, 0, 1), |_| {}),
            Err(Error::Plan(_))
        ));
        engine.drain(&mut done).unwrap();
        engine.submit(io(Kind::Flush, 0, 0), |_| {}).unwrap();
        engine.submit(io(Kind::Read, 4096, 4096), |_| {}).unwrap();
        engine.drain(&mut done).unwrap();
        assert_eq!((done.len(), engine.in_flight()), (10, 0));
        assert!(done.iter().all(|d| d.check().is_ok()));
        let mut content = vec![0; 8 * 4096];
        (&file).read_exact(&mut content).unwrap();
        assert!(
            content
                .chunks(4096)
                .zip(1..)
                .all(|(c, n)| c.iter().all(|b| *b == n))
        );
    }

    #[test]
    fn short_reads_and_failures_are_told() {
        let file = file();
        file.set_len(4096).unwrap();
        let mut engine = Engine::new(file, 2, 8192, PATIENCE).unwrap();
        let mut done = Vec::new();
        engine.submit(io(Kind::Read, 0, 8192), |_| {}).unwrap();
        engine.drain(&mut done).unwrap();
        assert_eq!(done[0].result, Ok(4096));
        let error = done[0].check().unwrap_err().to_string();
        assert!(
            error.contains("a read of 8192 bytes at offset 0 failed"),
            "{error}"
        );
        assert!(engine.submit(io(Kind::Read, 0, 8193), |_| {}).is_err());
        assert!(Engine::new(self::file(), 0, 1, PATIENCE).is_err());
        assert!(Engine::new(self::file(), 4096, 1 << 20, PATIENCE).is_err());
    }

    /// A wait ends at its time, with and without requests in flight; a request that never ends is an error, and its
    /// buffer outlives the engine.
    #[test]
    fn waits_end() {
        let mut engine = Engine::new(file(), 2, 4096, Duration::from_millis(50)).unwrap();
        let begun = Instant::now();
        let mut done = Vec::new();
        let soon = Some(begun + Duration::from_millis(30));
        engine.wait(0, soon, &mut done).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(30));
        // Nothing is ever written to this pipe.
        let (reader, _writer) = std::io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(reader));
        let mut engine = Engine::new(pipe, 2, 4096, Duration::from_millis(50)).unwrap();
        engine.submit(io(Kind::Read, u64::MAX, 16), |_| {}).unwrap();
        let soon = Some(Instant::now() + Duration::from_millis(20));
        engine.wait(1, soon, &mut done).unwrap();
        assert!(done.is_empty() && engine.in_flight() == 1);
        let error = engine.drain(&mut done).unwrap_err();
        assert!(matches!(error, Error::Stuck { .. }), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
