//! The simulated kernel as a [`Port`] of the engine.
#![expect(
    unsafe_code,
    reason = "a port guarantees its completions, and accesses the addresses in commands"
)]

use std::fmt;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ublk_core::{Errno, IoDesc, QueueId, Tag};
use ublk_queue::polling::Spin;
use ublk_queue::port::{
    Completion, Content, Descriptors, Full, IoCommand, PollPort, Port, UserCopyPort, Wake,
};
use ublk_queue::{BatchCommand, MemRef, SharedMemory};
use uring_lite::Sqe64;

use crate::config::Config;
use crate::driver::{Memory, Queue};
use crate::memory::ServerMemory;
use crate::model::{Lent, Model, Pushed, Report, SimRing};

struct SharedModel {
    model: Mutex<Model>,
    wake: Condvar,
}

impl SharedModel {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A simulated driver with its device and workload.
#[derive(Clone)]
pub struct Sim(Arc<SharedModel>);

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sim").field(&self.report()).finish()
    }
}

impl Sim {
    /// Creates a driver with this configuration.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let model = Model::new(config);
        Self(Arc::new(SharedModel {
            model: Mutex::new(model),
            wake: Condvar::new(),
        }))
    }

    /// A port for a worker; each worker has its own, and lane `n` is queue `n`. [`Sim::serve`] makes one itself.
    ///
    /// # Safety
    /// The simulated driver accesses memory at the addresses of commands and operations, like the real one. Whoever
    /// pushes them must keep the memory they name, of the configuration's request size, until their last completion. A
    /// [`Worker`](ublk_queue::Worker) does, if each of its lanes is a queue of this device, with its depth, buffer
    /// size, data mode and descriptors.
    #[must_use]
    pub unsafe fn port(&self) -> SimPort {
        let mut model = self.0.model();
        model.rings.push(SimRing::default());
        SimPort {
            ring: model.rings.len() - 1,
            spin: Spin::new(model.config.polling),
            taken: None,
            sim: self.clone(),
        }
    }

    /// The descriptors of a queue, for a worker on the last port made.
    #[must_use]
    pub fn descriptors(&self, lane: u16) -> SimDescriptors {
        SimDescriptors {
            ring: self.0.model().rings.len().saturating_sub(1),
            sim: self.clone(),
            lane,
        }
    }

    /// The character device, for user copy.
    #[must_use]
    pub fn device(&self) -> SimDevice {
        SimDevice(self.clone())
    }

    /// The memory that the client shares, as mapped by a server; `None` if there is none.
    ///
    /// # Errors
    /// The error of mapping it.
    pub fn shared_memory(&self) -> std::io::Result<Option<SharedMemory>> {
        let model = self.0.model();
        let memory = model.client_memory.as_ref();
        memory
            .map(|memory| SharedMemory::map(memory.file.as_fd(), memory.table()))
            .transpose()
    }

    /// The configuration.
    pub(crate) fn config(&self) -> Config {
        self.0.model().config.clone()
    }

    /// The report so far.
    #[must_use]
    pub fn report(&self) -> Report {
        let model = self.0.model();
        Report {
            completed: model.client.completed,
            failed: model.client.failed,
            unanswered: model.in_hand(),
            shared_hits: model.queues.iter().map(|queue| queue.shared_hits).sum(),
            syncs: model.client.disk.as_ref().map_or(0, |disk| disk.syncs),
            operations: model.client.disk.as_ref().map_or(0, |disk| disk.operations),
            ..model.report.clone()
        }
    }

    /// Writes to every buffer that the driver or an operation still has, and reads the elements of batch commands in
    /// flight: what a ring's asynchronous teardown may do after the server believes that it is closed (L09). Returns
    /// the number of buffers written. Missing elements are a violation.
    #[must_use]
    pub fn late_writes(&self) -> usize {
        let mut model = self.0.model();
        let len = usize::try_from(model.config.max_io_bytes).unwrap_or(0);
        let addrs = model.queues.iter().flat_map(Queue::armed_addrs);
        let mut places: Vec<(u64, usize)> = addrs.map(|addr| (addr, len)).collect();
        let lent: Vec<Lent> = model
            .rings
            .iter()
            .flat_map(|ring| ring.lent.values().cloned())
            .collect();
        for lent in lent {
            match lent.elements {
                None => places.push((lent.addr, lent.len)),
                Some(elements) if ServerMemory.read(lent.addr, lent.len) != elements => {
                    let text = "L09: the elements of a batch command are gone".to_owned();
                    model.report.violations.push(text);
                }
                Some(_) => {}
            }
        }
        for (addr, len) in &places {
            ServerMemory.write(*addr, &vec![0xee; *len]);
        }
        places.len()
    }
}

