//! What the host must have: programs, found or installed.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::manifest::Manifest;
use crate::{cmd, kernel};

/// The place of a program: in `PATH`, or where administrators' programs are.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// Makes sure that everything a guest needs is on the host: on Debian and Ubuntu what is missing is
/// installed by root, or by sudo where it asks for no password; elsewhere the error names the
/// command that does it.
///
/// # Errors
/// Something is missing and cannot be installed here.
pub fn set_up(manifest: &Manifest) -> Result<()> {
    let all: BTreeMap<_, _> = manifest.tools.iter().chain(&manifest.host_tools).collect();
    let missing = missing(&all, |name| find(name).is_some());
    let mut packages: Vec<_> = missing.values().copied().cloned().collect();
    // Guest programs are linked static; libc's archive is in its development package.
    if !static_libc() {
        packages.push("libc6-dev".to_owned());
    }
    packages.sort();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.keys().map(|name| name.as_str()).collect();
    let debian = ["debian", "ubuntu"].contains(&kernel::host_id().as_str());
    let list = packages.join(" ");
    if !debian || find("apt-get").is_none() {
        bail!(
            "missing: {} (Debian calls the packages {list})",
            names.join(", ")
        );
    }
    let sudo = !root();
    if sudo && cmd::output(Command::new("sudo").args(["-n", "true"])).is_err() {
        bail!(
            "missing: {}; run\n    sudo apt-get update && sudo apt-get install -y \
             --no-install-recommends {list}",
            names.join(", ")
        );
    }
    println!("installing: {list}");
    apt_get(sudo, &["update", "-q"])?;
    let mut arguments = vec!["install", "-q", "-y", "--no-install-recommends"];
    arguments.extend(packages.iter().map(String::as_str));
    apt_get(sudo, &arguments)
}

fn apt_get(sudo: bool, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(if sudo { "sudo" } else { "env" });
    if sudo {
        command.args(["-n", "env"]);
    }
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    cmd::output(command.args(arguments)).map(drop)
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

    use super::{find, missing};

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
    }
}
