//! Every copier copies exactly the bytes it was given.

#![allow(unsafe_code)]

use std::ptr::NonNull;

use super::{UNIT, portable};

/// Guard bytes on either side of the range.
const GUARD: usize = 512;

/// Memory with guards, filled with 0xee; aligned to eight by its type.
struct Area(Vec<u64>);

impl Area {
    fn new(len: usize) -> Self {
        Self(vec![0xeeee_eeee_eeee_eeee; (len + 2 * GUARD) / 8])
    }

    fn inside(&mut self) -> NonNull<u8> {
        let base = NonNull::new(self.0.as_mut_ptr().cast::<u8>()).expect("a vector's");
        // SAFETY: the area is longer than a guard.
        unsafe { base.add(GUARD) }
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from(i % 251).expect("below 251"))
        .collect()
}

/// Runs `$copier` over several lengths and odd private addresses.
macro_rules! check {
    ($copier:expr) => {
        for sectors in [0, 1, 2, 3, 8, 9] {
            for skew in [0, 1, 7, 32] {
                let len = sectors * UNIT;
                let mut area = Area::new(len);
                let mut source = vec![0; skew];
                source.extend(pattern(len));
                let shared = area.inside();
                // SAFETY: `len` bytes between the guards, aligned to eight, used by no one else.
                unsafe { $copier.store(&source[skew..], shared) };
                let mut back = vec![0x55; skew + len + 1];
                // SAFETY: as above.
                unsafe { $copier.load(shared, &mut back[skew..skew + len]) };
                assert_eq!(back[skew..skew + len], source[skew..], "{sectors} {skew}");
                assert!(back[..skew].iter().all(|b| *b == 0x55), "{sectors} {skew}");
                assert_eq!(back.last(), Some(&0x55), "{sectors} {skew}");
                let all = area.bytes();
                assert!(all[..GUARD].iter().all(|b| *b == 0xee), "{sectors} {skew}");
                assert_eq!(all[GUARD..GUARD + len], source[skew..], "{sectors} {skew}");
                assert!(
                    all[GUARD + len..].iter().all(|b| *b == 0xee),
                    "{sectors} {skew}"
                );
                // SAFETY: as above.
                unsafe { $copier.zero(shared, len) };
                let all = area.bytes();
                assert!(
                    all[GUARD..GUARD + len].iter().all(|b| *b == 0),
                    "{sectors} {skew}"
                );
                assert_eq!(all.iter().filter(|b| **b == 0xee).count(), 2 * GUARD);
            }
        }
    };
}

#[test]
fn detected_copier_is_exact() {
    check!(super::Copier::detect());
}

#[test]
fn portable_copier_is_exact() {
    check!(portable::Copier::detect());
}

#[cfg(all(
    target_arch = "x86_64",
    not(any(miri, loom, fuzzing, feature = "atomic-copy"))
))]
#[test]
fn sse2_copier_is_exact() {
    check!(super::Copier::without_avx());
}

/// Shared memory may begin at any address, and can be copied to shared memory.
#[test]
fn copies_between_shared_places_are_exact() {
    for skew in [0, 4] {
        let mut from = Area::new(UNIT * 3 + 8);
        let mut to = Area::new(UNIT * 3 + 8);
        let source = pattern(UNIT * 2);
        // SAFETY: inside the area, which is longer by a sector and a word.
        let from = unsafe { from.inside().add(skew) };
        // SAFETY: as above.
        let place = unsafe { to.inside().add(skew) };
        // SAFETY: two sectors between the guards, used by no one else.
        unsafe { portable::Copier::detect().store(&source, from) };
        for way in 0..2 {
            // SAFETY: as above.
            unsafe { portable::Copier::detect().zero(place, source.len()) };
            if way == 0 {
                // SAFETY: two sectors of each area.
                unsafe { portable::Copier::detect().transfer(from, place, source.len()) };
            } else {
                // SAFETY: as above.
                unsafe { super::Copier::detect().transfer(from, place, source.len()) };
            }
            let all = to.bytes();
            let at = GUARD + skew;
            assert_eq!(all[at..at + source.len()], source[..], "{skew} {way}");
            let guards = [&all[..at], &all[at + source.len()..]];
            assert!(
                guards.iter().all(|g| g.iter().all(|b| *b == 0xee)),
                "{skew} {way}"
            );
        }
    }
}
