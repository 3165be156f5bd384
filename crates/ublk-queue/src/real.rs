//! The kernel seam on a real ring and the driver's own descriptor table.
#![expect(
    unsafe_code,
    reason = "maps the driver's descriptors; lends buffers to the kernel by command"
)]

use std::fmt;
use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use ublk_core::{Errno, Geometry, IoDesc, QueueId, Tag};
use ublk_sys::offset::{DescMap, UserCopy};
use ublk_sys::{ublk_batch_io, ublksrv_io_cmd, ublksrv_io_desc};
use uring_lite::{
    BufRing, Cqe16, EnterError, Fd, RegisterError, Ring, SetupError, Sqe64, SqeFlags, Waker, op,
};

use crate::batch::{BatchCommand, result_word};
use crate::buffers::page_size;
use crate::memref::MemRef;
use crate::polling::{Polling, Spin};
use crate::seam::{Completion, Descriptors, Full, IoCommand, PollPort, Port, UserCopyPort, Wake};
use crate::thread::last_errno;
use crate::user_data::{NO_OWNER, UserData};

/// A ring of 64-byte SQEs and 16-byte CQEs with the lanes' char devices in its file table.
pub struct RingPort {
    ring: Ring<Sqe64, Cqe16>,
    waker: Waker,
    /// Batch: the buffers that each lane's fetch fills with tags.
    groups: Vec<TagBuffers>,
    /// How long to look before sleeping, if at all.
    spin: Option<Spin>,
}

/// A group of buffers for the tags of a multishot fetch.
///
/// # Invariants
/// `bytes` is a live allocation of [`TAG_BUFFERS`] times [`TAG_BUFFER`] bytes, to which no reference exists: while the
/// kernel has one of its buffers, it may write there at any time.
struct TagBuffers {
    ring: BufRing,
    bytes: NonNull<[u8]>,
}

/// `IORING_URING_CMD_MULTISHOT` (linux/io_uring.h, 6.18).
const URING_CMD_MULTISHOT: u32 = 1 << 1;
/// Bytes of a buffer for tags: the driver fills no more at once.
const TAG_BUFFER: usize = 256;
/// Buffers of a group: completions that may be waiting for us. When they run out the fetch ends and is
/// pushed again.
const TAG_BUFFERS: u16 = 32;

impl TagBuffers {
    fn new(ring: &mut Ring<Sqe64, Cqe16>, lane: u16) -> Result<Self, RegisterError> {
        let bytes = vec![0; TAG_BUFFER * usize::from(TAG_BUFFERS)];
        let mut buffers = Self {
            ring: ring.register_buf_ring(lane, TAG_BUFFERS, false)?,
            bytes: NonNull::from(Box::leak(bytes.into_boxed_slice())),
        };
        for bid in 0..TAG_BUFFERS {
            buffers.give(bid);
        }
        Ok(buffers)
    }

    /// The first byte of a buffer.
    fn place(&self, bid: u16) -> Option<NonNull<u8>> {
        let first = self.bytes.cast::<u8>();
        // SAFETY: below the number of buffers, so inside the allocation (invariant).
        (bid < TAG_BUFFERS).then(|| unsafe { first.add(usize::from(bid) * TAG_BUFFER) })
    }

    /// Gives a buffer to the kernel, for the first time or again.
    fn give(&mut self, bid: u16) {
        let Some(first) = self.place(bid) else {
            return;
        };
        // SAFETY: 256 bytes of `bytes`, which the port frees only after it has unregistered the group; we read
        // them between the CQE that names `bid` and the next `give` only. There is room: the group has as
        // many entries as buffers, and this one is not in it.
        let given = unsafe { self.ring.add(first, 256, bid) };
        if given.is_ok() {
            self.ring.advance();
        }
    }

    /// Copies the tags out of a buffer that the kernel has filled with `len` bytes, and gives it back.
    fn take(&mut self, bid: u16, len: usize, tags: &mut Vec<u16>) {
        if let Some(first) = self.place(bid) {
            // Of a known length, so that there is room for all at once, and not a test for each.
            tags.extend((0..len.min(TAG_BUFFER) / 2).map(|n| {
                // SAFETY: the byte and the one behind it are inside the buffer.
                let place = unsafe { first.add(2 * n) }.cast::<[u8; 2]>();
                // SAFETY: ours from the CQE that named it until it is given back, and any bytes will do.
                u16::from_ne_bytes(unsafe { place.read() })
            }));
        }
        self.ring.taken();
        self.give(bid);
    }
}

