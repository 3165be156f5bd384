//! Resolves a series to packages of the signed index.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::{numbers, series_of};
use crate::apt::{Apt, Content, Package, Source};
use crate::manifest::{Distribution, Manifest};
use crate::{cmd, paths};

/// The packages of one kernel, fetched.
#[derive(Debug)]
pub struct Packages {
    /// The middle part of the image package's name, including the flavour.
    pub release: String,
    /// Digests of all packages: the key of the cache.
    pub key: String,
    /// The packages.
    pub packages: Vec<Package>,
    /// The apt they come from.
    pub apt: Apt,
}

/// The package index does not have this series, or no longer has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotOnOffer {
    series: String,
    why: String,
}

impl NotOnOffer {
    fn new(series: &str, why: String) -> Self {
        let series = series.to_owned();
        Self { series, why }
    }
}

impl std::fmt::Display for NotOnOffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { series, why } = self;
        write!(f, "no kernel {series}: {why}")
    }
}

impl std::error::Error for NotOnOffer {}

/// Finds the newest kernel of a series, or of all for `newest`.
///
/// # Errors
/// A host that is neither Debian nor Ubuntu; no index; no such series in it.
pub fn packages(manifest: &Manifest, series: &str) -> Result<Packages> {
    let id = host_id();
    let Some(distribution) = manifest.distribution.get(&id) else {
        bail!(
            "kernel packages of {id:?} are not supported; use --kernel PATH with a vmlinuz and \
             its modules"
        );
    };
    let apt = open(distribution, Content::Programs)?;
    let start = match series {
        "newest" => distribution.image.clone(),
        series => format!("{}{series}", distribution.image),
    };
    let names = apt.names(&start)?;
    let stem = distribution.image.split('-').next().unwrap_or_default();
    let all: BTreeSet<_> = apt.names(&format!("{stem}-"))?.into_iter().collect();
    let mut lacking = Vec::new();
    for image in newest_first(&names, distribution, series) {
        let release = release(&image, distribution).context("matched above")?;
        match whole(&apt, distribution, &all, &image, &release)? {
            Ok(packages) => return Ok(keyed(release, packages, apt)),
            Err(missing) => lacking.push(missing),
        }
    }
    if let Some(newest) = lacking.first() {
        let why = format!("the package index has the kernel, but no longer {newest}");
        return Err(NotOnOffer::new(series, why).into());
    }
    let mut known: Vec<_> = apt
        .names(&distribution.image)?
        .iter()
        .filter_map(|name| release(name, distribution))
        .map(|release| series_of(&release))
        .collect();
    known.sort_by_key(|series| numbers(series));
    known.dedup();
    let why = format!(
        "the package index does not have it; it has {}",
        known.join(", ")
    );
    Err(NotOnOffer::new(series, why).into())
}

/// An image package together with the packages that hold its files; or the name of one that the index lacks. Newer
/// images need all of these, older ones contain everything and need none.
fn whole(
    apt: &Apt,
    distribution: &Distribution,
    all: &BTreeSet<String>,
    image: &str,
    release: &str,
) -> Result<Result<Vec<Package>, String>> {
    let named = |prefix: &String| format!("{prefix}{release}");
    let with: Vec<_> = distribution.with.iter().map(named).collect();
    if with.iter().any(|name| all.contains(name))
        && let Some(missing) = with.iter().find(|name| !all.contains(*name))
    {
        return Ok(Err(missing.clone()));
    }
    let found = apt
        .find(image)?
        .with_context(|| format!("no version of {image}"))?;
    let mut packages = vec![found];
    let beside = distribution.beside.iter().map(named);
    for name in with
        .into_iter()
        .chain(beside)
        .filter(|name| all.contains(name))
    {
        packages.extend(apt.find(&name)?);
    }
    Ok(Ok(packages))
}

fn keyed(release: String, packages: Vec<Package>, apt: Apt) -> Packages {
    let digests: Vec<_> = packages.iter().map(|p| &p.sha256[..8]).collect();
    Packages {
        key: digests.join("-"),
        release,
        packages,
        apt,
    }
}

/// The index of packages of the host's distribution, fetched.
///
/// # Errors
/// A host that is neither Debian nor Ubuntu; no index.
pub fn archive(manifest: &Manifest) -> Result<Apt> {
    of_host(manifest, Content::Programs)
}

/// The index of source packages of the host's distribution, fetched.
///
/// # Errors
/// As for [`archive`].
pub fn source_archive(manifest: &Manifest) -> Result<Apt> {
    of_host(manifest, Content::Sources)
}

