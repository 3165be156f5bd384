//! Contains panics of calls into foreign code.
#![forbid(unsafe_code)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs a call; the error is the panic's payload, which goes to [`discard`].
#[inline(always)]
pub(crate) fn catch<T>(call: impl FnOnce() -> T) -> Result<T, Box<dyn Any + Send>> {
    catch_unwind(AssertUnwindSafe(call))
}

/// Runs a call; `None` if it panicked.
#[inline(always)]
pub(crate) fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    catch(call).map_err(discard).ok()
}

/// Drops a panic's payload, whose own drop is foreign code and may panic, too.
#[cold]
pub(crate) fn discard(payload: Box<dyn Any + Send>) {
    if let Err(another) = catch(|| drop(payload)) {
        // Gives up after two panics, and leaks the payload.
        std::mem::forget(another);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::panic_any;

    /// Panics this many times when it is dropped, each time with a new payload of its kind.
    struct Bomb(u32);

    impl Drop for Bomb {
        fn drop(&mut self) {
            if self.0 > 0 && !std::thread::panicking() {
                panic_any(Bomb(self.0 - 1));
            }
        }
    }

    /// L25 A panicking payload does not escape where its panic was caught.
    #[test]
    fn l25_a_payload_that_panics_is_contained() {
        assert_eq!(caught(|| 7), Some(7));
        for depth in 0..4 {
            assert_eq!(caught(|| -> u32 { panic_any(Bomb(depth)) }), None);
        }
    }
}
