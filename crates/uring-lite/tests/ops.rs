//! Operations on the running kernel.
#![expect(
    unsafe_code,
    reason = "entries that name memory are unsafe to make; every buffer outlives its reap"
)]

mod common;

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use common::{DEADLINE, open, reap, ring, run, skip};
use uring_lite::{Cqe16, Cqe32, Errno, Fd, RegisterError, Ring, Sqe64, Sqe128, SqeFlags, op, sys};

fn errno(cqe: &Cqe16) -> Option<i32> {
    cqe.result().err().map(Errno::get)
}

#[test]
fn probe_knows_the_operations() {
    let ring = ring::<Sqe64, Cqe16>(2);
    let probe = ring.probe().expect("probe");
    assert!(probe.supports(sys::IORING_OP_NOP) && probe.supports(sys::IORING_OP_URING_CMD));
    assert!(!probe.supports(255));
}

#[test]
fn files_are_written_synced_and_read() {
    let mut ring = ring::<Sqe64, Cqe16>(4);
    let file = tempfile::tempfile().expect("file");
    let (text, mut back) = (*b"hello, ring", [0_u8; 11]);
    let fd = open(&file);
    // SAFETY: `text` lives until the chain has completed below.
    let write = unsafe { op::write(fd, text.as_ptr(), 11, 4096) }
        .user_data(1)
        .flags(SqeFlags::LINK);
    let sync = op::fsync(fd, true).user_data(2).flags(SqeFlags::LINK);
    // SAFETY: `back` lives until the chain has completed below, and is not touched before.
    let read = unsafe { op::read(fd, back.as_mut_ptr(), 11, 4096) }.user_data(3);
    ring.push_linked(&[write, sync, read]).expect("room");
    let results: Vec<_> = reap(&mut ring, 3)
        .iter()
        .map(|c| (c.user_data, c.res))
        .collect();
    assert_eq!(results, [(1, 11), (2, 0), (3, 11)]);
    assert_eq!(back, text);
    assert_eq!(run(&mut ring, &op::fallocate(fd, 0, 0, 16384)).res, 0);
    assert_eq!(file.metadata().expect("metadata").len(), 16384);
}

#[test]
fn registered_buffers_are_read_and_written() {
    let mut ring = ring::<Sqe64, Cqe16>(4);
    let mut file = tempfile::tempfile().expect("file");
    let mut memory = vec![7_u8; 8192];
    let base = memory.as_mut_ptr();
    // SAFETY: `memory` outlives the ring's use of it: everything is reaped before the end.
    unsafe { ring.register_buffers(&[(base, 4096), (base.wrapping_add(4096), 4096)]) }
        .expect("buffers");
    let fd = open(&file);
    // SAFETY: inside buffer 0.
    let write = unsafe { op::write_fixed(fd, 0, base as u64, 100, 0) };
    assert_eq!(run(&mut ring, &write).res, 100);
    // SAFETY: inside buffer 1.
    let read = unsafe { op::read_fixed(fd, 1, base as u64 + 4096, 100, 50) };
    assert_eq!(run(&mut ring, &read).res, 50);
    // SAFETY: the kernel refuses what is outside the buffer.
    let outside = unsafe { op::read_fixed(fd, 1, base as u64, 100, 0) };
    assert_eq!(errno(&run(&mut ring, &outside)), Some(libc::EFAULT));
    ring.unregister_buffers().expect("unregister");
    let mut back = Vec::new();
    file.seek(SeekFrom::Start(0)).expect("seek");
    file.read_to_end(&mut back).expect("read");
    assert_eq!(back, [7; 100]);
}

