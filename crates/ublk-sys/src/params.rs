//! Parameters as older and newer kernels return them.

use crate::marshal::{Plain, Uapi};
use crate::{Error, UBLK_PARAM_TYPE_DEVT, ublk_params};

/// End of `devt`: the kernel fills it in even beyond the stored `len`.
const DEVT_END: usize = 76;
/// `len` and `types`.
const HEADER: usize = 8;

impl ublk_params {
    /// Decodes the result of GET_PARAMS. `buffer` may be longer or shorter than this version's struct, and the kernel
    /// may know less or more of it.
    ///
    /// The `len` in the buffer says how much is valid (64 bytes from 6.1, 112 from 6.6, 136 from 6.15, 152 from 7.0, 0
    /// if nothing was ever set). The part after it reads as zero, except that `devt` is read if its type bit says that
    /// the kernel filled it in. `types` keeps every unknown bit. A `len` beyond this version's struct is lowered to its
    /// size.
    ///
    /// # Errors
    /// [`Error::Size`] if `buffer` is shorter than the two leading words or than its own `len` (pass a longer buffer to
    /// GET_PARAMS).
    pub fn read_prefix(buffer: &[u8]) -> Result<Self, Error> {
        let short = |want| Error::Size {
            what: Self::NAME,
            want,
            got: buffer.len(),
        };
        let Some((header, _)) = buffer.split_at_checked(HEADER) else {
            return Err(short(HEADER));
        };
        let len = usize::try_from(u32::get(&header[..4])).unwrap_or(usize::MAX);
        let types = u32::get(&header[4..]);
        if len > buffer.len() {
            return Err(short(len));
        }
        let mut bytes = [0; Self::SIZE];
        let meant = len.clamp(HEADER, Self::SIZE);
        bytes[..meant].copy_from_slice(&buffer[..meant]);
        if types & UBLK_PARAM_TYPE_DEVT != 0 && meant < DEVT_END {
            let Some(devt) = buffer.get(60..DEVT_END) else {
                return Err(short(DEVT_END));
            };
            bytes[60..DEVT_END].copy_from_slice(devt);
        }
        let mut params = Self::from_bytes(&bytes);
        if len > Self::SIZE {
            params.len = Self::WHOLE;
        }
        Ok(params)
    }

    /// The `len` of this version's struct: 152 bytes.
    pub const WHOLE: u32 = 152;
}

static_assertions::const_assert_eq!(ublk_params::WHOLE as usize, ublk_params::LEN);

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(len: u32, types: u32) -> [u8; 152] {
        let mut bytes = [0xa5; 152];
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes[4..8].copy_from_slice(&types.to_ne_bytes());
        bytes
    }

    #[test]
    fn older_kernels_leave_the_rest_zero() {
        for len in [64_u32, 112, 136, 152] {
            let bytes = filled(len, 0x8000_0003);
            let keep = usize::try_from(len).unwrap();
            let params = ublk_params::read_prefix(&bytes).unwrap();
            let mut want = bytes;
            want[keep..].fill(0);
            assert_eq!(params.to_bytes(), want);
            assert_eq!(params.types, 0x8000_0003, "unknown type bits survive");
            assert_eq!(ublk_params::read_prefix(&bytes[..keep]).unwrap(), params);
            assert!(ublk_params::read_prefix(&bytes[..keep - 1]).is_err());
        }
    }

    #[test]
    fn never_set_reads_as_nothing() {
        let params = ublk_params::read_prefix(&filled(0, 0)).unwrap();
        assert_eq!(params, ublk_params::ZERO);
    }

    #[test]
    fn device_numbers_behind_len_are_kept() {
        let params = ublk_params::read_prefix(&filled(60, UBLK_PARAM_TYPE_DEVT | 3)).unwrap();
        assert_eq!(params.devt.disk_minor, 0xa5a5_a5a5);
        assert_eq!(params.zoned.max_open_zones, 0);
        assert!(ublk_params::read_prefix(&filled(60, UBLK_PARAM_TYPE_DEVT)[..75]).is_err());
    }

    #[test]
    fn newer_kernels_are_cut_to_what_is_known() {
        let mut long = [0x11; 200];
        long[..4].copy_from_slice(&200_u32.to_ne_bytes());
        assert_eq!(ublk_params::read_prefix(&long).unwrap().len, 152);
        assert!(ublk_params::read_prefix(&long[..199]).is_err());
        assert!(ublk_params::read_prefix(&long[..7]).is_err());
    }
}
