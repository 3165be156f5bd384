//! The C header name for name (`include/uapi/linux/ublk_cmd.h` of Linux 7.3, and the parts that it uses of
//! `linux/blkzoned.h` and `linux/fs.h`).
//!
//! For a C union of two names, the struct has the first name and a method or a documentation alias for the second.
//! Unnamed padding is a field called `hole…`; keep it zero.

mod command;
mod ctrl;
mod feature;
mod integrity;
mod io;
mod limit;
mod param;
mod zone;

pub use command::*;
pub use ctrl::*;
pub use feature::*;
pub use integrity::*;
pub use io::*;
pub use limit::*;
pub use param::*;
pub use zone::*;

/// The constants of every file.
pub(crate) const TABLES: &[&[(&str, u64)]] = &[
    command::TABLE,
    ctrl::TABLE,
    feature::TABLE,
    integrity::TABLE,
    io::TABLE,
    limit::TABLE,
    param::TABLE,
    zone::TABLE,
];
