//! Operations on sockets, on the running kernel's loopback interface.
#![expect(
    unsafe_code,
    reason = "entries that name memory are unsafe to make; every buffer outlives its reap"
)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use common::{DEADLINE, open, reap, ring, run, skip};
use uring_lite::{Cqe16, Errno, Fd, Ring, Sqe64, SqeFlags, op, sys};

/// A ring, if its kernel supports the operations; otherwise prints that and returns none.
fn ring_with(ops: &[u8]) -> Option<Ring<Sqe64, Cqe16>> {
    let ring = ring::<Sqe64, Cqe16>(8);
    let probe = ring.probe().expect("probe");
    match ops.iter().find(|op| !probe.supports(**op)) {
        None => Some(ring),
        Some(op) => {
            skip(&format!("the kernel has no operation {op}"));
            None
        }
    }
}

/// Both ends of a connection.
fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let one = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (other, _) = listener.accept().expect("accept");
    for end in [&one, &other] {
        end.set_read_timeout(DEADLINE).expect("deadline");
    }
    (one, other)
}

fn errno(cqe: &Cqe16) -> Option<i32> {
    cqe.result().err().map(Errno::get)
}

fn address(at: SocketAddr) -> libc::sockaddr_in {
    let SocketAddr::V4(at) = at else {
        panic!("bound to IPv4");
    };
    libc::sockaddr_in {
        sin_family: u16::try_from(libc::AF_INET).expect("small"),
        sin_port: at.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(*at.ip()).to_be(),
        },
        sin_zero: [0; 8],
    }
}

const fn size_of_address() -> u32 {
    16
}

fn owned(cqe: &Cqe16) -> OwnedFd {
    let fd = cqe.result().expect("a descriptor");
    // SAFETY: the operation made this descriptor for us, and nobody else has its number.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) }
}

