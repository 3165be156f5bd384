//! Guest kernels: from a series, or a path, to a bootable image and its modules.

mod extract;
mod resolve;

pub use resolve::{NotOnOffer, archive, host_id, source_archive};

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::manifest::Manifest;

/// A kernel that is ready to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// The user's name for it, and the name of its directories: a series or a release.
    pub name: String,
    /// `major.minor`, its name in the manifest.
    pub series: String,
    /// Release as reported by `uname -r`, as far as the package tells.
    pub release: String,
    /// The bootable image.
    pub vmlinuz: PathBuf,
    /// Unpacked modules, in load order.
    pub modules: Vec<PathBuf>,
}

impl Kernel {
    /// The files to load for `wanted` modules, in order, with their dependencies.
    ///
    /// A module without a file is built in: [`prepare`] has checked that.
    pub fn load_order(&self, wanted: &[String]) -> Result<Vec<PathBuf>> {
        let mut builtin = std::collections::BTreeSet::new();
        for name in wanted {
            if self.module(name).is_none() {
                builtin.insert(name.clone());
            }
        }
        let mut find = |name: &str| -> Result<_> {
            let Some(path) = self.module(name) else {
                return Ok(None);
            };
            let bytes = fs::read(path).with_context(|| path.display().to_string())?;
            Ok(Some(crate::modinfo::ModInfo::of(&bytes)))
        };
        let names = crate::modinfo::order(wanted, &mut find, &builtin)?;
        Ok(names
            .iter()
            .filter_map(|name| self.module(name).cloned())
            .collect())
    }

    /// The unpacked file of a module.
    pub fn module(&self, name: &str) -> Option<&PathBuf> {
        self.modules.iter().find(|path| {
            crate::modinfo::name_of(&path.display().to_string()).as_deref() == Some(name)
        })
    }
}

/// Prepares a kernel named by a series (`6.12`), by `newest`, or by a path.
///
/// # Errors
/// No such series in the index, no such file, a configuration without ublk or io_uring, a missing module, or a series
/// older than 6.5.
pub fn prepare(manifest: &Manifest, name: &str) -> Result<Kernel> {
    if name.contains('/') {
        return extract::from_path(manifest, Path::new(name));
    }
    if name != "newest" && older(name, &manifest.oldest) {
        bail!(
            "kernel {name} is older than {}: ublk servers need what came with that series (the \
             driver of older ones differs); the oldest that is tested is {}",
            manifest.oldest,
            manifest.default[0]
        );
    }
    let packages = resolve::packages(manifest, name)?;
    extract::from_packages(manifest, &packages)
}

/// Whether a series or release is older than another, compared number by number.
fn older(one: &str, other: &str) -> bool {
    numbers(one) < numbers(other)
}

/// The numbers in a version or release, without its flavour, for comparison.
fn numbers(version: &str) -> Vec<u64> {
    let flavour = |end: &str| end.starts_with(|c: char| c.is_ascii_alphabetic());
    let version = match version.rsplit_once('-') {
        Some((version, end)) if flavour(end) => version,
        _ => version,
    };
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

/// `6.12` of `6.12.117+deb13-amd64`.
pub fn series_of(release: &str) -> String {
    let numbers = numbers(release);
    match numbers.as_slice() {
        [major, minor, ..] => format!("{major}.{minor}"),
        _ => release.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{numbers, older, series_of};

    #[test]
    fn versions_compare_by_number() {
        assert!(older("6.4", "6.5"));
        assert!(older("6.4.99", "6.5"));
        assert!(!older("6.12", "6.5"));
        assert!(!older("6.5", "6.5"));
        assert!(numbers("6.12.115+deb13.1-amd64") > numbers("6.12.115+deb13-amd64"));
        assert!(numbers("7.3.4+deb13-amd64") > numbers("7.2.12+deb13-amd64"));
    }

    #[test]
    fn a_release_tells_its_series() {
        assert_eq!(series_of("6.12.117+deb13-amd64"), "6.12");
        assert_eq!(series_of("7.3.4+deb13-amd64"), "7.3");
        assert_eq!(series_of("6.8.0-45-generic"), "6.8");
    }
}
