//! Metadata in a file beside the data.
//!
//! The file has a header, a bitmap of dirty regions, and the metadata of the device's intervals in their order, inverted: what
//! was never written, or was punched out, reads as all ones. The order of every change is: the bits of its regions, durable;
//! data; metadata. A crash of the machine can then leave data and metadata of different writes in dirty regions only, where
//! the next opening compares each guard with its data.

#![forbid(unsafe_code)]

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ublk_core::{Backend, Checksum, Errno};

use super::guard::{self, Verdict};
use super::header::{BITMAP_AT, Bad, Header, METADATA_AT, SECTOR};
use super::regions::{Clean, Regions, dirty_in};
use super::store::{Checked, ESCAPE, Store};
use crate::error::{Error, SideFileError};
use crate::file::{Layer, Syncs, zeroes};

/// A file that can be locked and has a length.
pub(super) trait Side: Debug + Layer {
    /// Takes the lock of the file, shared with other readers if `read_only`. False if somebody else holds it.
    fn lock(&self, read_only: bool) -> bool;

    /// Whether it still has a name: what is written to one that was removed is lost.
    fn is_named(&self) -> bool;

    /// Length in bytes.
    fn length(&self) -> Result<u64, Errno>;

    /// Sets the length; what is added reads as zeroes.
    fn set_length(&self, bytes: u64) -> Result<(), Errno>;
}

/// How a side file is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Use {
    /// Nothing is written.
    pub(super) read_only: bool,
    /// A file of other data is refused; else it becomes that of this data, which may be a copy.
    pub(super) same: bool,
    /// The device may have another size than the file says.
    pub(super) resize: bool,
    /// Dirty regions above which some are cleaned first.
    pub(super) most: usize,
}

/// Bytes that are punched rather than written as zeroes.
const PUNCHED: u64 = 4096;

/// Data compared at once, in bytes.
const PIECE: u64 = 1 << 20;

/// How often a lock is tried.
const AGAIN: Duration = Duration::from_millis(2);

/// A side file.
#[derive(Debug)]
pub(super) struct Beside<L> {
    layer: L,
    usage: Use,
    /// The device as it is served.
    device: Mutex<Header>,
    syncs: Syncs,
    /// Syncs that failed.
    failures: AtomicU64,
    /// Set when the file is locked and checked.
    regions: OnceLock<Regions>,
    /// Some region's metadata is lost.
    lost: AtomicBool,
}

/// Writes all of a buffer.
fn write<L: Layer>(layer: &L, mut buf: &[u8], mut at: u64) -> Result<(), Errno> {
    while !buf.is_empty() {
        let n = layer.write(buf, at)?;
        buf = buf.get(n..).filter(|_| n != 0).ok_or(Errno::EIO)?;
        at += n as u64;
    }
    Ok(())
}

/// Fills all of a buffer.
fn read<L: Layer>(layer: &L, mut buf: &mut [u8], mut at: u64) -> Result<(), Errno> {
    while !buf.is_empty() {
        let n = layer.read(buf, at)?;
        buf = buf.get_mut(n..).filter(|_| n != 0).ok_or(Errno::EIO)?;
        at += n as u64;
    }
    Ok(())
}

