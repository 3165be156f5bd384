//! Registers memory that is shared with a device's clients, from the process that maps it.
//!
//! # Why there is `unsafe` here
//! The kernel pins the pages and transfers request data to and from them at any time without notice. The caller
//! promises that no Rust reference to the memory exists.
#![expect(
    unsafe_code,
    reason = "memory that others write is promised to be no Rust object"
)]

use crate::control::on;
use crate::port::CtrlPort;
use crate::{Control, Error, Operation};
use core::ptr::NonNull;
use core::time::Duration;
use ublk_core::{DevId, Features, require_features};
use ublk_sys::{UBLK_SHMEM_BUF_READ_ONLY, ublk_shmem_buf_reg};

/// Largest registration in bytes.
const LARGEST: u64 = 4 << 30;

/// The index by which descriptors name registered memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemoryId(u16);

impl MemoryId {
    pub(crate) const fn new(index: u16) -> Self {
        Self(index)
    }

    /// The index, as in `ublksrv_io_desc.addr`.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl<P: CtrlPort> Control<P> {
    /// Registers memory of this process with a device created with [`Features::SHMEM_ZC`] (REG_BUF, Linux 7.1):
    /// requests whose pages lie in it are not copied. Freezes the queues: the server must answer all requests in flight
    /// meanwhile. The pages stay pinned until [`Control::unregister_memory`] or until the device is deleted; with
    /// `read_only` they match writes only.
    ///
    /// # Safety
    /// `len` bytes at `addr` are mapped, and neither a Rust reference to them nor Rust memory management (heap, stack)
    /// exists until they are unregistered and the device's I/O has ended: the kernel and other processes read and write
    /// them at any time.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming the kernel, [`Error::Spec`] for memory that is not page-aligned or not between one
    /// page and 4 GiB, [`Error::UnknownCommand`] for a device without the feature, [`Error::Busy`] for a page that is
    /// already registered, [`Error::Refused`] with ENOMEM beyond the limit of locked memory …
    pub unsafe fn register_memory(
        &mut self,
        id: DevId,
        addr: NonNull<u8>,
        len: u64,
        read_only: bool,
        deadline: Duration,
    ) -> Result<MemoryId, Error> {
        let operation = Operation::RegisterMemory;
        let page = u64::from(crate::page_size());
        let start = addr.as_ptr().expose_provenance() as u64;
        if !start.is_multiple_of(page) || !len.is_multiple_of(page) || len == 0 || len > LARGEST {
            return Err(Error::Spec {
                message: format!(
                    "memory of {len} bytes at {start:#x} must consist of whole pages of {page} bytes and be at most 4 GiB"
                ),
            });
        }
        require_features(Features::SHMEM_ZC, self.features(deadline)?)?;
        let memory = ublk_shmem_buf_reg {
            addr: start,
            len,
            flags: if read_only {
                UBLK_SHMEM_BUF_READ_ONLY
            } else {
                0
            },
            ..Default::default()
        };
        let request = on(operation, id);
        let (index, _) = self.deliver(&request.payload(memory.to_bytes().to_vec()), deadline)?;
        let index = u16::try_from(index).map_err(|_| Error::BadReply {
            operation,
            message: format!("index {index} does not fit into a descriptor"),
        })?;
        Ok(MemoryId(index))
    }

    /// Unregisters memory from a device (UNREG_BUF, Linux 7.1). Freezes the queues.
    ///
    /// # Errors
    /// [`Error::Unsupported`], [`Error::UnknownCommand`], [`Error::Refused`] with ENOENT for memory that is not
    /// registered …
    pub fn unregister_memory(
        &mut self,
        id: DevId,
        memory: MemoryId,
        deadline: Duration,
    ) -> Result<(), Error> {
        require_features(Features::SHMEM_ZC, self.features(deadline)?)?;
        let request = on(Operation::UnregisterMemory, id);
        self.raw(&request.data(memory.0.into()), deadline).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Act, FakeKernel};
    use ublk_core::Errno;
    use ublk_sys::Uapi;

    const LONG: Duration = Duration::from_secs(7200);

    #[test]
    fn memory_is_registered_by_whole_pages() {
        let mut control = Control::with_port(FakeKernel::new(|op, header, buffer| match op {
            ublk_sys::UBLK_U_CMD_GET_FEATURES => {
                buffer.fill(&u64::MAX.to_ne_bytes());
                Act::Answer(Ok(0))
            }
            ublk_sys::UBLK_U_CMD_REG_BUF => {
                let memory = ublk_shmem_buf_reg::read_from(&buffer.read()).unwrap();
                assert_eq!((header.len, memory.addr, memory.len), (24, 1 << 20, 8192));
                assert_eq!((memory.flags, memory.reserved), (1, 0));
                Act::Answer(Ok(3))
            }
            _ => {
                assert_eq!(header.data, [3]);
                Act::Answer(Err(Errno::ENOENT))
            }
        }));
        let id = DevId::new(1).unwrap();
        let at = |addr: usize| NonNull::new(std::ptr::without_provenance_mut(addr)).unwrap();
        // SAFETY: a fake kernel touches no memory.
        let got = unsafe { control.register_memory(id, at(1 << 20), 8192, true, LONG) };
        assert_eq!(got.unwrap().get(), 3);
        for (addr, len) in [(4095, 4096), (4096, 0), (4096, 5000), (4096, 5 << 30)] {
            // SAFETY: nothing is sent.
            let refused = unsafe { control.register_memory(id, at(addr), len, false, LONG) };
            assert!(matches!(refused, Err(Error::Spec { .. })), "{refused:?}");
        }
        let error = control
            .unregister_memory(id, MemoryId(3), LONG)
            .unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENOENT));
        assert!(error.to_string().contains("not registered"), "{error}");
    }
}
