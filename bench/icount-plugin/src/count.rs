//! Counters: who spends an instruction, and how many each has spent on each vCPU.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU64, Ordering};

/// Who spends an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The kernel: the upper half of the address space.
    Kernel,
    /// User code in the server's text.
    Server,
    /// All other user code.
    Other,
}

impl Class {
    /// Number of classes.
    pub const COUNT: usize = 3;

    /// The class of the code at an address; `lo..hi` is the server's text.
    pub fn of(address: u64, lo: u64, hi: u64) -> Self {
        if address >> 47 != 0 {
            Self::Kernel
        } else if (lo..hi).contains(&address) {
            Self::Server
        } else {
            Self::Other
        }
    }
}

/// One vCPU's counters, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters([AtomicU64; Class::COUNT]);

impl Counters {
    /// The counter of a class.
    pub fn of(&self, class: Class) -> &AtomicU64 {
        &self.0[class as usize]
    }

    /// Adds executed instructions. Only this vCPU's thread writes: no read-modify-write needed.
    pub fn add(&self, class: usize, instructions: u64) {
        let counter = &self.0[class % Class::COUNT];
        let count = counter.load(Ordering::Relaxed);
        counter.store(count.wrapping_add(instructions), Ordering::Relaxed);
    }
}

/// The sum over all vCPUs as a line of the snapshot file.
pub fn line(counters: &[Counters]) -> String {
    let sum = |class: Class| -> u64 {
        counters
            .iter()
            .map(|vcpu| vcpu.of(class).load(Ordering::Relaxed))
            .sum()
    };
    format!(
        "kernel {} server {} other {}",
        sum(Class::Kernel),
        sum(Class::Server),
        sum(Class::Other)
    )
}

/// A block's class and length in one word, for a callback that gets one pointer-sized value.
pub fn pack(class: Class, instructions: usize) -> usize {
    (instructions << 2) | class as usize
}

/// What [`pack`] took: the class as an index, and the number of instructions.
pub fn unpack(word: usize) -> (usize, u64) {
    (word & 3, (word >> 2) as u64)
}

#[cfg(test)]
mod tests {
    use super::{Class, Counters, line, pack, unpack};

    #[test]
    fn addresses_have_their_classes() {
        let of = |address| Class::of(address, 0x1000, 0x2000);
        assert_eq!(of(0xffff_ffff_8100_0000), Class::Kernel);
        assert_eq!(of(0xffff_8880_0000_0000), Class::Kernel);
        assert_eq!(of(0xfff), Class::Other);
        assert_eq!(of(0x1000), Class::Server);
        assert_eq!(of(0x1fff), Class::Server);
        assert_eq!(of(0x2000), Class::Other);
        assert_eq!(of(0x7fff_ffff_f000), Class::Other);
    }

    #[test]
    fn a_snapshot_adds_all_vcpus() {
        let counters = [Counters::default(), Counters::default()];
        for (vcpu, class, count) in [
            (0, Class::Server, 5),
            (1, Class::Server, 7),
            (1, Class::Kernel, 1),
        ] {
            let (class, count) = unpack(pack(class, count));
            counters[vcpu].add(class, count);
        }
        assert_eq!(line(&counters), "kernel 1 server 12 other 0");
    }
}
