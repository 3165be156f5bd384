//! Structures shared with the kernel, each with its layout asserted.

use static_assertions::const_assert_eq;

/// Name, size in bytes, alignment, and the fields: name, offset and size in bytes.
pub type Struct = (
    &'static str,
    usize,
    usize,
    &'static [(&'static str, usize, usize)],
);

/// Size of the field that `_get` borrows.
const fn size_of_field<T, F>(_get: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! layout {
    ($name:ident, $size:literal, $align:literal, $rows:ident,
     { $($field:ident: $offset:literal, $width:literal;)* } $(also { $($alias:ident: $at:literal, $len:literal;)* })?) => {
        const_assert_eq!(size_of::<$name>(), $size);
        const_assert_eq!(align_of::<$name>(), $align);
        $(const_assert_eq!(memoffset::offset_of!($name, $field), $offset);
        const_assert_eq!(size_of_field(|s: &$name| &s.$field), $width);)*
        pub(super) const $rows: Struct = (
            stringify!($name),
            $size,
            $align,
            &[$((stringify!($field), $offset, $width),)* $($((stringify!($alias), $at, $len),)*)?],
        );
    };
}

/// Submission queue entry; the first 64 bytes of a 128-byte entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct io_uring_sqe {
    /// `IORING_OP_*`.
    pub opcode: u8,
    /// `IOSQE_*`.
    pub flags: u8,
    /// Priority; flags for some operations; 0 for commands.
    pub ioprio: u16,
    /// Descriptor, or index with `IOSQE_FIXED_FILE`.
    pub fd: i32,
    /// File offset; also `addr2`, and `cmd_op` in its first four bytes, followed by zero.
    pub off: u64,
    /// Address, or `user_data` of a request to cancel.
    pub addr: u64,
    /// Length in bytes, or a count.
    pub len: u32,
    /// Flags of the operation; also `uring_cmd_flags`, `fsync_flags`, `poll32_events`, `timeout_flags`, …
    pub rw_flags: u32,
    /// Returned in the CQE.
    pub user_data: u64,
    /// Registered buffer; also `buf_group`.
    pub buf_index: u16,
    /// Registered credentials, 0 for the caller's.
    pub personality: u16,
    /// Registered file slot for operations that create a file.
    pub file_index: u32,
    /// First 16 bytes of the command area; also `addr3`.
    pub cmd: [u8; 16],
}

layout!(io_uring_sqe, 64, 8, SQE, {
    opcode: 0, 1; flags: 1, 1; ioprio: 2, 2; fd: 4, 4; off: 8, 8; addr: 16, 8; len: 24, 4; rw_flags: 28, 4;
    user_data: 32, 8; buf_index: 40, 2; personality: 42, 2; file_index: 44, 4;
} also {
    cmd_op: 8, 4; uring_cmd_flags: 28, 4; fsync_flags: 28, 4; poll32_events: 28, 4; timeout_flags: 28, 4;
    cancel_flags: 28, 4; msg_ring_flags: 28, 4; msg_flags: 28, 4; accept_flags: 28, 4; addr2: 8, 8; buf_group: 40, 2;
    addr_len: 44, 2; addr3: 48, 8;
});
// C says `__u8 cmd[0]`: its size can't be compared, its place can.
const_assert_eq!(memoffset::offset_of!(io_uring_sqe, cmd), 48);

/// Completion queue entry; the first 16 bytes of a 32-byte entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct io_uring_cqe {
    /// `user_data` of the SQE.
    pub user_data: u64,
    /// Result, or a negative errno.
    pub res: i32,
    /// `IORING_CQE_F_*`.
    pub flags: u32,
}

layout!(io_uring_cqe, 16, 8, CQE, { user_data: 0, 8; res: 8, 4; flags: 12, 4; });

