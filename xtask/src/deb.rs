//! Debian packages, opened by our own code: an `ar` archive with a compressed `tar` in it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Reads the files of a package that `want` asks for by path (absolute, as installed).
///
/// # Errors
/// A file that is no Debian package, or is damaged.
pub fn files(package: &Path, want: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Vec<u8>>> {
    let bytes = fs::read(package).with_context(|| package.display().to_string())?;
    files_of(&bytes, want).with_context(|| package.display().to_string())
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
        let path = entry.path()?.display().to_string();
        let path = format!("/{}", path.trim_start_matches("./").trim_start_matches('/'));
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

/// Unpacks `data` by what the end of its name says: `.xz`, `.zst`, or nothing to unpack.
///
/// # Errors
/// A compression that we do not know; damaged data.
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
        bail!("{name}: packed in a way that is not known here (known: xz, zst)");
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::{files, files_of};

    /// A package made by Debian's own tool, where the host has it, in each compression.
    #[test]
    fn a_package_gives_its_files_back() {
        let directory = tempfile::tempdir().unwrap();
        let tree = directory.path().join("tree");
        fs::create_dir_all(tree.join("DEBIAN")).unwrap();
        fs::create_dir_all(tree.join("usr/lib/x")).unwrap();
        fs::write(
            tree.join("DEBIAN/control"),
            "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n",
        )
        .unwrap();
        let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        fs::write(tree.join("usr/lib/x/data"), &content).unwrap();
        fs::write(tree.join("usr/lib/x/other"), "other").unwrap();
        for compression in ["none", "xz", "zstd"] {
            let package = directory.path().join("x.deb");
            let Ok(status) = Command::new("dpkg-deb")
                .args(["--root-owner-group", "-Z", compression, "-b"])
                .args([&tree, &package])
                .output()
            else {
                eprintln!("SKIP a_package_gives_its_files_back: no dpkg-deb on this host");
                return;
            };
            assert!(status.status.success(), "{status:?}");
            let found = files(&package, |path| path.ends_with("/data")).unwrap();
            assert_eq!(found.len(), 1, "{compression}");
            assert_eq!(found["/usr/lib/x/data"], content, "{compression}");
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
