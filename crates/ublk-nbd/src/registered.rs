//! Transfers between a socket and the pages of a request that are registered with the ring (zero copy).
//!
//! Sends and receives take registered buffers since Linux 7.2. Before, reads and writes do: they take no flags, so each
//! transfers what the socket has, or has room for, and the next one continues. Zero-copy sends take registered buffers on every
//! kernel that can register them.
#![expect(unsafe_code, reason = "names registered pages to the kernel")]

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use uring_lite::op::{self, Fd};
use uring_lite::{Cqe16, Ring, Sqe64};

/// A part of a request's pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pages {
    /// Index in the ring's buffer table.
    pub(crate) index: u16,
    /// Where the part starts in the request, in bytes.
    pub(crate) at: u64,
    pub(crate) len: u32,
}

/// The operation that sends from the pages, with these `MSG_*` flags if it can have any. `in_place` lets the network read the
/// pages themselves, without a copy in the socket; a notification follows, and says whether the kernel copied after all.
pub(crate) fn send(fd: Fd, pages: Pages, flags: u32, in_place: bool) -> Sqe64 {
    let Pages { index, at, len } = pages;
    if in_place {
        // SAFETY: the kernel keeps a request's pages until no operation uses them, nor a segment that TCP may send again.
        return op::report_usage(unsafe { op::send_zc_fixed(fd, index, at, len, flags) });
    }
    match has_flags() {
        // SAFETY: the kernel keeps a request's pages until no operation uses them.
        true => unsafe { op::send_fixed(fd, index, at, len, flags) },
        // SAFETY: as above.
        false => unsafe { op::write_fixed(fd, index, at, len, 0) },
    }
}

/// The operation that receives into the pages, as long as there are more bytes to come if it can have flags. If `later` is set
/// it does not try before the socket has some.
pub(crate) fn receive(fd: Fd, pages: Pages, later: bool) -> Sqe64 {
    let Pages { index, at, len } = pages;
    if !has_flags() {
        // SAFETY: the kernel keeps a request's pages until no operation uses them.
        return unsafe { op::read_fixed(fd, index, at, len, 0) };
    }
    let flags = op::MSG_NOSIGNAL | op::MSG_WAITALL;
    // SAFETY: as above.
    let sqe = unsafe { op::recv_fixed(fd, index, at, len, flags) };
    match later {
        true => op::poll_first(sqe),
        false => sqe,
    }
}

/// Prepares the calling thread, on whose ring the operations will be.
pub(crate) fn prepare() {
    if !has_flags() {
        // A write to a socket that the server has closed raises SIGPIPE.
        ublk_queue::thread::block_sigpipe();
    }
}

/// Whether sends and receives take registered buffers. The first call tries it on a ring of its own: no probe of the kernel
/// tells.
pub(crate) fn has_flags() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| attempt().unwrap_or(false))
}

/// `None` if the attempt itself is not possible, or takes more than a second.
fn attempt() -> Option<bool> {
    let ring = Ring::<Sqe64, Cqe16>::builder(2).register_ring_fd(false);
    let mut ring = ring.build().ok()?;
    let (socket, _other) = UnixStream::pair().ok()?;
    // SAFETY: the socket is open until the ring is gone.
    let fd = unsafe { Fd::raw(socket.as_fd()) };
    // SAFETY: no buffer is registered, so no memory is named.
    let sqe = unsafe { op::recv_fixed(fd, 0, 0, 1, op::MSG_DONTWAIT) };
    ring.push(&sqe).ok()?;
    ring.enter(1, Some(Duration::from_secs(1))).ok()?;
    let refused = ring.next_cqe()?.result().err()?.get();
    // Kernels that take registered buffers miss this one (EFAULT).
    Some(refused != libc::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whichever operations the kernel has move bytes between a socket and registered memory.
    #[test]
    fn bytes_reach_registered_buffers() {
        prepare();
        let mut ring = Ring::<Sqe64, Cqe16>::builder(2).build().expect("a ring");
        let (one, other) = UnixStream::pair().expect("a pair");
        let mut memory = [[7_u8; 4096], [0; 4096]];
        let base = memory.as_mut_ptr().cast::<u8>();
        // SAFETY: `memory` outlives the ring's use of it: everything is reaped before the ring is dropped.
        unsafe { ring.register_buffers(&[(base, 4096), (base.wrapping_add(4096), 4096)]) }
            .expect("buffers");
        let pages = |index: u16, at: u64| Pages {
            index,
            at: base as u64 + at,
            len: 300,
        };
        let mut run = |sqe: Sqe64| {
            ring.push(&sqe).expect("room");
            let entered = ring.enter(1, Some(Duration::from_secs(10)));
            entered.expect("enter");
            ring.next_cqe().expect("a completion").res
        };
        // SAFETY: open until its operations are reaped.
        let from = unsafe { Fd::raw(one.as_fd()) };
        // SAFETY: open until the end.
        let to = unsafe { Fd::raw(other.as_fd()) };
        assert_eq!(run(send(from, pages(0, 100), op::MSG_NOSIGNAL, false)), 300);
        assert_eq!(run(receive(to, pages(1, 4096 + 50), false)), 300);
        // A closed socket is an error, and no signal.
        drop(one);
        assert_eq!(
            run(send(to, pages(1, 4096), op::MSG_NOSIGNAL, false)),
            -libc::EPIPE
        );
        drop(ring);
        let [_, filled] = memory;
        assert!(filled[..50].iter().all(|byte| *byte == 0));
        assert!(filled[50..350].iter().all(|byte| *byte == 7));
        assert!(filled[350..].iter().all(|byte| *byte == 0));
    }
}
