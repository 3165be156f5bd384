//! The simulated kernel as a [`Port`] of the engine.

use std::fmt;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ublk_core::{Errno, IoDesc, QueueId, Tag};
use ublk_queue::seam::{Completion, Descriptors, Full, IoCommand, Port, UserCopyPort, Wake};
use ublk_queue::{BatchCommand, MemRef, SharedMemory};
use uring_lite::Sqe64;

use crate::config::Config;
use crate::driver::{Memory, Queue};
use crate::memory::ServerMemory;
use crate::model::{Model, Pushed, Report};

struct Shared {
    model: Mutex<Model>,
    wake: Condvar,
}

impl Shared {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A simulated driver with its device and workload.
#[derive(Clone)]
pub struct Sim(Arc<Shared>);

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Sim").field(&self.report()).finish()
    }
}

impl Sim {
    /// A driver that will do what the configuration says.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let model = Model::new(config);
        Self(Arc::new(Shared {
            model: Mutex::new(model),
            wake: Condvar::new(),
        }))
    }

    /// The port for a worker; lane `n` is queue `n`.
    #[must_use]
    pub fn port(&self) -> SimPort {
        SimPort(self.clone())
    }

    /// The descriptors of a queue.
    #[must_use]
    pub fn descriptors(&self, lane: u16) -> SimDescriptors {
        SimDescriptors {
            sim: self.clone(),
            lane,
        }
    }

    /// The way of data by the character device, for user copy.
    #[must_use]
    pub fn device(&self) -> SimDevice {
        SimDevice(self.clone())
    }

    /// The memory that the client shares, as a server maps it; `None` without any.
    ///
    /// # Errors
    /// What mapping says.
    pub fn shared_memory(&self) -> std::io::Result<Option<SharedMemory>> {
        let model = self.0.model();
        let memory = model.client_memory.as_ref();
        memory
            .map(|memory| SharedMemory::map(memory.file.as_fd(), memory.table()))
            .transpose()
    }

    /// What has been seen so far.
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

    /// Writes to every buffer the driver still has: what a ring's asynchronous end may do after the
    /// server believes it is gone (L09). Gives the number of buffers written.
    #[must_use]
    pub fn late_writes(&self) -> usize {
        let model = self.0.model();
        let len = usize::try_from(model.config.max_io_bytes).unwrap_or(0);
        let addrs: Vec<u64> = model.queues.iter().flat_map(Queue::armed_addrs).collect();
        for addr in &addrs {
            ServerMemory.write(*addr, &vec![0xee; len]);
        }
        addrs.len()
    }
}

/// The engine's way to the simulated driver.
#[derive(Debug)]
pub struct SimPort(Sim);

/// Wakes an engine that sleeps in the simulated driver.
#[derive(Debug, Clone)]
pub struct SimWake(Sim);

impl Wake for SimWake {
    fn wake(&self) {
        self.0.0.model().woken = true;
        self.0.0.wake.notify_all();
    }
}

/// The descriptors of one simulated queue.
#[derive(Debug)]
pub struct SimDescriptors {
    sim: Sim,
    lane: u16,
}

/// The simulated character device as the way of data.
#[derive(Debug, Clone)]
pub struct SimDevice(Sim);

fn range(first: u32, len: usize) -> std::ops::Range<usize> {
    let first = usize::try_from(first).unwrap_or(usize::MAX - len);
    first..first + len
}

impl UserCopyPort for SimDevice {
    fn pull(&self, qid: QueueId, tag: Tag, from: u32, to: MemRef<'_>) -> Result<(), Errno> {
        let model = self.0.0.model();
        let data = model.queues[usize::from(qid.get())].pull(tag, range(from, to.len()))?;
        ServerMemory.write(to.addr(), data);
        Ok(())
    }

    fn push(&self, qid: QueueId, tag: Tag, to: u32, from: MemRef<'_>) -> Result<(), Errno> {
        let mut model = self.0.0.model();
        let data = model.queues[usize::from(qid.get())].push(tag, range(to, from.len()))?;
        data.copy_from_slice(&ServerMemory.read(from.addr(), from.len()));
        Ok(())
    }
}

