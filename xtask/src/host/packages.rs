//! Debian and Ubuntu packages: installed only if that removes or replaces nothing on the machine, else unpacked into a
//! private directory.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cmd;

/// Packages whose files only work at their installed paths, so that unpacking them elsewhere does not help.
const IN_PLACE: [&str; 4] = ["apt", "gcc", "libc-bin", "libc6-dev"];

/// Packages whose installation would start a service: only their programs are wanted.
const SERVICES: [&str; 1] = ["prometheus"];

/// What to do with the requested packages.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Those to install.
    pub install: Vec<String>,
    /// Those to unpack privately, with the reason.
    pub unpack: Vec<(String, String)>,
    /// Packages that can be neither installed nor unpacked.
    pub refused: Vec<Refused>,
}

/// A package that can be neither installed nor unpacked.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    package: String,
    reason: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { package, reason } = self;
        write!(
            f,
            "{package} is not installed by itself: {reason}; run\n    sudo apt-get install --no-install-recommends {package}"
        )
    }
}

impl Plan {
    /// Decides for each package; `side_effects` names the packages of the machine that apt would remove or replace.
    ///
    /// # Errors
    /// The error of `side_effects`.
    pub fn new(
        wanted: &[String],
        may_install: bool,
        side_effects: impl Fn(&[String]) -> Result<Vec<String>>,
    ) -> Result<Self> {
        let mut plan = Self::default();
        for package in wanted {
            let reason = if SERVICES.contains(&package.as_str()) {
                Some("installing it would start a service".to_owned())
            } else if may_install {
                let changed = side_effects(std::slice::from_ref(package))?;
                (!changed.is_empty())
                    .then(|| format!("apt would remove or replace {}", changed.join(", ")))
            } else {
                Some("only root may install packages".to_owned())
            };
            let package = package.clone();
            match reason {
                None => plan.install.push(package),
                Some(reason) if IN_PLACE.contains(&package.as_str()) => {
                    plan.refused.push(Refused { package, reason });
                }
                Some(reason) => plan.unpack.push((package, reason)),
            }
        }
        Ok(plan)
    }
}

/// Fetches the package index of the machine.
///
/// # Errors
/// apt fails.
pub fn update(sudo: bool) -> Result<()> {
    apt_get(sudo, &["update", "-q"])
}