fn iovec(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

fn message(pieces: &mut [libc::iovec]) -> libc::msghdr {
    // SAFETY: integers and pointers, for which zero is "none".
    let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
    msg.msg_iov = pieces.as_mut_ptr();
    msg.msg_iovlen = pieces.len();
    msg
}

#[test]
fn send_and_receive() {
    let Some(mut ring) = ring_with(&[sys::IORING_OP_SEND, sys::IORING_OP_RECV]) else {
        return;
    };
    let (one, mut other) = pair();
    let fd = open(&one);
    let text = *b"to the other end";
    // SAFETY: `text` outlives the reap.
    let send = unsafe { op::send(fd, text.as_ptr(), 16, op::MSG_NOSIGNAL) };
    assert_eq!(run(&mut ring, &send).res, 16);
    let mut found = [0; 16];
    other.read_exact(&mut found).expect("read");
    assert_eq!(found, text);

    // MSG_WAITALL: two writes, one receive.
    let mut back = [0_u8; 10];
    // SAFETY: `back` outlives the reap and is not touched before.
    let recv = unsafe { op::recv(fd, back.as_mut_ptr(), 10, op::MSG_WAITALL) };
    ring.push(&recv.user_data(9)).expect("room");
    other.write_all(b"01234").expect("write");
    ring.submit().expect("submit");
    other.write_all(b"56789").expect("write");
    let cqe = reap(&mut ring, 1)[0];
    assert_eq!((cqe.user_data, cqe.res, &back), (9, 10, b"0123456789"));

    // SAFETY: as above.
    let recv = unsafe { op::recv(fd, back.as_mut_ptr(), 10, op::MSG_DONTWAIT) };
    assert_eq!(errno(&run(&mut ring, &recv)), Some(libc::EAGAIN));
    drop(other);
    // SAFETY: as above.
    let recv = unsafe { op::recv(fd, back.as_mut_ptr(), 10, 0) };
    assert_eq!(run(&mut ring, &recv).res, 0, "the end of the stream");
}

#[test]
fn messages_of_several_pieces() {
    let Some(mut ring) = ring_with(&[sys::IORING_OP_SENDMSG, sys::IORING_OP_RECVMSG]) else {
        return;
    };
    let (one, other) = pair();
    let mut pieces = [iovec(b"head"), iovec(b" and "), iovec(b"body")];
    let msg = message(&mut pieces);
    // SAFETY: the message and its pieces outlive the reap.
    let send = unsafe { op::sendmsg(open(&one), &raw const msg, op::MSG_NOSIGNAL) };
    assert_eq!(run(&mut ring, &send).res, 13);
    let (mut first, mut second) = ([0_u8; 6], [0_u8; 7]);
    let mut places = [
        libc::iovec {
            iov_base: first.as_mut_ptr().cast(),
            iov_len: 6,
        },
        libc::iovec {
            iov_base: second.as_mut_ptr().cast(),
            iov_len: 7,
        },
    ];
    let mut msg = message(&mut places);
    let fd = open(&other);
    // SAFETY: the message and its places outlive the reap and are not touched before.
    let recv = unsafe { op::recvmsg(fd, &raw mut msg, op::MSG_WAITALL) };
    assert_eq!(run(&mut ring, &recv).res, 13);
    assert_eq!((&first, &second), (b"head a", b"nd body"));
}

/// Reaps both CQEs of a zero-copy send: the count, and the notification that follows if the first says so.
fn sent(ring: &mut Ring<Sqe64, Cqe16>, send: Sqe64, notified: &mut Vec<i32>) -> i32 {
    ring.push(&send.user_data(3)).expect("room");
    let mut cqes: Vec<Cqe16> = Vec::new();
    // One call may deliver both.
    while cqes.last().is_none_or(Cqe16::has_more) {
        let entered = ring.enter(1, DEADLINE).expect("enter");
        cqes.extend(std::iter::from_fn(|| ring.next_cqe()));
        assert!(!entered.timed_out, "{cqes:?}");
    }
    let first = cqes[0];
    assert!(!first.is_notification());
    assert!(
        cqes.iter()
            .skip(1)
            .all(|cqe| cqe.user_data == 3 && cqe.is_notification())
    );
    notified.extend(cqes.iter().skip(1).map(|cqe| cqe.res));
    assert!(cqes.len() <= 2);
    first.res
}

#[test]
fn zero_copy_sends_notify() {
    let Some(mut ring) = ring_with(&[sys::IORING_OP_SEND_ZC, sys::IORING_OP_SENDMSG_ZC]) else {
        return;
    };
    let (one, mut other) = pair();
    let mut memory = vec![0x5a_u8; 8192];
    let base = memory.as_mut_ptr();
    let mut notified = Vec::new();
    let fd = open(&one);
    // The peer reads all the while, or the notification would wait for it.
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; 8192 + 4096 + 100];
        other.read_exact(&mut all).map(|()| all)
    });
    // SAFETY: `memory` outlives the notification.
    let send = unsafe { op::send_zc(fd, base, 8192, op::MSG_NOSIGNAL | op::MSG_WAITALL) };
    let send = op::report_usage(send);
    assert_eq!(sent(&mut ring, send, &mut notified), 8192);
    // SAFETY: `memory` outlives the ring's use of it.
    unsafe { ring.register_buffers(&[(base, 8192)]) }.expect("buffers");
    // SAFETY: inside buffer 0, until the notification.
    let send = unsafe { op::send_zc_fixed(fd, 0, base as u64 + 4096, 4096, op::MSG_WAITALL) };
    assert_eq!(sent(&mut ring, send, &mut notified), 4096);
    let mut pieces = [iovec(&memory[..60]), iovec(&memory[60..100])];
    let msg = message(&mut pieces);
    // SAFETY: the message, its pieces and `memory` outlive the notification.
    let send = unsafe { op::sendmsg_zc(fd, &raw const msg, op::MSG_NOSIGNAL | op::MSG_WAITALL) };
    assert_eq!(sent(&mut ring, send, &mut notified), 100);
    // Loopback copies; nobody asked for the others.
    let copied: Vec<_> = notified.iter().map(|res| op::was_copied(*res)).collect();
    assert_eq!(copied, [true, false, false]);
    let all = reader.join().expect("reader").expect("all of it");
    assert!(all.iter().all(|byte| *byte == 0x5a));
    // SAFETY: outside the registered buffer: refused.
    let send = unsafe { op::send_zc_fixed(fd, 0, base as u64 + 8192, 1, 0) };
    assert_eq!(sent(&mut ring, send, &mut notified), -libc::EFAULT);
}

