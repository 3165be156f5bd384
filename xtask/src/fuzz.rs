//! `cargo xtask fuzz`: runs the targets of `fuzz/` under libFuzzer with cargo-fuzz.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::manifest::Manifest;
use crate::{cmd, paths, sources};

/// Runs one target, or each in turn, for `seconds` each; the first finding ends the run.
///
/// New inputs go to `fuzz/target`, the committed corpus is only read. With `others_seeds` what other projects begin their
/// fuzz tests with is there, too, for the targets that can read it.
///
/// # Errors
/// No such target; cargo-fuzz or the nightly toolchain is missing; or a finding, with the path of its input.
pub fn run(target: Option<String>, seconds: u64, others_seeds: bool) -> Result<()> {
    let all = targets()?;
    let chosen = match target {
        Some(target) if all.contains(&target) => vec![target],
        Some(target) => bail!("no fuzz target {target}; there are: {}", all.join(", ")),
        None => all,
    };
    require(
        "cargo-fuzz",
        &["fuzz", "--version"],
        "cargo install --locked cargo-fuzz",
    )?;
    require(
        "nightly Rust",
        &["--version"],
        "rustup toolchain install nightly --profile minimal",
    )?;
    let fuzz = paths::root().join("fuzz");
    for target in &chosen {
        println!("fuzz {target}: {seconds} s");
        let found = fuzz.join("target/corpus").join(target);
        fs::create_dir_all(&found).with_context(|| found.display().to_string())?;
        if others_seeds {
            let count = add_seeds(target, &found)?;
            println!("fuzz {target}: {count} inputs from seeds of other projects");
        }
        let mut run = nightly();
        run.args(["fuzz", "run", target])
            .arg(&found)
            .arg(fuzz.join("corpus").join(target));
        run.args(["--", "-max_len=4096", "-timeout=10", "-print_final_stats=1"]);
        run.arg(format!("-max_total_time={seconds}"));
        cmd::run(&mut run).with_context(|| {
            let artifacts = fuzz.join("artifacts").join(target);
            format!(
                "{target}: a finding, or the target does not build; inputs: {}",
                artifacts.display()
            )
        })?;
    }
    println!(
        "fuzz: {} targets, {seconds} s each, no finding",
        chosen.len()
    );
    Ok(())
}

/// The source packages whose fuzz tests of NBD have seeds: what a server sends, or what a client sends.
const SEEDS: [&str; 2] = ["libnbd", "nbdkit"];

/// Adds the seeds of other projects to the inputs of a target, with every choice that the target's first byte makes.
/// Returns the number of inputs.
fn add_seeds(target: &str, directory: &Path) -> Result<usize> {
    let choices = match target {
        "nbd_handshake" => 64,
        "nbd_replies" => 8,
        _ => return Ok(0),
    };
    let manifest = Manifest::load()?;
    let mut count = 0;
    for package in SEEDS {
        let seeds = sources::files(&manifest, package)?;
        for entry in fs::read_dir(&seeds).with_context(|| seeds.display().to_string())? {
            let entry = entry?;
            let seed = fs::read(entry.path())?;
            for choice in 0..choices {
                let name = format!("{package}-{}-{choice}", entry.file_name().display());
                let input = seeded(target, choice, &seed);
                fs::write(directory.join(name), input).context("an input")?;
                count += 1;
            }
        }
    }
    Ok(count)
}

/// An input from a seed: a choice, the length of pieces, and what follows the handshake if the target begins there.
fn seeded(target: &str, choice: u8, seed: &[u8]) -> Vec<u8> {
    const REPLIES: [[u8; 4]; 2] = [[0x67, 0x44, 0x66, 0x98], [0x66, 0x8e, 0x33, 0xef]];
    let is_reply = |bytes: &[u8]| REPLIES.iter().any(|magic| bytes == magic);
    let begin = match target {
        "nbd_replies" => seed.windows(4).position(is_reply).unwrap_or(0),
        _ => 0,
    };
    [&[choice, u8::MAX], &seed[begin..]].concat()
}

/// The names of the targets: the files of `fuzz/fuzz_targets`.
fn targets() -> Result<Vec<String>> {
    let directory = paths::root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    let entries = fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".rs").map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Cargo of the nightly toolchain, which the sanitizer needs, in the checkout.
fn nightly() -> Command {
    let mut command = Command::new("cargo");
    leave_toolchain(&mut command);
    command.arg("+nightly");
    command
}

/// Lets a command in the checkout choose its toolchain itself: the environment set by the stable cargo that runs us
/// would override it.
pub fn leave_toolchain(command: &mut Command) {
    command
        .env_remove("CARGO")
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC")
        .current_dir(paths::root());
}

fn require(what: &str, arguments: &[&str], install: &str) -> Result<()> {
    let mut probe = nightly();
    probe.args(arguments);
    cmd::output(&mut probe)
        .map(|_| ())
        .with_context(|| format!("{what} is needed: {install}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{run, seeded, targets};
    use crate::paths;

    type Body = fn(&[u8]);

    /// The body that each target calls; a new target without a row here is a failure.
    const BODIES: &[(&str, Body)] = &[
        ("completions", ublk_core::fuzz::completions),
        ("descriptors", ublk_sys::fuzz::descriptors),
        ("marshal", ublk_sys::fuzz::marshal_all),
        ("metadata_geometry", ublk_backends::fuzz::metadata_geometry),
        ("nbd_handshake", nbd_client::fuzz::handshake),
        ("nbd_replies", nbd_client::fuzz::replies),
        ("parameters", ublk_core::fuzz::parameters),
        ("requests", ublk_core::fuzz::descriptors),
        ("ring_index", uring_lite::fuzz::ring_index),
        ("trace_blocks", ublk_trace::fuzz::trace),
        ("trace_sources", ublk_trace::fuzz::source),
        ("zone_reports", ublk_backends::fuzz::zone_reports),
    ];

    #[test]
    fn the_committed_corpora_are_replayed() {
        let names: Vec<_> = BODIES.iter().map(|row| row.0).collect();
        assert_eq!(targets().unwrap(), names);
        for (target, body) in BODIES {
            let corpus = paths::root().join("fuzz/corpus").join(target);
            let mut count = 0;
            for entry in fs::read_dir(&corpus).expect("the corpus is committed") {
                let path = entry.unwrap().path();
                println!("{}", path.display());
                body(&fs::read(&path).unwrap());
                count += 1;
            }
            assert!(count > 0, "{target} has no seed");
        }
    }

    #[test]
    fn seeds_begin_where_their_target_does() {
        let seed = [1, 2, 0x66, 0x8e, 0x33, 0xef, 3];
        assert_eq!(seeded("nbd_handshake", 5, &[7, 8]), [5, 255, 7, 8]);
        let reply = [4, 255, 0x66, 0x8e, 0x33, 0xef, 3];
        assert_eq!(seeded("nbd_replies", 4, &seed), reply);
    }

    #[test]
    fn an_unknown_target_is_named() {
        let error = run(Some("nonsense".into()), 1, false)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("nonsense") && error.contains("marshal"),
            "{error}"
        );
    }
}
