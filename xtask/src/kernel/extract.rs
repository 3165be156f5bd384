//! Extracts the image and the unpacked modules from packages or a path.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::resolve::Packages;
use super::{Kernel, series_of};
use crate::manifest::Manifest;
use crate::modinfo::{ModInfo, name_of, order};
use crate::{deb, paths};

/// Unpacks the files of a kernel's packages that the guest needs, once per version.
///
/// # Errors
/// A package that cannot be fetched or opened, no image, an insufficient configuration, or a missing module.
pub fn from_packages(manifest: &Manifest, packages: &Packages) -> Result<Kernel> {
    // The manifest's lists are part of the key: another list needs other modules.
    let lists = format!(
        "{:?}{:?}{:?}",
        manifest.modules, manifest.spare_modules, manifest.config
    );
    let lists: String = Sha256::digest(lists)
        .iter()
        .take(4)
        .map(|b| format!("{b:02x}"))
        .collect();
    let release = &packages.release;
    let directory = paths::vm()
        .join("kernels")
        .join(format!("{release}-{}-{lists}", packages.key));
    if !directory.join("complete").exists() {
        let mut files = BTreeMap::new();
        for package in &packages.packages {
            let file = packages.apt.fetch(package)?;
            println!("{} {}: unpacking", package.name, package.version);
            files.extend(deb::files(&file, |path| {
                path.contains("/vmlinuz")
                    || path.contains("/modules.builtin")
                    || path.starts_with("/boot/config-")
                    || path.ends_with("/config")
                    || name_of(path).is_some()
            })?);
        }
        let source = Source {
            read: Box::new(|path| files.get(path).cloned().context("listed above")),
            paths: files.keys().cloned().collect(),
        };
        unpack(manifest, &source, release, &directory)?;
    }
    load(&directory, release)
}

/// Uses the user's own kernel: a `vmlinuz`, a build tree's `bzImage`, or a directory that contains a `vmlinuz`. Its
/// modules are those of /lib/modules for its version, those next to it, or those of the build tree.
///
/// # Errors
/// No such file, an insufficient configuration, or a missing module.
pub fn from_path(manifest: &Manifest, path: &Path) -> Result<Kernel> {
    let path = fs::canonicalize(path).with_context(|| path.display().to_string())?;
    let image = if path.is_dir() {
        path.join("vmlinuz")
    } else {
        path
    };
    if !image.is_file() {
        bail!("no kernel image {}", image.display());
    }
    let name = image.file_name().unwrap_or_default().to_string_lossy();
    let parent = image.parent().context("a file has a directory")?;
    let version = name.strip_prefix("vmlinuz-").map(str::to_owned);
    let installed = version.as_ref().map(|v| Path::new("/lib/modules").join(v));
    let tree = image
        .ancestors()
        .find(|directory| directory.join("Kbuild").is_file());
    let modules = match (installed.filter(|path| path.is_dir()), tree) {
        (Some(installed), _) => installed,
        (None, Some(tree)) => tree.to_owned(),
        (None, None) => parent.to_owned(),
    };
    let mut map = BTreeMap::new();
    walk(&modules, &mut map)?;
    map.insert("/vmlinuz".to_owned(), image.clone());
    let beside = version.map(|v| parent.join(format!("config-{v}")));
    for config in [
        beside,
        Some(modules.join(".config")),
        Some(modules.join("config")),
    ] {
        if let Some(config) = config.filter(|config| config.is_file()) {
            map.insert("/boot/config-own".to_owned(), config);
        }
    }
    let source = Source {
        paths: map.keys().cloned().collect(),
        read: Box::new(move |path| Ok(fs::read(&map[path])?)),
    };
    let key: String = Sha256::digest(image.display().to_string())
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let directory = paths::vm().join("kernels").join(format!("own-{key}"));
    // Kernel developers rebuild in place: unpack again each time.
    if directory.exists() {
        fs::remove_dir_all(&directory)?;
    }
    let release = release_of(&image)?;
    unpack(manifest, &source, &release, &directory)?;
    load(&directory, &release)
}

/// The release in the boot header (Documentation/arch/x86/boot.rst, kernel_version).
fn release_of(image: &Path) -> Result<String> {
    let bytes = fs::read(image)?;
    let text = || {
        let offset = bytes.get(0x20e..0x210)?;
        let start = usize::from(u16::from_le_bytes([offset[0], offset[1]])) + 0x200;
        let version = bytes
            .get(start..)?
            .split(|b| *b == 0 || *b == b' ')
            .next()?;
        std::str::from_utf8(version).ok()
    };
    if bytes.get(0x202..0x206) != Some(b"HdrS") {
        bail!("{} is not a bootable x86 kernel image", image.display());
    }
    Ok(text().context("the image names no version")?.to_owned())
}

fn walk(directory: &Path, map: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        let path = entry.path();
        let name = path.display().to_string();
        if entry.file_type()?.is_dir() {
            walk(&path, map)?;
        } else if name_of(&name).is_some() || name.ends_with("/modules.builtin") {
            map.insert(name, path);
        }
    }
    Ok(())
}

