//! Whether a target may be written to: nobody uses it, and it holds no data.

use super::file_failure;
use crate::target::of_node;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use ublk_backends::FileOptions;
use ublk_daemon::failure::{Failure, FailureKind};
use ublk_daemon::in_use::holders;
use ublk_load::is_ours;

/// What is looked at at both ends, where file systems, partition tables and volume managers have their marks.
const ENDS: u64 = 1 << 20;

/// Places between the ends that are looked at, and how much of each.
const SAMPLES: u64 = 256;
const SAMPLE: usize = 4096;

/// A claim on a target, held while it is written to.
#[derive(Debug)]
pub struct Claim {
    _file: ublk_backends::File,
}

/// Claims a target for writing.
///
/// # Errors
/// [`FailureKind::Busy`] with those who use it.
pub fn claim(path: &Path) -> Result<Claim, Failure> {
    let busy = |users: String| {
        let text = format!("{} is in use: {users}", path.display());
        Failure::new(FailureKind::Busy, text)
            .hint("end the other use first; --force writes to it anyway, and its data is lost")
    };
    let opened = FileOptions::new(path).discard(false).open();
    let file = opened.map_err(|e| {
        let text = format!("{}: {e}", path.display());
        Failure::failed(text).hint("give a file or block device that can be written to")
    })?;
    if !file.users().is_empty() {
        let users: Vec<String> = file.users().iter().map(ToString::to_string).collect();
        return Err(busy(users.join("; ")));
    }
    // Of our own devices it is known who has them open, too.
    let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = real.file_name().and_then(|name| name.to_str());
    if let Some(id) = name.filter(|_| real.starts_with("/dev")).and_then(of_node) {
        let users = holders::of_device(id.get())
            .without(&[std::process::id()])
            .losing();
        if !users.is_empty() {
            return Err(busy(users.to_string()));
        }
    }
    Ok(Claim { _file: file })
}

/// Looks for data: both ends whole, and places between them. Zeroes and the pattern of earlier loads are none.
///
/// # Errors
/// Data, and where it is; a target that cannot be read.
pub fn check_empty(path: &Path, file: &File, size: u64) -> Result<(), Failure> {
    let mut buf = vec![0; SAMPLE];
    let steps = |from: u64, to: u64, step: u64| {
        (from..to).step_by(usize::try_from(step.max(1)).unwrap_or(usize::MAX))
    };
    let sample = u64::try_from(SAMPLE).unwrap_or(0);
    let tail = size.saturating_sub(ENDS).max(ENDS.min(size)) / sample * sample;
    let between = (tail.saturating_sub(ENDS) / SAMPLES)
        .next_multiple_of(sample)
        .max(sample);
    let places = steps(0, ENDS.min(size), sample)
        .chain(steps(ENDS, tail, between))
        .chain(steps(tail, size, sample));
    for at in places {
        let len = usize::try_from(size.saturating_sub(at))
            .unwrap_or(SAMPLE)
            .min(SAMPLE);
        let part = buf.get_mut(..len).unwrap_or_default();
        read_at(file, part, at).map_err(|e| file_failure(path, &e))?;
        if !is_ours(part, at) {
            let text = format!("{} holds data, at offset {at} among others", path.display());
            return Err(Failure::failed(text).hint(
                "give a target whose data is not needed; --force writes to it, and its data is lost",
            ));
        }
    }
    Ok(())
}

fn read_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    match file.read_exact_at(buf, offset) {
        // It became shorter meanwhile.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ublk_load::Fill;

    /// Data at either end or in between is found in a large target; zeroes and our own pattern are no data.
    #[test]
    fn data_is_found_and_our_pattern_is_none() {
        let file = tempfile::tempfile().unwrap();
        let size = 64 << 20;
        file.set_len(size).unwrap();
        let check = || check_empty(Path::new("x"), &file, size);
        check().unwrap();
        let mut pattern = vec![0; 8192];
        Fill::Pattern.fill(&mut pattern, 40_960);
        file.write_all_at(&pattern, 40_960).unwrap();
        check().unwrap();
        for at in [0, 1080, size - 1] {
            file.write_all_at(b"E", at).unwrap();
            assert!(check().unwrap_err().text.contains("holds data"), "{at}");
            file.write_all_at(&[0], at).unwrap();
        }
        // A file system has data everywhere.
        for at in (2 << 20..size - (2 << 20)).step_by(1 << 18) {
            file.write_all_at(&[7; 1 << 18], at).unwrap();
        }
        assert!(check().is_err());
        let short = tempfile::tempfile().unwrap();
        short.write_all_at(b"x", 99).unwrap();
        assert!(check_empty(Path::new("x"), &short, 100).is_err());
        short.set_len(5).unwrap();
        check_empty(Path::new("x"), &short, 5).unwrap();
    }

    #[test]
    fn a_file_that_others_have_locked_is_in_use() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        file.as_file().lock().unwrap();
        let failure = claim(file.path()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Busy, "{failure:?}");
        file.as_file().unlock().unwrap();
        claim(file.path()).unwrap();
    }
}
