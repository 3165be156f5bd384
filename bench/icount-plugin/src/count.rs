//! Counters of instructions per class and vCPU.
#![forbid(unsafe_code)]

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Classes of code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The kernel (the upper half of the address space), except its copy routines.
    Kernel,
    /// User code in the server's text.
    Server,
    /// All other user code.
    Other,
    /// The kernel's copy from and to user memory.
    UserCopy,
    /// The kernel's copy between its own pages.
    PageCopy,
}

/// Address ranges of the classes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// The server's text.
    pub server: Range<u64>,
    /// The kernel's copy from and to user memory.
    pub user_copy: Range<u64>,
    /// The kernel's copy between its own pages.
    pub page_copy: Range<u64>,
}

impl Places {
    /// The class of the code at an address.
    pub fn class(&self, address: u64) -> Class {
        if address >> 47 == 0 {
            if self.server.contains(&address) {
                return Class::Server;
            }
            return Class::Other;
        }
        if self.user_copy.contains(&address) {
            Class::UserCopy
        } else if self.page_copy.contains(&address) {
            Class::PageCopy
        } else {
            Class::Kernel
        }
    }
}

impl Class {
    /// Number of classes.
    pub const COUNT: usize = 5;

    /// Whether the code belongs to the kernel.
    pub fn is_kernel(self) -> bool {
        !matches!(self, Self::Server | Self::Other)
    }
}

/// The counters of one vCPU, on separate cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counters([AtomicU64; Class::COUNT]);

impl Counters {
    /// The counter of a class.
    pub fn of(&self, class: Class) -> &AtomicU64 {
        &self.0[class as usize]
    }

    /// Adds executed instructions. Only this vCPU's thread writes, so no read-modify-write is needed.
    pub fn add(&self, class: usize, instructions: u64) {
        let counter = &self.0[class % Class::COUNT];
        let count = counter.load(Ordering::Relaxed);
        counter.store(count.wrapping_add(instructions), Ordering::Relaxed);
    }
}

/// The sum over all vCPUs as a line of the snapshot file; the kernel's share includes its copies.
pub fn line(counters: &[Counters]) -> String {
    let sum = |class: Class| -> u64 {
        counters
            .iter()
            .map(|vcpu| vcpu.of(class).load(Ordering::Relaxed))
            .sum()
    };
    let (user, pages) = (sum(Class::UserCopy), sum(Class::PageCopy));
    format!(
        "kernel {} server {} other {} user-copy {user} page-copy {pages}",
        sum(Class::Kernel) + user + pages,
        sum(Class::Server),
        sum(Class::Other)
    )
}

/// Packs a block's class and length into one word, for a callback with one pointer-sized argument.
pub fn pack(class: Class, instructions: usize) -> usize {
    (instructions << 3) | class as usize
}

/// Unpacks a word of [`pack`]: the class as an index, and the number of instructions.
pub fn unpack(word: usize) -> (usize, u64) {
    (word & 7, (word >> 3) as u64)
}

#[cfg(test)]
mod tests {
    use super::{Class, Counters, Places, line, pack, unpack};

    #[test]
    fn addresses_have_their_classes() {
        let places = Places {
            server: 0x1000..0x2000,
            user_copy: 0xffff_ffff_8200_0000..0xffff_ffff_8200_0100,
            page_copy: 0xffff_ffff_8200_0100..0xffff_ffff_8200_0200,
        };
        let of = |address| places.class(address);
        assert_eq!(of(0xffff_ffff_8100_0000), Class::Kernel);
        assert_eq!(of(0xffff_8880_0000_0000), Class::Kernel);
        assert_eq!(of(0xffff_ffff_8200_00ff), Class::UserCopy);
        assert_eq!(of(0xffff_ffff_8200_0100), Class::PageCopy);
        assert_eq!(of(0xfff), Class::Other);
        assert_eq!(of(0x1000), Class::Server);
        assert_eq!(of(0x1fff), Class::Server);
        assert_eq!(of(0x2000), Class::Other);
        assert_eq!(of(0x7fff_ffff_f000), Class::Other);
        assert!(Class::PageCopy.is_kernel() && !Class::Server.is_kernel());
    }

    #[test]
    fn a_snapshot_adds_all_vcpus() {
        let counters = [Counters::default(), Counters::default()];
        for (vcpu, class, count) in [
            (0, Class::Server, 5),
            (1, Class::Server, 7),
            (1, Class::Kernel, 1),
            (0, Class::UserCopy, 10),
            (1, Class::PageCopy, 100),
        ] {
            let (class, count) = unpack(pack(class, count));
            counters[vcpu].add(class, count);
        }
        assert_eq!(
            line(&counters),
            "kernel 111 server 12 other 0 user-copy 10 page-copy 100"
        );
    }
}
