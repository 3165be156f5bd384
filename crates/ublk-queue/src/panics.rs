//! Calls of other people's code, whose panics end with the call.
#![forbid(unsafe_code)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a call gave, or what its panic carried, which goes to [`discard`].
#[inline(always)]
pub(crate) fn catch<T>(call: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(call))
}

/// What a call gave; `None` if it panicked.
#[inline(always)]
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    catch(call).map_err(discard).ok()
}

/// Drops what a panic carried: its own drop is other people's code, too, and may panic.
#[cold]
pub(crate) fn discard(payload: Box<dyn Any + Send>) {
    if let Err(another) = catch(|| drop(payload)) {
        // A third is not tried.
        std::mem::forget(another);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::panic_any;

    /// Panics so often when it is dropped, each time with another of its kind.
    struct Bomb(u32);

    impl Drop for Bomb {
        fn drop(&mut self) {
            if self.0 > 0 && !std::thread::panicking() {
                panic_any(Bomb(self.0 - 1));
            }
        }
    }

    /// L25 What a panic carries does not get out of where the panic was caught.
    #[test]
    fn l25_a_payload_that_panics_is_contained() {
        assert_eq!(caught(|| 7), Some(7));
        for depth in 0..4 {
            assert_eq!(caught(|| -> u32 { panic_any(Bomb(depth)) }), None);
        }
    }
}
