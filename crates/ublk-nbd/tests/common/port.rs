//! The simulated driver's ring; operations on sockets and timers run as system calls.
#![expect(unsafe_code, reason = "plays the kernel: memory named by entries")]

use std::collections::HashMap;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use ublk_core::{Errno, QueueId, Tag};
use ublk_queue::port::{Completion, Content, Full, IoCommand, Port, UserCopyPort};
use ublk_queue::{BatchCommand, MemRef};
use uring_lite::op::Timespec;
use uring_lite::{Sqe64, sys};

pub struct SocketPort<P> {
    inner: P,
    pages: Pages,
    pending: Vec<Pending>,
    ready: Vec<Completion>,
}

struct Pending {
    sqe: Sqe64,
    /// Bytes that a MSG_WAITALL receive has moved so far.
    done: usize,
    due: Option<Instant>,
}

impl<P: Port> SocketPort<P> {
    pub fn new(inner: P, pages: Pages) -> Self {
        Self {
            inner,
            pages,
            pending: Vec::new(),
            ready: Vec::new(),
        }
    }

    /// Tries every operation once.
    fn pass(&mut self) {
        let mut n = 0;
        while n < self.pending.len() {
            match attempt(&mut self.pages, &mut self.pending[n]) {
                Some(res) => {
                    let one = self.pending.swap_remove(n);
                    self.complete(one.sqe.as_raw().user_data, res);
                }
                None => n += 1,
            }
        }
    }

    fn complete(&mut self, user_data: u64, res: i32) {
        self.ready.push(Completion {
            user_data,
            res,
            flags: 0,
        });
    }

    fn remove_timer(&mut self, sqe: &sys::io_uring_sqe) {
        let target = sqe.addr;
        let is = |one: &Pending| one.sqe.as_raw().user_data == target;
        let found = self.pending.iter().position(is);
        if let Some(at) = found {
            self.pending.swap_remove(at);
            self.complete(target, -libc::ECANCELED);
        }
        self.complete(
            sqe.user_data,
            if found.is_some() { 0 } else { -libc::ENOENT },
        );
    }
}

/// The pages of requests that are registered with the ring.
pub struct Pages {
    device: Box<dyn UserCopyPort>,
    depth: u16,
    /// What was received into the pages of a READ, up to the last byte.
    received: HashMap<u16, Vec<u8>>,
}

impl Pages {
    pub fn new(device: Box<dyn UserCopyPort>, depth: u16) -> Self {
        Self {
            device,
            depth,
            received: HashMap::new(),
        }
    }

    /// Whose request's they are.
    fn owner(&self, index: u16) -> (QueueId, Tag) {
        let qid = QueueId::new(index / self.depth).expect("few queues");
        (qid, Tag::new(index % self.depth).expect("few tags"))
    }

    /// A part of a WRITE's data.
    fn part(&self, index: u16, at: usize, len: usize) -> Vec<u8> {
        let (qid, tag) = self.owner(index);
        let mut data = vec![0; at + len];
        let pulled = self.device.pull(qid, tag, Content::Data, mem(&mut data));
        pulled.expect("a WRITE in flight");
        data.split_off(at)
    }

    /// Fills a part of a READ's pages.
    fn fill(&mut self, index: u16, at: usize, bytes: &[u8]) {
        let (qid, tag) = self.owner(index);
        let data = self.received.entry(index).or_default();
        assert!(at <= data.len(), "a gap before byte {at}");
        data.truncate(at);
        data.extend(bytes);
        let pushed = self.device.push(qid, tag, Content::Data, mem(data));
        pushed.expect("a READ in flight");
    }
}

fn mem(bytes: &mut [u8]) -> MemRef<'_> {
    // SAFETY: borrowed for the call that takes it.
    unsafe { MemRef::new(NonNull::from(&mut *bytes).cast(), bytes.len()) }
}

/// Whether an operation transfers registered pages, and to the socket.
fn sends_pages(sqe: &sys::io_uring_sqe) -> Option<bool> {
    let fixed = sqe.ioprio & sys::IORING_RECVSEND_FIXED_BUF != 0;
    match sqe.opcode {
        sys::IORING_OP_WRITE_FIXED => Some(true),
        sys::IORING_OP_READ_FIXED => Some(false),
        sys::IORING_OP_SEND if fixed => Some(true),
        sys::IORING_OP_RECV if fixed => Some(false),
        _ => None,
    }
}

/// Transfers between a socket and registered pages; short, as a read or write of a socket may be.
fn transfer(pages: &mut Pages, sqe: &sys::io_uring_sqe, sends: bool) -> isize {
    let (at, len) = (
        usize::try_from(sqe.addr).expect("an offset"),
        sqe.len as usize,
    );
    let len = len.min(1 + len / 2);
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    if sends {
        let data = pages.part(sqe.buf_index, at, len);
        // SAFETY: the bytes live for the length of the call.
        return unsafe { libc::send(sqe.fd, data.as_ptr().cast(), len, flags) };
    }
    let mut data = vec![0_u8; len];
    // SAFETY: as above.
    let moved = unsafe { libc::recv(sqe.fd, data.as_mut_ptr().cast(), len, flags) };
    if let Ok(moved @ 1..) = usize::try_from(moved) {
        pages.fill(sqe.buf_index, at, &data[..moved]);
    }
    moved
}

