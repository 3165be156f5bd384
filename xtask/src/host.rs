//! Requirements of the host: programs that are found, installed, or unpacked privately.

mod packages;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::manifest::Manifest;
use crate::{cmd, kernel, paths};
use packages::Plan;

/// The path of a program: in `PATH`, in the system administration directories, or in a package that was unpacked
/// privately.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .chain(private_directories())
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// A command that runs a program of the host, with the libraries of its package if that was unpacked privately.
pub fn command(name: &str) -> Command {
    let program = find(name).unwrap_or_else(|| name.into());
    let mut command = Command::new(&program);
    if let Some(libraries) = libraries(&program) {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command
}

/// The `LD_LIBRARY_PATH` that a privately unpacked program needs; `None` for all others.
pub fn libraries(program: &Path) -> Option<OsString> {
    let inside = program.strip_prefix(unpacked()).ok()?;
    let root = unpacked().join(inside.components().next()?);
    let directories = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
    env::join_paths(directories.map(|directory| root.join(directory))).ok()
}

/// The directory of the libraries that come with a program.
pub fn library_directory(program: &Path) -> PathBuf {
    let inside = program.strip_prefix(unpacked()).ok();
    let root = inside.and_then(|inside| Some(unpacked().join(inside.components().next()?)));
    root.unwrap_or_else(|| PathBuf::from("/"))
        .join("usr/lib/x86_64-linux-gnu")
}

/// Where packages that cannot be installed are unpacked, in a directory each.
fn unpacked() -> PathBuf {
    paths::vm().join("tools")
}

fn private_directories() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(unpacked()).into_iter().flatten();
    let mut roots: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    roots.sort();
    let places = ["usr/bin", "usr/sbin", "bin", "sbin"];
    let of = |root: &PathBuf| places.map(|place| root.join(place));
    roots.iter().flat_map(of).collect()
}

/// Makes sure that the host has everything a guest needs.
///
/// On Debian and Ubuntu, root (or passwordless sudo) installs what is missing, unless apt would remove or replace a
/// package of the machine: such a package is unpacked below `target/vm/tools`, as are all packages if nothing may be
/// installed. On other systems the error names what is missing.
///
/// # Errors
/// Something is missing and can be neither installed nor unpacked.
pub fn set_up(manifest: &Manifest) -> Result<()> {
    let all: BTreeMap<_, _> = manifest.tools.iter().chain(&manifest.host_tools).collect();
    // Guest programs are linked statically; libc's archive is in its development package.
    let more = (!static_libc()).then(|| "libc6-dev".to_owned());
    provide(&all, more)
}

/// Makes sure that the host has these programs, by their names with their packages, and `more` packages. As for
/// [`set_up`].
///
/// # Errors
/// Something is missing and can be neither installed nor unpacked.
pub fn provide(
    all: &BTreeMap<&String, &String>,
    more: impl IntoIterator<Item = String>,
) -> Result<()> {
    let missing = missing(all, |name| find(name).is_some());
    let mut wanted: Vec<_> = missing.values().copied().cloned().collect();
    wanted.extend(more);
    wanted.sort();
    wanted.dedup();
    if wanted.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.keys().map(|name| name.as_str()).collect();
    let names = names.join(", ");
    let debian = ["debian", "ubuntu"].contains(&kernel::host_id().as_str());
    if !debian || find("apt-get").is_none() {
        let list = wanted.join(" ");
        bail!("missing: {names} (Debian calls the packages {list})");
    }
    let sudo = !root();
    let may_install = !sudo || cmd::output(Command::new("sudo").args(["-n", "true"])).is_ok();
    if may_install {
        packages::update(sudo)?;
    }
    let plan = Plan::new(&wanted, may_install, packages::side_effects)?;
    if !plan.refused.is_empty() {
        let reasons: Vec<_> = plan
            .refused
            .iter()
            .map(packages::Refused::to_string)
            .collect();
        bail!("missing: {names}\n{}", reasons.join("\n"));
    }
    packages::install(sudo, &plan.install)?;
    for (package, reason) in &plan.unpack {
        println!(
            "unpacking {package} below {}: {reason}",
            unpacked().display()
        );
        packages::unpack(package, &unpacked().join(package))?;
    }
    let still: Vec<_> = missing.keys().filter(|name| find(name).is_none()).collect();
    if !still.is_empty() {
        bail!(
            "still missing after installing {}: {still:?}",
            wanted.join(" ")
        );
    }
    Ok(())
}

fn missing<'a>(
    all: &BTreeMap<&'a String, &'a String>,
    has: impl Fn(&str) -> bool,
) -> BTreeMap<&'a String, &'a String> {
    all.iter()
        .filter(|(name, _)| !has(name))
        .map(|(name, package)| (*name, *package))
        .collect()
}

fn static_libc() -> bool {
    let directories = ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"];
    directories
        .iter()
        .any(|directory| PathBuf::from(directory).join("libc.a").is_file())
}

/// Whether we are root.
pub fn root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uid.and_then(|line| line.split_whitespace().nth(1)) == Some("0")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::{command, find, libraries, missing, unpacked};

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let (a, b) = ("a".to_owned(), "b".to_owned());
        let (one, two) = ("one".to_owned(), "two".to_owned());
        let all: BTreeMap<_, _> = [(&a, &one), (&b, &two)].into();
        assert_eq!(missing(&all, |name| name == "a"), [(&b, &two)].into());
    }

    #[test]
    fn programs_are_found() {
        assert!(find("sh").is_some());
        assert!(find("no-such-program-here").is_none());
        assert_eq!(
            command("no-such-program-here").get_program(),
            "no-such-program-here"
        );
    }

    #[test]
    fn only_unpacked_programs_bring_libraries() {
        assert_eq!(libraries(Path::new("/usr/bin/env")), None);
        let root = unpacked().join("some-package");
        let found = libraries(&root.join("usr/bin/program")).unwrap();
        let first = std::env::split_paths(&found).next().unwrap();
        assert_eq!(first, root.join("usr/lib/x86_64-linux-gnu"));
    }
}
