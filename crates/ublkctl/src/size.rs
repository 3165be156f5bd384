//! Sizes in user notation: `512`, `4K`, `10G`; units are powers of 1024.

/// Bytes of a size: a whole number, then nothing, or one of K, M, G, T, P, E (1024-fold each), optionally followed by
/// `iB` or `B`.
///
/// # Errors
/// The reason as text: not a number, an unknown unit, beyond 64 bits.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(format!(
            "`{text}` is not a size: give a whole number and a unit, such as 512, 4K, 10G"
        ));
    }
    let shift = shift_of(unit).ok_or_else(|| {
        if unit.starts_with(['.', ',']) {
            format!("`{text}` is not a whole number: use a smaller unit, 1536M instead of 1.5G")
        } else {
            format!(
                "unknown unit `{unit}`: use K, M, G, T, P or E (each 1024 times the one before)"
            )
        }
    })?;
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| {
            format!("`{text}` is beyond 64 bits; the largest device is one byte short of 8 EiB")
        })
}

fn shift_of(unit: &str) -> Option<u32> {
    let letter = match unit {
        "" | "B" => return Some(0),
        _ => unit
            .strip_suffix("iB")
            .or_else(|| unit.strip_suffix('B'))
            .unwrap_or(unit),
    };
    let place = ["K", "M", "G", "T", "P", "E"]
        .iter()
        .position(|l| l.eq_ignore_ascii_case(letter))?;
    Some(10 * (u32::try_from(place).ok()? + 1))
}

/// Formats a size exactly, in the largest unit that divides it.
#[must_use]
pub fn show(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value != 0 && value.is_multiple_of(1024) && unit + 1 < units.len() {
        value /= 1024;
        unit += 1;
    }
    format!("{value} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("1M", 1 << 20),
            ("10G", 10 << 30),
            ("10GB", 10 << 30),
            ("1T", 1 << 40),
            ("3P", 3 << 50),
            ("7E", 7 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    /// L13 A size beyond 64 bits is an error, never a small device.
    #[test]
    fn l13_overflow_is_an_error() {
        for text in [
            "16E",
            "18446744073709551616",
            "99999999999999999999999G",
            "17179869184G",
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("beyond 64 bits"), "{error}");
        }
    }

    #[test]
    fn garbage_is_an_error_that_helps() {
        for text in [
            "", "G", "-1", "+1", " 1", "1 G", "1X", "1GG", "1iB", "0x10", "1e3", "½",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("1.5G").unwrap_err().contains("1536M"));
        assert!(parse("3Q").unwrap_err().contains("unknown unit"));
    }

    #[test]
    fn shown_sizes_read_back() {
        for bytes in [1, 511, 512, 4096, 1 << 20, (1 << 30) + 512, 3 << 40] {
            let shown = show(bytes).replace(' ', "");
            assert_eq!(parse(&shown), Ok(bytes), "{shown}");
        }
        assert_eq!(show(0), "0 B");
    }
}
