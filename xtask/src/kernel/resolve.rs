//! From a series to packages of the signed index.

use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::{numbers, series_of};
use crate::apt::{Apt, Package, Source};
use crate::manifest::{Distribution, Manifest};
use crate::{cmd, paths};

/// The packages of one kernel, fetched.
#[derive(Debug)]
pub struct Packages {
    /// What the image package's name says between its start and end, flavour included.
    pub release: String,
    /// Digests of all packages: the key of the cache.
    pub key: String,
    /// The packages.
    pub packages: Vec<Package>,
    /// Where they come from.
    pub apt: Apt,
}

/// Finds the newest kernel of a series, or of all for `newest`.
///
/// # Errors
/// A host that is neither Debian nor Ubuntu; no index; no such series in it.
pub fn packages(manifest: &Manifest, series: &str) -> Result<Packages> {
    let id = host_id();
    let Some(distribution) = manifest.distribution.get(&id) else {
        bail!(
            "kernel packages of {id:?} are not known here; use --kernel PATH with a vmlinuz and \
             its modules"
        );
    };
    let apt = open(distribution)?;
    let start = match series {
        "newest" => distribution.image.clone(),
        series => format!("{}{series}", distribution.image),
    };
    let names = apt.names(&start)?;
    let Some(image) = newest(&names, distribution, series) else {
        let mut known: Vec<_> = apt
            .names(&distribution.image)?
            .iter()
            .filter_map(|name| release(name, distribution))
            .map(|release| series_of(&release))
            .collect();
        known.sort_by_key(|series| numbers(series));
        known.dedup();
        bail!(
            "no kernel {series} in the package index; it has {}",
            known.join(", ")
        );
    };
    let release = release(&image, distribution).context("matched above")?;
    let found = apt
        .find(&image)?
        .with_context(|| format!("no version of {image}"))?;
    let mut packages = vec![found];
    for prefix in &distribution.with {
        packages.extend(apt.find(&format!("{prefix}{release}"))?);
    }
    let digests: Vec<_> = packages.iter().map(|p| &p.sha256[..8]).collect();
    Ok(Packages {
        release,
        key: digests.join("-"),
        packages,
        apt,
    })
}

/// The package index of the host's distribution, fetched.
///
/// # Errors
/// A host that is neither Debian nor Ubuntu; no index.
pub fn archive(manifest: &Manifest) -> Result<Apt> {
    let id = host_id();
    let distribution = manifest.distribution.get(&id);
    open(distribution.with_context(|| format!("packages of {id:?} are not known here"))?)
}

fn open(distribution: &Distribution) -> Result<Apt> {
    let apt = Apt::open(&paths::vm().join("apt"), &sources(distribution)?)?;
    apt.update()?;
    Ok(apt)
}

/// The release in an image package's name, when it is one of ours.
fn release(name: &str, distribution: &Distribution) -> Option<String> {
    let release = name.strip_prefix(&distribution.image)?;
    let version = release.strip_suffix(&distribution.flavour)?;
    let digits = version.starts_with(|c: char| c.is_ascii_digit());
    let not = distribution.not.iter().any(|part| name.contains(part));
    // `linux-image-6.12` is a name without a version behind it.
    (digits && !not && numbers(version).len() >= 3).then(|| release.to_owned())
}

fn newest(names: &[String], distribution: &Distribution, series: &str) -> Option<String> {
    names
        .iter()
        .filter_map(|name| Some((name, release(name, distribution)?)))
        .filter(|(_, release)| series == "newest" || series_of(release) == series)
        .max_by_key(|(_, release)| numbers(release))
        .map(|(name, _)| name.clone())
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
    use super::{newest, release};
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
        let of = |series| newest(&names, debian, series);
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
