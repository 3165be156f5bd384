//! A private apt: its index and download directory are separate, so that no package is installed and the host's apt
//! stays unchanged. The index is signed; apt verifies the signatures and the digest of every file it fetches.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::cmd;

/// Maximum age of the index before it is fetched again.
const FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// What an archive is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Packages of programs.
    Programs,
    /// Source packages.
    Sources,
}

/// An archive to fetch from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Address of the archive.
    pub uri: String,
    /// Its suite, such as `trixie-backports`.
    pub suite: String,
    /// Its components.
    pub components: String,
    /// File with its signing keys; empty for the host's trusted keys.
    pub keyring: String,
}

/// One version of a package in the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Size of the file in bytes.
    pub size: u64,
}

/// A private apt state in a directory.
#[derive(Debug)]
pub struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Creates the state in `directory` (absolute).
    ///
    /// # Errors
    /// The directory is not writable.
    pub fn open(directory: &Path, content: Content, sources: &[Source]) -> Result<Self> {
        for sub in ["lists/partial", "archives/partial", "packages"] {
            fs::create_dir_all(directory.join(sub))
                .with_context(|| directory.display().to_string())?;
        }
        let kind = match content {
            Content::Programs => "deb",
            Content::Sources => "deb-src",
        };
        let mut list = String::new();
        for source in sources {
            let signed = match source.keyring.as_str() {
                "" => String::new(),
                keyring => format!("signed-by={keyring} "),
            };
            list += &format!(
                "{kind} [{signed}arch=amd64] {} {} {}\n",
                source.uri, source.suite, source.components
            );
        }
        let apt = Self {
            directory: directory.to_owned(),
        };
        let old = fs::read_to_string(apt.directory.join("sources.list")).unwrap_or_default();
        if old != list {
            fs::write(apt.directory.join("sources.list"), list)?;
            // Another list needs another index.
            let _ = fs::remove_file(apt.directory.join("updated"));
        }
        fs::write(apt.directory.join("status"), "")?;
        let root = directory.display();
        let conf = format!(
            "Dir::State \"{root}\";\nDir::State::lists \"{root}/lists\";\n\
             Dir::State::status \"{root}/status\";\nDir::Cache \"{root}\";\n\
             Dir::Etc::sourcelist \"{root}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\n\
             APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n\
             Acquire::Retries \"3\";\n",
        );
        fs::write(apt.directory.join("apt.conf"), conf)?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", self.directory.join("apt.conf"))
            .env("LC_ALL", "C");
        command
    }

    /// Fetches the index if it is missing or more than a day old; without a network an old one is used, and reported.
    ///
    /// # Errors
    /// There is no index and it cannot be fetched.
    pub fn update(&self) -> Result<()> {
        let stamp = self.directory.join("updated");
        let age = fs::metadata(&stamp)
            .and_then(|data| data.modified())
            .ok()
            .map(|time| SystemTime::now().duration_since(time).unwrap_or(FRESH));
        if age.is_some_and(|age| age < FRESH) {
            return Ok(());
        }
        println!("package index: fetching");
        let mut update = self.command("apt-get");
        update.args(["update", "-q", "--error-on=any"]);
        match cmd::output(&mut update) {
            Ok(_) => fs::write(&stamp, "").context("stamp"),
            Err(error) if age.is_some() => {
                println!("package index: keeping the old one, {error:#}");
                Ok(())
            }
            Err(error) => Err(error).context("no package index yet, and none can be fetched"),
        }
    }

    /// All package names that start with `prefix`.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let text = cmd::output(self.command("apt-cache").args(["pkgnames", prefix]))?;
        let mut names: Vec<_> = text.lines().map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    /// The newest version of a package; `None` if the index has none.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn find(&self, name: &str) -> Result<Option<Package>> {
        self.first_of(name, &["--no-all-versions"])
    }

    /// The newest version of a package in any suite, even one that apt would not choose by default (backports); `None`
    /// if the index has none.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn newest(&self, name: &str) -> Result<Option<Package>> {
        // All versions, newest first.
        self.first_of(name, &["--all-versions"])
    }

    fn first_of(&self, name: &str, options: &[&str]) -> Result<Option<Package>> {
        let mut show = self.command("apt-cache");
        show.arg("show").args(options).arg(name);
        let Ok(text) = cmd::output(&mut show) else {
            return Ok(None);
        };
        text.split("\n\n").next().map_or(Ok(None), package)
    }

    /// The named packages and all their dependencies, as apt would install them on an empty machine; sorted by name.
    ///
    /// # Errors
    /// A name that is not in the index, or dependencies that cannot be satisfied.
    pub fn closure(&self, names: &[String]) -> Result<Vec<Package>> {
        let mut install = self.command("apt-get");
        install.args([
            "install",
            "--simulate",
            "-q",
            "--no-install-recommends",
            "-o",
            "Debug::NoLocking=1",
        ]);
        let text = cmd::output(install.args(names))?;
        let mut wanted: Vec<_> = text.lines().filter_map(installed).collect();
        wanted.sort();
        wanted.dedup();
        let mut show = self.command("apt-cache");
        let text = cmd::output(show.arg("show").args(&wanted))?;
        let mut packages = Vec::new();
        for stanza in text.split("\n\n") {
            packages.extend(package(stanza)?);
        }
        packages.sort_by(|one, other| one.name.cmp(&other.name));
        packages.dedup();
        if packages.len() != wanted.len() {
            bail!(
                "{} packages wanted, {} in the index: {}",
                wanted.len(),
                packages.len(),
                cmd::line(&show)
            );
        }
        Ok(packages)
    }

    /// The file of a package: from the cache, where its digest is verified again, or fetched.
    ///
    /// # Errors
    /// It cannot be fetched, or its digest does not match the index.
    pub fn fetch(&self, package: &Package) -> Result<PathBuf> {
        let file = self
            .directory
            .join("packages")
            .join(format!("{}_{}.deb", package.name, package.version));
        if file.exists() {
            if digest(&file)? == package.sha256 {
                return Ok(file);
            }
            fs::remove_file(&file)?;
        }
        println!(
            "{} {}: fetching {} MB",
            package.name,
            package.version,
            package.size / 1_000_000
        );
        let fetched = tempfile::tempdir_in(&self.directory)?;
        let mut download = self.command("apt-get");
        download
            .current_dir(fetched.path())
            .args(["download", "-q"])
            .arg(format!("{}={}", package.name, package.version));
        cmd::output(&mut download)?;
        let entry = fs::read_dir(fetched.path())?
            .next()
            .with_context(|| format!("no file came from: {}", cmd::line(&download)))??;
        let got = digest(&entry.path())?;
        if got != package.sha256 {
            bail!(
                "{} has digest {got}, the signed index says {}",
                package.name,
                package.sha256
            );
        }
        fs::rename(entry.path(), &file)?;
        Ok(file)
    }

    /// The upstream archive of the newest version of a source package: from the cache, where its digest is verified
    /// again, or fetched.
    ///
    /// # Errors
    /// There is none, it cannot be fetched, or its digest does not match the index.
    pub fn fetch_source(&self, name: &str) -> Result<PathBuf> {
        let mut show = self.command("apt-get");
        show.args(["source", "-q", "--print-uris", "--download-only", name]);
        let text = cmd::output(&mut show)?;
        let (archive, wanted) = upstream(&text)
            .with_context(|| format!("no upstream archive: {}", cmd::line(&show)))?;
        let file = self.directory.join("packages").join(&archive);
        if file.exists() && digest(&file)? == wanted {
            return Ok(file);
        }
        println!("{archive}: fetching");
        let fetched = tempfile::tempdir_in(&self.directory)?;
        let mut download = self.command("apt-get");
        download
            .current_dir(fetched.path())
            .args(["source", "-q", "--download-only", name]);
        cmd::output(&mut download)?;
        let got = digest(&fetched.path().join(&archive))?;
        if got != wanted {
            bail!("{archive} has digest {got}, the signed index says {wanted}");
        }
        fs::rename(fetched.path().join(&archive), &file)?;
        Ok(file)
    }
}

