//! What can be wrong with bytes or numbers on their way across the boundary.

use core::fmt;

/// Why bytes or numbers were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The buffer's length is not what the value needs.
    Size {
        /// C name of the struct, or what was being read.
        what: &'static str,
        /// Bytes that were needed.
        want: usize,
        /// Bytes that were given.
        got: usize,
    },
    /// A number does not fit the place it has in the encoding, or the range the driver accepts.
    Range {
        /// Which number.
        what: &'static str,
        /// The number.
        value: u64,
        /// Smallest accepted.
        min: u64,
        /// Largest accepted.
        max: u64,
    },
    /// Bits that must be zero are set. The word may come from a newer kernel or program.
    Reserved {
        /// Which word.
        what: &'static str,
        /// The bits that should be zero, in their place in the word.
        bits: u64,
    },
    /// A number breaks a rule that is no range, such as being a multiple or a power of two.
    Rule {
        /// Which number.
        what: &'static str,
        /// The number.
        value: u64,
        /// The rule, in words.
        rule: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::Size { what, want, got } => {
                write!(f, "{what} needs {want} bytes, the buffer has {got}")
            }
            Error::Range {
                what,
                value,
                min,
                max,
            } => {
                write!(f, "{what} is {value}, use {min} to {max}")
            }
            Error::Reserved { what, bits } => {
                write!(f, "{what} has reserved bits {bits:#x} set, clear them")
            }
            Error::Rule { what, value, rule } => write!(f, "{what} is {value}, it must be {rule}"),
        }
    }
}

impl core::error::Error for Error {}

/// Checks `min <= value <= max`.
pub(crate) const fn in_range(
    what: &'static str,
    value: u64,
    min: u64,
    max: u64,
) -> Result<(), Error> {
    if value < min || value > max {
        return Err(Error::Range {
            what,
            value,
            min,
            max,
        });
    }
    Ok(())
}
