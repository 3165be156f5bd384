//! Numbers of one to ten bytes.

/// The longest number.
pub(super) const MAX: usize = 10;

/// Appends a number.
pub(super) fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(low_bits(value) | 0x80);
        value >>= 7;
    }
    out.push(low_bits(value));
}

/// Appends a signed number, given as the difference of two that wrapped.
pub(super) fn put_signed(out: &mut Vec<u8>, value: u64) {
    let sign = if value >> 63 == 1 { u64::MAX } else { 0 };
    put(out, (value << 1) ^ sign);
}

/// Takes a number off the front. `None` if the bytes end first, or do not fit 64 bits.
pub(super) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for place in 0..MAX {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u64::from(byte & 0x7f);
        if place == MAX - 1 && part > 1 {
            return None;
        }
        value |= part << (7 * place);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Takes a signed number off the front, as a difference to be added with wrapping.
pub(super) fn take_signed(bytes: &mut &[u8]) -> Option<u64> {
    let value = take(bytes)?;
    let sign = if value & 1 == 1 { u64::MAX } else { 0 };
    Some((value >> 1) ^ sign)
}

fn low_bits(value: u64) -> u8 {
    value.to_le_bytes()[0] & 0x7f
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_survive() {
        bolero::check!()
            .with_type::<(u64, u64)>()
            .for_each(|(a, b)| {
                let mut bytes = Vec::new();
                put(&mut bytes, *a);
                put_signed(&mut bytes, b.wrapping_sub(*a));
                let mut rest = &bytes[..];
                assert_eq!(take(&mut rest), Some(*a));
                assert_eq!(take_signed(&mut rest).map(|d| a.wrapping_add(d)), Some(*b));
                assert!(rest.is_empty());
            });
    }

    #[test]
    fn small_differences_are_short() {
        for (difference, len) in [(0_i64, 1), (-64, 1), (63, 1), (64, 2), (-65, 2)] {
            let mut bytes = Vec::new();
            put_signed(&mut bytes, difference.cast_unsigned());
            assert_eq!(bytes.len(), len, "{difference}");
        }
    }

    #[test]
    fn numbers_beyond_64_bits_and_cut_ones_are_refused() {
        let mut long = vec![0xff; 9];
        long.push(2);
        assert_eq!(take(&mut &long[..]), None);
        assert_eq!(take(&mut &[0xff; 11][..]), None);
        assert_eq!(take(&mut &[0x80][..]), None);
    }
}
