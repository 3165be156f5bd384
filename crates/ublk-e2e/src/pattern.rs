//! Self-describing data: every eight bytes encode their offset and generation.

use anyhow::{Result, bail};

/// The eight bytes at `offset` in `generation`, mixed so that neighbours, generations, and a device's zeroes look
/// nothing alike.
pub const fn word(offset: u64, generation: u64) -> u64 {
    let mut x = offset ^ generation.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    // Odd, so never zero.
    (x ^ (x >> 31)) | 1
}

/// Fills a buffer that starts at `offset` of the device.
pub fn fill(buffer: &mut [u8], offset: u64, generation: u64) {
    for (at, bytes) in (offset..).step_by(8).zip(buffer.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word(at, generation).to_le_bytes());
    }
}

/// The words of a buffer with their offsets.
fn words(buffer: &[u8], offset: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    let value = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    (offset..).step_by(8).zip(buffer.chunks_exact(8).map(value))
}

/// Checks every byte of a buffer filled by [`fill`].
pub fn check(buffer: &[u8], offset: u64, generation: u64) -> Result<()> {
    check_any(buffer, offset, &[generation])
}

/// Checks that every word belongs to its place in one of the generations: the valid result of overlapping writers.
pub fn check_any(buffer: &[u8], offset: u64, generations: &[u64]) -> Result<()> {
    if !buffer.len().is_multiple_of(8) {
        bail!("{} bytes are no whole words", buffer.len());
    }
    match first_wrong(buffer, offset, generations) {
        None => Ok(()),
        Some((at, found)) => bail!(
            "wrong data at byte {at}: {found:#018x}, expected {:#018x} of generation {}{}",
            word(at, generations[0]),
            generations[0],
            explain(found, at)
        ),
    }
}

/// The first word that belongs to none of the generations, with its offset.
fn first_wrong(buffer: &[u8], offset: u64, generations: &[u64]) -> Option<(u64, u64)> {
    let good = |at, found| generations.iter().any(|g| word(at, *g) == found);
    words(buffer, offset).find(|(at, found)| !good(*at, *found))
}

/// Explains a wrong word, if possible: zeroes, or the data of a place nearby.
fn explain(found: u64, at: u64) -> String {
    if found == 0 {
        return " (zeroes)".to_owned();
    }
    let near = |place: &u64| (0..16).any(|generation| word(*place, generation) == found);
    let from = at.saturating_sub(8 << 20) / 8 * 8;
    match (from..at + (8 << 20)).step_by(8).find(near) {
        Some(place) if place == at => " (another generation)".to_owned(),
        Some(place) => format!(" (the data of byte {place})"),
        None => String::new(),
    }
}

/// Checks that a buffer holds zeroes.
pub fn check_zero(buffer: &[u8], offset: u64) -> Result<()> {
    match (offset..).zip(buffer).find(|(_, byte)| **byte != 0) {
        Some((at, byte)) => bail!("byte {at} is {byte:#04x}, expected zero"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L90 A single flipped bit is detected anywhere.
    #[test]
    fn l90_every_flipped_byte_is_seen() {
        let mut buffer = vec![0; 1024];
        fill(&mut buffer, 4096, 3);
        check(&buffer, 4096, 3).expect("as filled");
        for at in 0..buffer.len() {
            buffer[at] ^= 0x10;
            let place = 4096 + at as u64 / 8 * 8;
            for generations in [&[3][..], &[2, 3]] {
                let found = first_wrong(&buffer, 4096, generations);
                assert_eq!(found.map(|(place, _)| place), Some(place), "byte {at}");
            }
            buffer[at] ^= 0x10;
        }
        check(&buffer, 4096, 3).expect("as before");
        buffer[1000] ^= 1;
        assert!(check(&buffer, 4096, 3).is_err());
    }

    /// L90 Data of another place, another generation, and zeroes are detected and distinguished.
    #[test]
    fn l90_data_of_elsewhere_is_seen() {
        let mut buffer = vec![0; 4096];
        let said = |buffer: &[u8], at, generation| {
            check(buffer, at, generation)
                .expect_err("wrong")
                .to_string()
        };
        assert!(said(&buffer, 0, 1).contains("(zeroes)"));
        fill(&mut buffer, 8192, 1);
        assert!(said(&buffer, 4096, 1).contains("(the data of byte 8192)"));
        assert!(said(&buffer, 8192, 2).contains("(another generation)"));
        assert!(check(&buffer[..4095], 8192, 1).is_err(), "no whole words");
        assert!(check_any(&buffer, 8192, &[5, 1]).is_ok());
    }

    #[test]
    fn zeroes_are_checked_bytewise() {
        let mut buffer = vec![0; 512];
        assert!(check_zero(&buffer, 0).is_ok());
        buffer[511] = 1;
        let error = check_zero(&buffer, 1024).expect_err("not zero").to_string();
        assert!(error.contains("byte 1535"), "{error}");
        assert_ne!(word(0, 0), 0);
    }
}
