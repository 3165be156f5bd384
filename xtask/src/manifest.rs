//! `vm-images/manifest.toml` as types; the file itself documents the fields.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::expected::{ExpectedFailure, Harmless};
use crate::outcomes::Table;
use crate::paths;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Kernels to test if none is named.
    pub default: Vec<String>,
    /// Kernels of `--all-kernels`.
    pub all: Vec<String>,
    /// Series below this one are refused by name.
    pub oldest: String,
    /// Options that a kernel's configuration must have.
    pub config: Vec<String>,
    /// Modules that are loaded at boot.
    pub modules: Vec<String>,
    /// Modules that are in the image but not loaded at boot.
    pub spare_modules: Vec<String>,
    /// Harmless console lines.
    #[serde(default)]
    pub harmless: Vec<Harmless>,
    /// Where kernels come from, by distribution.
    pub distribution: BTreeMap<String, Distribution>,
    /// Expected skips by series.
    pub skips: BTreeMap<String, Vec<String>>,
    /// Failures that are the kernel's own.
    #[serde(default)]
    pub expected_failures: Vec<ExpectedFailure>,
    /// Tables of outcomes by name: operations on backends in modes, and the outcome for a device when something of it
    /// dies.
    pub tables: BTreeMap<String, Table>,
    /// Programs of the image, with their packages.
    pub tools: BTreeMap<String, String>,
    /// Libraries that a program of the image loads at run time: paths below the directory of libraries.
    pub plugins: BTreeMap<String, Vec<String>>,
    /// Programs of the host, with their packages.
    pub host_tools: BTreeMap<String, String>,
    /// Programs of the NBD client's tests against servers of others, with their packages.
    pub interop_tools: BTreeMap<String, String>,
    /// Files of other projects' tests: a pattern of their paths in a source package, by the package.
    pub test_sources: BTreeMap<String, String>,
    /// The image with systemd.
    pub system: System,
    /// The kernel's own tests.
    pub foreign: Foreign,
}

/// The kernel's own tests of the driver.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Foreign {
    /// Prefix of the name of the package with the kernel's source; the series follows.
    pub package: String,
    /// Further programs of the image, with their packages.
    pub tools: BTreeMap<String, String>,
    /// Tests that cannot pass, with the reason.
    #[serde(default)]
    pub not: BTreeMap<String, String>,
}

/// The image made of packages.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct System {
    /// Packages; their dependencies are added.
    pub packages: Vec<String>,
    /// Prefixes of paths that are left out.
    pub without: Vec<String>,
    /// Units that must not start.
    pub mask: Vec<String>,
    /// Modules to load in addition to those of every guest.
    pub modules: Vec<String>,
    /// Cases that it is expected to skip.
    pub skips: Vec<String>,
}

/// How a distribution names its kernels, and where they are.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Distribution {
    /// Prefix of an image package's name.
    pub image: String,
    /// Suffix of an image package's name.
    pub flavour: String,
    /// Substrings that an image package's name must not contain.
    pub not: Vec<String>,
    /// Prefixes of the names of packages with the other files.
    pub with: Vec<String>,
    /// Prefixes of the names of useful but optional packages.
    #[serde(default)]
    pub beside: Vec<String>,
    /// Archives; empty for those of the host.
    #[serde(default)]
    pub source: Vec<SourceRule>,
}

/// One archive of a distribution.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRule {
    /// Suffix of the host's address of this archive.
    pub ends: String,
    /// Suites to use.
    pub suites: Vec<String>,
    /// Components to use.
    pub components: String,
    /// Keys that sign it.
    pub keyring: String,
}

impl Manifest {
    /// Reads the project's manifest.
    ///
    /// # Errors
    /// It is missing or malformed.
    pub fn load() -> Result<Self> {
        let path = paths::root().join("vm-images/manifest.toml");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }

    /// The expected skips of a kernel series.
    pub fn expected_skips(&self, series: &str) -> &[String] {
        self.skips.get(series).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::Manifest;

    #[test]
    fn the_projects_own_file_is_sound() {
        let manifest = Manifest::load().unwrap();
        assert_eq!(manifest.default, ["6.12", "newest"]);
        assert!(
            manifest
                .default
                .iter()
                .all(|name| manifest.all.contains(name))
        );
        assert!(manifest.distribution.contains_key("debian"));
        assert!(manifest.distribution.contains_key("ubuntu"));
        assert!(manifest.modules.contains(&"ublk_drv".to_owned()));
    }
}