/// Offsets of the SQ ring's fields in its mapping, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct io_sqring_offsets {
    /// Index of the next entry that the kernel takes.
    pub head: u32,
    /// Index after the last published entry.
    pub tail: u32,
    /// Number of entries less one.
    pub ring_mask: u32,
    /// Number of entries.
    pub ring_entries: u32,
    /// `IORING_SQ_*`.
    pub flags: u32,
    /// Number of entries that the kernel rejected as invalid.
    pub dropped: u32,
    /// Array of SQE indices; unused with `IORING_SETUP_NO_SQARRAY`.
    pub array: u32,
    /// Reserved.
    pub resv1: u32,
    /// Address of the ring for `IORING_SETUP_NO_MMAP`.
    pub user_addr: u64,
}

layout!(io_sqring_offsets, 40, 8, SQ_OFF, {
    head: 0, 4; tail: 4, 4; ring_mask: 8, 4; ring_entries: 12, 4; flags: 16, 4; dropped: 20, 4; array: 24, 4;
    resv1: 28, 4; user_addr: 32, 8;
});

/// Offsets of the CQ ring's fields in its mapping, in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct io_cqring_offsets {
    /// Index of the next entry that the application reads.
    pub head: u32,
    /// Index after the last entry that the kernel wrote.
    pub tail: u32,
    /// Number of entries less one.
    pub ring_mask: u32,
    /// Number of entries.
    pub ring_entries: u32,
    /// Number of CQEs that did not fit and could not be kept.
    pub overflow: u32,
    /// The entries.
    pub cqes: u32,
    /// `IORING_CQ_*`.
    pub flags: u32,
    /// Reserved.
    pub resv1: u32,
    /// Address of the ring for `IORING_SETUP_NO_MMAP`.
    pub user_addr: u64,
}

layout!(io_cqring_offsets, 40, 8, CQ_OFF, {
    head: 0, 4; tail: 4, 4; ring_mask: 8, 4; ring_entries: 12, 4; overflow: 16, 4; cqes: 20, 4; flags: 24, 4;
    resv1: 28, 4; user_addr: 32, 8;
});

/// Argument of `io_uring_setup`, filled in by the kernel.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct io_uring_params {
    /// SQ entries granted.
    pub sq_entries: u32,
    /// CQ entries granted; requested with `IORING_SETUP_CQSIZE`.
    pub cq_entries: u32,
    /// `IORING_SETUP_*`.
    pub flags: u32,
    /// CPU of the kernel's polling thread.
    pub sq_thread_cpu: u32,
    /// Idle time of the kernel's polling thread in milliseconds.
    pub sq_thread_idle: u32,
    /// `IORING_FEAT_*`.
    pub features: u32,
    /// Ring whose workers to share.
    pub wq_fd: u32,
    /// Zero.
    pub resv: [u32; 3],
    /// SQ ring.
    pub sq_off: io_sqring_offsets,
    /// CQ ring.
    pub cq_off: io_cqring_offsets,
}

layout!(io_uring_params, 120, 8, PARAMS, {
    sq_entries: 0, 4; cq_entries: 4, 4; flags: 8, 4; sq_thread_cpu: 12, 4; sq_thread_idle: 16, 4; features: 20, 4;
    wq_fd: 24, 4; resv: 28, 12; sq_off: 40, 40; cq_off: 80, 40;
});

/// Argument of `io_uring_enter` with `IORING_ENTER_EXT_ARG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct io_uring_getevents_arg {
    /// Address of a signal mask, or 0.
    pub sigmask: u64,
    /// Size of the mask in bytes.
    pub sigmask_sz: u32,
    /// Minimum time to wait for more than one event (6.12; `pad` before).
    pub min_wait_usec: u32,
    /// Address of a `__kernel_timespec`, or 0.
    pub ts: u64,
}

layout!(io_uring_getevents_arg, 24, 8, GETEVENTS, {
    sigmask: 0, 8; sigmask_sz: 8, 4; min_wait_usec: 12, 4; ts: 16, 8;
});

/// Seconds and nanoseconds, 64 bits each on every architecture (`linux/time_types.h`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct __kernel_timespec {
    /// Seconds.
    pub tv_sec: i64,
    /// Nanoseconds, below 10⁹.
    pub tv_nsec: i64,
}

