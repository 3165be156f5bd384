//! `mutants`: deliberate faults, each with the test that must find it.
//!
//! The lists in `tests/mutants` name a file, a piece of its text, the text of the mutant, and a test. The tree is
//! copied below `target/mutants`, one mutant at a time is applied there, and its test must fail: with an assertion, a
//! crash, or a hang. A mutant that does not apply, does not compile or survives is a failure; so is a test that fails
//! without a mutant.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Deserialize;

use crate::results::{Results, Told};
use crate::{cmd, paths, test};

/// Options of `mutants`.
#[derive(Clone, Debug, Default, Args)]
pub struct Options {
    /// Only mutants marked as quick, which run with every change
    #[arg(long)]
    pub quick: bool,
    /// Only mutants whose names contain this
    #[arg(long, value_name = "WORD")]
    pub filter: Option<String>,
    /// List the mutants without running them
    #[arg(long)]
    pub list: bool,
}

/// Seconds that a test with a mutant may take: a hang counts as found.
const TEST: u32 = 60;
/// Seconds that a build may take.
const BUILD: u32 = 15 * 60;

/// One file of `tests/mutants`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// A fault, and the test that finds it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    /// Path in the checkout.
    file: PathBuf,
    /// The text to replace; must occur once.
    old: String,
    /// The text of the mutant.
    new: String,
    /// Package, target (`lib` or a test program) and name of a test; preceded by `loom` for a model.
    test: String,
    #[serde(default)]
    quick: bool,
}

/// A test program and how to build it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Program {
    loom: bool,
    package: String,
    target: String,
}

impl Mutant {
    fn program(&self) -> Result<(Program, &str)> {
        let (loom, rest) = match self.test.strip_prefix("loom ") {
            Some(rest) => (true, rest),
            None => (false, self.test.as_str()),
        };
        let mut args = rest.split_whitespace();
        let (Some(package), Some(target), Some(test), None) =
            (args.next(), args.next(), args.next(), args.next())
        else {
            bail!("{}: a test is `[loom ]PACKAGE TARGET NAME`", self.name);
        };
        let program = Program {
            loom,
            package: package.to_owned(),
            target: target.to_owned(),
        };
        Ok((program, test))
    }

    fn applied(&self, text: &str) -> Result<String> {
        match text.matches(&self.old).count() {
            1 => Ok(text.replacen(&self.old, &self.new, 1)),
            found => bail!(
                "{}: {} has {found} occurrences of the old text; there must be one",
                self.name,
                self.file.display()
            ),
        }
    }
}

impl Program {
    fn command(&self, tree: &Path, seconds: u32) -> Command {
        let mut command = test::limited(seconds);
        command.args(["test", "--package", &self.package]);
        match self.target.as_str() {
            "lib" => command.arg("--lib"),
            name => command.args(["--test", name]),
        };
        command
            .current_dir(tree)
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_PROFILE_TEST_DEBUG", "0")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null());
        if self.loom {
            command
                .arg("--release")
                .env("RUSTFLAGS", "--cfg loom")
                .env("CARGO_PROFILE_RELEASE_LTO", "off")
                .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16")
                .env("CARGO_TARGET_DIR", paths::target().join("mutants/loom"));
        } else {
            command.env("CARGO_TARGET_DIR", paths::target().join("mutants/build"));
        }
        command
    }

    /// Builds the program; the error is the compiler's output.
    fn build(&self, tree: &Path) -> Result<(), String> {
        let mut command = self.command(tree, BUILD);
        command.arg("--no-run");
        let output = command.output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Runs tests by name; returns their results, and whether all passed.
    fn run(&self, tree: &Path, names: &[&str]) -> Result<(Results, bool)> {
        let mut command = self.command(tree, TEST);
        command.arg("--").args(names);
        let output = command
            .output()
            .with_context(|| format!("cannot start: {}", cmd::line(&command)))?;
        let mut results = Results::default();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            results.line(line);
        }
        Ok((results, output.status.success()))
    }
}

/// Runs them.
///
/// # Errors
/// A mutant that survives or cannot be applied, or a test that fails without one.
pub fn run(options: &Options) -> Result<()> {
    let results = all(options)?;
    println!("\nmutants: {}", results.sum());
    for name in &results.failed {
        println!("failed: {name}");
    }
    if results.failed.is_empty() {
        Ok(())
    } else {
        Err(Told.into())
    }
}

