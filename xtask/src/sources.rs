//! Files of other projects' tests, out of the distribution's source packages. Nothing of them is kept in this
//! repository.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::manifest::Manifest;
use crate::{cmd, kernel, paths};

/// Fetches the source package and unpacks the files that the manifest names; from the cache if they were unpacked before.
/// Returns their directory.
///
/// # Errors
/// The manifest does not name the package; it cannot be fetched; it has no such files.
pub fn files(manifest: &Manifest, package: &str) -> Result<PathBuf> {
    let pattern = manifest.test_sources.get(package);
    let pattern = pattern.with_context(|| format!("no test_sources of {package}"))?;
    let archive = kernel::source_archive(manifest)?.fetch_source(package)?;
    let name = archive.file_name().context("a file")?;
    let place = paths::vm().join("sources").join(name);
    if !place.is_dir() {
        let made = tempfile::tempdir_in(paths::vm())?;
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--wildcards", "--file"])
            .arg(&archive)
            .arg("--directory")
            .arg(made.path())
            .arg(format!(
                "--strip-components={}",
                pattern.matches('/').count()
            ))
            .arg(pattern);
        cmd::output(&mut tar)?;
        fs::create_dir_all(paths::vm().join("sources"))?;
        fs::rename(made.keep(), &place).with_context(|| place.display().to_string())?;
    }
    Ok(place)
}
