//! A listening socket at a path, for links from processes that the role did not start.
//!
//! The sockets lie in the run directory, which only its owner can enter: whoever connects is the same user or root.
#![forbid(unsafe_code)]

use crate::link::Link;
use rustix::net::sockopt::socket_type;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Length of the accept queue.
const BACKLOG: i32 = 4;

/// Returns an unused path beside `path` for a temporary socket; renaming the socket into place later needs neither disk
/// space nor a descriptor.
///
/// # Errors
/// An old file at that path cannot be removed.
pub fn aside(path: &Path) -> io::Result<PathBuf> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}", std::process::id()));
    let aside = PathBuf::from(aside);
    match fs::remove_file(&aside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(aside),
    }
}

/// A listening socket for links.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    /// Its final path.
    path: PathBuf,
    /// Its temporary path until it is published.
    aside: Option<PathBuf>,
}

impl Listener {
    /// Creates the socket at a temporary path, so that [`Listener::publish`] needs neither disk space nor a descriptor.
    ///
    /// # Errors
    /// File system errors; `path` is too long for a socket address.
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

    /// Moves the socket to its final path, replacing an earlier one.
    ///
    /// # Errors
    /// File system errors.
    pub fn publish(&mut self) -> io::Result<()> {
        if let Some(aside) = &self.aside {
            fs::rename(aside, &self.path)?;
        }
        self.aside = None;
        Ok(())
    }

    /// Wraps a listening socket that another process created.
    ///
    /// # Errors
    /// The descriptor is not a sequenced-packet socket.
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

    /// Removes the socket file.
    pub fn remove(self) {
        if self.aside.is_none() {
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Accepts a connection; `None` if none is pending.
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
/// ENOENT or ECONNREFUSED if nobody listens, EAGAIN if the accept queue is full.
pub fn connect(path: &Path) -> io::Result<Link> {
    let fd = socket()?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(Link::from_fd(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// L44 Publishing a prepared socket needs no disk space and replaces an earlier socket; an unpublished one leaves
    /// no file.
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