/// Installs packages; apt fails instead of removing one.
///
/// # Errors
/// apt fails.
pub fn install(sudo: bool, packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    println!("installing: {}", packages.join(" "));
    let mut arguments = vec![
        "install",
        "-q",
        "-y",
        "--no-remove",
        "--no-install-recommends",
    ];
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

/// The packages of the machine that apt would remove or replace to install `packages`.
///
/// # Errors
/// A package that is not in the index, or dependencies that cannot be satisfied.
pub fn side_effects(packages: &[String]) -> Result<Vec<String>> {
    let text = cmd::output(simulate().args(packages))?;
    Ok(text.lines().filter_map(changed).collect())
}

/// `apt-get install`, simulated.
fn simulate() -> Command {
    let mut command = Command::new("apt-get");
    command.env("LC_ALL", "C").args([
        "install",
        "--simulate",
        "-q",
        "--no-install-recommends",
        "-o",
        "Debug::NoLocking=1",
    ]);
    command
}

/// The package that a line of the simulation removes (`Remv NAME …`) or replaces (`Inst NAME [OLD] (NEW …`).
fn changed(line: &str) -> Option<String> {
    if let Some(rest) = line.strip_prefix("Remv ") {
        return rest.split(' ').next().map(str::to_owned);
    }
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    rest.starts_with('[').then(|| name.to_owned())
}

/// The package that a line of the simulation installs.
fn installed(line: &str) -> Option<String> {
    let name = line.strip_prefix("Inst ")?.split(' ').next()?;
    Some(name.to_owned())
}

/// Unpacks a package, and all dependencies that the machine lacks, into the directory `to`. Debian's programs find
/// their data relative to their own path, and their libraries through `LD_LIBRARY_PATH`.
///
/// # Errors
/// The package is not in the index, cannot be fetched or unpacked.
pub fn unpack(package: &str, to: &Path) -> Result<()> {
    let parent = to.parent().context("a directory has a parent")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let work = tempfile::tempdir_in(parent)?;
    // apt sees an empty machine and names all dependencies.
    let status = work.path().join("status");
    fs::write(&status, "")?;
    let mut closure = simulate();
    closure.arg("-o");
    closure.arg(format!("Dir::State::status={}", status.display()));
    let text = cmd::output(closure.arg(package))?;
    let has = present()?;
    let needed: Vec<_> = text.lines().filter_map(installed).collect();
    let lacking: Vec<_> = needed
        .into_iter()
        .filter(|name| !has.contains(name))
        .collect();
    let (files, root) = (work.path().join("files"), work.path().join("root"));
    fs::create_dir(&files)?;
    fs::create_dir(&root)?;
    let mut download = Command::new("apt-get");
    download.current_dir(&files).args(["download", "-q"]);
    // As root, apt would switch to a user of its own, who cannot write here.
    download.args(["-o", "APT::Sandbox::User=root"]);
    cmd::output(download.args(&lacking))?;
    for file in fs::read_dir(&files)? {
        let mut extract = Command::new("dpkg-deb");
        cmd::output(extract.arg("--extract").arg(file?.path()).arg(&root))?;
    }
    if to.exists() {
        fs::remove_dir_all(to)?;
    }
    fs::rename(&root, to).with_context(|| to.display().to_string())
}

/// The packages installed on the machine.
fn present() -> Result<BTreeSet<String>> {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${db:Status-Status} ${Package}\n"]);
    let text = cmd::output(&mut query)?;
    let names = text
        .lines()
        .filter_map(|line| line.strip_prefix("installed "));
    Ok(names.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::{Plan, changed, installed};

    #[test]
    fn lines_of_a_simulation_are_understood() {
        let removed = "Remv qemu-utils [1:10.0.2+ds-2]";
        let fresh = "Inst seabios (1.16.2-1 Debian:12.15/oldstable [all])";
        let newer = "Inst libc6 [2.36-9] (2.36-10 Debian:12.15/oldstable [amd64])";
        assert_eq!(changed(removed).unwrap(), "qemu-utils");
        assert_eq!(changed(newer).unwrap(), "libc6");
        assert_eq!(changed(fresh), None);
        assert_eq!(changed("Conf seabios (1.16.2-1)"), None);
        assert_eq!(installed(fresh).unwrap(), "seabios");
        assert_eq!(installed(removed), None);
    }

    /// A package that would replace another is unpacked; one that only works in its place is refused, with the command
    /// that installs it anyway.
    #[test]
    fn nothing_of_the_machine_is_removed_or_replaced() {
        let wanted = ["fio", "libc6-dev", "qemu-system-x86"].map(str::to_owned);
        let effects = |packages: &[String]| {
            Ok(match packages[0].as_str() {
                "fio" => Vec::new(),
                _ => vec!["qemu-utils".to_owned()],
            })
        };
        let plan = Plan::new(&wanted, true, effects).unwrap();
        assert_eq!(plan.install, ["fio"]);
        assert_eq!(plan.unpack.len(), 1);
        assert!(plan.unpack[0].1.contains("qemu-utils"));
        assert_eq!(plan.refused.len(), 1);
        let text = plan.refused[0].to_string();
        assert!(
            text.contains("apt-get install") && text.contains("libc6-dev"),
            "{text}"
        );
        let plan = Plan::new(&wanted, false, |_| unreachable!()).unwrap();
        assert!(plan.install.is_empty());
        assert_eq!((plan.unpack.len(), plan.refused.len()), (2, 1));
    }
}
