//! Finds addresses of functions in the running kernel.

use std::fs;

use anyhow::{Context, Result};

/// Prints a line `@symbol NAME START END` for each name, addresses in hexadecimal.
///
/// # Errors
/// The kernel does not reveal its symbols, or has none of that name.
pub fn print(names: &[String]) -> Result<()> {
    let text = fs::read_to_string("/proc/kallsyms").context("/proc/kallsyms")?;
    for name in names {
        let (start, end) = place(&text, name).with_context(|| format!("no symbol {name}"))?;
        println!("@symbol {name} {start:x} {end:x}");
    }
    Ok(())
}

/// The address of a symbol in kallsyms, and that of the next one.
fn place(kallsyms: &str, name: &str) -> Option<(u64, u64)> {
    let symbols = kallsyms.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        Some((address, words.nth(1)?))
    });
    let symbols: Vec<_> = symbols.collect();
    let (start, _) = *symbols.iter().find(|(_, of)| *of == name)?;
    let behind = symbols.iter().map(|(address, _)| *address);
    let end = behind.filter(|address| *address > start).min()?;
    (start != 0).then_some((start, end))
}

#[cfg(test)]
mod tests {
    use super::place;

    #[test]
    fn a_function_ends_where_the_next_begins() {
        let text = "0000000000000000 A zero\nffffffff82000100 T memcpy\nffffffff82000180 t memcpy_orig\n\
                    ffffffff82000180 t alias\nffffffff82000300 T memmove\n";
        let found = place(text, "memcpy_orig").unwrap();
        assert_eq!(found, (0xffff_ffff_8200_0180, 0xffff_ffff_8200_0300));
        assert_eq!(place(text, "memmove"), None, "nothing behind it");
        assert_eq!(place(text, "zero"), None, "addresses are hidden");
        assert_eq!(place(text, "mem"), None);
    }
}