#[test]
fn sparse_buffers_are_registered_once_and_empty() {
    let mut ring = ring::<Sqe64, Cqe16>(4);
    ring.register_buffers_sparse(128).expect("sparse");
    assert!(matches!(
        ring.register_buffers_sparse(128),
        Err(RegisterError::Exists { .. })
    ));
    let file = tempfile::tempfile().expect("file");
    // SAFETY: the slot is empty, so no memory is touched.
    let read = unsafe { op::read_fixed(open(&file), 5, 0, 1, 0) };
    assert_eq!(errno(&run(&mut ring, &read)), Some(libc::EFAULT));
    ring.unregister_buffers().expect("unregister");
    assert!(matches!(
        ring.unregister_buffers(),
        Err(RegisterError::Call { .. })
    ));
    assert!(matches!(
        ring.register_buffers_sparse(1 << 20),
        Err(RegisterError::Refused { .. })
    ));
}

#[test]
fn registered_files_are_used_updated_and_emptied() {
    let mut ring = ring::<Sqe64, Cqe16>(4);
    let files: Vec<File> = (0_u8..2)
        .map(|i| {
            let mut file = tempfile::tempfile().expect("file");
            file.write_all(&[b'a' + i; 8]).expect("write");
            file
        })
        .collect();
    let read = |ring: &mut Ring, slot| {
        let mut back = [0_u8; 8];
        // SAFETY: `back` lives until `run` has reaped the read.
        let cqe = run(ring, &unsafe {
            op::read(Fd::registered(slot), back.as_mut_ptr(), 8, 0)
        });
        cqe.result().map(|_| back[0]).map_err(Errno::get)
    };
    ring.register_files(&[files[0].as_fd()]).expect("files");
    assert_eq!(read(&mut ring, 0), Ok(b'a'));
    assert!(matches!(
        ring.register_files_sparse(4),
        Err(RegisterError::Exists { .. })
    ));
    ring.unregister_files().expect("unregister");
    ring.register_files_sparse(4).expect("sparse");
    assert_eq!(read(&mut ring, 3), Err(libc::EBADF));
    assert_eq!(
        ring.update_files(2, &[Some(files[0].as_fd()), Some(files[1].as_fd())]),
        Ok(2)
    );
    assert_eq!(
        (read(&mut ring, 2), read(&mut ring, 3)),
        (Ok(b'a'), Ok(b'b'))
    );
    assert_eq!(ring.update_files(2, &[None]), Ok(1));
    assert_eq!(read(&mut ring, 2), Err(libc::EBADF));
}

#[test]
fn poll_multishot_and_cancel() {
    let mut ring = ring::<Sqe64, Cqe16>(4);
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    ring.push(&op::poll_add(open(&reader), op::POLL_IN, true).user_data(5))
        .expect("room");
    ring.submit().expect("submit");
    for _ in 0..2 {
        writer.write_all(b"x").expect("write");
        let cqe = reap(&mut ring, 1)[0];
        assert_eq!(
            (
                cqe.user_data,
                cqe.res.cast_unsigned() & op::POLL_IN,
                cqe.has_more()
            ),
            (5, op::POLL_IN, true)
        );
    }
    ring.push(&op::async_cancel(5).user_data(6)).expect("room");
    let mut ended: Vec<_> = reap(&mut ring, 2)
        .iter()
        .map(|c| (c.user_data, c.res, c.has_more()))
        .collect();
    ended.sort_unstable();
    assert_eq!(ended, [(5, -libc::ECANCELED, false), (6, 0, false)]);
    assert_eq!(
        errno(&run(&mut ring, &op::async_cancel(5).user_data(7))),
        Some(libc::ENOENT)
    );
}

#[test]
fn timeouts_as_operations() {
    let mut ring = ring::<Sqe64, Cqe16>(4);
    let ts = op::Timespec {
        tv_sec: 0,
        tv_nsec: 1_000_000,
    };
    // SAFETY: `ts` lives until the entry is submitted.
    let entry = unsafe { op::timeout(&raw const ts, 0) };
    assert_eq!(errno(&run(&mut ring, &entry)), Some(libc::ETIME));
}

