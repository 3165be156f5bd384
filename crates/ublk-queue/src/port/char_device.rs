//! Transfers a request's data through the character device (user copy).
#![expect(unsafe_code, reason = "lends memory to system calls")]

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ublk_core::{Errno, QueueId, Tag};
use ublk_sys::offset::UserCopy;

use super::traits::{Content, UserCopyPort};
use crate::memref::MemRef;
use crate::thread::last_errno;

/// The character device as the data path; each lane has a descriptor of its own.
#[derive(Debug)]
pub struct CharDevice {
    fd: OwnedFd,
    /// A file without data, which replaces the device at the end.
    nowhere: Arc<OwnedFd>,
}

impl CharDevice {
    /// Duplicates the descriptor of a device.
    ///
    /// # Errors
    /// EMFILE or ENFILE: out of descriptors.
    pub fn new(device: BorrowedFd<'_>) -> Result<Self, Errno> {
        static NOWHERE: Mutex<Weak<OwnedFd>> = Mutex::new(Weak::new());
        let errno = |e: std::io::Error| Errno::from_io(&e);
        let fd = device.try_clone_to_owned().map_err(errno)?;
        let mut known = NOWHERE.lock().unwrap_or_else(PoisonError::into_inner);
        let nowhere = match known.upgrade() {
            Some(nowhere) => nowhere,
            None => {
                let mut path = OpenOptions::new();
                let opened = path.read(true).custom_flags(libc::O_PATH).open("/");
                Arc::new(OwnedFd::from(opened.map_err(errno)?))
            }
        };
        *known = Arc::downgrade(&nowhere);
        Ok(Self { fd, nowhere })
    }

    /// Transfers the whole range or fails: a short count would expose stale bytes to a reader or leave them on the disk
    /// (L05).
    ///
    /// The calls are made directly: those of the C library are points of cancellation, which threads of Rust do not need, and
    /// take four times the instructions.
    ///
    /// # Safety
    /// `ptr` must be the start of `len` bytes of memory: readable for [`Way::Push`], writable for [`Way::Pull`].
    #[inline]
    unsafe fn transfer(
        &self,
        way: Way,
        place: UserCopy,
        (ptr, len): (*mut u8, usize),
    ) -> Result<(), Errno> {
        let at = place.encode().map_err(|_| Errno::EINVAL)?;
        // SAFETY: the caller's contract.
        let moved = unsafe { self.call(way, at, (ptr, len)) };
        if usize::try_from(moved) == Ok(len) {
            return Ok(());
        }
        // SAFETY: the caller's contract.
        unsafe { self.transfer_rest(way, at, (ptr, len), moved) }
    }

    /// Goes on after a first call that did not move everything.
    ///
    /// # Safety
    /// As for [`transfer`](Self::transfer).
    #[cold]
    unsafe fn transfer_rest(
        &self,
        way: Way,
        at: u64,
        (ptr, len): (*mut u8, usize),
        mut moved: libc::c_long,
    ) -> Result<(), Errno> {
        let mut done = 0;
        while done < len {
            match usize::try_from(moved) {
                Ok(0) => return Err(Errno::EIO),
                Ok(n) => done += n,
                Err(_) => match last_errno() {
                    Errno::EINTR => {}
                    errno => return Err(errno),
                },
            }
            if done < len {
                let rest = (ptr.wrapping_add(done), len - done);
                // SAFETY: the rest of the range, which the caller vouches for.
                moved = unsafe { self.call(way, at + done as u64, rest) };
            }
        }
        Ok(())
    }

    /// # Safety
    /// As for [`transfer`](Self::transfer).
    #[inline]
    unsafe fn call(&self, way: Way, at: u64, (ptr, len): (*mut u8, usize)) -> libc::c_long {
        // SAFETY: the range is the caller's; the arguments are those of pread64(2) and pwrite64(2), of one register each on the
        // machines of 64 bits that this compiles for: the numbers of the calls have that many.
        unsafe { libc::syscall(way as libc::c_long, self.fd.as_raw_fd(), ptr, len, at) }
    }
}

