//! A socket at a path, on which a role accepts links from processes that it did not start.
//!
//! The sockets lie in the run directory, which is closed to all but its owner: whoever connects is the same user or root.
#![forbid(unsafe_code)]

use crate::link::Link;
use rustix::net::sockopt::socket_type;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Callers that may wait for [`Listener::accept`].
const BACKLOG: i32 = 4;

/// A free path beside `path`, for a socket until it is wanted: to rename it needs neither room nor a descriptor.
///
/// # Errors
/// What lies there does not go away.
pub fn aside(path: &Path) -> io::Result<PathBuf> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}", std::process::id()));
    let aside = PathBuf::from(aside);
    match fs::remove_file(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(aside),
    }
}

/// A socket that links are made through.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    /// Where it shall lie.
    path: PathBuf,
    /// Where it lies until then.
    aside: Option<PathBuf>,
}

impl Listener {
    /// Makes a socket beside `path`, where nobody looks for it: [`Listener::publish`] then needs neither room nor a
    /// descriptor.
    ///
    /// # Errors
    /// Those of the file system; a path that no socket address has room for.
    pub fn prepare(path: &Path) -> io::Result<Self> {
        let aside = aside(path)?;
        let fd = socket()?;
        rustix::net::bind(&fd, &SocketAddrUnix::new(&aside)?)?;
        rustix::net::listen(&fd, BACKLOG)?;
        Ok(Self {
            fd,
            path: path.to_owned(),
            aside: Some(aside),
        })
    }

    /// Puts the socket where it shall lie, in the place of an earlier one.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn publish(&mut self) -> io::Result<()> {
        if let Some(aside) = &self.aside {
            fs::rename(aside, &self.path)?;
        }
        self.aside = None;
        Ok(())
    }

    /// A listener that another process made.
    ///
    /// # Errors
    /// A descriptor that is no socket of links.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        if socket_type(&fd)? != SocketType::SEQPACKET {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            fd,
            path: PathBuf::new(),
            aside: None,
        })
    }

    /// Takes a published socket away.
    pub fn remove(self) {
        if self.aside.is_none() {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Takes a caller, `None` when there is none.
    pub fn accept(&self) -> Option<Link> {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::accept_with(&self.fd, flags)
            .ok()
            .map(Link::from_fd)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(aside) = &self.aside {
            let _ = fs::remove_file(aside);
        }
    }
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::SEQPACKET;
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        kind,
        flags,
        None,
    )?)
}

/// Connects to the role that listens at `path`.
///
/// # Errors
/// ENOENT and ECONNREFUSED where nobody does, EAGAIN where too many are waiting.
pub fn connect(path: &Path) -> io::Result<Link> {
    let fd = socket()?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(Link::from_fd(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// L44 A socket that was prepared is put in its place without room or a new name, over an earlier one, and one that
    /// came to nothing leaves nothing behind.
    #[test]
    fn l44_a_prepared_socket_takes_the_place_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("7.next");
        assert!(connect(&path).is_err());
        let mut first = Listener::prepare(&path).unwrap();
        assert!(connect(&path).is_err(), "not there yet");
        first.publish().unwrap();
        let caller = connect(&path).unwrap();
        let met = first.accept().unwrap();
        assert!(first.accept().is_none());
        caller.send(&7u8).unwrap();
        let soon = Instant::now() + Duration::from_secs(5);
        assert_eq!(met.recv::<u8>(soon).unwrap(), 7);
        let mut second = Listener::prepare(&path).unwrap();
        drop(Listener::prepare(&dir.path().join("8.next")).unwrap());
        second.publish().unwrap();
        drop(first);
        let _caller = connect(&path).unwrap();
        assert!(second.accept().is_some());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