impl Descriptors for SimDescriptors {
    fn load(&self, tag: Tag) -> IoDesc {
        self.sim.0.model().queues[usize::from(self.lane)].descs[tag.index()]
    }
}

impl Port for SimPort {
    type Wake = SimWake;

    type Command = (u16, IoCommand, u64);

    fn prepare(&self, lane: u16, command: &IoCommand, user_data: u64) -> Self::Command {
        (lane, *command, user_data)
    }

    fn push_operation(&mut self, operation: &Sqe64) -> Result<(), Full> {
        let mut model = self.0.0.model();
        let percent = model.config.faults.full;
        if model.rng.chance(percent) {
            return Err(Full);
        }
        let user_data = operation.as_raw().user_data;
        model
            .pending
            .push_back((0, Pushed::Operation(*operation), user_data));
        Ok(())
    }

    fn space(&mut self) -> u32 {
        u32::try_from(4096 - self.0.0.model().pending.len()).unwrap_or(0)
    }

    fn push(&mut self, command: &Self::Command, result: i32, addr: u64) -> Result<(), Full> {
        let (lane, command, user_data) = *command;
        let command = IoCommand {
            result,
            addr,
            ..command
        };
        let mut model = self.0.0.model();
        let (full, percent) = (model.pending.len() >= 4096, model.config.faults.full);
        if full || model.rng.chance(percent) {
            return Err(Full);
        }
        model
            .pending
            .push_back((lane, Pushed::Tag(command), user_data));
        Ok(())
    }

    fn push_batch(
        &mut self,
        lane: u16,
        command: &BatchCommand,
        user_data: u64,
    ) -> Result<(), Full> {
        let mut model = self.0.0.model();
        let percent = model.config.faults.full;
        if model.rng.chance(percent) {
            return Err(Full);
        }
        model
            .pending
            .push_back((lane, Pushed::Batch(*command), user_data));
        Ok(())
    }

    fn take_tags(&mut self, _lane: u16, completion: &Completion, tags: &mut Vec<u16>) {
        let mut model = self.0.0.model();
        let bid = usize::try_from(completion.flags >> 16).unwrap_or(usize::MAX);
        *tags = model
            .tag_buffers
            .get_mut(bid)
            .map(std::mem::take)
            .unwrap_or_default();
    }

    fn enter(&mut self, want: u32, timeout: Option<Duration>) -> Result<(), Errno> {
        let mut model = self.0.0.model();
        model.report.enters += 1;
        if let Some((_, errno)) = model
            .config
            .enter_fails
            .filter(|(n, _)| model.report.enters > *n)
        {
            return Err(Errno::new(errno));
        }
        if !model.submit() || model.interrupted() {
            return Ok(());
        }
        loop {
            model.progress();
            model.show();
            if model.visible.len() >= usize::try_from(want).unwrap_or(usize::MAX)
                || std::mem::take(&mut model.woken)
                || timeout.is_some()
            {
                return Ok(());
            }
            if model.can_progress() {
                continue;
            }
            if model.in_hand() == 0 || model.config.patience.is_zero() {
                return model.hang("sleeps although nothing will ever complete");
            }
            let patience = model.config.patience;
            let (guard, waited) = self
                .0
                .0
                .wake
                .wait_timeout_while(model, patience, |model| !model.woken)
                .unwrap_or_else(PoisonError::into_inner);
            model = guard;
            if waited.timed_out() {
                return model.hang("L55: sleeps while requests are in hand, and no wake comes");
            }
        }
    }

    fn next(&mut self) -> Option<Completion> {
        self.0.0.model().visible.pop_front()
    }

    fn wake_handle(&self) -> SimWake {
        SimWake(self.0.clone())
    }

    fn describe(&self) -> String {
        "simulated".to_owned()
    }
}
