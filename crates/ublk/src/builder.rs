//! Configuration of a new device: backend, sizes, and the controller.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ublk_backends::{Composed, File, Memory, Protected, ZonedDevice};
use ublk_core::{Backend, DataMode, DevId, DeviceSpec, Features, Mode, Recovery, SharedBuffer};
use ublk_ctrl::bring_up::{self, TimeLimit};
use ublk_ctrl::{ControlThread, Controller, page_size};
use ublk_metrics::Level;
use ublk_queue::{Failed, Mapped, OnFailure, Polling, ServeOptions, Server, Threads};

use crate::device::Device;
use crate::error::Error;
use crate::options::{ArmFn, ClientMemory, Options};
use crate::stages::{Added, clean_up};

/// Creates a device from a backend. By default it has one queue of 128 tags and requests of up to 1 MiB.
pub struct Builder<B> {
    pub(crate) backend: Arc<B>,
    pub(crate) spec: DeviceSpec,
    pub(crate) controller: Option<Box<dyn Controller>>,
    /// Used if the kernel supports it and no mode is set.
    pub(crate) favoured: DataMode,
    pub(crate) options: Options,
    pub(crate) arm: ArmFn<B>,
}

impl<B> fmt::Debug for Builder<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("spec", &self.spec)
            .field("options", &self.options)
            .finish()
    }
}

impl<B: Backend> Builder<B> {
    /// A device that this backend answers.
    pub fn new(backend: B) -> Self {
        Self::shared(Arc::new(backend))
    }

    /// Like [`Builder::new`], for a backend that the caller keeps a handle to.
    pub fn shared(backend: Arc<B>) -> Self {
        let spec = DeviceSpec::new(backend.limits());
        let deadline = Duration::from_secs(30);
        let options = Options {
            deadline,
            pin: true,
            threads: None,
            hosts: None,
            serve: ServeOptions::DEFAULT,
            pool_threads: 4,
            shared: None,
            on_failure: None,
            unscheduled: true,
            partitions: true,
        };
        let only = spec.limits.zones.is_some() || spec.limits.integrity.is_some();
        let favoured = match only {
            true => DataMode::UserCopy,
            false => DataMode::Copy,
        };
        Self {
            backend,
            spec,
            controller: None,
            favoured,
            options,
            arm: Server::arm,
        }
    }

