//! `vm-foreign`: the kernel's own ublk selftests, with ublkctl in the place of their test server.
//!
//! The tests come from the distribution's package of the kernel's source, for the series that is booted; nothing of them
//! is in this project. `vm-images/foreign` has what stands in for their server and for udev. Every test must pass, except
//! those that the manifest lists with a reason, which must not.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::guest::accel::Choice;
use crate::kernel::archive;
use crate::manifest::Foreign;
use crate::vm::Vm;
use crate::{cmd, kernel, paths};

/// Where the tests are in the kernel's source.
const PLACE: &str = "tools/testing/selftests/ublk";

/// The program beside their server that the tests call: it asks for the metadata of a device.
const HELPER: &str = "metadata_size";

/// Seconds that one test may take, with room for software emulation.
const LIMIT: u32 = 600;

/// The status of a test that skips itself.
const SKIP: i32 = 4;

/// Options of `vm-foreign`.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Kernel: a series or `newest`
    #[arg(long, default_value = "newest")]
    kernel: String,
    /// Only tests whose name contains this word; may be given several times
    #[arg(long, value_name = "WORD")]
    filter: Vec<String>,
    /// Minutes for all of them
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=1440))]
    time: u64,
    /// Accelerator for the guest
    #[arg(long, value_enum, default_value_t)]
    accel: Choice,
}

/// What became of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ended {
    status: i32,
    seconds: u64,
}

/// Runs the tests and lists the result of each.
///
/// # Errors
/// No package of the source, a guest that fails, a test that fails or skips itself without a reason in the manifest, or
/// one that passes in spite of it.
pub fn run(options: &Options) -> Result<()> {
    let own = crate::manifest::Manifest::load()?.foreign;
    let vm = Vm::with_tools(options.accel, &own.tools, "foreign")?;
    let kernel = kernel::prepare(&vm.manifest, &options.kernel)?;
    let directory = source(&vm, &own, &kernel.series)?;
    let scripts = tempfile::tempdir()?;
    write_lines(scripts.path())?;
    let mut tests = tests(&directory, &options.filter)?;
    tests.extend(self::tests(scripts.path(), &options.filter)?);
    ensure!(!tests.is_empty(), "no test of {} is chosen", kernel.series);
    compile_helper(&directory)?;
    println!(
        "kernel {}: {} of its own tests",
        kernel.release,
        tests.len()
    );
    let deadline = Duration::from_secs(options.time * 60);
    let limit = LIMIT.to_string();
    let mut program = vec!["/foreign/run", limit.as_str()];
    program.extend(tests.iter().map(String::as_str));
    let (mut guest, _, _lock) = vm.guest(&kernel, &program, deadline)?;
    let ours = paths::root().join("vm-images/foreign");
    let traces = directory.join("trace");
    let own_lines = scripts.path().to_owned();
    for (from, to) in [
        (&directory, ""),
        (&traces, "trace/"),
        (&own_lines, ""),
        (&ours, ""),
    ] {
        for entry in fs::read_dir(from)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let to = match &*name {
                "udevadm" => "/usr/bin/udevadm".to_owned(),
                name => format!("/foreign/{to}{name}"),
            };
            if path.is_file() {
                guest.files.push((to, path));
            }
        }
    }
    let mut ended = BTreeMap::new();
    let outcome = guest.run(&mut |line| {
        println!("{line}");
        if let Some((name, end)) = parse(line) {
            ended.insert(name.to_owned(), end);
        }
    })?;
    let wrong = judge(&own.not, &tests, &ended);
    if !outcome.verdict.is_good() {
        bail!("{}", outcome.report());
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n       "));
    Ok(())
}

/// The tests of a series: from the cache below `target/vm`, or unpacked from the package of its source.
fn source(vm: &Vm, own: &Foreign, series: &str) -> Result<PathBuf> {
    let apt = archive(&vm.manifest)?;
    let name = format!("{}{series}", own.package);
    let package = apt.newest(&name)?.with_context(|| {
        format!("the package index has no {name}: give a series with --kernel whose source it has")
    })?;
    let cache = paths::vm().join("foreign").join(&package.sha256[..16]);
    if cache.exists() {
        return Ok(cache);
    }
    let file = apt.fetch(&package)?;
    println!("{name} {}: unpacking {PLACE}", package.version);
    let parent = paths::vm().join("foreign");
    fs::create_dir_all(&parent)?;
    let fresh = tempfile::tempdir_in(&parent)?;
    unpack(&file, &name, fresh.path())?;
    fs::rename(fresh.path().join(&name).join(PLACE), &cache)
        .with_context(|| format!("{name} has no {PLACE}"))?;
    Ok(cache)
}

/// Makes a test of each line for bpftrace that our own page has: they need the same tools.
fn write_lines(to: &Path) -> Result<()> {
    let page = paths::root().join("docs/observability.md");
    let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let lines = text.lines().filter(|line| line.starts_with("bpftrace -e "));
    let mut count = 0;
    for line in lines {
        count += 1;
        let script = format!("exec bash ./line <<'END'\n{line}\nEND\n");
        fs::write(to.join(format!("test_line_{count:02}.sh")), script)?;
    }
    ensure!(count != 0, "{} has no line for bpftrace", page.display());
    Ok(())
}

