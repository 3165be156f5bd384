//! Numbers as people read them: three digits and a unit.

/// A number of nanoseconds: `870 ns`, `12.3 µs`, `1.25 s`.
#[must_use]
pub fn time(ns: u64) -> String {
    time_f64(to_f64(ns))
}

/// The same of a mean.
#[must_use]
pub fn time_f64(ns: f64) -> String {
    const UNITS: [(&str, f64); 4] = [("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9)];
    scaled(ns, &UNITS)
}

/// A number of bytes in powers of 1024: `512 B`, `4.00 KiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    bytes_f64(to_f64(bytes))
}

/// The same of a mean or a rate.
#[must_use]
pub fn bytes_f64(bytes: f64) -> String {
    const UNITS: [(&str, f64); 6] = [
        ("B", 1.0),
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("TiB", 1_099_511_627_776.0),
        ("PiB", 1_125_899_906_842_624.0),
    ];
    scaled(bytes, &UNITS)
}

/// A count or a rate in powers of 1000: `950`, `12.3 k`, `1.05 M`.
#[must_use]
pub fn count(count: f64) -> String {
    const UNITS: [(&str, f64); 4] = [("", 1.0), ("k", 1e3), ("M", 1e6), ("G", 1e9)];
    scaled(count, &UNITS).trim_end().to_owned()
}

/// A share of the whole: `12.5 %`.
#[must_use]
pub fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A number with its noun: `1 request`, `2 requests`.
#[must_use]
pub fn counted(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        count => format!("{count} {noun}s"),
    }
}

/// An integer as a floating-point number; beyond 2^53 it is rounded.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "figures have three digits")]
pub const fn to_f64(value: u64) -> f64 {
    value as f64
}

fn scaled(value: f64, units: &[(&str, f64)]) -> String {
    // 999.5 of a unit would be shown as 1000 of it.
    let fitting = units.iter().rev().find(|(_, size)| value >= size * 0.9995);
    let (unit, size) = fitting.or(units.first()).copied().unwrap_or(("", 1.0));
    let value = value / size;
    let whole = size <= 1.0 && value.fract() == 0.0;
    let digits = match value {
        _ if whole => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        for (ns, text) in [
            (0, "0 ns"),
            (870, "870 ns"),
            (999, "999 ns"),
            (1000, "1.00 µs"),
            (12_345, "12.3 µs"),
            (999_999, "1.00 ms"),
            (1_250_000_000, "1.25 s"),
            (100_000_000_000, "100 s"),
        ] {
            assert_eq!(time(ns), text);
        }
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(4096), "4.00 KiB");
        assert_eq!(bytes(u64::MAX), "16384 PiB");
        assert_eq!(count(950.0), "950");
        assert_eq!(count(0.25), "0.25");
        assert_eq!(count(12_345.0), "12.3 k");
        assert_eq!(percent(0.125), "12.5 %");
        assert_eq!(counted(1, "request"), "1 request");
        assert_eq!(counted(0, "request"), "0 requests");
    }
}