    /// Sets how data and commands travel. The default is copy without batches, unless a constructor selects another
    /// mode ([`Builder::file`]); for a zoned device or one with metadata, which have no copy mode, it is user copy. [`Builder::add`] fails if
    /// the kernel lacks the mode; the mode in force is `Mode::of(device.geometry().features())`.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Self {
        self.spec.features = self.spec.features.without(Mode::ALL_FEATURES) | mode.features();
        self.favoured = DataMode::Copy;
        self
    }

    /// Sets what happens to the device when this process dies or leaves it with [`Device::leave`]. Do not use recovery
    /// with a backend whose data dies with the process. With [`Recovery::Reissue`] a request may be executed twice
    /// (L14).
    #[must_use]
    pub fn recovery(mut self, policy: Recovery) -> Self {
        self.spec.features = self.spec.features.without(Recovery::ALL_FEATURES) | policy.features();
        self
    }

    /// Allocates the queues' buffers in huge pages if available: see [`ServeOptions::huge_pages`].
    #[must_use]
    pub fn huge_pages(mut self, yes: bool) -> Self {
        self.options.serve.huge_pages = yes;
        self
    }

    /// Measures this much from the start: see [`Device::measure`]. Nothing by default.
    #[must_use]
    pub fn metrics(mut self, level: Level) -> Self {
        self.options.serve.metrics = level;
        self
    }

    /// Calls `tell` for each request that is answered with an errno, on the queue's thread: see [`OnFailure`] for what
    /// it must not do.
    #[must_use]
    pub fn on_failure(mut self, tell: impl Fn(Failed) + Send + Sync + 'static) -> Self {
        self.options.on_failure = Some(OnFailure::new(tell));
        self
    }

    /// Shares memory with the device's clients (Linux 7.1): a memfd, or a file on tmpfs or hugetlbfs, open for reading
    /// and writing, or for reading only; then only what clients write is found in it. The whole file is registered with the device. Direct I/O whose data lies in it is served without a
    /// copy by the driver; all other requests use the device's mode. Not available with get-data. [`Builder::add`] fails
    /// if the kernel lacks the feature. `Counters` has hits and misses.
    ///
    /// A process that can shrink the file can crash this process: see [`SharedMemory`](ublk_queue::SharedMemory).
    #[must_use]
    pub fn shared_memory(self, file: impl Into<OwnedFd>) -> Self {
        self.registered_memory(file, Vec::new())
    }

    /// Like [`Builder::shared_memory`], for a device to be recovered: takes the file that was registered when the device
    /// was created, and what [`Added::shared_buffers`] returned then.
    #[must_use]
    pub fn registered_memory(
        mut self,
        file: impl Into<OwnedFd>,
        buffers: Vec<SharedBuffer>,
    ) -> Self {
        self.spec.features |= Features::SHMEM_ZC;
        self.options.shared = Some(ClientMemory {
            file: Arc::new(file.into()),
            buffers,
        });
        self
    }

    /// Creates the device even on a kernel release that is known to crash in ADD_DEV
    /// ([`Fault::AddCrashes`](ublk_core::kernel::Fault::AddCrashes)), for kernels that are patched. Otherwise
    /// [`Builder::add`] fails on such a release without sending anything.
    #[must_use]
    pub fn trust_kernel(mut self, yes: bool) -> Self {
        self.spec.trust_kernel = yes;
        self
    }

    /// Requests a device number instead of the lowest free one.
    #[must_use]
    pub fn id(mut self, id: DevId) -> Self {
        self.spec.id = Some(id);
        self
    }

    /// Sets the number of hw queues, 1 to 4096. The kernel gives at most one per CPU: read
    /// [`Device::geometry`].
    #[must_use]
    pub fn queues(mut self, queues: u16) -> Self {
        self.spec.queues = queues;
        self
    }

    /// Sets the tags per queue, 1 to 4096.
    #[must_use]
    pub fn depth(mut self, depth: u16) -> Self {
        self.spec.depth = depth;
        self
    }

    /// Sets the largest request in bytes: whole pages, up to 32 MiB.
    #[must_use]
    pub fn max_io_bytes(mut self, bytes: u32) -> Self {
        self.spec.max_io_bytes = bytes;
        self
    }

    /// Requests features in addition to those of mode and policy. [`Builder::add`] fails if the kernel lacks one.
    #[must_use]
    pub fn features(mut self, features: Features) -> Self {
        self.spec.features |= features;
        self
    }

    /// Requests I/O descriptors of this many bytes instead of 24 (`UBLK_F_IO_DESC_SIZE`, Linux 7.3): a multiple of 8 up to 256.
    /// Nothing is in the additional bytes yet. [`Builder::add`] fails where the kernel lacks the feature.
    #[must_use]
    pub fn descriptor_bytes(mut self, bytes: u16) -> Self {
        self.spec = self.spec.descriptor_bytes(bytes);
        self
    }

    /// Sets a value that the kernel stores with the device for the caller (`ublksrv_flags`).
    #[must_use]
    pub fn server_flags(mut self, word: u64) -> Self {
        self.spec.server_flags = word;
        self
    }

    /// Sets how long each control command, arming and ending may take. 30 seconds by default.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options.deadline = deadline;
        self
    }

    /// Keeps the I/O scheduler that the kernel chose, `mq-deadline` for a device with one queue. By default a device has
    /// no scheduler: sorting costs a fifth of a small request, and the storage behind the backend has its own scheduler.
    #[must_use]
    pub const fn kernel_scheduler(mut self) -> Self {
        self.options.unscheduled = false;
        self
    }

    /// Sets whether the kernel scans for partitions when the device starts (default: yes).
    ///
    /// Kernels before 7.0 scan inside START_DEV, which then waits for the backend's answers: [`Builder::start`] fails at its
    /// deadline if they take longer, and a program that is killed meanwhile stays until the next boot, because its answers
    /// never come. Without the scan START_DEV waits for no answer (except the report of a zoned device). Since 7.0 the scan
    /// can be requested later (`blockdev --rereadpt`); before 7.0 the device then has no partitions.
    #[must_use]
    pub const fn partitions(mut self, yes: bool) -> Self {
        self.options.partitions = yes;
        self
    }

    /// Serves all queues from this many threads instead of one each.
    #[must_use]
    pub fn threads(mut self, threads: u16) -> Self {
        self.options.threads = Some(threads);
        self
    }

    /// Serves the device from threads shared with other devices, for many devices that are rarely busy at the same time.
    /// A busy device needs two more system calls per batch. Polling and pinning are then set on the threads.
    ///
    /// A request that a handler keeps on its thread ([`Request::keep`](crate::Request::keep), a task's) must be answered by
    /// its own device's handlers: an action by another device's handler is noticed at the next event of its own device.
    #[must_use]
    pub fn shared_threads(mut self, threads: &Arc<Threads>) -> Self {
        self.options.hosts = Some(Arc::clone(threads));
        self
    }

    /// Serves each queue from several threads, for a backend whose own work exceeds one CPU. Requires PER_IO_DAEMON (6.16)
    /// or batch mode (7.0): [`Added::arm`] fails if the kernel has neither. Default: 1.
    #[must_use]
    pub fn threads_per_queue(mut self, threads: u16) -> Self {
        self.options.serve.threads_per_queue = threads;
        self
    }

    /// Sets how the queues' threads poll before they sleep; by default they sleep immediately.
    #[must_use]
    pub fn polling(mut self, polling: Polling) -> Self {
        self.options.serve.polling = polling;
        self
    }

    /// Sets whether each queue's thread is pinned to the queue's CPUs; the default is yes.
    #[must_use]
    pub fn pin(mut self, yes: bool) -> Self {
        self.options.pin = yes;
        self
    }

    /// Sets the number of pool threads, for a backend that is not quick; the default is four.
    #[must_use]
    pub fn pool_threads(mut self, threads: usize) -> Self {
        self.options.pool_threads = threads;
        self
    }

    /// Uses another controller to issue the commands. If it is in another process, a stuck command does not keep this
    /// process from exiting.
    #[must_use]
    pub fn controller(mut self, controller: impl Controller + 'static) -> Self {
        self.controller = Some(Box::new(controller));
        self
    }

    /// Checks the spec and sends ADD_DEV and SET_PARAMS. `/dev/ublkcN` exists afterwards.
    ///
    /// # Errors
    /// A spec that violates a rule of the driver, an error of the driver, or a feature that it did not grant. Nothing
    /// is left behind, unless the deadline passed.
    pub fn add(self) -> Result<Added<B>, Error> {
        let mut spec = self.spec;
        let mut options = self.options;
        let only = spec.limits.zones.is_some() || spec.limits.integrity.is_some();
        if only && self.favoured == DataMode::UserCopy {
            spec.features |= Features::USER_COPY;
        }
        // Report mistakes before opening anything.
        spec.check(page_size())?;
        let mut controller = match self.controller {
            Some(controller) => controller,
            None => Box::new(ControlThread::start(options.deadline)?),
        };
        let deadline = options.deadline;
        let mut optional = [Features::NONE; 2];
        if !options.partitions {
            optional[0] = Features::NO_AUTO_PART_SCAN;
        }
        if DataMode::of(spec.features) == DataMode::Copy
            && !spec.features.contains(Features::UNPRIVILEGED_DEV)
        {
            optional[1] = self.favoured.features();
        }
        spec.features = bring_up::negotiate(&mut controller, spec.features, &optional, deadline)?;
        let checked = spec.check(page_size())?;
        let limit = TimeLimit::Each(deadline);
        let added = bring_up::Added::add(&mut controller, checked, limit)?;
        let memory = options.shared.as_ref().map(|shared| shared.file.as_fd());
        let unserved = match added.set_up(&mut controller, memory, limit) {
            Ok((unserved, buffers)) => {
                if let Some(shared) = &mut options.shared {
                    shared.buffers = buffers;
                }
                unserved
            }
            Err(error) => {
                // The device was just created, and nobody else knows it.
                let _ = controller.delete(added.geometry().dev_id(), deadline);
                return Err(error.into());
            }
        };
        Ok(Added {
            backend: self.backend,
            unserved,
            controller,
            options,
            arm: self.arm,
        })
    }

    /// Goes through all stages: the device serves I/O when this returns. If a stage fails, the device is stopped and
    /// deleted.
    ///
    /// # Errors
    /// The error of the first stage that failed.
    pub fn start(self) -> Result<Device, Error> {
        let armed = self.add()?.arm().map_err(clean_up)?;
        armed.start().map_err(clean_up)
    }
}

