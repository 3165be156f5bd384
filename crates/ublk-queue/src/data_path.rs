//! How the data of a lane's requests is transferred: in the tag's buffer, through the character device, in registered
//! pages, or in memory shared with the client.
#![expect(
    unsafe_code,
    reason = "names shared memory, and copies it with accesses that may race"
)]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

use ublk_core::iod::Io;
use ublk_core::{DataMode, Errno, IoDesc, Tag};

use crate::memref::MemRef;
use crate::port::UserCopyPort;
use crate::racy_copy::Copier;
use crate::shmem::SharedMemory;

/// How the data of a lane's requests is transferred.
pub(crate) enum DataPath {
    /// In the tag's buffer: copy and get-data.
    Buffer,
    /// Through the character device: user copy.
    Device(Box<dyn UserCopyPort>),
    /// As a registered buffer that only forwarded operations reach; no code here sees the bytes.
    Registered,
    /// In memory shared with the client if the data is there, else by the path [`below`](Self::below).
    Client(Box<ClientPath>),
}

impl DataPath {
    pub(crate) fn new(mode: DataMode, device: Box<dyn UserCopyPort>) -> Self {
        match mode {
            DataMode::UserCopy => Self::Device(device),
            DataMode::ZeroCopy | DataMode::ZeroCopyManual => Self::Registered,
            _ => Self::Buffer,
        }
    }

    /// Adds memory shared with the device's clients, if there is any.
    pub(crate) fn shared_with(self, memory: Option<SharedMemory>, depth: u16) -> Self {
        match memory {
            Some(memory) => Self::Client(Box::new(ClientPath::new(memory, depth, self))),
            None => self,
        }
    }

    /// The data of a tag's request, if it is in memory shared with the client.
    pub(crate) fn client_place(&self, tag: Tag, len: usize) -> Option<MemRef<'_>> {
        match self {
            Self::Client(path) => path.place(tag, len),
            _ => None,
        }
    }

    /// Releases the character device.
    pub(crate) fn retire(&self) {
        if let Self::Device(device) = self.below() {
            device.retire();
        }
    }

    /// The memory shared with the client, if any.
    pub(crate) fn client_memory(&self) -> Option<SharedMemory> {
        match self {
            Self::Client(path) => Some(path.memory()),
            _ => None,
        }
    }

    /// The path of data outside shared memory.
    #[inline]
    pub(crate) const fn below(&self) -> &Self {
        match self {
            Self::Client(path) => &path.below,
            path => path,
        }
    }
}

/// The data path of a lane whose device shares memory with its clients.
pub(crate) struct ClientPath {
    memory: SharedMemory,
    /// Position of the data of each tag's request; null if it takes the path `below`. The lane writes it before it
    /// hands the request out; the holder of the request reads it.
    places: Box<[AtomicPtr<u8>]>,
    copier: Copier,
    pub(crate) below: DataPath,
}

impl ClientPath {
    pub(crate) fn memory(&self) -> SharedMemory {
        self.memory.clone()
    }

    pub(crate) fn new(memory: SharedMemory, depth: u16, below: DataPath) -> Self {
        Self {
            memory,
            places: (0..depth).map(|_| AtomicPtr::default()).collect(),
            copier: Copier::detect(),
            below,
        }
    }

    /// Records the position of a new request's data. True if the data is in shared memory.
    pub(crate) fn locate(&self, tag: Tag, desc: &IoDesc, io: &Io) -> Result<bool, Errno> {
        let hit = io.flags.in_shared_memory() && io.op.has_data();
        let place = match hit {
            true => self.memory.place(desc, io.len)?.as_ptr(),
            false => std::ptr::null_mut(),
        };
        let kept = self.places.get(tag.index()).ok_or(Errno::EIO)?;
        // Relaxed: whatever hands the request on orders this store, too.
        kept.store(place, Ordering::Relaxed);
        Ok(hit)
    }

    /// The `len` bytes of a tag's request, if they are in shared memory.
    pub(crate) fn place(&self, tag: Tag, len: usize) -> Option<MemRef<'_>> {
        let place = self.places.get(tag.index())?.load(Ordering::Relaxed);
        // SAFETY: the range is inside the mapping, which `self` keeps; no reference to it exists.
        NonNull::new(place).map(|place| unsafe { MemRef::new(place, len) })
    }

    /// Copies between client memory and a tag's buffer.
    ///
    /// # Errors
    /// EIO if the lengths differ.
    pub(crate) fn copy(&self, from: MemRef<'_>, to: MemRef<'_>) -> Result<(), Errno> {
        copy(self.copier, from, to)
    }
}

/// Copies between two ranges of the same length, in whole sectors.
pub(crate) fn copy(copier: Copier, from: MemRef<'_>, to: MemRef<'_>) -> Result<(), Errno> {
    if from.len() != to.len() || !from.len().is_multiple_of(crate::racy_copy::UNIT) {
        return Err(Errno::EIO);
    }
    // SAFETY: both ranges are mapped and no reference to them exists (contract of `MemRef::new`); the lengths are
    // checked above. A tag's buffer and a backend's memory are mappings of their own, so they do not overlap a
    // client's.
    unsafe { copier.transfer(from.ptr(), to.ptr(), from.len()) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;
    use ublk_core::{IoFlags, Op, SharedBuffer, SharedTable};

    fn tag(n: u16) -> Tag {
        Tag::new(n).expect("below 4096")
    }

    /// The position in a descriptor is the offset in the file; positions beyond the file are refused.
    #[test]
    fn places_are_bytes_of_the_file() {
        let path = std::env::temp_dir().join(format!("ublk-queue-shmem-{}", std::process::id()));
        let mut file = std::fs::File::create_new(&path).expect("a file");
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .and_then(|open| {
                file.write_all(&[7; 8192])?;
                file.write_all(&[9; 8192])?;
                std::fs::remove_file(&path)?;
                Ok(open)
            });
        let file = file.expect("ours");
        let buffer = SharedBuffer::new;
        let table = SharedTable::new(&[buffer(2, 0, 8192), buffer(5, 8192, 8192)]);
        let memory = SharedMemory::map(file.as_fd(), table.clone()).expect("mapped");
        assert_eq!(memory.len(), 16384);
        let path = ClientPath::new(memory, 2, DataPath::Buffer);
        let mut io = Io::new(Op::Write, IoFlags(IoFlags::SHMEM_ZC), 0, 4096);
        let mut desc = IoDesc::new(0, 0, 0, 5 << 32 | 4096);
        assert_eq!(path.locate(tag(1), &desc, &io), Ok(true));
        let place = path.place(tag(1), 4096).expect("a hit");
        let mut own = vec![0_u8; 4096];
        // SAFETY: a vector of that length, not accessed meanwhile.
        let to = unsafe { MemRef::new(NonNull::from(&mut own[..]).cast(), 4096) };
        path.copy(place, to).expect("as long");
        assert_eq!(own, [9; 4096]);
        assert!(path.place(tag(0), 4096).is_none() && path.place(tag(2), 1).is_none());
        desc.addr += 512;
        assert_eq!(path.locate(tag(1), &desc, &io), Err(Errno::EIO));
        io.flags = IoFlags(0);
        assert_eq!(path.locate(tag(1), &desc, &io), Ok(false));
        assert!(path.place(tag(1), 4096).is_none());
        file.set_len(8192).expect("ours");
        let short = SharedMemory::map(file.as_fd(), table).expect_err("too short");
        assert_eq!(short.raw_os_error(), Some(libc::ENODATA));
    }
}