/// The direction of a transfer, as the number of its system call.
#[derive(Clone, Copy)]
#[repr(i64)]
enum Way {
    /// To memory.
    Pull = libc::SYS_pread64,
    /// From memory.
    Push = libc::SYS_pwrite64,
}

/// Where the content of a request begins.
#[inline]
fn begin(qid: QueueId, tag: Tag, content: Content) -> UserCopy {
    UserCopy {
        qid: qid.get(),
        tag: tag.get(),
        byte: 0,
        integrity: content == Content::Metadata,
    }
}

impl UserCopyPort for CharDevice {
    fn pull(&self, qid: QueueId, tag: Tag, from: Content, to: MemRef<'_>) -> Result<(), Errno> {
        let memory = (to.ptr().as_ptr(), to.len());
        // SAFETY: the range is writable memory by the contract of `MemRef::new`.
        unsafe { self.transfer(Way::Pull, begin(qid, tag, from), memory) }
    }

    fn push(&self, qid: QueueId, tag: Tag, to: Content, from: MemRef<'_>) -> Result<(), Errno> {
        let memory = (from.ptr().as_ptr(), from.len());
        // SAFETY: the range is readable memory by the contract of `MemRef::new`.
        unsafe { self.transfer(Way::Push, begin(qid, tag, to), memory) }
    }

    fn pull_metadata(&self, qid: QueueId, tag: Tag, to: &mut [u8]) -> Result<(), Errno> {
        let memory = (to.as_mut_ptr(), to.len());
        // SAFETY: the slice, which is borrowed exclusively during the call.
        unsafe { self.transfer(Way::Pull, begin(qid, tag, Content::Metadata), memory) }
    }

    fn push_metadata(&self, qid: QueueId, tag: Tag, from: &[u8]) -> Result<(), Errno> {
        let memory = (from.as_ptr().cast_mut(), from.len());
        // SAFETY: the slice, which the call only reads.
        unsafe { self.transfer(Way::Push, begin(qid, tag, Content::Metadata), memory) }
    }

    fn retire(&self) {
        let (from, to) = (self.nowhere.as_raw_fd(), self.fd.as_raw_fd());
        // SAFETY: atomically replaces the file behind our own descriptor: a concurrent user gets the one or the other
        // (EBADF), and the number stays ours until it is dropped.
        while unsafe { libc::dup3(from, to, libc::O_CLOEXEC) } < 0 && last_errno() == Errno::EINTR {
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::ptr::NonNull;

    use super::*;

    /// L05 A transfer that ends short goes on, and is an error if nothing more comes.
    #[test]
    fn l05_a_short_transfer_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        let first = begin(QueueId::ZERO, Tag::ZERO, Content::Data);
        let position = first.encode().unwrap();
        file.set_len(position + 512).unwrap();
        let device = CharDevice::new(file.as_fd()).unwrap();
        let mut bytes = [1; 1024];
        let first = NonNull::from(&mut bytes).cast();
        for (len, result) in [(512, Ok(())), (1024, Err(Errno::EIO))] {
            // SAFETY: writable for the duration of the call.
            let to = unsafe { MemRef::new(first, len) };
            assert_eq!(
                device.pull(QueueId::ZERO, Tag::ZERO, Content::Data, to),
                result
            );
        }
        // SAFETY: readable for the duration of the call.
        let from = unsafe { MemRef::new(first, 1024) };
        assert_eq!(
            device.push(QueueId::ZERO, Tag::ZERO, Content::Data, from),
            Ok(())
        );
        assert_eq!(file.metadata().unwrap().len(), position + 1024);
    }

    /// L63 A retired device is closed even if the value still exists, and transfers through it fail.
    #[test]
    fn l63_a_retired_device_is_closed() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let device = CharDevice::new(writer.as_fd()).unwrap();
        let another = CharDevice::new(writer.as_fd()).unwrap();
        drop(writer);
        device.retire();
        another.retire();
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
        let zeroes = [0; 512];
        let from = NonNull::from(&zeroes).cast();
        // SAFETY: readable for the duration of the call.
        let from = unsafe { MemRef::new(from, zeroes.len()) };
        let pushed = device.push(QueueId::ZERO, Tag::ZERO, Content::Data, from);
        assert_eq!(pushed, Err(Errno::EBADF));
    }
}