impl<B: Mapped> Builder<B> {
    /// A device in memory of this process: in user copy and get-data modes the driver copies directly to and from it.
    pub fn mapped(backend: B) -> Self {
        Self {
            arm: Server::arm_mapped,
            ..Self::new(backend)
        }
    }
}

impl Builder<File> {
    /// A device backed by a file. Requests are operations on the queues' rings, or system calls on the queues' threads
    /// ([`File::by_ring`]). In the zero-copy modes data moves between the client's pages and the file; such a mode is
    /// selected if the kernel supports it and the file benefits ([`File::favoured_data`]), unless [`Builder::mode`]
    /// selects another.
    pub fn file(file: File) -> Self {
        Self {
            favoured: file.favoured_data(),
            arm: File::arm,
            ..Self::new(file)
        }
    }
}

impl Builder<Composed> {
    /// A device over several files, one after the other or striped, served like [`Builder::file`]: a request inside one
    /// of them is forwarded to it, others are split, and no data is copied in the zero-copy modes.
    pub fn composed(composed: Composed) -> Self {
        Self {
            favoured: composed.favoured_data(),
            arm: Composed::arm,
            ..Self::new(composed)
        }
    }
}

impl Builder<Protected<Memory>> {
    /// A memory device with integrity metadata: data is copied once, by the driver.
    ///
    /// ```no_run
    /// use ublk::backends::{Memory, Protected};
    /// use ublk::core::{Checksum, Integrity};
    /// use ublk::Builder;
    ///
    /// let protected = Protected::memory(Memory::new(1 << 30, 4096)?, Integrity::new(Checksum::Crc16, 8))?;
    /// let device = Builder::protected(protected).start()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn protected(protected: Protected<Memory>) -> Self {
        Self {
            arm: Protected::arm,
            ..Self::new(protected)
        }
    }
}

impl Builder<ZonedDevice<Memory>> {
    /// A zoned memory device: data is copied once, by the driver.
    ///
    /// ```no_run
    /// use ublk::Builder;
    /// use ublk::backends::{Memory, ZoneLayout, ZonedDevice};
    ///
    /// let zones = ZoneLayout { size: 64 << 20, capacity: 64 << 20, conventional: 0, max_open: 0, max_active: 0 };
    /// let zoned = ZonedDevice::memory(Memory::new(1 << 30, 4096)?, zones)?;
    /// let device = Builder::zoned(zoned).start()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn zoned(zoned: ZonedDevice<Memory>) -> Self {
        Self {
            arm: ZonedDevice::arm,
            ..Self::new(zoned)
        }
    }
}
