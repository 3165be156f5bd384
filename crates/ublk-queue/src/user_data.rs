//! The word that comes back with a completion: which lane, which life of it, which tag.

use ublk_core::Tag;

/// Tag, lane and generation in one `user_data` word. The only place that shifts and masks them.
///
/// The generation tells a completion of an earlier life of a lane's place from one of the present
/// (L53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserData {
    /// Tag of the queue, as the kernel numbers it.
    pub tag: u16,
    /// The worker's lane.
    pub lane: u16,
    /// The lane's life.
    pub generation: u16,
}

impl UserData {
    /// The word for the command of a tag.
    #[must_use]
    #[inline]
    pub const fn new(lane: u16, generation: u16, tag: Tag) -> Self {
        Self {
            tag: tag.get(),
            lane,
            generation,
        }
    }

    /// Packed: tag in bits 0-15, lane in 16-31, generation in 32-47. The upper 16 bits are 0, so
    /// that the ring's own reserved words (all ones and near it) are never ours.
    #[must_use]
    #[inline]
    pub const fn pack(self) -> u64 {
        self.tag as u64 | (self.lane as u64) << 16 | (self.generation as u64) << 32
    }

    /// Unpacked; `None` if the word is not one of ours.
    #[must_use]
    #[inline]
    pub const fn unpack(word: u64) -> Option<Self> {
        if word >> 48 != 0 {
            return None;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the fields' bits, by definition"
        )]
        Some(Self {
            tag: word as u16,
            lane: (word >> 16) as u16,
            generation: (word >> 32) as u16,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L53 The word survives the way through the kernel, generation included.
    #[test]
    fn l53_user_data_round_trip() {
        for (lane, generation, tag) in [(0, 0, 0), (1, 65535, 4095), (65535, 1, 17)] {
            let tag = Tag::new(tag).expect("below 4096");
            let word = UserData::new(lane, generation, tag);
            assert_eq!(UserData::unpack(word.pack()), Some(word));
        }
        assert_eq!(UserData::unpack(u64::MAX), None);
    }
}
