//! The crate's definitions as data: every struct with its fields, every constant with its value.
//!
//! Filled by the macros that define them. `cargo xtask layout` compares these rows with a C compiler's view of the real
//! header, and fails for a name in the header that has no row.

use crate::marshal::Uapi;
use crate::raw;

/// A struct as the compiler laid it out.
#[derive(Clone, Copy, Debug)]
pub struct Struct {
    /// The C name, without `struct`.
    pub name: &'static str,
    /// `sizeof`, bytes.
    pub size: usize,
    /// `_Alignof`, bytes.
    pub align: usize,
    /// The fields in order of offset. Both names of a union are listed.
    pub fields: &'static [Field],
    /// Converts bytes to the struct and back and compares; see [`crate::marshal::round_trip`].
    pub round_trip: fn(&[u8]),
}

/// A field of a [`Struct`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// The C name; a name that starts with `hole` is padding without a name in C.
    pub name: &'static str,
    /// Offset in the struct in bytes.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
}

impl Field {
    /// True for padding without a name in C.
    #[must_use]
    pub fn is_hole(&self) -> bool {
        self.name.starts_with("hole")
    }
}

/// Spells a Rust identifier as C does: without the raw prefix.
pub(crate) const fn c_name(name: &'static str) -> &'static str {
    match name.split_at_checked(2) {
        Some((mark, rest)) if mark.as_bytes()[0] == b'r' && mark.as_bytes()[1] == b'#' => rest,
        _ => name,
    }
}

/// Every struct of [`crate::raw`].
pub const STRUCTS: &[Struct] = &[
    raw::ublksrv_ctrl_cmd::LAYOUT,
    raw::ublksrv_ctrl_dev_info::LAYOUT,
    raw::ublksrv_io_desc::LAYOUT,
    raw::ublksrv_io_cmd::LAYOUT,
    raw::ublk_auto_buf_reg::LAYOUT,
    raw::ublk_elem_header::LAYOUT,
    raw::ublk_batch_io::LAYOUT,
    raw::ublk_shmem_buf_reg::LAYOUT,
    raw::ublk_param_basic::LAYOUT,
    raw::ublk_param_discard::LAYOUT,
    raw::ublk_param_devt::LAYOUT,
    raw::ublk_param_zoned::LAYOUT,
    raw::ublk_param_dma_align::LAYOUT,
    raw::ublk_param_segment::LAYOUT,
    raw::ublk_param_integrity::LAYOUT,
    raw::ublk_params::LAYOUT,
    raw::blk_zone::LAYOUT,
];

const GROUPS: &[&[(&str, u64)]] = raw::TABLES;
const COUNT: usize = {
    let mut count = 0;
    let mut group = 0;
    while group < GROUPS.len() {
        count += GROUPS[group].len();
        group += 1;
    }
    count
};
const FLAT: [(&str, u64); COUNT] = {
    let mut flat = [("", 0); COUNT];
    let (mut group, mut row, mut out) = (0, 0, 0);
    while group < GROUPS.len() {
        while row < GROUPS[group].len() {
            flat[out] = GROUPS[group][row];
            row += 1;
            out += 1;
        }
        row = 0;
        group += 1;
    }
    flat
};

/// Every constant of [`crate::raw`], converted to C's `unsigned long long` (negative ones are sign-extended).
pub const CONSTANTS: &[(&str, u64)] = &FLAT;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_twice_and_none_empty() {
        let mut names: std::vec::Vec<_> = CONSTANTS
            .iter()
            .map(|row| row.0)
            .chain(STRUCTS.iter().map(|row| row.name))
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(!names.contains(&""));
        assert!(CONSTANTS.contains(&("UBLK_F_IO_DESC_SIZE", 1 << 20)));
        assert!(CONSTANTS.contains(&("UBLK_IO_RES_ABORT", 19_u64.wrapping_neg())));
    }
}