/// The engine's port to the simulated driver.
#[derive(Debug)]
pub struct SimPort {
    sim: Sim,
    ring: usize,
    spin: Option<Spin>,
    /// Number of wake-ups at the last wait that one kept from sleeping.
    taken: Option<u64>,
}

impl Drop for SimPort {
    fn drop(&mut self) {
        self.sim.0.model().close(self.ring);
    }
}

/// Wakes an engine that sleeps in the simulated driver.
#[derive(Debug, Clone)]
pub struct SimWake {
    sim: Sim,
    ring: usize,
}

impl Wake for SimWake {
    fn wake(&self) {
        let mut model = self.sim.0.model();
        model.rings[self.ring].woken = true;
        model.wakes += 1;
        drop(model);
        self.sim.0.wake.notify_all();
    }
}

/// The descriptors of one simulated queue.
#[derive(Debug)]
pub struct SimDescriptors {
    sim: Sim,
    ring: usize,
    lane: u16,
}

impl Drop for SimDescriptors {
    fn drop(&mut self) {
        let mut model = self.sim.0.model();
        if model.rings.get(self.ring).is_some_and(|ring| !ring.closed) {
            // Its buffers are freed at the same time.
            let text = "L22: a lane is dropped before its ring".to_owned();
            model.report.violations.push(text);
        }
    }
}

/// The simulated character device as the data path.
#[derive(Debug, Clone)]
pub struct SimDevice(Sim);

impl UserCopyPort for SimDevice {
    fn pull(&self, qid: QueueId, tag: Tag, from: Content, to: MemRef<'_>) -> Result<(), Errno> {
        if from == Content::Metadata {
            let mut metadata = vec![0; to.len()];
            self.pull_metadata(qid, tag, &mut metadata)?;
            ServerMemory.write(to.addr(), &metadata);
            return Ok(());
        }
        let model = self.0.0.model();
        let data = model.queues[usize::from(qid.get())].pull(tag, 0..to.len())?;
        ServerMemory.write(to.addr(), data);
        Ok(())
    }

    fn push(&self, qid: QueueId, tag: Tag, to: Content, from: MemRef<'_>) -> Result<(), Errno> {
        let bytes = ServerMemory.read(from.addr(), from.len());
        if to == Content::Metadata {
            return self.push_metadata(qid, tag, &bytes);
        }
        let mut model = self.0.0.model();
        let data = model.queues[usize::from(qid.get())].push(tag, 0..from.len())?;
        data.copy_from_slice(&bytes);
        Ok(())
    }

    fn pull_metadata(&self, qid: QueueId, tag: Tag, to: &mut [u8]) -> Result<(), Errno> {
        let model = self.0.0.model();
        let metadata = model.queues[usize::from(qid.get())].pull_metadata(tag)?;
        // As the driver, which transfers less than a longer buffer.
        let all = metadata.get(..to.len()).ok_or(Errno::EIO)?;
        to.copy_from_slice(all);
        Ok(())
    }

