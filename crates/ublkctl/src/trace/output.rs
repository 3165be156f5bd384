//! Files that a command writes: whole, or not there.

use crate::trace::failure;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use ublk_daemon::failure::{Failure, FailureKind};

/// A file that is being written beside the place where it will be.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    /// The name until it is whole; none for what is no regular file, which is written to directly.
    draft: Option<PathBuf>,
    file: Option<BufWriter<File>>,
}

impl Output {
    /// Begins to write a file. What is at the path stays until [`commit`](Self::commit). `sources`: files that the command
    /// reads.
    ///
    /// # Errors
    /// A source or a block device at the path: nobody means that. A pipe that nobody reads. A directory in which no file can
    /// be made.
    pub fn create(path: &Path, sources: &[&Path]) -> Result<Self, Failure> {
        if let Some(source) = sources.iter().find(|source| is_same(source, path)) {
            let text = format!(
                "{} is {} itself, whose content would be lost",
                path.display(),
                source.display()
            );
            return Err(Failure::new(FailureKind::Usage, text)
                .hint("give the name of another file to write"));
        }
        let kind = fs::metadata(path).map(|meta| meta.file_type()).ok();
        if kind.is_some_and(|kind| kind.is_block_device()) {
            let text = format!(
                "{} is a block device: its content would be lost",
                path.display()
            );
            return Err(Failure::failed(text).hint("give the name of a file to write"));
        }
        let told = |e: io::Error| failure(path, &e.into());
        if kind.is_some_and(|kind| kind.is_dir()) {
            return Err(told(io::ErrorKind::IsADirectory.into()));
        }
        if kind.is_some_and(|kind| !kind.is_file()) {
            // Something as /dev/stdout or /dev/full. A pipe is opened twice: without a reader, the first does not wait.
            let mut options = OpenOptions::new();
            options.write(true);
            let now = options.clone().custom_flags(libc::O_NONBLOCK).open(path);
            if now
                .as_ref()
                .is_err_and(|e| e.raw_os_error() == Some(libc::ENXIO))
            {
                let text = format!("{} is a pipe that nobody reads", path.display());
                return Err(Failure::failed(text).hint("start the reader first, or give a file"));
            }
            let file = options.open(path).map_err(told)?;
            return Ok(Self {
                path: path.to_owned(),
                draft: None,
                file: Some(BufWriter::new(file)),
            });
        }
        let name = path
            .file_name()
            .ok_or_else(|| told(io::ErrorKind::IsADirectory.into()))?;
        let mut draft = name.to_owned();
        draft.push(format!(".{}.tmp", std::process::id()));
        let draft = path.with_file_name(draft);
        let file = File::create_new(&draft).map_err(told)?;
        Ok(Self {
            path: path.to_owned(),
            draft: Some(draft),
            file: Some(BufWriter::new(file)),
        })
    }

    /// Puts the file into its place.
    ///
    /// # Errors
    /// A disk that is full, and what else keeps it from being written.
    pub fn commit(mut self) -> Result<(), Failure> {
        let told = |e: io::Error| failure(&self.path, &e.into());
        if let Some(mut file) = self.file.take() {
            file.flush().map_err(told)?;
        }
        if let Some(draft) = self.draft.take() {
            fs::rename(&draft, &self.path).map_err(|e| {
                let _ = fs::remove_file(&draft);
                failure(&self.path, &e.into())
            })?;
        }
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // What is left in the buffer belongs to a file that is not wanted.
            let _ = file.into_parts();
        }
        if let Some(draft) = &self.draft {
            let _ = fs::remove_file(draft);
        }
    }
}

impl Output {
    /// Writes the whole file and puts it into its place.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn finish(mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = self.write_all(bytes);
        written.map_err(|e| failure(&self.path, &e.into()))?;
        self.commit()
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    id(one).is_some_and(|found| id(other) == Some(found))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file that cannot be written whole leaves the one that was there, and nothing else.
    #[test]
    fn what_is_there_stays_until_the_new_file_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        fs::write(&path, "old").unwrap();
        let write = |path: &Path, bytes: &[u8]| Output::create(path, &[])?.finish(bytes);
        let mut output = Output::create(&path, &[]).unwrap();
        output.write_all(b"new").unwrap();
        drop(output);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// Nothing that the command reads is written over, by whatever name.
    #[test]
    fn a_source_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("source"), "data").unwrap();
        fs::hard_link(at("source"), at("hard")).unwrap();
        std::os::unix::fs::symlink(at("source"), at("soft")).unwrap();
        for name in ["source", "hard", "soft"] {
            let failure = Output::create(&at(name), &[&at("source")]).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Usage, "{name}");
        }
        assert_eq!(fs::read(at("source")).unwrap(), b"data");
    }

    /// A pipe without a reader would wait for ever.
    #[test]
    fn a_pipe_that_nobody_reads_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let failure = Output::create(&pipe, &[]).unwrap_err();
        assert!(failure.text.contains("nobody reads"), "{failure:?}");
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&pipe)
            .unwrap();
        Output::create(&pipe, &[]).unwrap().finish(b"x").unwrap();
        drop(reader);
    }

    #[test]
    fn a_full_disk_is_told() {
        let write = |path: &Path, bytes: &[u8]| Output::create(path, &[])?.finish(bytes);
        let failure = write(Path::new("/dev/full"), &[0; 100_000]).unwrap_err();
        assert!(
            failure.text.starts_with("/dev/full: No space left"),
            "{failure:?}"
        );
        assert!(failure.hint.unwrap().contains("free some space"));
        assert!(write(Path::new("/no/such/dir/x"), b"").is_err());
        assert!(write(Path::new("/"), b"").is_err());
    }
}