impl Drop for RingPort {
    fn drop(&mut self) {
        for TagBuffers { ring, bytes } in self.groups.drain(..) {
            // Else the kernel may still fill them, and they are left to it.
            if self.ring.unregister_buf_ring(ring).is_ok() {
                // SAFETY: made by `Box::leak`, freed here only; no group has its buffers and no fetch is left that
                // could fill one: a fetch selects a buffer when it has tags for it, and then needs the group.
                drop(unsafe { Box::from_raw(bytes.as_ptr()) });
            }
        }
    }
}

/// What a worker's ring must have room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RingNeeds {
    /// Commands at once: the sum of the lanes' depths.
    pub commands: u32,
    /// Operations at once.
    pub operations: u32,
    /// Lanes.
    pub lanes: u16,
    /// Slots of the table of buffers, for the zero-copy modes.
    pub buffers: u32,
    /// Whether the lanes' commands carry many tags.
    pub batch: bool,
    /// What the worker does before it sleeps.
    pub polling: Polling,
}

/// Most entries of a submission queue (`IORING_MAX_ENTRIES`, io_uring/io_uring.c). With more tags than that the
/// engine submits in between.
const MAX_SQ_ENTRIES: u32 = 32_768;

/// Most kernel workers of a ring: they are made as they are needed.
const MAX_WORKERS: u32 = 256;

/// A ring for a worker could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// It could not be made.
    #[error(transparent)]
    SetUp(#[from] SetupError),
    /// The char devices or the waker could not be registered with it.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

impl fmt::Debug for RingPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingPort").finish_non_exhaustive()
    }
}

impl RingPort {
    /// A ring whose table of files begins with the char devices of the lanes, in the lanes' order. Make it on the
    /// thread that will serve.
    ///
    /// # Safety
    /// Whoever pushes a command or an operation keeps what it names, as the driver or the operation uses it, until its
    /// last completion. A [`Worker`](crate::Worker) does, if each of its lanes is a queue of the device behind the
    /// lane's file, with the driver's own depth, buffer size, data mode and descriptors, and the lanes of one queue were
    /// dealt their shares together.
    ///
    /// # Errors
    /// What set-up or registration says.
    pub unsafe fn new(needs: &RingNeeds, files: &[BorrowedFd<'_>]) -> Result<Self, RingError> {
        let spin = Spin::new(needs.polling);
        // One entry more than tags on either side: the waker's. Every tag has at most one command in flight and
        // every place for an operation one operation, so neither queue can overflow.
        let entries = (needs.commands + needs.operations + 1).min(MAX_SQ_ENTRIES);
        let mut ring = Ring::<Sqe64, Cqe16>::builder(entries)
            .cq_entries(entries * 2)
            .taskrun_flag(spin.is_some())
            .build()?;
        ring.register_files(files)?;
        if needs.operations != 0 {
            // An operation that has to wait, on a file that cannot be asked not to, is a kernel worker's, of which there
            // are four a CPU: all of them shall wait side by side. An older kernel has its own limit.
            let _ = ring.allow_workers(needs.operations.min(MAX_WORKERS));
        }
        if needs.buffers != 0 {
            ring.register_buffers_sparse(needs.buffers)?;
        }
        let waker = ring.waker()?;
        let lanes = if needs.batch { needs.lanes } else { 0 };
        let mut groups = Vec::new();
        for lane in 0..lanes {
            groups.push(TagBuffers::new(&mut ring, lane)?);
        }
        Ok(Self {
            ring,
            waker,
            groups,
            spin,
        })
    }
}

/// What a failed enter means for the worker.
#[cold]
fn trouble(error: EnterError) -> Result<(), Errno> {
    match error {
        // Short of requests or memory, or the CQ is full: the caller takes completions and comes back.
        error if error.is_transient() => Ok(()),
        EnterError::Unusable { errno } => Err(Errno::new(errno.get())),
        EnterError::WrongThread => Err(Errno::EEXIST),
        _ => Err(Errno::EIO),
    }
}

/// The SQE of a command, but for result and address.
#[derive(Debug, Clone, Copy)]
pub struct Prepared(Sqe64);

impl AsFd for RingPort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

// SAFETY: completions are those of the kernel's own ring, on which only the port pushes, and to which no other ring
// can send (`msg_ring` is unsafe, and forbids it). Entries go to that ring once, and nowhere else.
unsafe impl Port for RingPort {
    type Wake = Waker;