    fn push_metadata(&self, qid: QueueId, tag: Tag, from: &[u8]) -> Result<(), Errno> {
        let mut model = self.0.0.model();
        let metadata = model.queues[usize::from(qid.get())].push_metadata(tag)?;
        let all = metadata.get_mut(..from.len()).ok_or(Errno::EIO)?;
        all.copy_from_slice(from);
        Ok(())
    }
}

impl Descriptors for SimDescriptors {
    fn load(&self, tag: Tag) -> IoDesc {
        self.sim.0.model().queues[usize::from(self.lane)].descs[tag.index()]
    }
}

impl SharedModel {
    /// Sleeps until this many completions of a ring are visible, or a wake-up comes.
    fn wait<'a>(
        &'a self,
        mut model: MutexGuard<'a, Model>,
        ring: usize,
        want: usize,
        timeout: Option<Duration>,
    ) -> (MutexGuard<'a, Model>, Result<(), Errno>) {
        let begun = Instant::now();
        loop {
            model.progress();
            model.show(ring);
            if model.rings[ring].visible.len() >= want
                || std::mem::take(&mut model.rings[ring].woken)
                || timeout.is_some()
            {
                self.wake.notify_all();
                return (model, Ok(()));
            }
            model.pass(ring, true);
            let alone = model.rings.iter().filter(|ring| !ring.closed).count() == 1;
            if model.can_progress() && alone {
                continue;
            }
            let patience = model.config.patience;
            if !model.can_progress() && (model.in_hand() == 0 || patience.is_zero()) && alone {
                let hang = model.hang("sleeps although nothing will ever complete");
                return (model, hang);
            }
            if begun.elapsed() >= patience {
                let hang = model.hang("L55: sleeps while requests are in hand, and no wake comes");
                return (model, hang);
            }
            self.wake.notify_all();
            // Lets other threads run, which may produce something for this ring.
            let a_while = match alone {
                true => patience,
                false => Duration::from_micros(200),
            };
            let idle = |model: &mut Model| !model.rings[ring].woken;
            let waited = self.wake.wait_timeout_while(model, a_while, idle);
            model = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl SimPort {
    /// The descriptors of a queue, for the worker on this port.
    #[must_use]
    pub fn descriptors(&self, lane: u16) -> SimDescriptors {
        SimDescriptors {
            sim: self.sim.clone(),
            ring: self.ring,
            lane,
        }
    }

    /// Sleeps like the owner of a driven worker, until the ring's descriptor is readable or this time has passed.
    /// Unsubmitted entries stay unsubmitted.
    pub fn sleep_until_readable(&self, timeout: Option<Duration>) {
        let mut model = self.model();
        let left = model.rings[self.ring].pending.len();
        if left > 0 && timeout.is_none() {
            let text = format!("L61: sleeps with {left} commands that the kernel has not seen");
            model.report.violations.push(text);
        }
        if timeout.is_some() {
            model.pass(self.ring, false);
        }
        // A hang is in the report; a ring without completions keeps its descriptor unreadable.
        let (mut model, _) = self.sim.0.wait(model, self.ring, 1, timeout);
        model.rings[self.ring].woken = false;
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.sim.0.model()
    }

    fn push_any(&self, lane: u16, pushed: Pushed, user_data: u64) -> Result<(), Full> {
        let mut model = self.model();
        let percent = model.config.faults.full;
        if model.rings[self.ring].pending.len() >= ENTRIES || model.rng.chance(percent) {
            return Err(Full);
        }
        let pending = &mut model.rings[self.ring].pending;
        pending.push_back((lane, pushed, user_data));
        Ok(())
    }
}

/// Size of a submission queue.
const ENTRIES: usize = 4096;

// SAFETY: the model hands a tag over once from commit to commit, and completes operations after it has carried them
// out; each pushed entry goes to its queue, once.
unsafe impl Port for SimPort {
    type Wake = SimWake;

    type Command = (u16, IoCommand, u64);

    fn prepare(&self, lane: u16, command: &IoCommand, user_data: u64) -> Self::Command {
        (lane, *command, user_data)
    }

    fn push_operation(&mut self, operation: &Sqe64) -> Result<(), Full> {
        let user_data = operation.as_raw().user_data;
        self.push_any(0, Pushed::Operation(*operation), user_data)
    }

    fn space(&mut self) -> u32 {
        u32::try_from(ENTRIES).unwrap_or(u32::MAX) - self.pending()
    }

    fn pending(&mut self) -> u32 {
        u32::try_from(self.model().rings[self.ring].pending.len()).unwrap_or(u32::MAX)
    }

    fn push(&mut self, command: &Self::Command, result: i32, addr: u64) -> Result<(), Full> {
        let (lane, mut command, user_data) = *command;
        (command.result, command.addr) = (result, addr);
        self.push_any(lane, Pushed::Tag(command), user_data)
    }

    fn push_batch(
        &mut self,
        lane: u16,
        command: &BatchCommand,
        user_data: u64,
    ) -> Result<(), Full> {
        self.push_any(lane, Pushed::Batch(*command), user_data)
    }

    fn take_tags(&mut self, _lane: u16, completion: &Completion, tags: &mut Vec<u16>) {
        let mut model = self.model();
        let bid = usize::try_from(completion.flags >> 16).unwrap_or(usize::MAX);
        *tags = model
            .tag_buffers
            .get_mut(bid)
            .map(std::mem::take)
            .unwrap_or_default();
    }

    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        let ring = self.ring;
        let mut model = self.model();
        model.report.enters += 1;
        if let Some((_, errno)) = model
            .config
            .enter_fails
            .filter(|(n, _)| model.report.enters > *n)
        {
            return Err(Errno::new(errno));
        }
        let busy = model.config.faults.busy;
        if model.rng.chance(busy) {
            // The caller handles completions and retries.
            return Ok(());
        }
        model.pass(ring, false);
        if !model.submit(ring) || model.interrupted() {
            return Ok(());
        }
        let want = usize::try_from(want).unwrap_or(usize::MAX);
        self.sim.0.wait(model, ring, want, timeout).1
    }

    fn submit_and_wait(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        let Some(spin) = self.spin else {
            return self.enter(want, timeout);
        };
        let (woken, wakes) = {
            let model = self.model();
            (model.rings[self.ring].woken, model.wakes)
        };
        if woken && self.taken == Some(wakes) {
            let text =
                "L60: a wake-up that was already handled keeps the engine from sleeping".to_owned();
            self.model().report.violations.push(text);
            return Err(Errno::ETIMEDOUT);
        }
        self.taken = woken.then_some(wakes);
        self.spin = Some(spin.wait(self, want, timeout)?);
        Ok(())
    }

    fn next(&mut self) -> Option<Completion> {
        let mut model = self.model();
        let ring = &mut model.rings[self.ring];
        let completion = ring.visible.pop_front()?;
        ring.lent.remove(&completion.user_data);
        Some(completion)
    }

    fn wake_handle(&self) -> SimWake {
        SimWake {
            sim: self.sim.clone(),
            ring: self.ring,
        }
    }

    fn park(&mut self) -> Result<bool, Errno> {
        let mut model = self.model();
        let ring = &mut model.rings[self.ring];
        let woken = std::mem::take(&mut ring.woken);
        Ok(!woken && ring.pending.is_empty() && ring.visible.is_empty())
    }

    fn describe(&self) -> String {
        "simulated".to_owned()
    }
}

impl PollPort for SimPort {
    fn has_work(&mut self) -> bool {
        let mut model = self.model();
        let ring = self.ring;
        model.progress();
        model.show(ring);
        model.rings[ring].woken || !model.rings[ring].visible.is_empty()
    }

    fn take_notice(&mut self) {
        self.model().rings[self.ring].woken = false;
    }

    fn sleep(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        self.enter(want, timeout)
    }
}
