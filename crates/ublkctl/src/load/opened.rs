//! A target that is open, with what has to be known of it.

use super::file_failure;
use super::safety::{self, Claim};
use crate::cli::LoadTarget;
use crate::target;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;
use ublk_daemon::failure::{Failure, FailureKind};
use ublk_daemon::front;

/// A target.
#[derive(Debug)]
pub struct Opened {
    /// Its path.
    pub path: PathBuf,
    /// The file.
    pub file: File,
    /// Its size in bytes.
    pub size: u64,
    /// What offsets and lengths must be a multiple of.
    pub block: u32,
    /// What to know of the figures.
    pub notes: Vec<String>,
    /// Keeps others from mounting it while it is written to.
    _claim: Option<Claim>,
}

/// How a target is to be opened.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// Whether it will be written to.
    pub write: bool,
    /// Whether to ask for direct I/O: of block devices, and of files.
    pub direct: (bool, bool),
}

impl Opened {
    /// Opens a target. One that will be written to is refused if it is in use or holds data, unless forced.
    ///
    /// # Errors
    /// What keeps it from being opened or written to. An open that waits longer than the deadline is given up.
    pub fn new(args: &LoadTarget, path: &Path, access: Access) -> Result<Self, Failure> {
        let path = resolved(path)?;
        let (force, deadline) = (args.force, args.patience());
        let shown = path.clone();
        let opened = within(deadline, move || Self::open(path, access, force));
        opened.unwrap_or_else(|| {
            let text = format!(
                "{}: it did not open within {} s",
                shown.display(),
                deadline.as_secs()
            );
            Err(Failure::timed_out(text)
                .hint("see the kernel log and, for a ublk device, `ublkctl info`"))
        })
    }

    fn open(path: PathBuf, access: Access, force: bool) -> Result<Self, Failure> {
        let told = |e: &io::Error| file_failure(&path, e);
        let meta = fs::metadata(&path).map_err(|e| told(&e))?;
        let is_block = meta.file_type().is_block_device();
        if !is_block && !meta.is_file() {
            let text = format!("{} is neither a file nor a block device", path.display());
            return Err(Failure::new(FailureKind::Usage, text).hint("give the path of one"));
        }
        let claim = match access.write && !force {
            true => Some(safety::claim(&path)?),
            false => None,
        };
        let mut notes = Vec::new();
        let direct = if is_block {
            access.direct.0
        } else {
            access.direct.1
        };
        let open = |flags| {
            let mut options = OpenOptions::new();
            options.read(true).write(access.write).custom_flags(flags);
            options.open(&path)
        };
        let mut is_direct = direct;
        let mut file = match open(if direct { libc::O_DIRECT } else { 0 }) {
            Err(e) if direct && e.raw_os_error() == Some(libc::EINVAL) => {
                is_direct = false;
                open(0)
            }
            opened => opened,
        }
        .map_err(|e| told(&e))?;
        if direct && !is_direct {
            notes.push("no direct I/O: the page cache is part of the figures".to_owned());
        }
        let size = file.seek(SeekFrom::End(0)).map_err(|e| told(&e))?;
        if size == 0 {
            let text = format!("{} is empty", path.display());
            return Err(Failure::new(FailureKind::Usage, text)
                .hint("give it a size first: `truncate -s 1G FILE`"));
        }
        if !is_block && meta.blocks().saturating_mul(512) < size / 2 && !access.write {
            notes.push("the file is sparse: reads of holes reach no storage".to_owned());
        }
        let block = match (is_direct, is_block) {
            (true, true) => block_size(meta.rdev()).unwrap_or(4096),
            (true, false) => u32::try_from(meta.blksize()).unwrap_or(4096).min(4096),
            (false, _) => 1,
        };
        if access.write && !force {
            // With a descriptor of its own, through the page cache: no alignment.
            let reader = File::open(&path).map_err(|e| told(&e))?;
            safety::check_empty(&path, &reader, size)?;
        }
        Ok(Self {
            path,
            file,
            size,
            block,
            notes,
            _claim: claim,
        })
    }
}

/// The path of a word: a path that exists, or the node of a ublk device.
fn resolved(path: &Path) -> Result<PathBuf, Failure> {
    let Err(e) = fs::metadata(path) else {
        return Ok(path.to_owned());
    };
    let no_file = || file_failure(path, &e);
    let word = path.to_str().filter(|word| !word.is_empty());
    let word = word.ok_or_else(no_file)?;
    let means_a_device = means_a_device(word);
    if word.contains('/') && !means_a_device {
        return Err(no_file());
    }
    let id = match target::parse(word).map(|target| target.resolve()) {
        Ok(Ok(found)) => found.id,
        Ok(Err(failure)) if means_a_device => return Err(failure),
        // As likely the name of a file.
        _ => return Err(no_file()),
    };
    let node = PathBuf::from(format!("/dev/ublkb{id}"));
    match node.exists() {
        true => Ok(node),
        // Without its disk: its server is gone, or has not started.
        false if front::is_there(id) => Err(file_failure(&node, &e)),
        false => Err(front::missing(id)),
    }
}

/// Whether a word can only mean a ublk device: its number or node.
fn means_a_device(word: &str) -> bool {
    let of_ublk = ["/dev/ublkb", "/dev/ublkctl/"];
    word.bytes().all(|byte| byte.is_ascii_digit())
        || of_ublk.iter().any(|prefix| word.starts_with(prefix))
}

/// The logical block size of a block device, or of the disk that it is a partition of.
fn block_size(device: u64) -> Option<u32> {
    let directory = format!(
        "/sys/dev/block/{}:{}",
        libc::major(device),
        libc::minor(device)
    );
    ["queue/logical_block_size", "../queue/logical_block_size"]
        .iter()
        .find_map(|file| {
            let text = fs::read_to_string(Path::new(&directory).join(file)).ok()?;
            text.trim().parse().ok()
        })
}

/// What a function returns, unless it takes longer: an open can wait for a server that does not answer.
fn within<T: Send + 'static>(
    deadline: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        // Whoever waited is gone if this fails.
        let _ = send.send(work());
    });
    receive.recv_timeout(deadline).ok()
}