    type Command = Prepared;

    fn prepare(&self, lane: u16, command: &IoCommand, user_data: u64) -> Prepared {
        let payload = ublksrv_io_cmd {
            q_id: command.qid.get(),
            tag: command.tag.get(),
            result: 0,
            addr: command.addr,
        };
        let fd = Fd::registered(u32::from(lane));
        let payload = payload.to_bytes();
        // SAFETY: `addr` is the tag's place in the lane's arena, or with `push` one that its caller promises. The
        // driver uses it from there to the CQE of this command, and the arena outlives that: the lane's shared
        // part owns it, and a lane that leaves tags with the driver leaks it (`Lane::drop`).
        let sqe = unsafe { op::uring_cmd(fd, command.cmd_op, &payload) };
        // SAFETY: not an address here but the word of an automatic buffer registration, or 0.
        Prepared(unsafe { sqe.addr(command.buf_reg) }.user_data(user_data))
    }

    #[inline(always)]
    fn push(&mut self, command: &Prepared, result: i32, addr: u64) -> Result<(), Full> {
        // `ublksrv_io_cmd` as two words, in the memory's order.
        let head = command.0.payload_head() | result_word(result);
        // SAFETY: as in `prepare`.
        let sqe = || unsafe { command.0.with_payload([head, addr]) };
        self.ring.push_with(sqe).map_err(|_| Full)
    }

    #[inline]
    fn push_operation(&mut self, operation: &Sqe64) -> Result<(), Full> {
        self.ring.push(operation).map_err(|_| Full)
    }

    fn space(&mut self) -> u32 {
        self.ring.sq_space()
    }

    fn pending(&mut self) -> u32 {
        self.ring.sq_pending()
    }

    fn push_batch(
        &mut self,
        lane: u16,
        command: &BatchCommand,
        user_data: u64,
    ) -> Result<(), Full> {
        let payload = ublk_batch_io {
            q_id: command.qid,
            flags: command.flags,
            nr_elem: command.nr_elem,
            elem_bytes: command.elem_bytes,
            ..ublk_batch_io::ZERO
        };
        let fd = Fd::registered(u32::from(lane));
        // SAFETY: the elements are the lane's, which keeps them until this command's CQE; their buffers are
        // places of the lane's arena, as in `push`. A fetch fills buffers of the lane's group.
        let sqe = unsafe { op::uring_cmd(fd, command.cmd_op, &payload.to_bytes()) };
        // SAFETY: the address of the elements; 0 for a fetch.
        let mut sqe = unsafe { sqe.addr(command.addr) }.user_data(user_data);
        if command.addr == 0 {
            // SAFETY: the lane's own group, whose buffers stay until it is unregistered.
            sqe = unsafe { sqe.flags(SqeFlags::BUFFER_SELECT).buf_index(lane) };
            // SAFETY: a fetch names no other memory, however often it completes.
            sqe = unsafe { sqe.cmd_flags(URING_CMD_MULTISHOT) };
        }
        self.ring.push(&sqe).map_err(|_| Full)
    }

    fn take_tags(&mut self, lane: u16, completion: &Completion, tags: &mut Vec<u16>) {
        tags.clear();
        let cqe = Cqe16 {
            user_data: completion.user_data,
            res: completion.res,
            flags: completion.flags,
        };
        let (Some(bid), Some(group)) = (cqe.buffer_id(), self.groups.get_mut(usize::from(lane)))
        else {
            return;
        };
        group.take(bid, usize::try_from(completion.res).unwrap_or(0), tags);
    }

    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        self.ring
            .enter(want, timeout)
            .map_or_else(trouble, |_| Ok(()))
    }

