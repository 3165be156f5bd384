//! The CPU mask of a hw queue, as reported by GET_QUEUE_AFFINITY.

use core::fmt;

/// A set of CPUs of any size: machines with more than 1024 exist.
///
/// Two masks are equal if they hold the same CPUs, regardless of the size of the kernel's reply.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(from = "Vec<u64>", into = "Vec<u64>")
)]
pub struct CpuMask {
    /// CPU `n` is bit `n % 64` of word `n / 64`.
    ///
    /// # Invariants
    /// The last word is not zero, so that equal sets are equal vectors.
    words: Vec<u64>,
}

impl CpuMask {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self { words: Vec::new() }
    }

    /// Creates a mask from the kernel's bytes: `unsigned long` words in native byte order. An incomplete last word is
    /// padded with zeroes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let words = bytes.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        Self::from(words.collect::<Vec<_>>())
    }

    /// Adds a CPU.
    pub fn insert(&mut self, cpu: u32) {
        let (word, bit) = Self::place(cpu);
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= bit;
    }

    /// Whether the CPU is in the set.
    #[must_use]
    pub fn contains(&self, cpu: u32) -> bool {
        let (word, bit) = Self::place(cpu);
        self.words.get(word).is_some_and(|w| w & bit != 0)
    }

    /// Number of CPUs in the set.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.words.iter().map(|w| w.count_ones()).sum()
    }

    /// True if the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// The CPUs, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.words).flat_map(|(i, &word)| {
            (0..64u32)
                .filter(move |bit| word >> bit & 1 == 1)
                .map(move |bit| i * 64 + bit)
        })
    }

    /// The words of 64 CPUs each, lowest first, as `sched_setaffinity` takes them.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    const fn place(cpu: u32) -> (usize, u64) {
        ((cpu / 64) as usize, 1 << (cpu % 64))
    }
}

impl From<Vec<u64>> for CpuMask {
    fn from(mut words: Vec<u64>) -> Self {
        while words.last() == Some(&0) {
            words.pop();
        }
        Self { words }
    }
}

impl From<CpuMask> for Vec<u64> {
    fn from(mask: CpuMask) -> Self {
        mask.words
    }
}

impl FromIterator<u32> for CpuMask {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        let mut mask = Self::new();
        for cpu in cpus {
            mask.insert(cpu);
        }
        mask
    }
}

/// The kernel's list format: `0-3,8`; empty for the empty set.
impl fmt::Display for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        let mut cpus = self.iter().peekable();
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if(|&c| c == last + 1) {
                last = next;
            }
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for CpuMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuMask({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_the_kernel_become_cpus() {
        let mut bytes = vec![0; 512];
        bytes[..8].copy_from_slice(&0b1_0000_1111u64.to_ne_bytes());
        bytes[256..264].copy_from_slice(&(1u64 << 63).to_ne_bytes());
        let mask = CpuMask::from_bytes(&bytes);
        assert_eq!(mask.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 8, 2111]);
        assert_eq!(mask.to_string(), "0-3,8,2111");
        assert_eq!(mask.count(), 6);
        assert!(mask.contains(2111) && !mask.contains(2112) && !mask.contains(99_999));
        assert_eq!(CpuMask::from_bytes(&bytes[..264]), mask);
    }

    #[test]
    fn sets_go_both_ways() {
        let cpus = [0, 5, 6, 7, 63, 64, 65, 4095];
        let mask: CpuMask = cpus.into_iter().collect();
        assert_eq!(mask.iter().collect::<Vec<_>>(), cpus);
        assert_eq!(mask.to_string(), "0,5-7,63-65,4095");
        assert_eq!(CpuMask::from_bytes(&[0; 128]), CpuMask::new());
        assert!(CpuMask::from_bytes(&[0; 128]).is_empty());
        assert_eq!(CpuMask::from_bytes(&[]).to_string(), "");
        assert_eq!(CpuMask::from_bytes(&[3, 0, 0]).count(), 2);
    }
}