#[test]
fn registered_buffers_and_sockets() {
    let mut ring = ring::<Sqe64, Cqe16>(8);
    let (one, other) = pair();
    let mut memory = vec![0_u8; 8192];
    memory[..4096].fill(0x77);
    let base = memory.as_mut_ptr();
    // SAFETY: `memory` outlives the ring's use of it: everything is reaped before the end.
    unsafe { ring.register_buffers(&[(base, 4096), (base.wrapping_add(4096), 4096)]) }
        .expect("buffers");
    // SAFETY: inside buffer 0.
    let write = unsafe { op::write_fixed(open(&one), 0, base as u64, 300, 0) };
    assert_eq!(run(&mut ring, &write).res, 300);
    // SAFETY: inside buffer 1.
    let read = unsafe { op::read_fixed(open(&other), 1, base as u64 + 4096, 300, 0) };
    assert_eq!(run(&mut ring, &read).res, 300);
    drop(ring);
    assert_eq!(memory[4096..4396], [0x77; 300]);
    assert_eq!(memory[4396], 0);
}

#[test]
fn connect_and_accept_with_the_address() {
    let Some(mut ring) = ring_with(&[
        sys::IORING_OP_CONNECT,
        sys::IORING_OP_ACCEPT,
        sys::IORING_OP_SOCKET,
    ]) else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let to = address(listener.local_addr().expect("address"));
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    let entry = op::socket(libc::AF_INET, kind.cast_unsigned(), 0);
    let socket = owned(&run(&mut ring, &entry));
    let mut from = libc::sockaddr_in {
        sin_port: 0,
        ..address("0.0.0.0:0".parse().expect("an address"))
    };
    let mut len = size_of_address();
    let flags = libc::SOCK_CLOEXEC.cast_unsigned();
    let listening = open(&listener);
    let place = (&raw mut from).cast::<libc::sockaddr>();
    // SAFETY: `from` and `len` outlive the reap.
    let accept = unsafe { op::accept(listening, place, &raw mut len, flags) };
    ring.push(&accept.user_data(1)).expect("room");
    let name = (&raw const to).cast::<libc::sockaddr>();
    // SAFETY: `to` lives until the entry is submitted.
    let connect = unsafe { op::connect(open(&socket), name, size_of_address()) };
    ring.push(&connect.user_data(2)).expect("room");
    let cqes = reap(&mut ring, 2);
    let of = |id| {
        *cqes
            .iter()
            .find(|cqe| cqe.user_data == id)
            .expect("one each")
    };
    assert_eq!(of(2).res, 0);
    let accepted = TcpStream::from(owned(&of(1)));
    let connected = TcpStream::from(socket);
    assert_eq!(
        accepted.peer_addr().expect("peer"),
        connected.local_addr().expect("own")
    );
    assert_eq!(
        u16::from_be(from.sin_port),
        connected.local_addr().expect("own").port()
    );
    assert_eq!(len, size_of_address());
}