    #[inline(always)]
    fn submit_and_wait(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        match self.spin {
            None => self.ring.submit_and_wait(want, timeout).or_else(trouble),
            Some(spin) => {
                self.spin = Some(spin.wait(self, want, timeout)?);
                Ok(())
            }
        }
    }

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        self.next_of(NO_OWNER)
    }

    #[inline(always)]
    fn next_of(&mut self, owner: u64) -> Option<Completion> {
        let of_owner = |word| UserData::tag_of(word, owner).is_some();
        self.ring.next_cqe_with(of_owner).map(|cqe| Completion {
            user_data: cqe.user_data,
            res: cqe.res,
            flags: cqe.flags,
        })
    }

    fn wake_handle(&self) -> Waker {
        self.waker.clone()
    }

    fn park(&mut self) -> Result<bool, Errno> {
        match self.ring.park() {
            Ok(parked) => Ok(parked),
            Err(error) => trouble(error).map(|()| false),
        }
    }

    fn unpark(&mut self) {
        self.ring.unpark();
    }

    fn describe(&self) -> String {
        let setup = self.ring.setup();
        let registered = if setup.ring_fd_registered {
            ", registered ring fd"
        } else {
            ""
        };
        format!(
            "{:?}, SQ {}, CQ {}{registered}{}",
            setup.ladder,
            setup.sq_entries,
            setup.cq_entries,
            if self.spin.is_some() { ", polls" } else { "" }
        )
    }
}

impl PollPort for RingPort {
    fn has_work(&mut self) -> bool {
        self.ring.has_work()
    }

    fn take_notice(&mut self) {
        self.ring.unpark();
    }

    fn sleep(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        self.ring.submit_and_wait(want, timeout).or_else(trouble)
    }
}

/// The character device as the way of data: a descriptor of a lane's own.
#[derive(Debug)]
pub struct CharDevice {
    fd: OwnedFd,
    /// Leads to no data; takes the descriptor's place at the end.
    nowhere: Arc<OwnedFd>,
}

impl CharDevice {
    /// Duplicates the descriptor of a device.
    ///
    /// # Errors
    /// EMFILE, ENFILE: no descriptor is left.
    pub fn new(device: BorrowedFd<'_>) -> Result<Self, Errno> {
        static NOWHERE: Mutex<Weak<OwnedFd>> = Mutex::new(Weak::new());
        let errno = |e: std::io::Error| Errno::from_io(&e);
        let fd = device.try_clone_to_owned().map_err(errno)?;
        let mut known = NOWHERE.lock().unwrap_or_else(PoisonError::into_inner);
        let nowhere = match known.upgrade() {
            Some(nowhere) => nowhere,
            None => {
                let mut path = OpenOptions::new();
                let opened = path.read(true).custom_flags(libc::O_PATH).open("/");
                Arc::new(OwnedFd::from(opened.map_err(errno)?))
            }
        };
        *known = Arc::downgrade(&nowhere);
        Ok(Self { fd, nowhere })
    }

    /// The whole of a range must go: a short count would leave stale bytes with a reader or a writer (L05).
    fn transfer(
        &self,
        (qid, tag, byte): (QueueId, Tag, u32),
        mem: MemRef<'_>,
        call: impl Fn(RawFd, *mut libc::c_void, usize, libc::off_t) -> isize,
    ) -> Result<(), Errno> {
        let place = UserCopy {
            qid: qid.get(),
            tag: tag.get(),
            byte,
            integrity: false,
        };
        let at = place.encode().map_err(|_| Errno::EINVAL)?;
        let at = libc::off_t::try_from(at).map_err(|_| Errno::EOVERFLOW)?;
        let fd = self.fd.as_raw_fd();
        let mut done = 0;
        while done < mem.len() {
            let moved = libc::off_t::try_from(done).map_err(|_| Errno::EOVERFLOW)?;
            let ptr = mem.ptr().as_ptr().wrapping_add(done).cast();
            match usize::try_from(call(fd, ptr, mem.len() - done, at + moved)) {
                Ok(0) => return Err(Errno::EIO),
                Ok(n) => done += n,
                Err(_) => match last_errno() {
                    Errno::EINTR => {}
                    errno => return Err(errno),
                },
            }
        }
        Ok(())
    }
}

impl UserCopyPort for CharDevice {
    fn pull(&self, qid: QueueId, tag: Tag, from: u32, to: MemRef<'_>) -> Result<(), Errno> {
        self.transfer((qid, tag, from), to, |fd, ptr, len, at| {
            // SAFETY: the range is writable memory by the promise of `MemRef::new`.
            unsafe { libc::pread(fd, ptr, len, at) }
        })
    }

    fn push(&self, qid: QueueId, tag: Tag, to: u32, from: MemRef<'_>) -> Result<(), Errno> {
        self.transfer((qid, tag, to), from, |fd, ptr, len, at| {
            // SAFETY: the range is readable memory by the promise of `MemRef::new`.
            unsafe { libc::pwrite(fd, ptr, len, at) }
        })
    }

