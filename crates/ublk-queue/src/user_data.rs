//! The `user_data` word of a completion: lane, generation and tag.

use ublk_core::Tag;

/// Tag, lane and generation in one `user_data` word. Shifts and masks of the word are only here.
///
/// The generation tells completions of an earlier lane with the same index from those of the present one (L53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct UserData {
    /// Tag, as the kernel numbers it.
    pub tag: u16,
    /// Index of the lane on its worker.
    pub lane: u16,
    /// Generation of the lane.
    pub generation: u16,
    /// What kind of command it was.
    pub kind: Kind,
    /// Generation of the operation's slot, 0 to 4095; 0 for commands.
    pub turn: u16,
}

/// The kinds of commands a completion can belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A command of one tag.
    Tag,
    /// The multishot fetch of a batch lane.
    Fetch,
    /// A PREP of a batch lane; its number replaces the tag.
    Prep,
    /// A COMMIT of a batch lane; its number replaces the tag.
    Commit,
    /// An operation of the lane's handler; its slot in the handler's pool replaces the tag.
    Operation,
    /// The operation that transfers the data of a forwarded request.
    Forward,
    /// Unregisters the tag's pages from the ring's buffer table before the commit. It posts a completion only if it
    /// fails.
    Unregister,
    /// A sync on behalf of requests; the file's slot replaces the tag.
    Sync,
}

/// An owner that matches no word: [`UserData::tag_of`] returns none of its tags.
pub(crate) const NO_OWNER: u64 = u64::MAX;

impl UserData {
    /// The word for the command of a tag.
    #[must_use]
    #[inline]
    pub const fn new(lane: u16, generation: u16, tag: Tag) -> Self {
        Self {
            tag: tag.get(),
            lane,
            generation,
            kind: Kind::Tag,
            turn: 0,
        }
    }

    /// The word for a command or operation of another kind; `number` tells those of one kind apart.
    #[must_use]
    pub const fn batch(lane: u16, generation: u16, kind: Kind, number: u16) -> Self {
        Self {
            tag: number,
            lane,
            generation,
            kind,
            turn: 0,
        }
    }

    /// The word for one use of an operation's slot.
    #[must_use]
    pub const fn operation(lane: u16, generation: u16, slot: u16, turn: u16) -> Self {
        Self {
            tag: slot,
            lane,
            generation,
            kind: Kind::Operation,
            turn,
        }
    }

    /// Packs the word: tag in bits 0-15, lane in 16-31, generation in 32-47, kind in 48-50, turn in 51-62. Bit 63 is 0,
    /// so that it never equals one of the ring's own reserved words (all ones and near it).
    #[must_use]
    #[inline]
    pub const fn pack(self) -> u64 {
        let (kind, turn) = (self.kind as u64, (self.turn & 0xfff) as u64);
        self.tag as u64
            | (self.lane as u64) << 16
            | (self.generation as u64) << 32
            | kind << 48
            | turn << 51
    }

    /// The owner in a word: lane and generation, without tag, kind and turn.
    #[must_use]
    #[inline]
    pub const fn owner_of(word: u64) -> u64 {
        // Bit 63 is kept, so that a foreign word matches no owner.
        word & (1 << 63 | 0xffff_ffff << 16)
    }

    /// The tag, if the word is that of a tag's command of this owner: one comparison for the common case.
    #[must_use]
    #[inline(always)]
    pub const fn tag_of(word: u64, owner: u64) -> Option<u16> {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the tag's bits, by definition"
        )]
        if word & !0xffff == owner {
            Some(word as u16)
        } else {
            None
        }
    }

    /// Unpacks the word; `None` if it is not one of ours.
    #[must_use]
    #[inline]
    pub const fn unpack(word: u64) -> Option<Self> {
        if word >> 63 != 0 {
            return None;
        }
        let kind = match word >> 48 & 7 {
            0 => Kind::Tag,
            1 => Kind::Fetch,
            2 => Kind::Prep,
            3 => Kind::Commit,
            4 => Kind::Operation,
            5 => Kind::Forward,
            6 => Kind::Unregister,
            _ => Kind::Sync,
        };
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the fields' bits, by definition"
        )]
        Some(Self {
            tag: word as u16,
            lane: (word >> 16) as u16,
            generation: (word >> 32) as u16,
            kind,
            turn: (word >> 51) as u16 & 0xfff,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L53 The word survives the round trip through the kernel, generation included.
    #[test]
    fn l53_user_data_round_trip() {
        for (lane, generation, tag) in [(0, 0, 0), (1, 65535, 4095), (65535, 1, 17)] {
            let tag = Tag::new(tag).expect("below 4096");
            let word = UserData::new(lane, generation, tag);
            assert_eq!(UserData::unpack(word.pack()), Some(word));
        }
        for kind in [
            Kind::Fetch,
            Kind::Prep,
            Kind::Commit,
            Kind::Forward,
            Kind::Unregister,
            Kind::Sync,
        ] {
            let word = UserData::batch(3, 9, kind, 7);
            assert_eq!(UserData::unpack(word.pack()), Some(word));
        }
        let word = UserData::operation(65535, 65535, 65535, 4095);
        assert_eq!(UserData::unpack(word.pack()), Some(word));
        assert_eq!(
            UserData::owner_of(word.pack()),
            0xffff_ffff_0000,
            "neither slot nor kind nor turn says whose it is"
        );
        assert_eq!(UserData::unpack(u64::MAX), None);
    }
}
