//! The second image: a system of distribution packages, including systemd and udev, instead of a bare init.
//!
//! apt resolves the packages, their digests are verified, and our own code unpacks them into one archive that is cached
//! until a package changes. The project's own files (programs, units, rules) are laid over it each time: the kernel
//! accepts several archives in sequence. `vm-images/systemd` has the guest's own files.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::image::{Image, applets, skeleton_links, tree};
use crate::apt::Package;
use crate::deb::{self, Entry};
use crate::manifest::{Manifest, System};
use crate::newc::Newc;
use crate::{kernel, paths};

/// Additional kernel arguments. A systemd that crashes ends the guest, which has then failed.
pub const CMDLINE: [&str; 6] = [
    "systemd.unit=guest.target",
    "systemd.show_status=no",
    "systemd.log_level=notice",
    "systemd.crash_action=reboot",
    "apparmor=0",
    "audit=0",
];

/// The content of the image besides the packages.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The static init, which hands over to systemd.
    pub init: PathBuf,
    /// Our own programs, for /usr/bin.
    pub programs: Vec<PathBuf>,
}

/// There is no image, since the packages are not available. All other failures are ordinary errors.
#[derive(Debug)]
pub struct NoPackages(pub anyhow::Error);

impl std::fmt::Display for NoPackages {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the packages of the system cannot be had: {:#}", self.0)
    }
}

impl std::error::Error for NoPackages {}

/// Writes the image.
///
/// # Errors
/// [`NoPackages`] if there is no index, or a package cannot be fetched; damaged packages; files that cannot be read or
/// written.
pub fn build(manifest: &Manifest, contents: &Contents, path: &Path) -> Result<Image> {
    let base = base(manifest)?;
    let parent = path.parent().context("an image has a directory")?;
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    std::io::copy(&mut fs::File::open(&base)?, &mut file)?;
    let mut over = Newc::new(BufWriter::new(file));
    over.copy("/init", &contents.init)?;
    for program in &contents.programs {
        let name = program.file_name().context("a program has a name")?;
        over.copy(&format!("/usr/bin/{}", name.to_string_lossy()), program)?;
    }
    let root = paths::root();
    tree(&mut over, &root.join("vm-images/systemd"), "")?;
    for unit in &manifest.system.mask {
        over.link(&format!("/etc/systemd/system/{unit}"), "/dev/null")?;
    }
    // Files that a package of ours would install.
    for (from, to) in [
        ("systemd", "/usr/lib/systemd/system"),
        ("udev", "/usr/lib/udev/rules.d"),
    ] {
        if root.join(from).is_dir() {
            tree(&mut over, &root.join(from), to)?;
        }
    }
    let file = over.finish()?.into_inner().context("flush")?;
    file.persist(path)
        .with_context(|| path.display().to_string())?;
    Ok(Image {
        path: path.to_owned(),
    })
}

/// The archive of the packages: the cached one, or a new one.
fn base(manifest: &Manifest) -> Result<PathBuf> {
    let system = &manifest.system;
    let apt = kernel::archive(manifest).map_err(NoPackages)?;
    let packages = apt.closure(&system.packages).map_err(NoPackages)?;
    let directory = paths::vm().join("images");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let path = directory.join(format!("system-{}.cpio", key(&packages, system)));
    if path.exists() {
        return Ok(path);
    }
    let systemd = packages.iter().find(|package| package.name == "systemd");
    println!(
        "system image: {} packages, systemd {}",
        packages.len(),
        systemd.map_or("is not among them", |package| &package.version)
    );
    let mut archive = Newc::new(BufWriter::new(tempfile::NamedTempFile::new_in(&directory)?));
    skeleton_links(&mut archive)?;
    for package in &packages {
        let file = apt.fetch(package).map_err(NoPackages)?;
        let wanted = |path: &str| {
            !system
                .without
                .iter()
                .any(|start| path.starts_with(start.as_str()))
        };
        for (path, entry) in deb::tree(&file, wanted)? {
            add(&mut archive, &path, &entry)?;
        }
    }
    let busybox = crate::host::find("busybox").context("no busybox on this host")?;
    archive.copy("/usr/bin/busybox", &busybox)?;
    applets(&mut archive)?;
    let file = archive.finish()?.into_inner().context("flush")?;
    for old in fs::read_dir(&directory)?.flatten() {
        if old.file_name().to_string_lossy().starts_with("system-") {
            fs::remove_file(old.path())?;
        }
    }
    file.persist(&path)
        .with_context(|| path.display().to_string())?;
    Ok(path)
}

fn add(archive: &mut Newc<impl Write>, path: &str, entry: &Entry) -> Result<()> {
    let path = super::image::merged(path);
    match entry {
        // The links of the merged tree exist already.
        Entry::Directory if archive.has(&path) => Ok(()),
        Entry::Directory => archive.directory(&path),
        Entry::File(mode, bytes) => archive.file(&path, *mode, bytes),
        Entry::Link(target) => archive.link(&path, target),
    }
}

/// The cache key: the packages, the omitted files, and the version of this code's layout.
fn key(packages: &[Package], system: &System) -> String {
    let mut all = Sha256::new();
    all.update("layout 1");
    for package in packages {
        all.update(&package.sha256);
    }
    for start in &system.without {
        all.update(start);
    }
    let digest = all.finalize();
    digest[..6]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
