//! A file tree as a list of paths with the SHA-256 of their contents.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Checksums of a tree, by path relative to its root.
#[derive(Debug, PartialEq, Eq)]
pub struct Tree {
    /// SHA-256 of each regular file.
    pub files: BTreeMap<PathBuf, [u8; 32]>,
    /// Sum of the files' sizes in bytes.
    pub bytes: u64,
}

impl Tree {
    /// Reads every regular file below `root`; right after mounting, from the disk and not from the page cache.
    ///
    /// # Errors
    /// A directory or file cannot be read.
    pub fn of(root: &Path) -> Result<Self> {
        let mut tree = Self {
            files: BTreeMap::new(),
            bytes: 0,
        };
        let mut todo = vec![root.to_owned()];
        while let Some(directory) = todo.pop() {
            let entries = fs::read_dir(&directory).with_context(|| show(&directory))?;
            for entry in entries {
                let path = entry.with_context(|| show(&directory))?.path();
                let kind = fs::symlink_metadata(&path).with_context(|| show(&path))?;
                if kind.is_dir() {
                    todo.push(path);
                } else if kind.is_file() {
                    let sum = checksum(&path)?;
                    tree.bytes += kind.len();
                    tree.files.insert(path.strip_prefix(root)?.to_owned(), sum);
                }
            }
        }
        Ok(tree)
    }

    /// The paths where two trees differ: missing, added or changed.
    pub fn differences(&self, other: &Self) -> Vec<PathBuf> {
        let mut paths: Vec<_> = self.files.keys().chain(other.files.keys()).collect();
        paths.sort();
        paths.dedup();
        paths
            .into_iter()
            .filter(|path| self.files.get(*path) != other.files.get(*path))
            .cloned()
            .collect()
    }
}

/// Copies the regular files and directories below `from` to `to`, syncing each file.
///
/// # Errors
/// Errors of reading, writing or syncing.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| show(to))?;
    for entry in fs::read_dir(from).with_context(|| show(from))? {
        let entry = entry.with_context(|| show(from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().with_context(|| show(&source))?;
        if kind.is_dir() {
            // lost+found belongs to the file system, not to the tree.
            copy(&source, &target)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).with_context(|| show(&target))?;
            let file = fs::File::open(&target).with_context(|| show(&target))?;
            file.sync_all().with_context(|| show(&target))?;
        }
    }
    Ok(())
}

fn checksum(path: &Path) -> Result<[u8; 32]> {
    let mut file = fs::File::open(path).with_context(|| show(path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = file.read(&mut buffer).with_context(|| show(path))?;
        if count == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&buffer[..count]);
    }
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::{Tree, copy};

    fn scratch(name: &str) -> std::path::PathBuf {
        let directory = std::env::temp_dir().join(format!("tree-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("from/sub")).unwrap();
        fs::write(directory.join("from/a"), b"one").unwrap();
        fs::write(directory.join("from/sub/b"), vec![7; 200_000]).unwrap();
        directory
    }

    /// L90 The comparison looks at contents: same names and lengths, one bit different.
    #[test]
    fn l90_one_changed_bit_is_a_difference() {
        let directory = scratch("bit");
        copy(&directory.join("from"), &directory.join("to")).unwrap();
        let from = Tree::of(&directory.join("from")).unwrap();
        assert_eq!(from.bytes, 200_003);
        assert_eq!(from, Tree::of(&directory.join("to")).unwrap());
        let mut bytes = fs::read(directory.join("to/sub/b")).unwrap();
        bytes[123_456] ^= 1;
        fs::write(directory.join("to/sub/b"), bytes).unwrap();
        let to = Tree::of(&directory.join("to")).unwrap();
        assert_eq!(from.differences(&to), [Path::new("sub/b")]);
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_missing_file_is_a_difference() {
        let directory = scratch("missing");
        let whole = Tree::of(&directory.join("from")).unwrap();
        fs::remove_file(directory.join("from/a")).unwrap();
        let less = Tree::of(&directory.join("from")).unwrap();
        assert_eq!(whole.differences(&less), [Path::new("a")]);
        assert_eq!(less.differences(&whole), [Path::new("a")]);
        fs::remove_dir_all(directory).unwrap();
    }
}
