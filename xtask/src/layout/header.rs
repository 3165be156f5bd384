//! Extracts the names that a C header defines.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Names and text of the headers.
#[derive(Debug)]
pub struct Header {
    /// Object-like macros and enumerators of the first header.
    pub constants: BTreeSet<String>,
    /// Structs defined by the first header.
    pub structs: BTreeSet<String>,
    /// Every word of all headers, without comments.
    words: BTreeSet<String>,
    /// The words of each struct's body, in all headers.
    bodies: BTreeMap<String, BTreeSet<String>>,
}

impl Header {
    /// Reads headers below `include`; the names that we must know come from the first.
    ///
    /// # Errors
    /// A header cannot be read.
    pub fn read(include: &Path, names: &[&str]) -> Result<Self> {
        let mut texts = Vec::new();
        for name in names {
            let path = include.join(name);
            let text = fs::read_to_string(&path);
            let text = text.with_context(|| format!("no header {}", path.display()))?;
            texts.push(without_comments(&text));
        }
        Ok(Self::of(&texts))
    }

    fn of(texts: &[String]) -> Self {
        let first = texts.first().map_or("", String::as_str);
        let mut constants: BTreeSet<_> = macros(first).collect();
        constants.extend(enumerators(first));
        let mut words = BTreeSet::new();
        let mut bodies = BTreeMap::new();
        for text in texts {
            words.extend(idents(text).map(str::to_owned));
            bodies.extend(structs(text));
        }
        let structs = structs(first).into_keys().collect();
        Self {
            constants,
            structs,
            words,
            bodies,
        }
    }

    #[cfg(test)]
    pub(super) fn for_test(text: &str) -> Self {
        Self::of(&[without_comments(text)])
    }

    /// Whether any header has this word.
    pub fn has(&self, word: &str) -> bool {
        self.words.contains(word)
    }

    /// Whether the struct is defined here and its body has this word.
    pub fn has_field(&self, name: &str, field: &str) -> bool {
        self.bodies
            .get(name)
            .is_some_and(|body| body.contains(field))
    }

    /// Whether the struct is defined here.
    pub fn has_struct(&self, name: &str) -> bool {
        self.bodies.contains_key(name)
    }
}

/// `major, minor` at the start of a package's version.
pub fn series(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The text with every comment replaced by a space.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("/*").into_iter().chain(rest.find("//")).min() {
        out.push_str(&rest[..at]);
        out.push(' ');
        let (end, skip) = if rest[at..].starts_with("/*") {
            ("*/", 2)
        } else {
            ("\n", 0)
        };
        rest = rest[at + 2..]
            .find(end)
            .map_or("", |stop| &rest[at + 2 + stop + skip..]);
    }
    out + rest
}

fn idents(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty() && !word.starts_with(|c: char| c.is_ascii_digit()))
}

/// Names of macros with a value and no parameters.
fn macros(text: &str) -> impl Iterator<Item = String> {
    text.lines().filter_map(|line| {
        let rest = line
            .trim_start()
            .strip_prefix('#')?
            .trim_start()
            .strip_prefix("define")?;
        let rest = rest.trim_start();
        let name = idents(rest).next()?;
        let value = &rest[name.len()..];
        (!value.starts_with('(') && !value.trim().is_empty()).then(|| name.to_owned())
    })
}

/// Names of enumerators, of all enums.
fn enumerators(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (at, _) in text.match_indices("enum") {
        let Some(body) = body(&text[at + 4..]) else {
            continue;
        };
        let entries = body.split(',').filter_map(|entry| idents(entry).next());
        names.extend(entries.map(str::to_owned));
    }
    names
}

/// Structs that are defined, with the words of their bodies.
fn structs(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    for (at, _) in text.match_indices("struct ") {
        let rest = &text[at + 7..];
        let Some(name) = idents(rest.trim_start()).next() else {
            continue;
        };
        let after = rest.trim_start().strip_prefix(name).unwrap_or("");
        if let Some(body) = body(after) {
            let words = idents(body).map(str::to_owned).collect();
            found.insert(name.to_owned(), words);
        }
    }
    found
}

/// The text between the braces, if only a name precedes them.
fn body(text: &str) -> Option<&str> {
    let open = text.find('{')?;
    let before = text[..open].trim();
    if !before
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || c == '_')
    {
        return None;
    }
    let mut depth = 0_usize;
    for (at, c) in text[open..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(&text[open + 1..open + at]);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Header, series, without_comments};

    const TEXT: &str = "
#ifndef GUARD_H
#define GUARD_H
#define\tUBLK_A\t0x01
/* #define UBLK_COMMENT 1
 * struct ublk_comment { */
#define UBLK_B \\
\t_IOR('u', UBLK_A, struct ublk_s)
#define UBLK_CALL(x) x
# define UBLK_C (1 << 0) // #define UBLK_LINE 2
enum ublk_e { UBLK_E0, UBLK_E1 = 7, };
struct ublk_s {
#define UBLK_IN (1 << 1)
\t__u32 one;
\tunion { __u64 two; __u64 three; };
};
static inline struct ublk_r f(const struct ublk_p *p) { return x; }
";

    #[test]
    fn names_are_found() {
        let header = Header::of(&[without_comments(TEXT)]);
        let constants: Vec<_> = header.constants.iter().map(String::as_str).collect();
        let want = [
            "UBLK_A", "UBLK_B", "UBLK_C", "UBLK_E0", "UBLK_E1", "UBLK_IN",
        ];
        assert_eq!(constants, want);
        assert_eq!(header.structs.iter().collect::<Vec<_>>(), ["ublk_s"]);
        assert!(header.has_field("ublk_s", "three"));
        assert!(!header.has_field("ublk_s", "four"));
        assert!(!header.has("UBLK_COMMENT"));
    }

    #[test]
    fn versions_of_packages() {
        assert_eq!(series("7.3.4-1~bpo13+1"), Some((7, 3)));
        assert_eq!(series("6.14.0-33.33"), Some((6, 14)));
        assert_eq!(series("none"), None);
    }
}