/// Runs them and returns the results.
///
/// # Errors
/// The lists cannot be read, or the tree cannot be copied.
pub fn all(options: &Options) -> Result<Results> {
    let start = Instant::now();
    let mutants = chosen(options)?;
    if options.list {
        for mutant in &mutants {
            println!(
                "{}: {} by {}",
                mutant.name,
                mutant.file.display(),
                mutant.test
            );
        }
        return Ok(Results::default());
    }
    let tree = paths::target().join("mutants/tree");
    copy(&tree)?;
    let mut programs: BTreeMap<Program, Vec<&Mutant>> = BTreeMap::new();
    for mutant in &mutants {
        programs
            .entry(mutant.program()?.0)
            .or_default()
            .push(mutant);
    }
    let mut results = Results::default();
    for (program, mutants) in &programs {
        if let Err(error) = baseline(program, mutants, &tree) {
            results.failed.push(format!("{error:#}"));
            continue;
        }
        for mutant in mutants {
            let begun = Instant::now();
            match kill(mutant, program, &tree) {
                Ok(()) => {
                    results.passed += 1;
                    println!("mutant {} ... killed{}", mutant.name, took(begun.elapsed()));
                }
                Err(error) => {
                    println!("mutant {} ... FAILED: {error:#}", mutant.name);
                    results.failed.push(format!("mutant {}", mutant.name));
                }
            }
        }
    }
    println!("mutants:{}", took(start.elapsed()));
    Ok(results)
}

fn took(time: Duration) -> String {
    format!(" after {:.0} s", time.as_secs_f64())
}

/// The mutants of all lists selected by the options.
fn chosen(options: &Options) -> Result<Vec<Mutant>> {
    let directory = paths::root().join("tests/mutants");
    let mut files: Vec<PathBuf> = fs::read_dir(&directory)
        .with_context(|| format!("cannot read {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "toml")
        })
        .collect();
    files.sort();
    let mut mutants = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file)?;
        let list: List = toml::from_str(&text).with_context(|| format!("in {}", file.display()))?;
        mutants.extend(list.mutant);
    }
    let wanted = |mutant: &Mutant| {
        let named = options.filter.as_ref();
        (mutant.quick || !options.quick) && named.is_none_or(|word| mutant.name.contains(word))
    };
    mutants.retain(wanted);
    if mutants.is_empty() {
        bail!("no such mutant; `cargo xtask mutants --list` names all");
    }
    Ok(mutants)
}

/// Checks that the tests exist and pass without a mutant: otherwise nothing would be proven.
fn baseline(program: &Program, mutants: &[&Mutant], tree: &Path) -> Result<()> {
    let mut names = Vec::new();
    for mutant in mutants {
        names.push(mutant.program()?.1);
    }
    names.sort_unstable();
    names.dedup();
    if let Err(args) = program.build(tree) {
        bail!("{program:?} does not compile:\n{args}");
    }
    for name in names {
        let (results, good) = program.run(tree, &[name])?;
        if !good || results.passed == 0 {
            bail!(
                "{program:?}: {name} does not pass without a mutant: {}",
                results.sum()
            );
        }
    }
    Ok(())
}

/// Applies a mutant and checks that its test fails.
fn kill(mutant: &Mutant, program: &Program, tree: &Path) -> Result<()> {
    let path = tree.join(&mutant.file);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", mutant.file.display()))?;
    let applied = mutant.applied(&text)?;
    fs::write(&path, applied)?;
    let built = program.build(tree);
    let outcome = built.and_then(|()| {
        let name = mutant.program().map_err(|error| error.to_string())?.1;
        let run = program.run(tree, &[name]);
        run.map_err(|error| error.to_string())
    });
    fs::write(&path, text)?;
    match outcome {
        Ok((_, false)) => Ok(()),
        Ok((_, true)) => bail!("it survives {}", mutant.test),
        Err(args) => bail!("it does not compile:\n{args}"),
    }
}

/// Copies the checkout's files that differ, so that the others need not be rebuilt.
fn copy(tree: &Path) -> Result<()> {
    let mut command = Command::new("git");
    command
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(paths::root());
    let files = cmd::output(&mut command)?;
    for file in files.split('\0').filter(|file| !file.is_empty()) {
        let (from, to) = (paths::root().join(file), tree.join(file));
        let Ok(bytes) = fs::read(&from) else {
            // Deleted in the working tree, but still in git's index.
            let _ = fs::remove_file(&to);
            continue;
        };
        if fs::read(&to).is_ok_and(|old| old == bytes) {
            continue;
        }
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Options, chosen};
    use crate::paths;

    /// Each mutant applies to the tree as it is, names its test, and has a name of its own.
    #[test]
    fn mutants_fit_the_tree() {
        let mutants = chosen(&Options::default()).unwrap();
        assert!(mutants.len() >= 48, "{}", mutants.len());
        let names: BTreeSet<_> = mutants.iter().map(|mutant| &mutant.name).collect();
        assert_eq!(names.len(), mutants.len());
        let mut misfits = Vec::new();
        for mutant in &mutants {
            let text = std::fs::read_to_string(paths::root().join(&mutant.file)).unwrap();
            match mutant.applied(&text) {
                Ok(applied) => assert_ne!(applied, text, "{}", mutant.name),
                Err(misfit) => misfits.push(misfit.to_string()),
            }
            mutant.program().unwrap();
        }
        assert_eq!(misfits, Vec::<String>::new());
    }
}