/// Makes a range zeroes, and gives its whole pages back.
fn clear<L: Layer>(layer: &L, at: u64, len: u64) -> Result<(), Errno> {
    let zero = |mut at: u64, end: u64| {
        while at < end {
            let part = usize::try_from(end - at).unwrap_or(usize::MAX);
            let part = &zeroes()[..part.min(zeroes().len())];
            write(layer, part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    };
    let end = at + len;
    let (first, last) = (at.next_multiple_of(PUNCHED), end / PUNCHED * PUNCHED);
    if last <= first {
        return zero(at, end);
    }
    zero(at, first)?;
    zero(last, end)?;
    match layer.unmap(first, last - first) {
        Err(Errno::EOPNOTSUPP) => zero(first, last),
        done => done,
    }
}

/// Makes the content of a new file, durable on return.
pub(super) fn make<L: Side>(layer: &L, device: &Header) -> Result<(), Errno> {
    layer.set_length(device.file_bytes())?;
    // Not as a hole, so that a full file system does not keep a region from being marked.
    write_bitmap(layer, device)?;
    layer.sync()?;
    write(layer, &device.encode(), 0)?;
    layer.sync()
}

/// Writes an empty bitmap.
fn write_bitmap<L: Layer>(layer: &L, device: &Header) -> Result<(), Errno> {
    let bytes = usize::try_from(device.regions().div_ceil(64) * 8).map_err(|_| Errno::EFBIG)?;
    write(layer, &vec![0; bytes], BITMAP_AT)
}

/// Reads the header of a file, which may be anything.
fn read_header<L: Side>(layer: &L) -> Result<Header, Error> {
    let failed = |errno| Error::File {
        doing: "read the integrity metadata",
        errno,
        hint: "",
    };
    let length = layer.length().map_err(failed)?;
    let mut sector = [0; SECTOR];
    if length < SECTOR as u64 {
        return Err(SideFileError::Foreign.into());
    }
    read(layer, &mut sector, 0).map_err(failed)?;
    let header = Header::decode(&sector).map_err(|bad| match bad {
        Bad::Magic => SideFileError::Foreign,
        Bad::Version => SideFileError::Version,
        Bad::Damaged => SideFileError::Damaged,
    })?;
    let needed = header.file_bytes();
    if length < needed {
        return Err(SideFileError::Truncated { length, needed }.into());
    }
    Ok(header)
}

/// Refuses a file of another device.
fn fits(found: &Header, device: &Header, usage: Use) -> Result<(), SideFileError> {
    if (found.integrity, found.block) != (device.integrity, device.block) {
        let (integrity, block_size) = (found.integrity, found.block);
        // As it is given: what is usual need not be said.
        let integrity = match integrity.interval == block_size {
            true => integrity.interval(0),
            false => integrity,
        };
        return Err(SideFileError::Format {
            integrity,
            block_size,
        });
    }
    if found.base != device.base {
        let (found, offset) = (found.base, device.base);
        return Err(SideFileError::Offset { found, offset });
    }
    if found.size != device.size && !usage.resize {
        let (found, size) = (found.size, device.size);
        return Err(SideFileError::Size { found, size });
    }
    if usage.same && !found.may_be_of(device) {
        return Err(SideFileError::Other);
    }
    Ok(())
}

impl<L: Side> Beside<L> {
    /// Uses a file for a device; it is neither locked nor changed yet.
    ///
    /// # Errors
    /// What does not fit.
    pub(super) fn open(layer: L, device: Header, usage: Use) -> Result<Self, Error> {
        fits(&read_header(&layer)?, &device, usage)?;
        Ok(Self {
            layer,
            usage,
            device: Mutex::new(device),
            syncs: Syncs::default(),
            failures: AtomicU64::new(0),
            regions: OnceLock::new(),
            lost: AtomicBool::new(false),
        })
    }

    fn device(&self) -> MutexGuard<'_, Header> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The dirty regions; EIO before the file is locked.
    fn regions(&self) -> Result<&Regions, Errno> {
        self.regions.get().ok_or(Errno::EIO)
    }

    fn word(&self, number: u64, word: u64) -> Result<(), Errno> {
        write(&self.layer, &word.to_le_bytes(), BITMAP_AT + number * 8)
    }

    fn sync(&self) -> Result<(), Errno> {
        self.syncs.wait(|| {
            let done = self.layer.sync();
            if done.is_err() {
                self.failures.fetch_add(1, Ordering::AcqRel);
            }
            done
        })
    }

    /// Syncs that have failed, for [`sync_since`](Self::sync_since).
    fn failures(&self) -> u64 {
        self.failures.load(Ordering::Acquire)
    }

    /// Makes durable what was written after that many syncs had failed. The kernel writes nothing again after a failed sync, and
    /// tells it once: the next sync, of somebody who wrote before it, succeeds without having written.
    fn sync_since(&self, failures: u64) -> Result<(), Errno> {
        self.sync()?;
        match self.failures() == failures {
            true => Ok(()),
            false => Err(Errno::EIO),
        }
    }

    /// Makes data and metadata durable, and cleans regions.
    fn flush_and(&self, data: &dyn Backend, which: Clean) -> Result<(), Errno> {
        let regions = self.regions()?;
        let number = regions.flush();
        // Both, so that one error does not hide another.
        let (data, metadata) = (data.flush(), self.sync());
        let done = data.and(metadata);
        match done {
            Ok(()) => regions.flushed(number, which, &|n, w| self.word(n, w)),
            Err(_) => regions.doubt(),
        }
        done
    }

    /// Locks the file, reads it again, checks the dirty regions, and adapts it to the device's size.
    fn locked(&self, data: &dyn Backend) -> Result<Checked, Error> {
        let device = *self.device();
        let found = read_header(&self.layer)?;
        fits(&found, &device, self.usage)?;
        let words = self.bitmap(&found).map_err(failed_check)?;
        if self.usage.read_only {
            if words.iter().any(|word| *word != 0) {
                return Err(SideFileError::Unclean.into());
            }
            return Ok(Checked::default());
        }
        // Metadata of data that is not there any more is not checked, but erased.
        let size = found.size.min(device.size);
        let checked = self.check(&found, size, &words, data);
        let checked = checked.map_err(failed_check)?;
        let mut resized = found.resized(device.size);
        resized.data = device.data;
        let words = if resized == found {
            words
        } else {
            let adapted = self.adapt(&found, &resized, data);
            adapted.map_err(|errno| Error::File {
                doing: "resize the integrity metadata",
                errno,
                hint: "make room, or serve the device with its previous size",
            })?
        };
        *self.device() = resized;
        let regions = Regions::new(resized.region, self.usage.most, words);
        // Callers do not start twice.
        let _ = self.regions.set(regions);
        Ok(checked)
    }

    fn bitmap(&self, found: &Header) -> Result<Vec<u64>, Errno> {
        let regions = found.regions();
        let count = usize::try_from(regions.div_ceil(64)).map_err(|_| Errno::EFBIG)?;
        let mut bytes = vec![0; count * 8];
        read(&self.layer, &mut bytes, BITMAP_AT)?;
        let words = bytes.as_chunks::<8>().0.iter();
        let mut words: Vec<u64> = words.map(|word| u64::from_le_bytes(*word)).collect();
        if let (Some(last), rest @ 1..) = (words.last_mut(), regions % 64) {
            *last &= (1 << rest) - 1;
        }
        Ok(words)
    }

    /// Changes the header, with nothing dirty. Returns the new bitmap.
    fn adapt(
        &self,
        found: &Header,
        resized: &Header,
        data: &dyn Backend,
    ) -> Result<Vec<u64>, Errno> {
        let (old, new) = (found.file_bytes(), resized.file_bytes());
        if new > self.layer.length()? {
            self.layer.set_length(new)?;
        }
        if new < old {
            clear(&self.layer, new, old - new)?;
        }
        data.flush()?;
        self.layer.sync()?;
        // Of the file as it was, then of the file as it will be: nothing is dirty in either.
        write_bitmap(&self.layer, found)?;
        write_bitmap(&self.layer, resized)?;
        self.layer.sync()?;
        write(&self.layer, &resized.encode(), 0)?;
        self.layer.sync()?;
        let words = usize::try_from(resized.regions().div_ceil(64));
        Ok(vec![0; words.map_err(|_| Errno::EFBIG)?])
    }

    /// Compares the metadata of dirty regions with their data, up to `size`, and erases what does not match.
    fn check(
        &self,
        found: &Header,
        size: u64,
        words: &[u64],
        data: &dyn Backend,
    ) -> Result<Checked, Errno> {
        let mut checked = Checked::default();
        if found.integrity.checksum == Checksum::None {
            checked.regions = dirty_in(words).count() as u64;
            return Ok(checked);
        }
        for region in dirty_in(words) {
            checked.regions += 1;
            let mut at = region * found.region;
            let end = at.saturating_add(found.region).min(size);
            while at < end {
                let len = PIECE.min(end - at);
                self.check_piece(found, (at, len), data, &mut checked)?;
                at += len;
            }
        }
        Ok(checked)
    }

    fn check_piece(
        &self,
        found: &Header,
        (offset, len): (u64, u64),
        data: &dyn Backend,
        checked: &mut Checked,
    ) -> Result<(), Errno> {
        let bytes = |bytes: u64| usize::try_from(bytes).map_err(|_| Errno::EFBIG);
        let mut metadata = vec![0; bytes(found.place(len))?];
        self.load_from_file(found.place(offset), &mut metadata)?;
        if metadata.iter().all(|byte| *byte == ESCAPE) {
            return Ok(());
        }
        let mut content = vec![0; bytes(len)?];
        let block = bytes(found.block.into())?;
        let mut unread = vec![false; content.len() / block];
        if data.read_at(&mut content, offset).is_err() {
            let blocks = content.chunks_mut(block).zip(&mut unread).zip(0_u64..);
            for ((block, unread), number) in blocks {
                let at = offset + number * u64::from(found.block);
                *unread = data.read_at(block, at).is_err();
            }
        }
        let (interval, tuple) = (
            bytes(found.integrity.interval.into())?,
            usize::from(found.integrity.metadata),
        );
        let intervals = content.chunks(interval).zip(metadata.chunks(tuple));
        for ((content, metadata), number) in intervals.zip(0_u64..) {
            let at = number * u64::from(found.integrity.interval);
            let lost = unread.get(bytes(at)? / block).copied().unwrap_or(true);
            match guard::judge(&found.integrity, content, metadata) {
                Verdict::Escaped => {}
                Verdict::Right if !lost => checked.kept += 1,
                Verdict::Right | Verdict::Wrong => {
                    checked.dropped += 1;
                    let place = METADATA_AT + found.place(offset + at);
                    clear(&self.layer, place, tuple as u64)?;
                }
            }
        }
        Ok(())
    }

    /// Whether a range has no metadata, as that of a write for which there was no room.
    fn is_erased(&self, at: u64, len: u64) -> bool {
        let mut found = vec![0; usize::try_from(len).unwrap_or(0)];
        let read = self.load_from_file(at, &mut found);
        read.is_ok() && found.iter().all(|byte| *byte == ESCAPE)
    }

    fn load_from_file(&self, at: u64, to: &mut [u8]) -> Result<(), Errno> {
        read(&self.layer, to, METADATA_AT + at)?;
        to.iter_mut().for_each(|byte| *byte = !*byte);
        Ok(())
    }
}

const fn failed_check(errno: Errno) -> Error {
    Error::File {
        doing: "check the integrity metadata after a crash",
        errno,
        hint: "see the kernel's log for errors of the disk below",
    }
}

impl<L: Side> Store for Beside<L> {
    fn load(&self, range: (u64, u64), at: u64, to: &mut [u8]) -> Result<(), Errno> {
        self.load_from_file(at, to)?;
        if self.lost.load(Ordering::Acquire) {
            let regions = self.regions()?;
            if regions.of(range).any(|region| regions.is_lost(region)) {
                to.fill(ESCAPE);
            }
        }
        Ok(())
    }

    fn store(&self, mut at: u64, from: &[u8]) -> Result<(), Errno> {
        let mut inverted = [0; 4096];
        for piece in from.chunks(inverted.len()) {
            let to = &mut inverted[..piece.len()];
            to.iter_mut().zip(piece).for_each(|(to, from)| *to = !from);
            write(&self.layer, to, METADATA_AT + at)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn erase(&self, at: u64, len: u64) -> Result<(), Errno> {
        clear(&self.layer, METADATA_AT + at, len)
    }

    fn forget(&self, range: (u64, u64), at: u64, len: u64) {
        if self.erase(at, len).is_err()
            && !self.is_erased(at, len)
            && let Ok(regions) = self.regions()
        {
            regions.lose(regions.of(range));
            self.lost.store(true, Ordering::Release);
        }
    }

    fn erase_durably(&self, at: u64, len: u64) -> Result<(), Errno> {
        let failures = self.failures();
        self.erase(at, len)?;
        self.sync_since(failures)
    }

    fn begin(&self, range: (u64, u64), data: &dyn Backend) -> Result<(), Errno> {
        let regions = self.regions()?;
        let range = regions.of(range);
        if regions.is_full(range.clone()) {
            self.flush_and(data, Clean::Half)?;
        }
        let failures = self.failures();
        if !regions.begin(range.clone(), &|n, w| self.word(n, w))? {
            return Ok(());
        }
        if let Err(errno) = self.sync_since(failures) {
            regions.abort(range);
            return Err(errno);
        }
        regions.synced(range);
        Ok(())
    }

    fn end(&self, range: (u64, u64)) {
        if let Ok(regions) = self.regions() {
            regions.end(regions.of(range));
        }
    }

    fn flush(&self, data: &dyn Backend) -> Result<(), Errno> {
        self.flush_and(data, Clean::Old)
    }

    fn start(&self, data: &dyn Backend, wait: Duration) -> Result<Checked, Error> {
        let until = Instant::now() + wait;
        while !self.layer.lock(self.usage.read_only) {
            if Instant::now() >= until {
                return Err(SideFileError::Locked.into());
            }
            std::thread::sleep(AGAIN);
        }
        if !self.layer.is_named() {
            return Err(SideFileError::Missing.into());
        }
        self.locked(data)
    }

    fn close(&self, data: &dyn Backend) -> Result<(), Errno> {
        if self.regions.get().is_none() {
            return Ok(());
        }
        self.flush_and(data, Clean::All)?;
        self.sync()
    }

    fn resize(&self, size: u64) -> Result<(), Errno> {
        let regions = self.regions()?;
        let mut device = self.device();
        let resized = device.resized(size);
        if resized.region != device.region {
            // The bitmap is too small while it is in use.
            return Err(Errno::EFBIG);
        }
        let (old, new) = (device.file_bytes(), resized.file_bytes());
        if new > self.layer.length()? {
            self.layer.set_length(new)?;
        }
        if new < old {
            clear(&self.layer, new, old - new)?;
        }
        regions.grow(resized.regions());
        self.sync()?;
        write(&self.layer, &resized.encode(), 0)?;
        self.sync()?;
        *device = resized;
        Ok(())
    }
}
