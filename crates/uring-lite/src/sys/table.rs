//! All constants and structures of [`sys`](super) as data, for a comparison with the real header.

use super::{consts, structs};

pub use structs::Struct;

/// Name and value of each constant.
pub const CONSTANTS: &[(&str, u64)] = consts::CONSTANTS;

/// Each structure. Aliases of one field (C unions) are separate rows. A size of 0 stands for a flexible array, whose
/// size C does not tell: compare its offset only. Fields that differ between kernels (`resv` of `io_uring_buf_reg`) are
/// left out.
pub const STRUCTS: &[Struct] = &[
    structs::SQE,
    structs::CQE,
    structs::SQ_OFF,
    structs::CQ_OFF,
    structs::PARAMS,
    structs::GETEVENTS,
    structs::TIMESPEC,
    structs::RSRC,
    structs::UPDATE,
    structs::UPDATE2,
    structs::BUF_REG,
    structs::BUF,
    ("io_uring_buf_ring", 16, 8, &[("tail", 14, 2)]),
    structs::PROBE,
    structs::PROBE_OP,
];