/// Compiles [`HELPER`], with the headers of the newest kernel: those of the machine may not know its ioctl.
fn compile_helper(directory: &Path) -> Result<()> {
    let program = directory.join(HELPER);
    if !program.exists() {
        let (_, include) = crate::layout::headers()?;
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-static", "-isystem"]).arg(include);
        gcc.arg("-o").arg(&program);
        gcc.arg(directory.join(HELPER).with_extension("c"));
        cmd::run(&mut gcc)?;
    }
    Ok(())
}

/// Unpacks the tests from a package whose only content is a compressed archive, which is too large for memory.
fn unpack(package: &Path, name: &str, to: &Path) -> Result<()> {
    let mut outer = Command::new("dpkg-deb");
    outer.arg("--fsys-tarfile").arg(package);
    let mut middle = Command::new("tar");
    middle.args(["-xOf", "-", &format!("./usr/src/{name}.tar.xz")]);
    let mut inner = Command::new("tar");
    let members = format!("{name}/{PLACE}/*");
    inner
        .args(["-xJf", "-", "--wildcards", &members])
        .current_dir(to);
    let pipe = |command: &mut Command| -> Result<_> {
        let line = cmd::line(command);
        let mut child = command.stdout(Stdio::piped()).spawn().context(line)?;
        let out = child.stdout.take().context("no pipe")?;
        Ok((child, Stdio::from(out)))
    };
    let (mut first, out) = pipe(&mut outer)?;
    let (mut second, out) = pipe(middle.stdin(out))?;
    let status = inner.stdin(out).status();
    let line = cmd::line(&inner);
    let (one, two) = (first.wait()?, second.wait()?);
    ensure!(
        status.with_context(|| line.clone())?.success() && one.success() && two.success(),
        "{} cannot be unpacked: {line}",
        package.display()
    );
    Ok(())
}

/// The names of the test scripts that are chosen, sorted.
fn tests(directory: &Path, filter: &[String]) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if short(&name).is_some_and(|short| {
            short != "common"
                && (filter.is_empty() || filter.iter().any(|word| short.contains(word)))
        }) {
            all.push(name);
        }
    }
    all.sort();
    Ok(all)
}

/// The name of a test without what all have in common.
fn short(script: &str) -> Option<&str> {
    script.strip_prefix("test_")?.strip_suffix(".sh")
}

/// Parses a line of `vm-images/foreign/run`.
fn parse(line: &str) -> Option<(&str, Ended)> {
    let mut words = line.strip_prefix("@foreign ")?.split(' ');
    let name = short(words.next()?)?;
    let status = words.next()?.parse().ok()?;
    let seconds = words.next()?.parse().ok()?;
    Some((name, Ended { status, seconds }))
}

/// Prints the result of each test, and returns what is wrong.
fn judge(
    not: &BTreeMap<String, String>,
    tests: &[String],
    ended: &BTreeMap<String, Ended>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut passed = 0;
    for name in tests.iter().filter_map(|test| short(test)) {
        let reason = not.get(name);
        let Some(Ended { status, seconds }) = ended.get(name).copied() else {
            println!("{name:<14} did not run");
            wrong.push(format!("{name} did not run"));
            continue;
        };
        let said = match status {
            0 => "passed".to_owned(),
            SKIP => "skipped itself".to_owned(),
            124 | 137 => format!("took longer than {LIMIT} s"),
            status => format!("failed with {status}"),
        };
        match (status, reason) {
            (0, None) => passed += 1,
            (0, Some(reason)) => {
                wrong.push(format!("{name} passed, and the manifest says: {reason}"));
            }
            (_, Some(_)) => {}
            (_, None) => wrong.push(format!("{name} {said}")),
        }
        let reason = reason.map_or_else(String::new, |reason| format!(" ({reason})"));
        println!("{name:<14} {seconds:>4} s  {said}{reason}");
    }
    println!("{passed} passed of {}", tests.len());
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L90 Every test has a result, and one that is expected to fail must not pass.
    #[test]
    fn l90_results_are_held_against_the_table() {
        let not = BTreeMap::from([("b_01".to_owned(), "a reason".to_owned())]);
        let tests = ["test_a_01.sh", "test_b_01.sh"].map(str::to_owned);
        let wrong = |lines: &[&str]| {
            let ended = lines.iter().filter_map(|line| parse(line));
            let ended = ended.map(|(name, end)| (name.to_owned(), end)).collect();
            judge(&not, &tests, &ended)
        };
        let fine = "@foreign test_a_01.sh 0 3";
        assert!(wrong(&[fine, "@foreign test_b_01.sh 255 1"]).is_empty());
        assert!(wrong(&[fine, "@foreign test_b_01.sh 4 1"]).is_empty());
        assert_eq!(wrong(&[fine]), ["b_01 did not run"]);
        assert_eq!(
            wrong(&[fine, "@foreign test_b_01.sh 0 1"]),
            ["b_01 passed, and the manifest says: a reason"]
        );
        let skipped = wrong(&["@foreign test_a_01.sh 4 3", "@foreign test_b_01.sh 1 1"]);
        assert_eq!(skipped, ["a_01 skipped itself"]);
        let late = wrong(&["@foreign test_a_01.sh 124 240", "@foreign test_b_01.sh 1 1"]);
        assert_eq!(late, [format!("a_01 took longer than {LIMIT} s")]);
        for line in [
            "@foreign",
            "@foreign x 0 1",
            "@foreign test_a.sh x 1",
            "test_a.sh",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
