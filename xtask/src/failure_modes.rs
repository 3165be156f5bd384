//! `failure-modes`: checks docs/failure-modes.md against the numbers and tests in the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::paths;

/// The page, relative to the root.
const PAGE: &str = "docs/failure-modes.md";
/// The source directories.
const SOURCES: [&str; 2] = ["crates", "xtask"];

/// A line of the page: where its failure is prevented, and the test for it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Entry {
    file: String,
    test: String,
}

/// Uses of numbers: `L07` in text, `l07_...` in names of tests.
#[derive(Debug, Default, PartialEq, Eq)]
struct Uses {
    /// By number, the files that use it.
    numbers: BTreeMap<String, BTreeSet<String>>,
    /// Names of tests; of a name with parameters, the part before them.
    tests: BTreeSet<String>,
}

/// Compares page and tree.
///
/// # Errors
/// All mismatches.
pub fn run() -> Result<()> {
    let root = paths::root();
    let page = fs::read_to_string(root.join(PAGE)).with_context(|| PAGE.to_owned())?;
    let mut uses = Uses::default();
    for source in SOURCES {
        walk(&root.join(source), &mut uses)?;
    }
    let entries = entries(&page)?;
    let mut faults = compare(&entries, &uses);
    let missing = entries
        .values()
        .filter(|entry| !root.join(&entry.file).is_file());
    faults.extend(missing.map(|entry| format!("{PAGE}: there is no file {}", entry.file)));
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    println!("{} failure modes, each with its test", entries.len());
    Ok(())
}

/// The lines of the page by number. Each has five cells.
fn entries(page: &str) -> Result<BTreeMap<String, Entry>> {
    let mut all = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| L")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [number, what, who, file, test] = cells[..] else {
            bail!("{PAGE}: a line does not have five cells: {line}");
        };
        if what.is_empty() || who.is_empty() {
            bail!("{PAGE}: {number}: an empty cell");
        }
        let plain = |cell: &str| cell.trim_matches('`').to_owned();
        let entry = Entry {
            file: plain(file),
            test: plain(test),
        };
        if all.insert(number.to_owned(), entry).is_some() {
            bail!("{PAGE}: {number} has two lines");
        }
    }
    Ok(all)
}

fn compare(entries: &BTreeMap<String, Entry>, uses: &Uses) -> Vec<String> {
    let mut faults = Vec::new();
    for (number, entry) in entries {
        if !uses.tests.contains(&entry.test) {
            faults.push(format!("{PAGE}: {number}: no test is named {}", entry.test));
        } else if !numbers_of(&entry.test).contains(number) {
            faults.push(format!("{PAGE}: {number}: {} is not its test", entry.test));
        }
        let files = uses.numbers.get(number);
        if !files.is_some_and(|files| files.contains(&entry.file)) {
            let file = &entry.file;
            faults.push(format!("{PAGE}: {number}: {file} does not mention it"));
        }
    }
    let named = uses
        .tests
        .iter()
        .flat_map(|test| numbers_of(test).into_iter().map(move |n| (n, test)));
    let used = uses.numbers.iter();
    let used = used.flat_map(|(n, files)| files.iter().map(move |file| (n.clone(), file)));
    for (number, user) in named.chain(used) {
        if !entries.contains_key(&number) {
            faults.push(format!("{user}: {number} has no line in {PAGE}"));
        }
    }
    faults
}

/// The numbers at the start of a test's name: for `l05_l11_name`, L05 and L11.
fn numbers_of(test: &str) -> Vec<String> {
    test.split('_')
        .take_while(|part| is_number(part, 'l'))
        .map(str::to_uppercase)
        .collect()
}

/// True for `L07` or `l07`, depending on `letter`.
fn is_number(word: &str, letter: char) -> bool {
    word.len() == 3 && word.starts_with(letter) && word[1..].bytes().all(|b| b.is_ascii_digit())
}

fn walk(directory: &Path, uses: &mut Uses) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, uses)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path)?;
            let path = path.strip_prefix(paths::root()).unwrap_or(&path);
            scan(&text, &path.display().to_string(), uses);
        }
    }
    Ok(())
}

/// Records the numbers and tests in a source file.
fn scan(text: &str, file: &str, uses: &mut Uses) {
    let apart = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    for word in text.split(apart) {
        if is_number(word, 'L') {
            let files = uses.numbers.entry(word.to_owned()).or_default();
            files.insert(file.to_owned());
        }
    }
    uses.tests.extend(tests(text));
}

/// The tests that a source file defines: functions, and names of cases, which may have parameters.
fn tests(text: &str) -> impl Iterator<Item = String> + '_ {
    let definitions = ["fn ", "Case::new(", "format!("];
    let names = definitions.into_iter().flat_map(move |definition| {
        let after = text.match_indices(definition);
        after.map(move |(at, _)| &text[at + definition.len()..])
    });
    names.filter_map(|rest| {
        let rest = rest.trim_start();
        let rest = rest.strip_prefix('"').unwrap_or(rest);
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let name = &rest[..end.unwrap_or(rest.len())];
        (!numbers_of(name).is_empty()).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_agrees_with_the_tree() {
        run().unwrap();
    }

    /// A number made up for these tests, spelled so that it does not count as used.
    fn number(n: u32) -> String {
        format!("L{n}")
    }

    fn page(number: &str, test: &str) -> BTreeMap<String, Entry> {
        entries(&format!("| {number} | what | who | `a.rs` | `{test}` |\n")).unwrap()
    }

    #[test]
    fn what_does_not_agree_is_told() {
        let (number, test) = (number(98), format!("l{}_a_test", 98));
        let source = format!("/// {number} Why.\nfn {test}() {{}}\n");
        let mut uses = Uses::default();
        scan(&source, "a.rs", &mut uses);
        assert!(compare(&page(&number, &test), &uses).is_empty());
        // The file does not mention the number.
        let mut elsewhere = Uses::default();
        scan(&source, "b.rs", &mut elsewhere);
        let faults = compare(&page(&number, &test), &elsewhere);
        assert!(faults[0].contains("a.rs does not mention it"), "{faults:?}");
        // A number and a test without a line.
        assert_eq!(compare(&BTreeMap::new(), &uses).len(), 2);
        // A line whose test is missing, or has another number.
        let gone = compare(&page(&number, "gone"), &uses);
        assert!(gone[0].contains("no test is named gone"), "{gone:?}");
        let mut others = page(&self::number(97), &test);
        others.extend(page(&number, &test));
        let others = compare(&others, &uses);
        assert!(others[0].contains("is not its test"), "{others:?}");
        assert!(entries("| L | what | `a.rs` | `t` |\n").is_err());
    }

    /// A call or a mention of a test does not define it.
    #[test]
    fn only_definitions_count_as_tests() {
        let name = format!("l{}_x", 98);
        let defined = |text: &str| tests(text).collect::<Vec<_>>();
        for text in [
            format!("fn {name}() {{}}"),
            format!("Case::new(\n    \"{name}\", f)"),
            format!("Case::new(format!(\"{name}{{n}}\"), f)"),
        ] {
            assert_eq!(defined(&text), [name.as_str()], "{text}");
        }
        for text in [
            format!("{name}();"),
            format!("/// As {name}."),
            format!("[\"{name}\"]"),
        ] {
            assert!(defined(&text).is_empty(), "{text}");
        }
    }
}
