use uring_lite::sys;

use super::*;
use crate::operations::RingId;

fn registered() -> BufferLocation {
    BufferLocation::Registered {
        ring: RingId::next(),
        index: 3,
        offset: 512,
        len: 4096,
    }
}

fn made(kind: Kind) -> Result<Sqe64, Errno> {
    let (fd, mut scratch) = (Fd::registered(0), Scratch::new());
    // SAFETY: names a registered buffer, and is never submitted.
    unsafe { entry(&kind, fd, Some(registered()), &mut scratch) }
}

/// L11 Flags of sends and receives reach the kernel or the caller's eyes, in zero copy too.
#[test]
fn l11_no_flag_is_dropped_in_silence() {
    const MORE: u32 = libc::MSG_MORE.cast_unsigned();
    for flags in [MORE, op::MSG_WAITALL, MORE | op::MSG_WAITALL] {
        let sqe = made(Kind::Send(flags)).expect("zero-copy sends take flags");
        let raw = sqe.as_raw();
        assert_eq!(raw.opcode, sys::IORING_OP_SEND_ZC);
        assert_eq!(raw.rw_flags, flags | op::MSG_NOSIGNAL);
        assert_eq!((raw.buf_index, raw.addr, raw.len), (3, 512, 4096));
    }
    let sqe = made(Kind::Send(0)).expect("any socket takes a write");
    assert_eq!(sqe.as_raw().opcode, sys::IORING_OP_WRITE_FIXED);
    let sqe = made(Kind::Recv(0)).expect("any socket takes a read");
    assert_eq!(sqe.as_raw().opcode, sys::IORING_OP_READ_FIXED);
    for flags in [op::MSG_WAITALL, libc::MSG_PEEK.cast_unsigned()] {
        assert_eq!(made(Kind::Recv(flags)).err(), Some(Errno::EOPNOTSUPP));
    }
}

/// L09 A send after whose completion the network still reads the buffer is refused.
#[test]
fn l09_a_send_that_outlives_its_completion_is_refused() {
    for send in [
        Kind::Send,
        Kind::SendZeroCopy,
        Kind::SendPieces,
        Kind::SendPiecesZeroCopy,
    ] {
        let kind = send(op::MSG_ZEROCOPY | op::MSG_DONTWAIT);
        assert_eq!(made(kind).err(), Some(Errno::EINVAL));
    }
}
