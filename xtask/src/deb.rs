//! Opens Debian packages: an `ar` archive with a compressed `tar` in it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Reads the files of a package that `want` selects by path (absolute, as installed).
///
/// # Errors
/// Not a Debian package, or a damaged one.
pub fn files(package: &Path, want: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<u8>>> {
    let bytes = fs::read(package).with_context(|| package.display().to_string())?;
    files_of(&bytes, want).with_context(|| package.display().to_string())
}

/// An entry of a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory,
    /// A file: its permissions and its content.
    File(u32, Vec<u8>),
    /// A symbolic link and its target.
    Link(String),
}

/// Reads everything that `want` selects by path (absolute, as installed); hard links are read as files.
///
/// # Errors
/// As for [`files`], or an entry that is not an [`Entry`].
pub fn tree(package: &Path, want: impl Fn(&str) -> bool) -> Result<Vec<(String, Entry)>> {
    let bytes = fs::read(package).with_context(|| package.display().to_string())?;
    tree_of(&bytes, want).with_context(|| package.display().to_string())
}

fn tree_of(package: &[u8], want: impl Fn(&str) -> bool) -> Result<Vec<(String, Entry)>> {
    let (name, data) = member(package, "data.tar")?;
    let data = decompress(name, data)?;
    let mut archive = tar::Archive::new(data.as_slice());
    let mut found: Vec<(String, Entry)> = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = absolute(&entry.path()?);
        if !want(&path) {
            continue;
        }
        let kind = entry.header().entry_type();
        let link = entry.link_name()?.map(std::borrow::Cow::into_owned);
        let made = if kind.is_dir() {
            Entry::Directory
        } else if kind.is_file() {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            Entry::File(entry.header().mode()?, bytes)
        } else if kind.is_symlink() {
            let link = link.with_context(|| format!("{path}: a link without a target"))?;
            Entry::Link(link.display().to_string())
        } else if kind.is_hard_link() {
            let of = absolute(&link.unwrap_or_default());
            let known = found.iter().find(|(other, _)| *other == of);
            let (_, file) = known.with_context(|| format!("{path}: no {of} before it"))?;
            file.clone()
        } else {
            bail!("{path}: unknown kind of entry: {kind:?}");
        };
        found.push((path, made));
    }
    Ok(found)
}

fn absolute(path: &Path) -> String {
    let path = path.display().to_string();
    let path = path.trim_start_matches("./").trim_start_matches('/');
    format!("/{}", path.trim_end_matches('/'))
}

fn files_of(package: &[u8], want: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<u8>>> {
    let (name, data) = member(package, "data.tar")?;
    let data = decompress(name, data)?;
    let mut archive = tar::Archive::new(data.as_slice());
    let mut found = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = absolute(&entry.path()?);
        if want(&path) {
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            found.insert(path, bytes);
        }
    }
    Ok(found)
}

/// The member of an `ar` archive whose name starts with `prefix`.
fn member<'a>(archive: &'a [u8], prefix: &str) -> Result<(&'a str, &'a [u8])> {
    let mut rest = archive
        .strip_prefix(b"!<arch>\n")
        .context("not a Debian package: no ar archive")?;
    while rest.len() >= 60 {
        let (header, body) = rest.split_at(60);
        let name = std::str::from_utf8(&header[..16])?.trim_end();
        let size: usize = std::str::from_utf8(&header[48..58])?.trim().parse()?;
        let data = body.get(..size).context("the package is cut short")?;
        if name.starts_with(prefix) {
            return Ok((name.trim_end_matches('/'), data));
        }
        rest = body.get(size.next_multiple_of(2)..).unwrap_or(&[]);
    }
    bail!("not a Debian package: no {prefix}");
}

/// Unpacks `data` according to the end of its name: `.xz`, `.zst`, or uncompressed.
///
/// # Errors
/// An unknown compression, or damaged data.
pub fn decompress(name: &str, data: &[u8]) -> Result<Vec<u8>> {
    let mut plain = Vec::new();
    if name.ends_with(".xz") {
        lzma_rs::xz_decompress(&mut BufReader::new(data), &mut plain)
            .map_err(|error| anyhow::anyhow!("{name}: {error}"))?;
    } else if name.ends_with(".zst") {
        ruzstd::decoding::StreamingDecoder::new(data)
            .map_err(|error| anyhow::anyhow!("{name}: {error}"))?
            .read_to_end(&mut plain)?;
    } else if name.ends_with(".tar") || name.ends_with(".ko") {
        plain.extend_from_slice(data);
    } else {
        bail!("{name}: unknown compression (known: xz, zst)");
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    use super::{Entry, files, files_of, tree};

    /// Reads a package built by Debian's own tool, if the host has it, with each compression.
    #[test]
    fn a_package_gives_its_files_back() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("tree");
        fs::create_dir_all(root.join("DEBIAN")).unwrap();
        fs::create_dir_all(root.join("usr/lib/x")).unwrap();
        fs::write(
            root.join("DEBIAN/control"),
            "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n",
        )
        .unwrap();
        let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        fs::write(root.join("usr/lib/x/data"), &content).unwrap();
        let other = root.join("usr/lib/x/other");
        fs::write(&other, "other").unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o640)).unwrap();
        fs::hard_link(&other, root.join("usr/lib/x/twin")).unwrap();
        symlink("other", root.join("usr/lib/x/link")).unwrap();
        for compression in ["none", "xz", "zstd"] {
            let package = directory.path().join("x.deb");
            let Ok(status) = Command::new("dpkg-deb")
                .args(["--root-owner-group", "-Z", compression, "-b"])
                .args([&root, &package])
                .output()
            else {
                eprintln!("SKIP a_package_gives_its_files_back: no dpkg-deb on this host");
                return;
            };
            assert!(status.status.success(), "{status:?}");
            let found = files(&package, |path| path.ends_with("/data")).unwrap();
            assert_eq!(found.len(), 1, "{compression}");
            assert_eq!(found["/usr/lib/x/data"], content, "{compression}");
            let all = tree(&package, |path| path != "/usr/lib/x/data").unwrap();
            let at = |path: &str| all.iter().find(|(other, _)| other == path).map(|(_, e)| e);
            assert_eq!(at("/usr/lib/x"), Some(&Entry::Directory));
            assert_eq!(at("/usr/lib/x/data"), None);
            assert_eq!(
                at("/usr/lib/x/link"),
                Some(&Entry::Link("other".to_owned()))
            );
            let Some(Entry::File(mode, bytes)) = at("/usr/lib/x/twin") else {
                panic!("{all:?}");
            };
            assert_eq!((mode & 0o777, bytes.as_slice()), (0o640, &b"other"[..]));
        }
    }

    #[test]
    fn garbage_is_refused() {
        assert!(files_of(b"not a package", |_| true).is_err());
        assert!(files_of(b"!<arch>\n", |_| true).is_err());
        let mut cut = b"!<arch>\n".to_vec();
        cut.extend(format!("{:<16}{:<32}{:<10}`\n", "data.tar.xz", "", 5000).bytes());
        assert!(files_of(&cut, |_| true).is_err());
    }
}