#[test]
fn timeouts_by_the_clock_and_removed() {
    let mut ring = ring::<Sqe64, Cqe16>(4);
    // An absolute time in the past expires at once.
    let past = op::Timespec {
        tv_sec: 5,
        tv_nsec: 0,
    };
    let start = std::time::Instant::now();
    // SAFETY: `past` lives until the entry is submitted.
    let entry = unsafe { op::timeout_absolute(&raw const past, 0) };
    assert_eq!(errno(&run(&mut ring, &entry)), Some(libc::ETIME));
    assert!(start.elapsed() < std::time::Duration::from_secs(4));

    let late = op::Timespec {
        tv_sec: 1000,
        tv_nsec: 0,
    };
    // SAFETY: `late` lives until the entry is submitted.
    let entry = unsafe { op::timeout(&raw const late, 0) };
    ring.push(&entry.user_data(1)).expect("room");
    ring.submit().expect("submit");
    ring.push(&op::timeout_remove(1).user_data(2))
        .expect("room");
    let mut ended: Vec<_> = reap(&mut ring, 2)
        .iter()
        .map(|c| (c.user_data, c.res))
        .collect();
    ended.sort_unstable();
    assert_eq!(ended, [(1, -libc::ECANCELED), (2, 0)]);
    assert_eq!(
        errno(&run(&mut ring, &op::timeout_remove(1))),
        Some(libc::ENOENT)
    );
}

#[test]
fn a_poll_is_removed() {
    let mut ring = ring::<Sqe64, Cqe16>(4);
    let (reader, _writer) = std::io::pipe().expect("pipe");
    ring.push(&op::poll_add(open(&reader), op::POLL_IN, false).user_data(1))
        .expect("room");
    ring.submit().expect("submit");
    ring.push(&op::poll_remove(1).user_data(2)).expect("room");
    let mut ended: Vec<_> = reap(&mut ring, 2)
        .iter()
        .map(|c| (c.user_data, c.res))
        .collect();
    ended.sort_unstable();
    assert_eq!(ended, [(1, -libc::ECANCELED), (2, 0)]);
    assert_eq!(
        errno(&run(&mut ring, &op::poll_remove(1))),
        Some(libc::ENOENT)
    );
}

#[test]
fn files_are_read_and_written_in_pieces() {
    let mut ring = ring::<Sqe64, Cqe16>(4);
    let file = tempfile::tempfile().expect("file");
    let fd = open(&file);
    let piece = |bytes: &mut [u8]| libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let (mut one, mut two) = (*b"one,", *b"two pieces");
    let pieces = [piece(&mut one), piece(&mut two)];
    // SAFETY: pieces and memory outlive the reap.
    let write = unsafe { op::writev(fd, pieces.as_ptr(), 2, 512) };
    assert_eq!(run(&mut ring, &write).res, 14);
    let (mut first, mut second) = ([0_u8; 10], [0_u8; 10]);
    let places = [piece(&mut first), piece(&mut second)];
    // SAFETY: places and memory outlive the reap, and are not touched before.
    let read = unsafe { op::readv(fd, places.as_ptr(), 2, 512) };
    assert_eq!(run(&mut ring, &read).res, 14);
    assert_eq!((&first, &second[..4]), (b"one,two pi", &b"eces"[..]));
}

#[test]
fn messages_go_between_two_rings() {
    let mut from = ring::<Sqe64, Cqe16>(4);
    let (send_fd, fd) = std::sync::mpsc::channel();
    let receiver = std::thread::spawn(move || {
        let mut to = ring::<Sqe64, Cqe16>(4);
        send_fd
            .send(to.as_fd().try_clone_to_owned().expect("dup"))
            .expect("send");
        let cqe = reap(&mut to, 1)[0];
        (cqe.user_data, cqe.res)
    });
    let to = fd
        .recv_timeout(DEADLINE.expect("some"))
        .expect("the other ring");
    assert_eq!(
        run(
            &mut from,
            // SAFETY: the test owns the target ring, too, and expects this completion.
            &unsafe { op::msg_ring(open(&to), 0xabcd_0000_1234, 42) }.user_data(1)
        )
        .res,
        0
    );
    assert_eq!(receiver.join().expect("receiver"), (0xabcd_0000_1234, 42));
}

