//! The test server of the kernel's own selftests, built from the distribution's kernel source if its rows are
//! requested. Nothing of it is kept in this repository.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::programs::{self, TEXT};
use crate::apt::{Apt, Package};
use crate::kernel::{self, Kernel};
use crate::manifest::Manifest;
use crate::{cmd, deb, paths};

/// Its directory in the kernel's source.
const PLACE: &str = "tools/testing/selftests/ublk";
/// An unrelated program in the same directory.
const NOT_OF_IT: &str = "metadata_size.c";

/// Builds the server of the kernel's series, static and at the addresses of servers; taken from the cache if it was
/// built from the same packages.
///
/// # Errors
/// The package index lacks the source, liburing or the headers; there is no C compiler; the build fails.
pub fn build(manifest: &Manifest, kernel: &Kernel) -> Result<PathBuf> {
    let apt = kernel::archive(manifest)?;
    let find = |name: &str| -> Result<Package> {
        let found = apt.newest(name)?;
        found.with_context(|| format!("the package index has no {name}"))
    };
    let series = kernel::series_of(&kernel.release);
    let source = find(&format!("linux-source-{series}"))?;
    let packages = [find("liburing-dev")?, find("linux-libc-dev")?];
    let digests = [&source, &packages[0], &packages[1]].map(|package| &package.sha256[..8]);
    let place = paths::vm().join("kublk").join(digests.join("-"));
    let program = place.join("kublk");
    if !program.is_file() {
        println!("building for the benchmark: kublk of {}", source.name);
        let made = tempfile::tempdir_in(paths::vm())?;
        unpack_source(&apt.fetch(&source)?, made.path())?;
        for package in &packages {
            unpack(&apt, package, made.path())?;
        }
        let built = compile(made.path())?;
        fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
        fs::copy(&built, &program).with_context(|| program.display().to_string())?;
    }
    programs::placed(program)
}

/// Unpacks the server's own sources to `directory/source`: the package has an archive of all sources.
fn unpack_source(package: &Path, directory: &Path) -> Result<()> {
    let files = deb::files(package, |path| path.ends_with(".tar.xz"))?;
    let (_, bytes) = files.into_iter().next().context("no archive of sources")?;
    let (archive, source) = (directory.join("source.tar.xz"), directory.join("source"));
    fs::write(&archive, bytes)?;
    fs::create_dir(&source)?;
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--wildcards", "--strip-components=5", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(&source)
        .arg(format!("*/{PLACE}/*.[ch]"));
    cmd::output(&mut tar).map(drop)
}

/// Unpacks headers and archives of a package to their places below `directory`.
fn unpack(apt: &Apt, package: &Package, directory: &Path) -> Result<()> {
    let wanted = |path: &str| path.ends_with(".h") || path.ends_with("/liburing.a");
    for (path, bytes) in deb::files(&apt.fetch(package)?, wanted)? {
        let file = directory.join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().context("a path")?)?;
        fs::write(&file, bytes).with_context(|| file.display().to_string())?;
    }
    Ok(())
}

fn compile(directory: &Path) -> Result<PathBuf> {
    let program = directory.join("kublk");
    let mut compile = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    // As in its own Makefile, and linked like our servers.
    compile
        .args(["-O3", "-w", "-D_GNU_SOURCE", "-static", "-no-pie"])
        .arg(format!("-Wl,-Ttext-segment=0x{:x}", TEXT.0))
        .arg("-I")
        .arg(directory.join("usr/include"))
        .arg("-o")
        .arg(&program);
    let mut sources: Vec<_> = fs::read_dir(directory.join("source"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    sources.retain(|file| file.extension().is_some_and(|end| end == "c"));
    sources.retain(|file| !file.ends_with(NOT_OF_IT));
    sources.sort();
    compile
        .args(sources)
        .arg(directory.join("usr/lib/x86_64-linux-gnu/liburing.a"))
        .args(["-lpthread", "-lm"]);
    cmd::output(&mut compile).context("kublk (gcc is needed: apt-get install gcc)")?;
    Ok(program)
}
