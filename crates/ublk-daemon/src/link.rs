//! The link between two roles: JSON messages of bounded size in sequenced packets.
//!
//! Each packet is one message. A packet that is longer than [`MAX_MESSAGE`] or does not parse as the expected type is
//! an error, and the receiver never allocates a size that the peer chose. Sending never blocks, because a role that
//! does not read must not stall its peer.

pub mod listener;
pub mod message;
pub mod peer;

use crate::failure::{Failure, FailureKind};
use crate::sys::{poll, process, socket};
use serde::{Serialize, de::DeserializeOwned};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The link version, sent in each end's first message.
pub const LINK_VERSION: u32 = 9;

/// Longest message in bytes. A longer packet is refused unread, and would not fit into a default socket buffer
/// (net.core.wmem_default).
pub const MAX_MESSAGE: usize = 192 * 1024;

/// An error of a link.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The peer has closed the link.
    #[error("the other end of the link is gone")]
    Closed,
    /// No message arrived in time.
    #[error("no message came in time")]
    TimedOut,
    /// A message is longer than [`MAX_MESSAGE`].
    #[error("a message of {0} bytes is longer than {MAX_MESSAGE}")]
    TooLong(usize),
    /// A message does not parse as the expected type.
    #[error("not a message of this link: {0}")]
    Garbled(String),
    /// The peer uses another link version.
    #[error(
        "the other end speaks link version {0}, this one {LINK_VERSION}: restart the device with one version of ublkctl"
    )]
    Version(u32),
    /// Standard input is not a link: a person started the role.
    #[error("this role is started by ublkctl itself, not by users: standard input is not its link")]
    NotALink,
    /// A system call failed.
    #[error("the link failed: {0}")]
    Io(io::Error),
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        let kind = match error {
            LinkError::TimedOut => FailureKind::TimedOut,
            _ => FailureKind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}

/// One end of a link.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
    /// The descriptors that arrived last with a message, until they are taken.
    received: Mutex<Vec<OwnedFd>>,
}

impl Link {
    /// Creates both ends of a link, closed on exec.
    ///
    /// # Errors
    /// [`LinkError::Io`] when descriptors run out.
    pub fn pair() -> Result<(Self, Self), LinkError> {
        let (a, b) = socket::pair()?;
        Ok((Self::over(a), Self::over(b)))
    }

    const fn over(fd: OwnedFd) -> Self {
        let received = Mutex::new(Vec::new());
        Self { fd, received }
    }

    /// Checks that this process's standard input can be a link.
    ///
    /// # Errors
    /// [`LinkError::NotALink`] when a person started the role.
    pub fn expect_stdin() -> Result<(), LinkError> {
        if socket::is_seqpacket(io::stdin().as_fd()) {
            Ok(())
        } else {
            Err(LinkError::NotALink)
        }
    }

    /// Takes the link from standard input and replaces it with `/dev/null`, so that no child inherits the link.
    ///
    /// # Errors
    /// [`LinkError::NotALink`] when a person started the role.
    pub fn from_stdin() -> Result<Self, LinkError> {
        Self::expect_stdin()?;
        let stdin = io::stdin();
        let fd = stdin.as_fd().try_clone_to_owned()?;
        let null = File::open("/dev/null")?;
        process::redirect(null.as_fd(), process::Stream::In)?;
        Ok(Self::over(fd))
    }

    /// Wraps a connected sequenced-packet socket.
    #[must_use]
    pub const fn from_fd(fd: OwnedFd) -> Self {
        Self::over(fd)
    }

    /// The descriptor, to pass it to a child.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Closes the link for both ends.
    pub fn hang_up(&self) {
        // Fails only if the socket is not connected, which is the desired result.
        let _ = socket::shut_down(self.fd.as_fd());
    }

    /// Sends a message without blocking.
    ///
    /// # Errors
    /// [`LinkError::Closed`] when the peer is gone, [`LinkError::TooLong`].
    pub fn send<T: Serialize>(&self, message: &T) -> Result<(), LinkError> {
        self.send_with(message, &[])
    }

