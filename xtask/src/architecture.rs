//! Compares docs/architecture.md with the sources: the list of crates with the manifests, the walks with the functions
//! that they name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::paths;

/// The page, relative to the root.
const PAGE: &str = "docs/architecture.md";

/// The text between a heading and the next one.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let (_, rest) = page.split_once(heading).expect("the heading");
    rest.split_once("\n#").map_or(rest, |(section, _)| section)
}

/// The cells of the rows of a table, without its head.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = text.lines().filter_map(|line| line.strip_prefix('|'));
    let rows = rows.map(|row| {
        row.trim_end_matches('|')
            .split('|')
            .map(str::trim)
            .collect()
    });
    rows.filter(|cells: &Vec<&str>| cells.iter().any(|cell| cell.starts_with('`')))
}

/// What stands between backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The crates below `crates/` and what each depends on.
fn manifests() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--no-deps",
            "--offline",
            "--format-version",
            "1",
        ])
        .current_dir(paths::root())
        .output()
        .expect("cargo metadata");
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let below = |path: &Value| path.as_str().is_some_and(|path| path.contains("/crates/"));
    let name = |value: &Value| value["name"].as_str().expect("a name").to_owned();
    let packages = metadata["packages"].as_array().expect("packages").iter();
    let ours = packages.filter(|package| below(&package["manifest_path"]));
    let uses = |package: &Value| {
        let all = package["dependencies"].as_array().expect("dependencies");
        let uses = all
            .iter()
            .filter(|d| d["kind"].is_null() && below(&d["path"]));
        uses.map(name).collect()
    };
    ours.map(|package| (name(package), uses(package))).collect()
}

/// The list of crates on the page agrees with the manifests, and is sorted from the bottom to the top.
#[test]
fn the_crates_are_those_of_the_manifests() {
    let page = fs::read_to_string(paths::root().join(PAGE)).expect(PAGE);
    let manifests = manifests();
    let mut above = BTreeSet::new();
    let table = section(&page, "## Bird's-eye view\n");
    for cells in rows(table).filter(|cells| cells.len() == 2) {
        let name = quoted(cells[0]).next().expect("a crate").to_owned();
        let uses: BTreeSet<String> = quoted(cells[1]).map(str::to_owned).collect();
        assert_eq!(Some(&uses), manifests.get(&name), "{PAGE}: {name}");
        assert!(
            uses.is_subset(&above),
            "{PAGE}: {name} depends on crates below it"
        );
        above.insert(name);
    }
    let all: BTreeSet<String> = manifests.into_keys().collect();
    assert_eq!(above, all, "{PAGE}: the crates of the list");
}

/// The path of a walk's file: `…` repeats the crate of the file before.
fn path(cell: &str, crate_name: &mut String) -> String {
    match cell.strip_prefix("…/") {
        Some(rest) => format!("crates/{crate_name}/src/{rest}"),
        None => {
            *crate_name = cell.split('/').next().unwrap_or_default().to_owned();
            format!("crates/{cell}")
        }
    }
}

/// Each function that a walk names is in the file of its row, and the number of files is right.
#[test]
fn the_walks_name_functions_that_exist() {
    let page = fs::read_to_string(paths::root().join(PAGE)).expect(PAGE);
    let walks = section(&page, "### Three walks\n").split("\n**").skip(1);
    let mut count = 0;
    for walk in walks {
        let (title, table) = walk.split_once("\n\n").expect("a table");
        let (mut files, mut crate_name) = (BTreeSet::new(), String::new());
        for cells in rows(table) {
            let [.., file, functions] = cells[..] else {
                panic!("{PAGE}: {cells:?}");
            };
            let file = path(file.trim_matches('`'), &mut crate_name);
            let text = fs::read_to_string(paths::root().join(&file));
            let text = text.unwrap_or_else(|e| panic!("{PAGE}: {file}: {e}"));
            for function in quoted(functions).filter(|name| is_function(name)) {
                let name = function.rsplit("::").next().unwrap_or(function);
                let [plain, generic] = [format!("fn {name}("), format!("fn {name}<")];
                let known = text.contains(&plain) || text.contains(&generic);
                assert!(known, "{PAGE}: {file} has no function {function}");
            }
            files.insert(file);
        }
        let told = format!(": {} files.", files.len());
        assert!(title.ends_with(&told), "{PAGE}: {title}: not{told}");
        count += 1;
    }
    assert_eq!(count, 3, "{PAGE}: walks");
}

/// False for options, types and calls.
fn is_function(name: &str) -> bool {
    let name = name.rsplit("::").next().unwrap_or(name);
    name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}