fn of_host(manifest: &Manifest, content: Content) -> Result<Apt> {
    let id = host_id();
    let distribution = manifest.distribution.get(&id);
    let distribution =
        distribution.with_context(|| format!("packages of {id:?} are not supported"))?;
    open(distribution, content)
}

fn open(distribution: &Distribution, content: Content) -> Result<Apt> {
    let name = match content {
        Content::Programs => "apt",
        Content::Sources => "apt-sources",
    };
    let apt = Apt::open(&paths::vm().join(name), content, &sources(distribution)?)?;
    apt.update()?;
    Ok(apt)
}

/// The release in an image package's name, if it is one we use.
fn release(name: &str, distribution: &Distribution) -> Option<String> {
    let release = name.strip_prefix(&distribution.image)?;
    let version = release.strip_suffix(&distribution.flavour)?;
    let digits = version.starts_with(|c: char| c.is_ascii_digit());
    let not = distribution.not.iter().any(|part| name.contains(part));
    // `linux-image-6.12` is a name without a full version.
    (digits && !not && numbers(version).len() >= 3).then(|| release.to_owned())
}

/// The image packages of a series, or of all for `newest`.
fn newest_first(names: &[String], distribution: &Distribution, series: &str) -> Vec<String> {
    let mut found: Vec<_> = names
        .iter()
        .filter_map(|name| Some((numbers(&release(name, distribution)?), name)))
        .filter(|(_, name)| {
            let release = release(name, distribution).unwrap_or_default();
            series == "newest" || series_of(&release) == series
        })
        .collect();
    found.sort();
    found
        .into_iter()
        .rev()
        .map(|(_, name)| name.clone())
        .collect()
}

fn sources(distribution: &Distribution) -> Result<Vec<Source>> {
    let mut targets = std::process::Command::new("apt-get");
    targets.args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
    ]);
    targets.arg("Created-By: Packages");
    let text = cmd::output(&mut targets)?;
    let hosts: Vec<Vec<&str>> = text.lines().map(|line| line.split(' ').collect()).collect();
    let mut sources = Vec::new();
    if distribution.source.is_empty() {
        for host in hosts.iter().filter(|host| host.len() == 3) {
            sources.push(Source {
                uri: host[0].to_owned(),
                suite: host[1].to_owned(),
                components: host[2].to_owned(),
                keyring: String::new(),
            });
        }
    }
    for rule in &distribution.source {
        let address = |host: &Vec<&str>| Some(host.first()?.trim_end_matches('/').to_owned());
        let uri = hosts
            .iter()
            .filter_map(address)
            .find(|uri| uri.ends_with(&rule.ends));
        let Some(uri) = uri else { continue };
        for suite in &rule.suites {
            sources.push(Source {
                uri: uri.clone(),
                suite: suite.clone(),
                components: rule.components.clone(),
                keyring: rule.keyring.clone(),
            });
        }
    }
    ensure!(
        !sources.is_empty(),
        "this machine's apt sources name no archive whose address ends as in vm-images/manifest.toml: add one, or \
         give a kernel of your own by --kernel PATH"
    );
    Ok(sources)
}

/// `ID` of /etc/os-release.
pub fn host_id() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let id = text.lines().find_map(|line| line.strip_prefix("ID="));
    id.unwrap_or("unknown").trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::{newest_first, release};
    use crate::manifest::Manifest;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn the_newest_of_a_series_is_taken() {
        let manifest = Manifest::load().unwrap();
        let debian = &manifest.distribution["debian"];
        let names = names(&[
            "linux-image-6.12.9+deb13-amd64",
            "linux-image-6.12.117+deb13-amd64",
            "linux-image-6.12.117+deb13-rt-amd64",
            "linux-image-6.12.200+deb13-amd64-unsigned",
            "linux-image-6.1.300+deb12-amd64",
            "linux-image-7.3.4+deb13-amd64",
            "linux-image-7.3.9+deb13-cloud-amd64",
            "linux-image-amd64",
        ]);
        let of = |series| newest_first(&names, debian, series).into_iter().next();
        assert_eq!(of("6.12").unwrap(), "linux-image-6.12.117+deb13-amd64");
        assert_eq!(of("newest").unwrap(), "linux-image-7.3.4+deb13-amd64");
        assert_eq!(of("6.1").unwrap(), "linux-image-6.1.300+deb12-amd64");
        assert_eq!(of("6.13"), None);
    }

    #[test]
    fn ubuntu_names_are_understood() {
        let manifest = Manifest::load().unwrap();
        let ubuntu = &manifest.distribution["ubuntu"];
        let name = "linux-image-unsigned-6.14.0-33-generic";
        assert_eq!(release(name, ubuntu).unwrap(), "6.14.0-33-generic");
    }
}