    /// Sends a message with descriptors, without blocking.
    ///
    /// # Errors
    /// As [`Link::send`].
    pub fn send_with<T: Serialize>(
        &self,
        message: &T,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        let bytes = serde_json::to_vec(message).map_err(|e| LinkError::Garbled(e.to_string()))?;
        if bytes.len() > MAX_MESSAGE {
            return Err(LinkError::TooLong(bytes.len()));
        }
        Ok(socket::send(self.fd.as_fd(), &bytes, descriptors)?)
    }

    /// Sends a message and waits until the deadline for buffer space; for series of messages.
    ///
    /// # Errors
    /// As [`Link::send`], and [`io::ErrorKind::WouldBlock`] if the peer does not read.
    pub fn send_by<T: Serialize>(&self, message: &T, deadline: Instant) -> Result<(), LinkError> {
        loop {
            match self.send(message) {
                Err(LinkError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !poll::writable(self.fd.as_fd(), Some(deadline))? {
                        return Err(e.into());
                    }
                }
                other => return other,
            }
        }
    }

    /// Receives a message if one is queued.
    ///
    /// # Errors
    /// [`LinkError::Closed`] at the end; [`LinkError::TooLong`] and [`LinkError::Garbled`] for a hostile message.
    pub fn try_recv<T: DeserializeOwned>(&self) -> Result<Option<T>, LinkError> {
        let mut buf = vec![0; MAX_MESSAGE];
        let len = match socket::recv(self.fd.as_fd(), &mut buf) {
            Ok((0, _)) => return Err(LinkError::Closed),
            Ok((len, descriptors)) => {
                if !descriptors.is_empty() {
                    *self.received() = descriptors;
                }
                len
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let bytes = buf.get(..len).ok_or(LinkError::TooLong(len))?;
        serde_json::from_slice(bytes)
            .map(Some)
            .map_err(|e| LinkError::Garbled(e.to_string()))
    }

    fn received(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the descriptors that arrived with a message.
    pub fn take_descriptors(&self) -> Vec<OwnedFd> {
        std::mem::take(&mut *self.received())
    }

    /// Takes the only descriptor of a message.
    pub fn take_descriptor(&self) -> Option<OwnedFd> {
        self.take_descriptors().into_iter().next()
    }

    /// Waits for a message until the deadline, or without limit if there is none.
    ///
    /// # Errors
    /// [`LinkError::TimedOut`], and those of [`Link::try_recv`].
    pub fn recv<T: DeserializeOwned>(
        &self,
        deadline: impl Into<Option<Instant>>,
    ) -> Result<T, LinkError> {
        let deadline = deadline.into();
        loop {
            if let Some(message) = self.try_recv()? {
                return Ok(message);
            }
            let ready = poll::readable(&[self.fd.as_fd()], deadline)?;
            if !ready.contains(&true) && deadline.is_some_and(|at| Instant::now() >= at) {
                return Err(LinkError::TimedOut);
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    #[test]
    fn messages_keep_their_borders_and_order() {
        let (a, b) = Link::pair().unwrap();
        a.send(&1u32).unwrap();
        a.send(&vec![2u32, 3]).unwrap();
        assert_eq!(b.recv::<u32>(soon()).unwrap(), 1);
        assert_eq!(b.recv::<Vec<u32>>(soon()).unwrap(), [2, 3]);
        assert!(b.try_recv::<u32>().unwrap().is_none());
    }

    #[test]
    fn a_message_too_long_is_refused_on_both_sides() {
        let (a, b) = Link::pair().unwrap();
        let long = "x".repeat(MAX_MESSAGE);
        assert!(matches!(a.send(&long), Err(LinkError::TooLong(_))));
        // A peer that exceeds the limit.
        socket::send(a.as_fd(), &vec![b' '; MAX_MESSAGE + 7], &[]).unwrap();
        let refused = b.recv::<String>(soon());
        assert!(
            matches!(refused, Err(LinkError::TooLong(n)) if n == MAX_MESSAGE + 7),
            "{refused:?}"
        );
        // The link still works afterwards.
        a.send(&5u8).unwrap();
        assert_eq!(b.recv::<u8>(soon()).unwrap(), 5);
    }

    #[test]
    fn hostile_bytes_are_an_error_and_not_a_panic() {
        let (a, b) = Link::pair().unwrap();
        let deep = "[".repeat(50_000);
        for bytes in [
            &b"\xff\xfe"[..],
            b"{",
            b"{\"type\":\"nobody\"}",
            b"1e999",
            deep.as_bytes(),
        ] {
            socket::send(a.as_fd(), bytes, &[]).unwrap();
            let got = b.recv::<crate::link::message::ToServer>(soon());
            assert!(matches!(got, Err(LinkError::Garbled(_))), "{got:?}");
        }
    }

    #[test]
    fn a_closed_end_is_told_and_silence_times_out() {
        let (a, b) = Link::pair().unwrap();
        let silent = b.recv::<u8>(Instant::now() + Duration::from_millis(3));
        assert!(matches!(silent, Err(LinkError::TimedOut)));
        drop(a);
        assert!(matches!(b.recv::<u8>(soon()), Err(LinkError::Closed)));
        assert!(matches!(b.send(&1u8), Err(LinkError::Closed)));
    }

    /// L33 A peer's last message arrives even if the peer exits with unread messages.
    #[test]
    fn l33_last_words_arrive() {
        let (a, b) = Link::pair().unwrap();
        a.send(&"unread").unwrap();
        b.send(&"last words").unwrap();
        drop(b);
        assert_eq!(a.recv::<String>(soon()).unwrap(), "last words");
        assert!(matches!(a.recv::<u8>(soon()), Err(LinkError::Closed)));
    }

    #[test]
    fn a_reader_that_sleeps_does_not_hold_up_the_speaker() {
        let (a, _b) = Link::pair().unwrap();
        let message = "y".repeat(MAX_MESSAGE / 2);
        let stuck = (0..1000).find_map(|_| a.send(&message).err());
        assert!(matches!(stuck, Some(LinkError::Io(_))), "{stuck:?}");
    }

    /// A passed descriptor refers to the same open file: position and lock are shared. It is closed on exec and can be
    /// taken once.
    #[test]
    fn l43_a_descriptor_passes_with_its_lock() {
        let (a, b) = Link::pair().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let ours = File::open(file.path()).unwrap();
        ours.try_lock().unwrap();
        a.send_with(&1u8, &[ours.as_fd()]).unwrap();
        a.send(&2u8).unwrap();
        drop(ours);
        assert_eq!(b.recv::<u8>(soon()).unwrap(), 1);
        assert_eq!(b.recv::<u8>(soon()).unwrap(), 2);
        let other = File::open(file.path()).unwrap();
        assert!(other.try_lock().is_err(), "the lock is held all the time");
        let theirs = File::from(b.take_descriptor().unwrap());
        theirs.try_lock().unwrap();
        assert!(b.take_descriptor().is_none());
        let fd = std::os::fd::AsRawFd::as_raw_fd(&theirs);
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap();
        let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
        assert_ne!(flags & libc::O_CLOEXEC, 0);
        drop(theirs);
        assert!(crate::fakes::soon(|| other.try_lock().is_ok()));
    }

    /// L23 The link is closed on exec.
    #[test]
    fn l23_link_descriptors_do_not_survive_exec() {
        let (a, b) = Link::pair().unwrap();
        for link in [a, b] {
            let fd = std::os::fd::AsRawFd::as_raw_fd(&link.as_fd());
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
            let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap();
            let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
            assert_ne!(flags & libc::O_CLOEXEC, 0);
        }
    }
}