    fn retire(&self) {
        let (from, to) = (self.nowhere.as_raw_fd(), self.fd.as_raw_fd());
        // SAFETY: replaces what our own descriptor leads to, at once: whoever uses it at this moment has the one or the
        // other (EBADF), and the number stays ours until it is dropped.
        while unsafe { libc::dup3(from, to, libc::O_CLOEXEC) } < 0 && last_errno() == Errno::EINTR {
        }
    }
}

impl Wake for Waker {
    fn wake(&self) {
        Waker::wake(self);
    }
}

/// The driver's descriptors of one queue, mapped read-only.
///
/// # Invariants
/// `base` is the start of a live mapping of `len` bytes that this value owns; it holds `depth`
/// descriptors, one every `stride` bytes.
pub struct DescTable {
    base: NonNull<u8>,
    len: usize,
    depth: u16,
    stride: usize,
}

impl fmt::Debug for DescTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DescTable")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl DescTable {
    /// Maps the descriptors of a queue at the driver's own stride (L01), not inherited by children. Of a character device: a
    /// file that is shorter than the table raises SIGBUS at the first look, as any mapping does.
    ///
    /// # Errors
    /// EINVAL when another process has mapped this device, or the queue is not there.
    pub fn map(
        char_device: BorrowedFd<'_>,
        geometry: &Geometry,
        qid: QueueId,
    ) -> Result<Self, Errno> {
        let place = DescMap::new(
            qid.get(),
            geometry.depth(),
            geometry.io_desc_size(),
            page_size(),
        )
        .map_err(|_| Errno::EINVAL)?;
        let offset = libc::off_t::try_from(place.offset).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours; the
        // result is checked below.
        let addr = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                place.len,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                char_device.as_raw_fd(),
                offset,
            )
        };
        if addr == libc::MAP_FAILED {
            return Err(last_errno());
        }
        let base = NonNull::new(addr.cast::<u8>()).ok_or(Errno::EFAULT)?;
        let stride = usize::from(geometry.io_desc_size());
        let table = Self {
            base,
            len: place.len,
            depth: geometry.depth(),
            stride,
        };
        // SAFETY: the range is the mapping just made. A child that kept it would keep the device (L23).
        let res = unsafe { libc::madvise(addr, place.len, libc::MADV_DONTFORK) };
        if res == 0 {
            Ok(table)
        } else {
            Err(last_errno())
        }
    }
}

#[cold]
#[inline(never)]
fn beyond(tag: Tag) -> ! {
    panic!("tag {tag} is beyond the queue's depth")
}

impl Descriptors for DescTable {
    #[inline]
    fn load(&self, tag: Tag) -> IoDesc {
        if tag.get() >= self.depth {
            beyond(tag);
        }
        // SAFETY: tag < depth and depth × stride ≤ len, so the offset is inside the mapping.
        let place = unsafe { self.base.add(tag.index() * self.stride) };
        let place = place.cast::<ublksrv_io_desc>();
        // SAFETY: the place is inside the mapping and aligned (the stride is a multiple of 8); every bit
        // pattern is a descriptor. Volatile and by value, since the kernel writes there (L57): it does
        // so before the CQE that the caller has taken with acquire ordering, and not before the commit.
        let raw = unsafe { place.as_ptr().read_volatile() };
        IoDesc::new(raw.op_flags, raw.start_sector, raw.nr_sectors, raw.addr)
    }
}

impl Drop for DescTable {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours (invariant) and nothing borrows from it: descriptors are copies.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// L63 A device that is let go of is closed, whoever still has the value, and transfers by it fail.
    #[test]
    fn l63_a_retired_device_is_closed() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let device = CharDevice::new(writer.as_fd()).unwrap();
        let another = CharDevice::new(writer.as_fd()).unwrap();
        drop(writer);
        device.retire();
        another.retire();
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        let zeroes = [0; 512];
        let from = NonNull::from(&zeroes).cast();
        // SAFETY: readable for as long as the call.
        let from = unsafe { MemRef::new(from, zeroes.len()) };
        let pushed = device.push(QueueId::ZERO, Tag::ZERO, 0, from);
        assert_eq!(pushed, Err(Errno::EBADF));
    }
}
