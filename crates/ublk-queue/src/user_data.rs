//! The word that comes back with a completion: which lane, which life of it, which tag.

use ublk_core::Tag;

/// Tag, lane and generation in one `user_data` word. The only place that shifts and masks them.
///
/// The generation tells a completion of an earlier life of a lane's place from one of the present
/// (L53).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct UserData {
    /// Tag of the queue, as the kernel numbers it.
    pub tag: u16,
    /// The worker's lane.
    pub lane: u16,
    /// The lane's life.
    pub generation: u16,
    /// What kind of command it was.
    pub kind: Kind,
    /// Which use of an operation's place it was, 0 to 4095; 0 for commands.
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
    /// A PREP of a batch lane; its number in place of the tag.
    Prep,
    /// A COMMIT of a batch lane; its number in place of the tag.
    Commit,
    /// An operation of the lane's handler; its place in the handler's pool in place of the tag.
    Operation,
    /// The operation that moves the data of a forwarded request.
    Forward,
    /// Takes the tag's pages out of the ring's table before its commit: it completes only when it failed.
    Unregister,
    /// A sync that answers requests; the file's slot in place of the tag.
    Sync,
}

/// An owner of no word: [`UserData::tag_of`] finds none of its tags.
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

    /// The word for a command or operation of another kind, `number` telling it from others of the kind.
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

    /// The word for a use of an operation's place.
    #[must_use]
    pub const fn operation(lane: u16, generation: u16, place: u16, turn: u16) -> Self {
        Self {
            tag: place,
            lane,
            generation,
            kind: Kind::Operation,
            turn,
        }
    }

    /// Packed: tag in bits 0-15, lane in 16-31, generation in 32-47, kind in 48-50, turn in 51-62. The
    /// uppermost bit is 0, so that the ring's own reserved words (all ones and near it) are never ours.
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

    /// The word without tag, kind and turn: lane and generation, that is whose it is.
    #[must_use]
    #[inline]
    pub const fn owner_of(word: u64) -> u64 {
        // A word that is not one of ours keeps its uppermost bit.
        word & (1 << 63 | 0xffff_ffff << 16)
    }

    /// The tag, if the word is that of a tag's command of this owner: the common case, by one comparison.
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

    /// Unpacked; `None` if the word is not one of ours.
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

    /// L53 The word survives the way through the kernel, generation included.
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
            "neither place nor kind nor turn says whose it is"
        );
        assert_eq!(UserData::unpack(u64::MAX), None);
    }
}
