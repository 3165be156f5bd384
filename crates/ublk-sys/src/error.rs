//! Errors in bytes or numbers exchanged with the driver.

use core::fmt;

/// Why bytes or numbers were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The buffer has the wrong length for the value.
    Size {
        /// C name of the struct, or a description of the value.
        what: &'static str,
        /// Required size in bytes.
        want: usize,
        /// Actual size in bytes.
        got: usize,
    },
    /// A number does not fit its field, or is outside the driver's range.
    Range {
        /// Description of the number.
        what: &'static str,
        /// The number.
        value: u64,
        /// Smallest valid value.
        min: u64,
        /// Largest valid value.
        max: u64,
    },
    /// Reserved bits are set. The word may come from a newer kernel or program.
    Reserved {
        /// Description of the word.
        what: &'static str,
        /// The offending bits, in their positions in the word.
        bits: u64,
    },
    /// A number breaks a rule other than a range, such as being a power of two.
    Rule {
        /// Description of the number.
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
