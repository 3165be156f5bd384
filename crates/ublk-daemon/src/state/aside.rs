//! Removes temporary files of killed processes: unfinished records, and sockets without a listener.

use super::{StateError, Store, remove_if_there};
use crate::link::listener;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::Duration;

/// Minimum age of a removed file; a running writer renames its file within milliseconds.
const OLD: Duration = Duration::from_secs(60);

impl Store {
    /// Removes a temporary file if it is abandoned. Returns whether it did.
    pub(super) fn sweep_aside(&self, path: &Path, nonces: &[u64]) -> Result<bool, StateError> {
        let Ok(meta) = path.symlink_metadata() else {
            return Ok(false);
        };
        let left =
            is_old(&meta) && (is_record(path, nonces) && meta.is_file() || is_socket(path, &meta));
        if left {
            remove_if_there(path)?;
        }
        Ok(left)
    }
}

fn is_old(meta: &Metadata) -> bool {
    let age = meta.modified().ok().and_then(|made| made.elapsed().ok());
    age.is_some_and(|age| age >= OLD)
}

/// Whether this is a temporary record, `.NONCE.tmp` or `.NONCE.next`, of a device that no longer exists. The agent of
/// an existing device overwrites its own.
fn is_record(path: &Path, nonces: &[u64]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let parts = name.strip_prefix('.').and_then(|name| name.split_once('.'));
    let Some((nonce, "tmp" | "next")) = parts else {
        return false;
    };
    u64::from_str_radix(nonce, 16).is_ok_and(|nonce| !nonces.contains(&nonce))
}

/// Whether this is a socket, `ID.KIND.PID`, without a listener. Connects to find out, because the pid may be from
/// another PID namespace.
fn is_socket(path: &Path, meta: &Metadata) -> bool {
    let pid = path.extension().unwrap_or_default();
    let aside = !pid.is_empty() && pid.to_string_lossy().bytes().all(|b| b.is_ascii_digit());
    let nobody = || {
        let refused = |e: io::Error| e.kind() == io::ErrorKind::ConnectionRefused;
        listener::connect(path).is_err_and(refused)
    };
    aside && meta.file_type().is_socket() && nobody()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::listener::Listener;
    use std::fs::File;
    use std::os::unix::net::UnixListener;
    use std::time::SystemTime;

    /// L31 Temporary files of killed processes are removed; recent ones and those in use stay.
    #[test]
    fn l31_what_was_left_beside_its_place_is_swept() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::at(dir.path().join("run"));
        store.prepare().expect("prepared");
        let at = |name: &str| dir.path().join("run").join(name);
        let old = SystemTime::now() - 2 * OLD;
        for name in [
            ".0000000000000007.tmp",
            ".0000000000000008.next",
            ".0000000000000009.tmp",
            "note",
        ] {
            let file = File::create(at(name)).expect("a file");
            if !name.contains('9') {
                file.set_modified(old).expect("its age");
            }
        }
        let pid = std::process::id();
        let used = Listener::prepare(&at("1.next")).expect("a socket");
        // Unlike our listener, std's leaves its file behind.
        drop(UnixListener::bind(at(&format!("2.next.{pid}"))).expect("a socket"));
        for name in ["1", "2"] {
            age(&at(&format!("{name}.next.{pid}")), old);
        }
        let swept = store.sweep(&[8]).expect("swept");
        let mut names: Vec<_> = swept
            .iter()
            .filter_map(|p| p.file_name()?.to_str().map(str::to_owned))
            .collect();
        names.sort();
        assert_eq!(
            names,
            [".0000000000000007.tmp".to_owned(), format!("2.next.{pid}")]
        );
        drop(used);
    }

    fn age(path: &Path, to: SystemTime) {
        let to = to.duration_since(SystemTime::UNIX_EPOCH).expect("a time");
        let touched = std::process::Command::new("touch")
            .args(["-d", &format!("@{}", to.as_secs())])
            .arg(path)
            .status();
        assert!(touched.expect("touch").success());
    }
}