#[test]
fn multishot_accept_goes_on_until_cancelled() {
    let Some(mut ring) = ring_with(&[sys::IORING_OP_ACCEPT]) else {
        return;
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let at = listener.local_addr().expect("address");
    let listening = open(&listener);
    ring.push(&op::accept_multishot(listening, 0).user_data(4))
        .expect("room");
    ring.submit().expect("submit");
    for _ in 0..3 {
        let client = TcpStream::connect(at).expect("connect");
        let cqe = reap(&mut ring, 1)[0];
        assert!(cqe.has_more(), "it goes on");
        let accepted = TcpStream::from(owned(&cqe));
        assert_eq!(
            accepted.peer_addr().expect("peer"),
            client.local_addr().expect("own")
        );
    }
    ring.push(&op::async_cancel_file(listening).user_data(5))
        .expect("room");
    let mut ended: Vec<_> = reap(&mut ring, 2)
        .iter()
        .map(|c| (c.user_data, c.res, c.has_more()))
        .collect();
    ended.sort_unstable();
    assert_eq!(ended, [(4, -libc::ECANCELED, false), (5, 1, false)]);
}

#[test]
fn shutdown_and_close() {
    let Some(mut ring) = ring_with(&[sys::IORING_OP_SHUTDOWN, sys::IORING_OP_CLOSE]) else {
        return;
    };
    let (one, mut other) = pair();
    let fd = open(&one);
    assert_eq!(run(&mut ring, &op::shutdown(fd, 1)).res, 0);
    assert_eq!(other.read(&mut [0; 4]).expect("end of stream"), 0);
    // The other direction still works.
    other.write_all(b"x").expect("write");
    let mut byte = [0_u8; 1];
    // SAFETY: `byte` outlives the reap.
    let recv = unsafe { op::recv(fd, byte.as_mut_ptr(), 1, 0) };
    assert_eq!((run(&mut ring, &recv).res, byte), (1, *b"x"));

    ring.register_files_sparse(2).expect("files");
    assert_eq!(ring.update_files(1, &[Some(one.as_fd())]), Ok(1));
    assert_eq!(run(&mut ring, &op::close_registered(1)).res, 0);
    assert_eq!(
        errno(&run(&mut ring, &op::close_registered(1))),
        Some(libc::EBADF)
    );
    ring.push_close(one.into(), 0).expect("room");
    assert_eq!(reap(&mut ring, 1)[0].res, 0);
    other
        .write_all(b"y")
        .or_else(|error| {
            // The far end is closed: a reset may come at once or with the next write.
            (error.kind() == std::io::ErrorKind::BrokenPipe)
                .then_some(())
                .ok_or(error)
        })
        .expect("write");
    // Data may be left to read, but nothing more is written.
    assert!(!matches!(other.read(&mut [0; 4]), Ok(n) if n > 0));
}

#[test]
fn a_receive_is_cancelled_by_user_data_file_and_all() {
    let Some(mut ring) = ring_with(&[sys::IORING_OP_RECV, sys::IORING_OP_ASYNC_CANCEL]) else {
        return;
    };
    let (one, _other) = pair();
    ring.register_files(&[one.as_fd()]).expect("files");
    let (raw, slot) = (open(&one), Fd::registered(0));
    let mut places = [[0_u8; 8]; 2];
    let cases: [(Fd, Sqe64, i32, usize); 6] = [
        (raw, op::async_cancel(7), 0, 1),
        (slot, op::async_cancel(7), 0, 1),
        (raw, op::async_cancel_all(7), 2, 2),
        (raw, op::async_cancel_file(raw), 2, 2),
        (slot, op::async_cancel_file(slot), 2, 2),
        (slot, op::async_cancel_any(), 2, 2),
    ];
    for (n, (fd, cancel, res, count)) in cases.into_iter().enumerate() {
        for place in places.iter_mut().take(count) {
            // SAFETY: `places` outlives the reap.
            let recv = unsafe { op::recv(fd, place.as_mut_ptr(), 8, 0) };
            ring.push(&recv.user_data(7)).expect("room");
        }
        ring.submit().expect("submit");
        ring.push(&cancel.user_data(8)).expect("room");
        for cqe in reap(&mut ring, count + 1) {
            let expected = if cqe.user_data == 8 {
                res
            } else {
                -libc::ECANCELED
            };
            assert_eq!(cqe.res, expected, "case {n}, user_data {}", cqe.user_data);
        }
    }
    assert_eq!(
        errno(&run(&mut ring, &op::async_cancel(7))),
        Some(libc::ENOENT)
    );
    assert_eq!(run(&mut ring, &op::async_cancel_file(raw)).res, 0);
}

#[test]
fn a_linked_timeout_ends_what_takes_too_long() {
    let Some(mut ring) = ring_with(&[sys::IORING_OP_LINK_TIMEOUT, sys::IORING_OP_RECV]) else {
        return;
    };
    let (one, mut other) = pair();
    let fd = open(&one);
    let mut byte = [0_u8; 1];
    for (millis, data) in [(5, false), (10_000, true)] {
        let ts = op::Timespec {
            tv_sec: millis / 1000,
            tv_nsec: millis % 1000 * 1_000_000,
        };
        // SAFETY: `byte` outlives the reap.
        let recv = unsafe { op::recv(fd, byte.as_mut_ptr(), 1, 0) }
            .user_data(1)
            .flags(SqeFlags::LINK);
        // SAFETY: `ts` lives until the entries are submitted.
        let limit = unsafe { op::link_timeout(&raw const ts) }.user_data(2);
        ring.push_linked(&[recv, limit]).expect("room");
        ring.submit().expect("submit");
        if data {
            other.write_all(b"z").expect("write");
        }
        let mut results: Vec<_> = reap(&mut ring, 2)
            .iter()
            .map(|c| (c.user_data, c.res))
            .collect();
        results.sort_unstable();
        let expected = if data {
            [(1, 1), (2, -libc::ECANCELED)]
        } else {
            [(1, -libc::ECANCELED), (2, -libc::ETIME)]
        };
        assert_eq!(results, expected);
    }
    assert!(one.as_raw_fd() >= 0);
}
