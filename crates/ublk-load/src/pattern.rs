//! The data of writes: the same for the same request, and recognised later as ours.

/// The first bytes of every sector of the pattern.
const MAGIC: [u8; 8] = *b"ublkload";

const SECTOR: usize = 512;

/// What writes write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Each sector of 512 bytes: a magic, its offset on the target, and bytes made from both. They do not compress, and
    /// no two sectors are equal.
    Pattern,
    /// One byte everywhere.
    Byte(u8),
}

impl Fill {
    /// Fills a buffer that goes to `offset`.
    pub fn fill(self, buf: &mut [u8], offset: u64) {
        match self {
            Self::Byte(byte) => buf.fill(byte),
            Self::Pattern => {
                for (sector, at) in buf.chunks_mut(SECTOR).zip((offset..).step_by(SECTOR)) {
                    fill_sector(sector, at);
                }
            }
        }
    }
}

fn fill_sector(sector: &mut [u8], offset: u64) {
    let mut state = offset ^ 0x9e37_79b9_7f4a_7c15;
    let words = [u64::from_le_bytes(MAGIC), offset].into_iter();
    let noise = std::iter::repeat_with(|| {
        // splitmix64
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    });
    for (place, word) in sector.chunks_mut(8).zip(words.chain(noise)) {
        place.copy_from_slice(word.to_le_bytes().get(..place.len()).unwrap_or_default());
    }
}

/// Whether bytes from `offset` of a target, whole sectors, hold nothing but zeroes and what [`Fill::Pattern`] writes.
#[must_use]
pub fn is_ours(bytes: &[u8], offset: u64) -> bool {
    let mut wanted = [0; SECTOR];
    bytes
        .chunks(SECTOR)
        .zip((offset..).step_by(SECTOR))
        .all(|(sector, at)| {
            if sector.iter().all(|byte| *byte == 0) {
                return true;
            }
            fill_sector(&mut wanted, at);
            sector == wanted.get(..sector.len()).unwrap_or_default()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pattern_is_recognised_where_it_was_written() {
        let mut buf = vec![0; 8192];
        Fill::Pattern.fill(&mut buf[..4096], 65_536);
        assert!(is_ours(&buf, 65_536));
        assert!(!is_ours(&buf, 0), "another place");
        let mut again = vec![1; 4096];
        Fill::Pattern.fill(&mut again, 65_536);
        assert_eq!(again, buf[..4096]);
        buf[5000] = 1;
        assert!(!is_ours(&buf, 65_536));
    }

    #[test]
    fn a_byte_is_a_byte() {
        let mut buf = vec![0; 100];
        Fill::Byte(0xab).fill(&mut buf, 7);
        assert!(buf.iter().all(|b| *b == 0xab));
        assert!(!is_ours(&buf, 7));
    }
}