/// L57 a popped CQE is a copy: it stays the same when the kernel overwrites its slot.
#[test]
fn l57_a_popped_cqe_is_a_copy() {
    let mut ring = Ring::<Sqe64, Cqe32>::builder(1).build().expect("ring");
    let mut kept = Vec::new();
    for id in 0..100 {
        ring.push(&op::nop().user_data(id)).expect("room");
        kept.extend(reap(&mut ring, 1));
    }
    assert!(kept.iter().zip(0..).all(|(cqe, id)| cqe.user_data == id));
}

/// L58 the command area starts at byte 48: 16 bytes of a 64-byte entry, 80 of a 128-byte entry.
#[test]
fn l58_the_command_area_starts_at_byte_48() {
    let payload: [u8; 80] = std::array::from_fn(|i| u8::try_from(i + 1).expect("small"));
    let short = *payload.first_chunk::<16>().expect("16 bytes");
    // SAFETY: not pushed.
    let small = unsafe { op::uring_cmd(Fd::registered(3), 0x1122, &short) };
    // SAFETY: not pushed.
    let large = unsafe { op::uring_cmd128(Fd::registered(3), 0x1122, &payload) };
    // SAFETY: 64 bytes without padding.
    let small: [u8; 64] = unsafe { std::mem::transmute(small) };
    // SAFETY: 128 bytes without padding.
    let large: [u8; 128] = unsafe { std::mem::transmute(large) };
    assert_eq!(small[48..], short);
    assert_eq!(large[48..], payload);
    for sqe in [&small[..], &large[..]] {
        assert_eq!(sqe[..2], [sys::IORING_OP_URING_CMD, sys::IOSQE_FIXED_FILE]);
        assert_eq!(sqe[4..8], 3_u32.to_ne_bytes());
        assert_eq!(sqe[8..12], 0x1122_u32.to_ne_bytes());
        // Bytes 12 to 15 must be zero, or drivers answer EINVAL.
        assert_eq!(sqe[12..16], [0; 4]);
    }
}

/// L58 on the kernel: commands of both sizes reach a driver, or fail with the errno of a file without one.
#[test]
fn l58_commands_reach_the_driver() {
    let file = tempfile::tempfile().expect("file");
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .expect("/dev/null");
    let mut small = ring::<Sqe64, Cqe16>(4);
    let mut large = ring::<Sqe128, Cqe16>(4);
    for (file, expected) in [(file.as_fd(), Err(libc::EOPNOTSUPP)), (null.as_fd(), Ok(0))] {
        // SAFETY: neither file's driver looks at the payload.
        let cqe = run(
            &mut small,
            &unsafe { op::uring_cmd(open(&file), 0, &[0xff; 16]) }.user_data(1),
        );
        assert_eq!(cqe.result().map_err(Errno::get), expected);
        // SAFETY: as above.
        let cqe = run(
            &mut large,
            &unsafe { op::uring_cmd128(open(&file), 0, &[0xff; 80]) }.user_data(2),
        );
        assert_eq!(cqe.result().map_err(Errno::get), expected);
    }
    // A driver that answers: SOCKET_URING_OP_SIOCINQ (0) returns the number of bytes that a socket has ready (6.7).
    let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
    socket
        .connect(socket.local_addr().expect("address"))
        .expect("connect");
    socket.send(b"12345").expect("send");
    // SAFETY: this command names no memory.
    let cqe = run(&mut large, &unsafe {
        op::uring_cmd128(open(&socket), 0, &[0; 80])
    });
    if errno(&cqe) == Some(libc::EOPNOTSUPP) {
        return skip("sockets have no commands before linux 6.7");
    }
    assert_eq!(cqe.res, 5);
}

