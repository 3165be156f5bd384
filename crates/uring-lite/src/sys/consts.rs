//! Constants, defined once and listed for [`super::table`] by the same macro.

macro_rules! constants {
    ($($(#[$meta:meta])* $name:ident: $type:ty = $value:expr;)*) => {
        $($(#[$meta])* pub const $name: $type = $value;)*
        /// Every constant of this module with its value.
        pub(super) const CONSTANTS: &[(&str, u64)] = &[$((stringify!($name), $name as u64)),*];
    };
}

constants! {
    /// The SQE's `fd` is an index into the registered files (5.1).
    IOSQE_FIXED_FILE: u8 = 1 << 0;
    /// Issue after all earlier requests have completed (5.2).
    IOSQE_IO_DRAIN: u8 = 1 << 1;
    /// The next SQE starts when this one has succeeded (5.3).
    IOSQE_IO_LINK: u8 = 1 << 2;
    /// Like `IOSQE_IO_LINK`, but a failure does not break the chain (5.5).
    IOSQE_IO_HARDLINK: u8 = 1 << 3;
    /// Go to a worker thread at once (5.6).
    IOSQE_ASYNC: u8 = 1 << 4;
    /// Take the buffer from group `buf_group` (5.7).
    IOSQE_BUFFER_SELECT: u8 = 1 << 5;
    /// No CQE on success (5.17).
    IOSQE_CQE_SKIP_SUCCESS: u8 = 1 << 6;

    /// `cq_entries` of the parameters is valid (5.5).
    IORING_SETUP_CQSIZE: u32 = 1 << 3;
    /// Excessive sizes are limited, not refused (5.6).
    IORING_SETUP_CLAMP: u32 = 1 << 4;
    /// An SQE that fails does not stop the submission of those after it (5.18).
    IORING_SETUP_SUBMIT_ALL: u32 = 1 << 7;
    /// Completion work does not interrupt the running task (5.19).
    IORING_SETUP_COOP_TASKRUN: u32 = 1 << 8;
    /// Show pending completion work as `IORING_SQ_TASKRUN` (5.19).
    IORING_SETUP_TASKRUN_FLAG: u32 = 1 << 9;
    /// SQEs have 128 bytes (5.19).
    IORING_SETUP_SQE128: u32 = 1 << 10;
    /// CQEs have 32 bytes (5.19).
    IORING_SETUP_CQE32: u32 = 1 << 11;
    /// Only one task submits (6.0).
    IORING_SETUP_SINGLE_ISSUER: u32 = 1 << 12;
    /// Completion work only runs inside `io_uring_enter` with GETEVENTS (6.1).
    IORING_SETUP_DEFER_TASKRUN: u32 = 1 << 13;
    /// No index array between the SQ ring and the SQEs (6.6).
    IORING_SETUP_NO_SQARRAY: u32 = 1 << 16;

    /// No operation (5.1).
    IORING_OP_NOP: u8 = 0;
    /// Read into several buffers (5.1).
    IORING_OP_READV: u8 = 1;
    /// Write from several buffers (5.1).
    IORING_OP_WRITEV: u8 = 2;
    /// fsync or fdatasync (5.1).
    IORING_OP_FSYNC: u8 = 3;
    /// Read into a registered buffer (5.1).
    IORING_OP_READ_FIXED: u8 = 4;
    /// Write from a registered buffer (5.1).
    IORING_OP_WRITE_FIXED: u8 = 5;
    /// Wait for readiness of a descriptor (5.1).
    IORING_OP_POLL_ADD: u8 = 6;
    /// Remove a poll (5.1).
    IORING_OP_POLL_REMOVE: u8 = 7;
    /// sendmsg (5.3).
    IORING_OP_SENDMSG: u8 = 9;
    /// recvmsg (5.3).
    IORING_OP_RECVMSG: u8 = 10;
    /// Timeout (5.4).
    IORING_OP_TIMEOUT: u8 = 11;
    /// Remove a timeout (5.5).
    IORING_OP_TIMEOUT_REMOVE: u8 = 12;
    /// accept4 (5.5).
    IORING_OP_ACCEPT: u8 = 13;
    /// Cancel a request by its `user_data` (5.5).
    IORING_OP_ASYNC_CANCEL: u8 = 14;
    /// Timeout of the previous entry (5.5).
    IORING_OP_LINK_TIMEOUT: u8 = 15;
    /// connect (5.5).
    IORING_OP_CONNECT: u8 = 16;
    /// fallocate (5.6).
    IORING_OP_FALLOCATE: u8 = 17;
    /// close (5.6).
    IORING_OP_CLOSE: u8 = 19;
    /// read or pread (5.6).
    IORING_OP_READ: u8 = 22;
    /// write or pwrite (5.6).
    IORING_OP_WRITE: u8 = 23;
    /// send (5.6).
    IORING_OP_SEND: u8 = 26;
    /// recv (5.6).
    IORING_OP_RECV: u8 = 27;
    /// shutdown (5.11).
    IORING_OP_SHUTDOWN: u8 = 34;
    /// A CQE for another ring (5.18).
    IORING_OP_MSG_RING: u8 = 40;
    /// socket (5.19).
    IORING_OP_SOCKET: u8 = 45;
    /// A command for the file's driver (5.19).
    IORING_OP_URING_CMD: u8 = 46;
    /// send without a copy (6.0).
    IORING_OP_SEND_ZC: u8 = 47;
    /// sendmsg without a copy (6.1).
    IORING_OP_SENDMSG_ZC: u8 = 48;

    /// The command uses the registered buffer `buf_index` (6.1).
    IORING_URING_CMD_FIXED: u32 = 1 << 0;
    /// The command posts several CQEs with buffers of a group (6.18).
    IORING_URING_CMD_MULTISHOT: u32 = 1 << 1;
    /// fdatasync.
    IORING_FSYNC_DATASYNC: u32 = 1 << 0;
    /// The time is absolute.
    IORING_TIMEOUT_ABS: u32 = 1 << 0;
    /// Expiry counts as success for links (5.16).
    IORING_TIMEOUT_ETIME_SUCCESS: u32 = 1 << 5;
    /// The poll stays armed after its first CQE (5.13).
    IORING_POLL_ADD_MULTI: u32 = 1 << 0;
    /// Cancel every match (5.19).
    IORING_ASYNC_CANCEL_ALL: u32 = 1 << 0;
    /// Match by file instead of by `user_data` (5.19).
    IORING_ASYNC_CANCEL_FD: u32 = 1 << 1;
    /// Match any request (5.19).
    IORING_ASYNC_CANCEL_ANY: u32 = 1 << 2;
    /// The file is a registered one (6.0).
    IORING_ASYNC_CANCEL_FD_FIXED: u32 = 1 << 3;
    /// Wait for the socket before the first attempt; in `ioprio` (5.19).
    IORING_RECVSEND_POLL_FIRST: u16 = 1 << 0;
    /// The memory is the registered buffer `buf_index`; in `ioprio` (6.0).
    IORING_RECVSEND_FIXED_BUF: u16 = 1 << 2;
    /// The notification of a zero-copy send says whether the kernel copied after all; in `ioprio` (6.2).
    IORING_SEND_ZC_REPORT_USAGE: u16 = 1 << 3;
    /// In the result of that notification: it did.
    IORING_NOTIF_USAGE_ZC_COPIED: u32 = 1 << 31;
    /// Accept stays armed after its first CQE; in `ioprio` (5.19).
    IORING_ACCEPT_MULTISHOT: u16 = 1 << 0;
    /// `MSG_RING` passes `len` as `res` and `off` as `user_data` (5.18).
    IORING_MSG_DATA: u64 = 0;

    /// The upper 16 bits of the flags are a buffer id (5.7).
    IORING_CQE_F_BUFFER: u32 = 1 << 0;
    /// The SQE will post more CQEs (5.13).
    IORING_CQE_F_MORE: u32 = 1 << 1;
    /// The socket has more data after a receive (5.19).
    IORING_CQE_F_SOCK_NONEMPTY: u32 = 1 << 2;
    /// The kernel no longer needs the memory of a zero-copy send (6.0).
    IORING_CQE_F_NOTIF: u32 = 1 << 3;
    /// The buffer of an incremental buffer ring is not used up (6.12).
    IORING_CQE_F_BUF_MORE: u32 = 1 << 4;
    /// Position of the buffer id in the flags.
    IORING_CQE_BUFFER_SHIFT: u32 = 16;

    /// mmap offset of the SQ ring (and of the CQ ring with `IORING_FEAT_SINGLE_MMAP`).
    IORING_OFF_SQ_RING: u64 = 0;
    /// mmap offset of the SQEs.
    IORING_OFF_SQES: u64 = 0x1000_0000;

    /// CQEs wait in the kernel because the CQ ring is full (5.8).
    IORING_SQ_CQ_OVERFLOW: u32 = 1 << 1;
    /// Completion work waits for the task to enter (5.19).
    IORING_SQ_TASKRUN: u32 = 1 << 2;

    /// Wait for completions, or run the work that makes them visible.
    IORING_ENTER_GETEVENTS: u32 = 1 << 0;
    /// The argument is an `io_uring_getevents_arg` (5.11).
    IORING_ENTER_EXT_ARG: u32 = 1 << 3;
    /// The descriptor is an index from `IORING_REGISTER_RING_FDS` (5.18).
    IORING_ENTER_REGISTERED_RING: u32 = 1 << 4;

    /// SQ ring and CQ ring are one mapping (5.4).
    IORING_FEAT_SINGLE_MMAP: u32 = 1 << 0;
    /// CQEs that do not fit are kept, not dropped (5.5).
    IORING_FEAT_NODROP: u32 = 1 << 1;
    /// The kernel reads arguments that an SQE points to before enter returns (5.5).
    IORING_FEAT_SUBMIT_STABLE: u32 = 1 << 2;
    /// `IORING_ENTER_EXT_ARG` (5.11).
    IORING_FEAT_EXT_ARG: u32 = 1 << 8;

    /// Unregister all buffers (5.1).
    IORING_UNREGISTER_BUFFERS: u32 = 1;
    /// Register files (5.1).
    IORING_REGISTER_FILES: u32 = 2;
    /// Unregister all files (5.1).
    IORING_UNREGISTER_FILES: u32 = 3;
    /// Query the supported operations (5.6).
    IORING_REGISTER_PROBE: u32 = 8;
    /// Register files, extended form (5.13).
    IORING_REGISTER_FILES2: u32 = 13;
    /// Update registered files (5.13).
    IORING_REGISTER_FILES_UPDATE2: u32 = 14;
    /// Register buffers, extended form (5.13).
    IORING_REGISTER_BUFFERS2: u32 = 15;
    /// Update registered buffers (5.13).
    IORING_REGISTER_BUFFERS_UPDATE: u32 = 16;
    /// Set the maximum number of kernel workers (5.15).
    IORING_REGISTER_IOWQ_MAX_WORKERS: u32 = 19;
    /// Register the ring's own descriptor with the task (5.18).
    IORING_REGISTER_RING_FDS: u32 = 20;
    /// Undo `IORING_REGISTER_RING_FDS` (5.18).
    IORING_UNREGISTER_RING_FDS: u32 = 21;
    /// Register a ring of provided buffers (5.19).
    IORING_REGISTER_PBUF_RING: u32 = 22;
    /// Unregister a ring of provided buffers (5.19).
    IORING_UNREGISTER_PBUF_RING: u32 = 23;
    /// The table starts empty (5.19).
    IORING_RSRC_REGISTER_SPARSE: u32 = 1 << 0;
    /// The operation of a probe entry exists.
    IO_URING_OP_SUPPORTED: u16 = 1 << 0;
    /// Buffers of the ring are consumed incrementally (6.12).
    IOU_PBUF_RING_INC: u16 = 2;
}