layout!(__kernel_timespec, 16, 8, TIMESPEC, { tv_sec: 0, 8; tv_nsec: 8, 8; });

/// Argument of `IORING_REGISTER_FILES2` and `IORING_REGISTER_BUFFERS2`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct io_uring_rsrc_register {
    /// Number of slots.
    pub nr: u32,
    /// `IORING_RSRC_REGISTER_SPARSE`.
    pub flags: u32,
    /// Zero.
    pub resv2: u64,
    /// Address of descriptors or iovecs, 0 when sparse.
    pub data: u64,
    /// Address of tags, or 0.
    pub tags: u64,
}

layout!(io_uring_rsrc_register, 32, 8, RSRC, { nr: 0, 4; flags: 4, 4; resv2: 8, 8; data: 16, 8; tags: 24, 8; });

/// Argument of `IORING_REGISTER_RING_FDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct io_uring_rsrc_update {
    /// Slot; all ones lets the kernel choose.
    pub offset: u32,
    /// Zero.
    pub resv: u32,
    /// The ring's descriptor.
    pub data: u64,
}

layout!(io_uring_rsrc_update, 16, 8, UPDATE, { offset: 0, 4; resv: 4, 4; data: 8, 8; });

/// Argument of `IORING_REGISTER_FILES_UPDATE2` and `IORING_REGISTER_BUFFERS_UPDATE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct io_uring_rsrc_update2 {
    /// First slot.
    pub offset: u32,
    /// Zero.
    pub resv: u32,
    /// Address of descriptors (−1 empties a slot) or iovecs.
    pub data: u64,
    /// Address of tags, or 0.
    pub tags: u64,
    /// Number of slots.
    pub nr: u32,
    /// Zero.
    pub resv2: u32,
}

layout!(io_uring_rsrc_update2, 32, 8, UPDATE2, {
    offset: 0, 4; resv: 4, 4; data: 8, 8; tags: 16, 8; nr: 24, 4; resv2: 28, 4;
});

/// Argument of `IORING_REGISTER_PBUF_RING`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct io_uring_buf_reg {
    /// Address of the ring, page aligned.
    pub ring_addr: u64,
    /// Entries, a power of two up to 32768.
    pub ring_entries: u32,
    /// Buffer group.
    pub bgid: u16,
    /// `IOU_PBUF_RING_*` (6.4; `pad` before).
    pub flags: u16,
    /// Zero.
    pub resv: [u64; 3],
}

layout!(io_uring_buf_reg, 40, 8, BUF_REG, { ring_addr: 0, 8; ring_entries: 8, 4; bgid: 12, 2; flags: 14, 2; });

/// Entry of a ring of provided buffers. The ring's tail overlays `resv` of the first entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct io_uring_buf {
    /// Address of the buffer.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u32,
    /// Buffer id, chosen by the application.
    pub bid: u16,
    /// The tail in the first entry, else unused.
    pub resv: u16,
}

layout!(io_uring_buf, 16, 8, BUF, { addr: 0, 8; len: 8, 4; bid: 12, 2; resv: 14, 2; });

/// Header of the reply to `IORING_REGISTER_PROBE`; the entries follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct io_uring_probe {
    /// Last operation that the kernel knows.
    pub last_op: u8,
    /// Number of entries that follow.
    pub ops_len: u8,
    /// Zero.
    pub resv: u16,
    /// Zero.
    pub resv2: [u32; 3],
}

layout!(io_uring_probe, 16, 4, PROBE, { last_op: 0, 1; ops_len: 1, 1; resv: 2, 2; resv2: 4, 12; } also { ops: 16, 0; });

/// One operation in the reply to `IORING_REGISTER_PROBE`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct io_uring_probe_op {
    /// `IORING_OP_*`.
    pub op: u8,
    /// Zero.
    pub resv: u8,
    /// `IO_URING_OP_SUPPORTED`.
    pub flags: u16,
    /// Zero.
    pub resv2: u32,
}

layout!(io_uring_probe_op, 8, 4, PROBE_OP, { op: 0, 1; resv: 1, 1; flags: 2, 2; resv2: 4, 4; });
