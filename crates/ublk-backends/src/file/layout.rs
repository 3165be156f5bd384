//! Detects the block size that a disk's content was written with.

#![forbid(unsafe_code)]

/// Number of bytes at the start of a device that are examined.
pub(crate) const HEAD: usize = 128 << 10;

/// The block size that the content of a device was written with, according to its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Nothing has been written yet.
    Blank,
    /// The content requires blocks of this size.
    Blocks(u32, &'static str),
    /// The content requires blocks of this size or smaller.
    AtMost(u32, &'static str),
    /// Nothing known.
    Unknown,
}

/// A little-endian number at a position.
fn le(head: &[u8], at: usize, bytes: usize) -> Option<u32> {
    let bytes = head.get(at..at.checked_add(bytes)?)?;
    let digits = bytes.iter().rev();
    Some(digits.fold(0, |number, byte| number << 8 | u32::from(*byte)))
}

/// A block size that a device can have.
const fn block(bytes: u32) -> Option<u32> {
    match bytes {
        512 | 1024 | 2048 | 4096 => Some(bytes),
        _ => None,
    }
}

/// Examines the first bytes of a device, at most [`HEAD`].
pub(crate) fn of(head: &[u8]) -> Layout {
    let is = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    // A GPT is in the second block; its protective MBR is in the first.
    for size in [512, 1024, 2048, 4096] {
        if is(size, b"EFI PART") {
            let size = u32::try_from(size).unwrap_or(512);
            return Layout::Blocks(size, "partition table (GPT)");
        }
    }
    if is(0, b"XFSB") {
        let size = head
            .get(102..104)
            .map(|b| u32::from(b[0]) << 8 | u32::from(b[1]));
        if let Some(size) = size.and_then(block) {
            return Layout::AtMost(size, "XFS");
        }
    }
    if is(1080, &[0x53, 0xef]) {
        let shift = le(head, 1048, 4).unwrap_or(32);
        let size = 1024_u32.checked_shl(shift).unwrap_or(0);
        return Layout::AtMost(size.clamp(512, 4096), "ext4");
    }
    if is(65_600, b"_BHRfS_M") {
        let size = le(head, 65_680, 4).unwrap_or(0);
        return Layout::AtMost(size.clamp(512, 4096), "btrfs");
    }
    if is(510, &[0x55, 0xaa]) {
        return boot_sector(head);
    }
    if head.iter().all(|byte| *byte == 0) {
        return Layout::Blank;
    }
    Layout::Unknown
}

/// Content with a boot sector: file systems that store their block size in it, or a partition table.
fn boot_sector(head: &[u8]) -> Layout {
    let first = head.first().copied().unwrap_or(0);
    let size = if head.get(3..11) == Some(b"EXFAT   ") {
        head.get(108)
            .and_then(|shift| 1_u32.checked_shl((*shift).into()))
    } else if matches!(first, 0xeb | 0xe9) {
        le(head, 11, 2)
    } else {
        None
    };
    if let Some(size) = size.and_then(block) {
        return Layout::Blocks(size, "FAT or NTFS");
    }
    let entries = head.get(446..510).unwrap_or_default();
    let mut entries = entries.as_chunks::<16>().0.iter();
    let used = |e: &&[u8; 16]| e[4] != 0;
    let sound = |e: &[u8; 16]| matches!(e[0], 0 | 0x80);
    match (entries.clone().all(sound), entries.find(used)) {
        // An MBR does not tell; it is rare on disks with larger blocks.
        (true, Some(_)) => Layout::Blocks(512, "partition table (MBR)"),
        _ => Layout::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        for (at, bytes) in parts {
            head[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        head
    }

    /// L82 The content of a disk reveals its block size.
    #[test]
    fn l82_what_is_written_says_its_block_size() {
        let mbr: &[(usize, &[u8])] = &[(446, &[0x80, 0, 1, 0, 0x83]), (510, &[0x55, 0xaa])];
        let protective: (usize, &[u8]) = (450, &[0xee]);
        let signature: (usize, &[u8]) = (510, &[0x55, 0xaa]);
        for (parts, wanted) in [
            (&[][..], Layout::Blank),
            (&[(0, &[1][..])], Layout::Unknown),
            (
                &[protective, signature, (512, b"EFI PART")],
                Layout::Blocks(512, "partition table (GPT)"),
            ),
            (
                &[protective, signature, (4096, b"EFI PART")],
                Layout::Blocks(4096, "partition table (GPT)"),
            ),
            (&[(0, b"XFSB"), (102, &[2, 0])], Layout::AtMost(512, "XFS")),
            (
                &[(0, b"XFSB"), (102, &[16, 0])],
                Layout::AtMost(4096, "XFS"),
            ),
            (&[(1080, &[0x53, 0xef])], Layout::AtMost(1024, "ext4")),
            (
                &[(1080, &[0x53, 0xef]), (1048, &[2])],
                Layout::AtMost(4096, "ext4"),
            ),
            (
                &[(1080, &[0x53, 0xef]), (1048, &[255; 4])],
                Layout::AtMost(512, "ext4"),
            ),
            (
                &[(65_600, b"_BHRfS_M"), (65_680, &[0, 16])],
                Layout::AtMost(4096, "btrfs"),
            ),
            (mbr, Layout::Blocks(512, "partition table (MBR)")),
            (&[signature], Layout::Unknown),
            (
                &[signature, (0, &[0xeb]), (11, &[0, 16])],
                Layout::Blocks(4096, "FAT or NTFS"),
            ),
            (
                &[signature, (0, b"\xeb\x76\x90EXFAT   "), (108, &[9])],
                Layout::Blocks(512, "FAT or NTFS"),
            ),
        ] {
            assert_eq!(of(&with(parts)), wanted, "{parts:?}");
        }
        // Truncated input is harmless.
        for len in [0, 1, 511, 1081] {
            assert_eq!(of(&vec![0; len]), Layout::Blank);
        }
        assert_eq!(of(b"XFSB"), Layout::Unknown);
    }
}
