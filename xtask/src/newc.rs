//! Writer of cpio archives in the "newc" format, which the kernel unpacks as its initramfs.
//!
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst. Each entry is a header of 110 ASCII bytes, the
//! name with its NUL padded to a multiple of four, and the data padded likewise. The same entries give the same bytes:
//! no time, no owner, consecutive inode numbers.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive being written.
#[derive(Debug)]
pub struct Newc<W> {
    out: W,
    inode: u32,
    names: BTreeSet<String>,
}

impl<W: Write> Newc<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self {
            out,
            inode: 0,
            names: BTreeSet::new(),
        }
    }

    /// Whether the archive has an entry with this path.
    pub fn has(&self, path: &str) -> bool {
        self.names.contains(path.trim_start_matches('/'))
    }

    /// Adds a directory and its parents, unless they exist.
    ///
    /// # Errors
    /// A relative path; writing.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        let name = relative(path)?;
        if name.is_empty() || self.names.contains(name) {
            return Ok(());
        }
        self.parents(name)?;
        self.entry(name, DIRECTORY | 0o755, &[], (0, 0))
    }

    /// Adds a regular file and its parent directories.
    ///
    /// # Errors
    /// A relative or existing path; data of 4 GiB or more; writing.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<()> {
        let name = relative(path)?;
        self.parents(name)?;
        self.entry(name, FILE | (mode & 0o7777), data, (0, 0))
    }

    /// Adds the host's file `from`, executable if it is so on the host.
    ///
    /// # Errors
    /// As [`Newc::file`], and reading `from`.
    pub fn copy(&mut self, path: &str, from: &Path) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let data = std::fs::read(from).with_context(|| from.display().to_string())?;
        let mode = std::fs::metadata(from)?.permissions().mode();
        self.file(path, if mode & 0o111 == 0 { 0o644 } else { 0o755 }, &data)
    }

    /// Adds a symbolic link and its parent directories.
    ///
    /// # Errors
    /// As [`Newc::file`].
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let name = relative(path)?;
        self.parents(name)?;
        self.entry(name, LINK | 0o777, target.as_bytes(), (0, 0))
    }

    /// Adds a character device node.
    ///
    /// # Errors
    /// As [`Newc::file`].
    pub fn character(&mut self, path: &str, mode: u32, device: (u32, u32)) -> Result<()> {
        let name = relative(path)?;
        self.parents(name)?;
        self.entry(name, CHARACTER | (mode & 0o7777), &[], device)
    }

    /// Writes the trailer and returns the writer.
    ///
    /// # Errors
    /// Writing.
    pub fn finish(mut self) -> Result<W> {
        self.raw("TRAILER!!!", 0, &[], (0, 0))?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn parents(&mut self, name: &str) -> Result<()> {
        let Some((parent, _)) = name.rsplit_once('/') else {
            return Ok(());
        };
        if self.names.contains(parent) {
            return Ok(());
        }
        self.parents(parent)?;
        self.entry(parent, DIRECTORY | 0o755, &[], (0, 0))
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8], device: (u32, u32)) -> Result<()> {
        if !self.names.insert(name.to_owned()) {
            bail!("twice in the archive: /{name}");
        }
        self.raw(name, mode, data, device)
    }

    fn raw(&mut self, name: &str, mode: u32, data: &[u8], device: (u32, u32)) -> Result<()> {
        let size = u32::try_from(data.len()).with_context(|| format!("/{name} is too large"))?;
        let length = u32::try_from(name.len() + 1).context("the name is too long")?;
        self.inode += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        self.out.write_all(b"070701")?;
        for field in [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, length, 0,
        ] {
            write!(self.out, "{field:08x}")?;
        }
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        pad(&mut self.out, 110 + name.len() + 1)?;
        self.out.write_all(data)?;
        pad(&mut self.out, data.len())?;
        Ok(())
    }
}

fn relative(path: &str) -> Result<&str> {
    match path.strip_prefix('/') {
        Some(name) => Ok(name.trim_end_matches('/')),
        None => bail!("not an absolute path: {path}"),
    }
}

fn pad(out: &mut impl Write, length: usize) -> io::Result<()> {
    out.write_all(&[0; 3][..length.wrapping_neg() % 4])
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::Newc;

    fn sample() -> Vec<u8> {
        let mut archive = Newc::new(Vec::new());
        archive.directory("/usr/bin").unwrap();
        archive.file("/usr/bin/x", 0o755, b"12345").unwrap();
        archive.link("/bin", "usr/bin").unwrap();
        archive.character("/dev/console", 0o600, (5, 1)).unwrap();
        archive.file("/a/b/c", 0o644, b"").unwrap();
        archive.finish().unwrap()
    }

    /// A reader for the test: names, modes and contents.
    fn parse(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701", "magic at {at}");
            let field = |index: usize| {
                let start = at + 6 + 8 * index;
                let text = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (size, length) = (field(6) as usize, field(11) as usize);
            let name = &bytes[at + 110..at + 110 + length - 1];
            assert_eq!(bytes[at + 110 + length - 1], 0);
            let data = (at + 110 + length).next_multiple_of(4);
            let name = String::from_utf8(name.to_vec()).unwrap();
            if name == "TRAILER!!!" {
                return entries;
            }
            entries.push((name, field(1), bytes[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
    }

    #[test]
    fn entries_come_out_as_they_went_in() {
        let entries = parse(&sample());
        let names: Vec<_> = entries.iter().map(|entry| entry.0.as_str()).collect();
        let expected = [
            "usr",
            "usr/bin",
            "usr/bin/x",
            "bin",
            "dev",
            "dev/console",
            "a",
            "a/b",
            "a/b/c",
        ];
        assert_eq!(names, expected);
        assert_eq!(
            entries[2],
            ("usr/bin/x".into(), 0o100_755, b"12345".to_vec())
        );
        assert_eq!(entries[3], ("bin".into(), 0o120_777, b"usr/bin".to_vec()));
        assert_eq!(entries[5].1, 0o020_600);
    }

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        assert_eq!(sample(), sample());
    }

    #[test]
    fn a_path_is_added_once_and_is_absolute() {
        let mut archive = Newc::new(Vec::new());
        archive.file("/x", 0o644, b"").unwrap();
        assert!(archive.file("/x", 0o644, b"").is_err());
        assert!(archive.file("x", 0o644, b"").is_err());
        assert!(archive.has("/x"));
    }

    /// Checks the format with cpio, if the host has it.
    #[test]
    fn cpio_reads_it() {
        let Ok(mut cpio) = Command::new("cpio")
            .args(["-it", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            eprintln!("SKIP cpio_reads_it: no cpio on this host");
            return;
        };
        cpio.stdin.take().unwrap().write_all(&sample()).unwrap();
        let output = cpio.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("usr/bin/x\nbin\ndev\n"), "{text}");
    }
}