#[test]
fn a_buffer_ring_provides_in_order() {
    let mut ring = ring::<Sqe64, Cqe16>(4);
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    let mut memory = vec![[0_u8; 64]; 4];
    let mut bufs = ring.register_buf_ring(9, 4, false).expect("buffer ring");
    for (bid, buf) in (0..).zip(&mut memory) {
        // SAFETY: `memory` outlives the reads, which are all reaped.
        unsafe { bufs.add(NonNull::from(buf).cast(), 64, bid) }.expect("room");
    }
    // SAFETY: refused.
    assert!(unsafe { bufs.add(NonNull::from(&mut memory[0]).cast(), 64, 9) }.is_err());
    bufs.advance();
    // SAFETY: the buffer comes from the group.
    let read = unsafe { op::read(open(&reader), std::ptr::null_mut(), 0, u64::MAX) }
        .flags(SqeFlags::BUFFER_SELECT);
    // SAFETY: the contract of `add`.
    let read = unsafe { read.buf_index(bufs.bgid()) };
    // Around the ring more than twice: the tail wraps over the first entry, which also holds it.
    for i in 0_u8..10 {
        writer.write_all(&[i; 5]).expect("write");
        let cqe = run(&mut ring, &read);
        assert_eq!((cqe.res, cqe.buffer_id()), (5, Some(u16::from(i % 4))));
        let at = usize::from(i % 4);
        // SAFETY: a live array that the kernel has handed back.
        let found = unsafe { std::ptr::read_volatile(&raw const memory[at]) };
        assert_eq!(found[..5], [i; 5]);
        bufs.taken();
        // SAFETY: as above.
        unsafe { bufs.add(NonNull::from(&mut memory[at]).cast(), 64, u16::from(i % 4)) }
            .expect("room");
        bufs.advance();
    }
    assert!(matches!(
        ring.register_buf_ring(9, 4, false),
        Err(RegisterError::Exists { .. })
    ));
    assert!(matches!(
        ring.register_buf_ring(10, 3, false),
        Err(RegisterError::Refused { .. })
    ));
    ring.unregister_buf_ring(bufs).expect("unregister");
    writer.write_all(b"x").expect("write");
    assert_eq!(errno(&run(&mut ring, &read)), Some(libc::ENOBUFS));
}

#[test]
fn an_incremental_buffer_ring_fills_one_buffer_bit_by_bit() {
    let mut ring = ring::<Sqe64, Cqe16>(4);
    let mut bufs = match ring.register_buf_ring(1, 2, true) {
        Err(RegisterError::Refused { since, .. }) => return skip(&format!("needs linux {since}")),
        other => other.expect("buffer ring"),
    };
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    let mut memory = [0_u8; 8];
    // SAFETY: `memory` outlives the reads, which are all reaped.
    unsafe { bufs.add(NonNull::from(&mut memory).cast(), 8, 77) }.expect("room");
    bufs.advance();
    // SAFETY: the buffer comes from the group.
    let read = unsafe { op::read(open(&reader), std::ptr::null_mut(), 0, u64::MAX) }
        .flags(SqeFlags::BUFFER_SELECT);
    // SAFETY: the contract of `add`.
    let read = unsafe { read.buf_index(1) };
    for (text, more) in [(b"abc", true), (b"def", true)] {
        writer.write_all(text).expect("write");
        let cqe = run(&mut ring, &read);
        assert_eq!((cqe.res, cqe.buffer_id()), (3, Some(77)));
        assert_eq!(cqe.flags & sys::IORING_CQE_F_BUF_MORE != 0, more);
    }
    writer.write_all(b"gh").expect("write");
    let cqe = run(&mut ring, &read);
    assert_eq!((cqe.res, cqe.flags & sys::IORING_CQE_F_BUF_MORE), (2, 0));
    assert_eq!(&memory, b"abcdefgh");
}