/// Parses the name and SHA-256 of a source package's upstream archive from the lines in which apt prints what it would
/// fetch: `'URI' NAME SIZE SHA256:DIGEST`.
fn upstream(text: &str) -> Option<(String, String)> {
    text.lines().find_map(|line| {
        let [_, name, _, digest] = line.split(' ').collect::<Vec<_>>()[..] else {
            return None;
        };
        let digest = digest.strip_prefix("SHA256:")?;
        let is = name.contains(".orig.tar.") && !name.ends_with(".asc");
        is.then(|| (name.to_owned(), digest.to_owned()))
    })
}

/// Parses `NAME=VERSION` from a line in which apt simulates an installation: `Inst NAME (VERSION …`.
fn installed(line: &str) -> Option<String> {
    let (name, rest) = line.strip_prefix("Inst ")?.split_once(' ')?;
    let version = rest.trim_start_matches('(').split(' ').next()?;
    Some(format!("{name}={version}"))
}

/// Parses a package of the index; `None` for an empty stanza.
fn package(stanza: &str) -> Result<Option<Package>> {
    let fields: BTreeMap<_, _> = stanza
        .lines()
        .filter_map(|line| line.split_once(": "))
        .collect();
    if fields.is_empty() {
        return Ok(None);
    }
    let field = |key: &str| {
        let value = fields.get(key).map(|value| (*value).to_owned());
        value.with_context(|| format!("no field {key} in the index: {stanza}"))
    };
    Ok(Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        sha256: field("SHA256")?,
        size: field("Size")?.parse()?,
    }))
}

/// SHA-256 of a file in hexadecimal.
///
/// # Errors
/// The file cannot be read.
pub fn digest(file: &Path) -> Result<String> {
    let bytes = fs::read(file).with_context(|| file.display().to_string())?;
    Ok(Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::{installed, package, upstream};

    #[test]
    fn what_apt_would_install_is_understood() {
        let line = "Inst libgcc-s1 (14.2.0-19 Debian:13.7/stable [amd64]) []";
        assert_eq!(installed(line).unwrap(), "libgcc-s1=14.2.0-19");
        assert_eq!(installed("Conf libgcc-s1 (14.2.0-19)"), None);
    }

    #[test]
    fn the_upstream_archive_is_found() {
        let text = "Reading\n'a://b/x_1-2.dsc' x_1-2.dsc 7 SHA256:00\n'a://b/x_1.orig.tar.gz.asc' \
                    x_1.orig.tar.gz.asc 8 SHA256:01\n'a://b/x_1.orig.tar.gz' x_1.orig.tar.gz 9 SHA256:02\n";
        let found = Some(("x_1.orig.tar.gz".to_owned(), "02".to_owned()));
        assert_eq!(upstream(text), found);
        assert_eq!(upstream("'a://b/x_1-2.dsc' x_1-2.dsc 7 SHA256:00\n"), None);
    }

    #[test]
    fn a_stanza_of_the_index_is_understood() {
        let text = "Package: x\nVersion: 1:2-3\nSize: 17\nSHA256: ab\nDescription: y\n z: w";
        let found = package(text).unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.size), ("x", 17));
        assert_eq!(found.version, "1:2-3");
        assert!(package("\n").unwrap().is_none());
        assert!(package("Package: x").is_err());
    }
}
