//! Where the bytes of a composed device are: member and position.

#![forbid(unsafe_code)]

/// How the bytes of a device are laid out over its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// One member after the other.
    Linear,
    /// Round robin, in chunks.
    Stripe {
        /// Bytes of a chunk: a power of two from 4096.
        chunk: u32,
    },
}

/// A range of one member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) member: usize,
    /// Offset in the member, in bytes.
    pub(super) at: u64,
    pub(super) len: u64,
}

/// The layout of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map {
    layout: Layout,
    /// Where each member ends on a linear device, in bytes; a stripe only needs their number.
    ends: Vec<u64>,
}

impl Map {
    /// The layout for members of these lengths in bytes. A stripe uses the same number of whole chunks of each.
    /// `None` if the lengths are too large together, or a stripe's member has no chunk.
    pub(super) fn new(layout: Layout, lengths: &[u64]) -> Option<Self> {
        let used = |length: u64| match layout {
            Layout::Linear => length,
            Layout::Stripe { chunk } => {
                let least = lengths.iter().copied().min().unwrap_or(0);
                least / u64::from(chunk) * u64::from(chunk)
            }
        };
        let mut end = 0_u64;
        let mut ends = Vec::with_capacity(lengths.len());
        for length in lengths {
            if used(*length) == 0 {
                return None;
            }
            end = end.checked_add(used(*length))?;
            ends.push(end);
        }
        Some(Self { layout, ends })
    }

    /// Size of the device in bytes.
    pub(super) fn size(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The first part of a range of the device.
    #[inline]
    pub(super) fn first(&self, offset: u64, len: u64) -> Piece {
        match self.layout {
            Layout::Linear => {
                let member = self.ends.partition_point(|end| *end <= offset);
                let begin = match member {
                    0 => 0,
                    n => self.ends[n - 1],
                };
                let end = self.ends.get(member).copied().unwrap_or(u64::MAX);
                Piece {
                    member,
                    at: offset - begin,
                    len: len.min(end - offset),
                }
            }
            Layout::Stripe { chunk } => {
                let (count, shift) = (self.ends.len() as u64, chunk.trailing_zeros());
                let (number, within) = (offset >> shift, offset & (u64::from(chunk) - 1));
                Piece {
                    member: usize::try_from(number % count).unwrap_or(0),
                    at: ((number / count) << shift) + within,
                    len: len.min(u64::from(chunk) - within),
                }
            }
        }
    }

    /// All parts of a range, in the order of the device.
    pub(super) fn parts(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece> {
        let mut done = 0;
        std::iter::from_fn(move || {
            if done >= len {
                return None;
            }
            let piece = self.first(offset + done, len - done);
            done += piece.len;
            Some(piece)
        })
    }

    /// The range of each member that a range of the device consists of: one for each member, because the chunks of a
    /// range are adjacent there. Members without one are left out.
    pub(super) fn ranges(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece> {
        let members = 0..self.ends.len();
        members.filter_map(move |member| {
            let begin = self.bytes_before(member, offset);
            let end = self.bytes_before(member, offset + len);
            (begin < end).then_some(Piece {
                member,
                at: begin,
                len: end - begin,
            })
        })
    }

    /// Number of bytes of a member that are before an offset of the device.
    fn bytes_before(&self, member: usize, offset: u64) -> u64 {
        match self.layout {
            Layout::Linear => {
                let begin = member.checked_sub(1).map_or(0, |before| self.ends[before]);
                offset.clamp(begin, self.ends[member]) - begin
            }
            Layout::Stripe { chunk } => {
                let chunk = u64::from(chunk);
                let row = chunk * self.ends.len() as u64;
                let into = (offset % row).saturating_sub(member as u64 * chunk);
                offset / row * chunk + into.min(chunk)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIPE: Layout = Layout::Stripe { chunk: 4096 };

    /// Member and position of every 512-byte sector, the slow way.
    fn slowly(layout: Layout, lengths: &[u64]) -> Vec<(usize, u64)> {
        let sectors = |member: usize, from: u64, len: u64| {
            (0..len / 512).map(move |n| (member, from + n * 512))
        };
        match layout {
            Layout::Linear => {
                let all = lengths.iter().enumerate();
                all.flat_map(|(n, len)| sectors(n, 0, *len)).collect()
            }
            Layout::Stripe { chunk } => {
                let chunk = u64::from(chunk);
                let rows = lengths.iter().min().expect("members") / chunk;
                let cells = (0..rows).flat_map(|row| (0..lengths.len()).map(move |n| (row, n)));
                cells
                    .flat_map(|(row, n)| sectors(n, row * chunk, chunk))
                    .collect()
            }
        }
    }

    /// L02 Every sector of the device is in one place, and every range is made of the right parts.
    #[test]
    fn l02_every_sector_has_its_place() {
        for (layout, lengths) in [
            (Layout::Linear, &[512][..]),
            (Layout::Linear, &[4096, 512, 8192]),
            (STRIPE, &[4096]),
            (STRIPE, &[9000 / 512 * 512, 16_384]),
            (STRIPE, &[12_288, 12_288, 20_480]),
            (Layout::Stripe { chunk: 8192 }, &[16_384; 5]),
        ] {
            let map = Map::new(layout, lengths).unwrap();
            let wanted = slowly(layout, lengths);
            assert_eq!(map.size(), wanted.len() as u64 * 512, "{layout:?}");
            let count = wanted.len();
            for (from, to) in
                (0..count).flat_map(|from| (from + 1..=count).map(move |to| (from, to)))
            {
                let (offset, len) = (from as u64 * 512, (to - from) as u64 * 512);
                let mut found = Vec::new();
                for piece in map.parts(offset, len) {
                    assert!(piece.len != 0);
                    found.extend((0..piece.len / 512).map(|n| (piece.member, piece.at + n * 512)));
                }
                assert_eq!(found, wanted[from..to], "{layout:?} {offset} {len}");
                let mut by_member: Vec<_> = wanted[from..to].to_vec();
                by_member.sort_unstable();
                let ranges = map.ranges(offset, len);
                let found: Vec<_> = ranges
                    .flat_map(|p| (0..p.len / 512).map(move |n| (p.member, p.at + n * 512)))
                    .collect();
                assert_eq!(found, by_member, "{layout:?} {offset} {len}");
            }
        }
    }

    /// L13 Lengths that do not fit are refused.
    #[test]
    fn l13_sizes_are_added_without_wrapping() {
        assert_eq!(Map::new(Layout::Linear, &[u64::MAX - 511, 512]), None);
        assert_eq!(
            Map::new(STRIPE, &[8192, 512]),
            None,
            "a member without a chunk"
        );
        let map = Map::new(Layout::Linear, &[1 << 62, 512]).unwrap();
        let last = Piece {
            member: 1,
            at: 0,
            len: 512,
        };
        assert_eq!(map.first(1 << 62, 4096), last);
    }
}