/// The result of an operation; `None` while it would block.
fn attempt(pages: &mut Pages, one: &mut Pending) -> Option<i32> {
    let sqe = *one.sqe.as_raw();
    if let Some(sends) = sends_pages(&sqe) {
        let moved = transfer(pages, &sqe, sends);
        let errno = std::io::Error::last_os_error().raw_os_error();
        return match (i32::try_from(moved).expect("small"), errno) {
            (-1, Some(libc::EAGAIN)) => None,
            (-1, errno) => Some(-errno.unwrap_or(libc::EIO)),
            (moved, _) => Some(moved),
        };
    }
    let fd = sqe.fd;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let all = sqe.rw_flags & libc::MSG_WAITALL.cast_unsigned() != 0;
    let moved = match sqe.opcode {
        sys::IORING_OP_TIMEOUT => {
            return (one.due? <= Instant::now()).then_some(-libc::ETIME);
        }
        sys::IORING_OP_SENDMSG => {
            // SAFETY: the entry names a message that is valid until the completion, which this makes.
            unsafe { libc::sendmsg(fd, sqe.addr as *const libc::msghdr, flags) }
        }
        sys::IORING_OP_SEND => {
            // SAFETY: as above.
            unsafe { libc::send(fd, sqe.addr as *const libc::c_void, sqe.len as usize, flags) }
        }
        sys::IORING_OP_RECVMSG => {
            // SAFETY: as above.
            unsafe { libc::recvmsg(fd, sqe.addr as *mut libc::msghdr, flags) }
        }
        sys::IORING_OP_RECV => {
            let to = (sqe.addr + one.done as u64) as *mut libc::c_void;
            // SAFETY: as above.
            unsafe { libc::recv(fd, to, sqe.len as usize - one.done, flags) }
        }
        other => panic!("operation {other} is not played here"),
    };
    let Ok(moved) = usize::try_from(moved) else {
        let errno = std::io::Error::last_os_error().raw_os_error();
        return match errno {
            Some(libc::EAGAIN) => None,
            Some(_) if one.done > 0 => Some(i32::try_from(one.done).expect("small")),
            errno => Some(-errno.unwrap_or(libc::EIO)),
        };
    };
    one.done += moved;
    let is_recv = sqe.opcode == sys::IORING_OP_RECV;
    if is_recv && all && moved > 0 && one.done < sqe.len as usize {
        return None;
    }
    let total = if is_recv { one.done } else { moved };
    Some(i32::try_from(total).expect("small"))
}

// SAFETY: completions are the inner port's, or of operations that this one has carried out; what is pushed goes to the
// inner port or into `pending`, once.
unsafe impl<P: Port> Port for SocketPort<P> {
    type Wake = P::Wake;
    type Command = P::Command;

    fn prepare(&self, lane: u16, command: &IoCommand, user_data: u64) -> Self::Command {
        self.inner.prepare(lane, command, user_data)
    }

    fn push(&mut self, command: &Self::Command, result: i32, addr: u64) -> Result<(), Full> {
        self.inner.push(command, result, addr)
    }

    fn push_operation(&mut self, operation: &Sqe64) -> Result<(), Full> {
        let sqe = operation.as_raw();
        if sqe.opcode == sys::IORING_OP_URING_CMD {
            return self.inner.push_operation(operation);
        }
        if sqe.opcode == sys::IORING_OP_TIMEOUT_REMOVE {
            self.remove_timer(sqe);
            return Ok(());
        }
        let due = (sqe.opcode == sys::IORING_OP_TIMEOUT).then(|| {
            // SAFETY: the entry names a time that is valid until the completion.
            let time = unsafe { *(sqe.addr as *const Timespec) };
            let seconds = u64::try_from(time.tv_sec).expect("a time");
            Instant::now() + Duration::from_secs(seconds)
        });
        self.pending.push(Pending {
            sqe: *operation,
            done: 0,
            due,
        });
        Ok(())
    }

    fn space(&mut self) -> u32 {
        self.inner.space()
    }

    fn pending(&mut self) -> u32 {
        self.inner.pending()
    }

    fn push_batch(
        &mut self,
        lane: u16,
        command: &BatchCommand,
        user_data: u64,
    ) -> Result<(), Full> {
        self.inner.push_batch(lane, command, user_data)
    }

    fn take_tags(&mut self, lane: u16, completion: &Completion, tags: &mut Vec<u16>) {
        self.inner.take_tags(lane, completion, tags);
    }

    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        self.pass();
        let busy = !self.pending.is_empty() || !self.ready.is_empty();
        if busy && self.ready.is_empty() && want > 0 {
            std::thread::sleep(Duration::from_micros(50));
        }
        // While socket operations are pending, a blocked driver is not a hang.
        self.inner.enter(if busy { 0 } else { want }, timeout)
    }

    fn next(&mut self) -> Option<Completion> {
        self.ready.pop().or_else(|| self.inner.next())
    }

    fn wake_handle(&self) -> P::Wake {
        self.inner.wake_handle()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}