/// Reads one of the files by its path.
type Read<'a> = Box<dyn Fn(&str) -> Result<Vec<u8>> + 'a>;

/// A set of files.
struct Source<'a> {
    paths: Vec<String>,
    read: Read<'a>,
}

impl Source<'_> {
    fn find(&self, test: impl Fn(&str) -> bool) -> Option<&String> {
        self.paths.iter().find(|path| test(path))
    }
}

fn unpack(manifest: &Manifest, source: &Source<'_>, release: &str, to: &Path) -> Result<()> {
    if let Some(config) = source.find(|p| p.starts_with("/boot/config-") || p.ends_with("/config"))
    {
        let text = String::from_utf8_lossy(&(source.read)(config)?).into_owned();
        check_config(&text, &manifest.config).with_context(|| format!("kernel {release}"))?;
    } else {
        println!("kernel {release}: no configuration beside it, not checked");
    }
    let image = source
        .find(|path| path.contains("/vmlinuz"))
        .with_context(|| format!("kernel {release}: the packages hold no vmlinuz"))?;
    let builtin: BTreeSet<String> = match source.find(|path| path.ends_with("/modules.builtin")) {
        Some(path) => {
            let text = String::from_utf8_lossy(&(source.read)(path)?).into_owned();
            text.lines().filter_map(name_of).collect()
        }
        None => BTreeSet::new(),
    };
    let by_name: BTreeMap<String, &String> = source
        .paths
        .iter()
        .filter_map(|path| Some((name_of(path)?, path)))
        .collect();
    let mut plain = BTreeMap::new();
    let mut find = |name: &str| -> Result<Option<ModInfo>> {
        let Some(path) = by_name.get(name) else {
            return Ok(None);
        };
        if !plain.contains_key(name) {
            let bytes = deb::decompress(path, &(source.read)(path)?)?;
            plain.insert(name.to_owned(), bytes);
        }
        Ok(Some(ModInfo::of(&plain[name])))
    };
    let mut wanted = manifest.modules.clone();
    let spare = manifest.spare_modules.iter();
    wanted.extend(spare.filter(|name| by_name.contains_key(*name)).cloned());
    let order = order(&wanted, &mut find, &builtin).with_context(|| format!("kernel {release}"))?;

    let parent = to.parent().context("below the cache")?;
    fs::create_dir_all(parent)?;
    let fresh = tempfile::tempdir_in(parent)?;
    fs::create_dir(fresh.path().join("modules"))?;
    fs::write(fresh.path().join("vmlinuz"), (source.read)(image)?)?;
    for name in &order {
        let file = fresh.path().join("modules").join(format!("{name}.ko"));
        fs::write(file, &plain[name])?;
    }
    fs::write(fresh.path().join("complete"), order.join("\n"))?;
    match fs::rename(fresh.path(), to) {
        // Another process was faster with the same content.
        Err(_) if to.join("complete").exists() => Ok(()),
        other => other.with_context(|| to.display().to_string()),
    }
}

fn load(directory: &Path, release: &str) -> Result<Kernel> {
    let order = fs::read_to_string(directory.join("complete"))
        .with_context(|| directory.display().to_string())?;
    let modules = order
        .lines()
        .map(|name| directory.join("modules").join(format!("{name}.ko")))
        .collect();
    let series = series_of(release);
    Ok(Kernel {
        name: series.clone(),
        series,
        release: release.to_owned(),
        vmlinuz: directory.join("vmlinuz"),
        modules,
    })
}

/// Checks that each option is `y` or `m`.
fn check_config(config: &str, needed: &[String]) -> Result<()> {
    let has = |option: &String| {
        let built_in = format!("{option}=y");
        let module = format!("{option}=m");
        config
            .lines()
            .any(|line| line == built_in || line == module)
    };
    let missing: Vec<_> = needed
        .iter()
        .filter(|option| !has(option))
        .cloned()
        .collect();
    if !missing.is_empty() {
        bail!(
            "it is built without {}, which the tests need",
            missing.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check_config;

    #[test]
    fn a_kernel_without_ublk_is_refused_by_name() {
        let needed = [
            "CONFIG_BLK_DEV_UBLK".to_owned(),
            "CONFIG_IO_URING".to_owned(),
        ];
        let good = "CONFIG_BLK_DEV_UBLK=m\nCONFIG_IO_URING=y\n";
        check_config(good, &needed).unwrap();
        let bad = "# CONFIG_BLK_DEV_UBLK is not set\nCONFIG_IO_URING=y\n";
        let error = check_config(bad, &needed).unwrap_err().to_string();
        assert!(error.contains("CONFIG_BLK_DEV_UBLK"), "{error}");
        assert!(!error.contains("IO_URING"), "{error}");
        assert!(check_config("CONFIG_BLK_DEV_UBLKX=m\nCONFIG_IO_URING=y", &needed).is_err());
    }
}
