//! The data plane behind the server role: a backend of ours served by `ublk-queue`.

use crate::server::{Engine, Running};
use crate::wire::{AddSpec, Assignment, BackendSpec, Failure, Health, QueueReport, Stats};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use ublk_backends::{Memory, Null};
use ublk_core::{Backend, Errno, Limits};
use ublk_queue::{Plan, Server, State};

/// A backend of this program, as its specification said.
#[derive(Debug)]
enum Opened {
    Null(Arc<Null>),
    Memory(Arc<ReadOnly<Memory>>),
}

/// The real data plane.
#[derive(Debug, Default)]
pub struct Real {
    opened: Option<(Opened, Limits)>,
}

/// A backend whose device may refuse writes: the driver sends none then.
#[derive(Debug)]
struct ReadOnly<B> {
    backend: B,
    yes: bool,
}

impl<B: Backend> Backend for ReadOnly<B> {
    fn limits(&self) -> Limits {
        let limits = self.backend.limits();
        let read_only = limits.read_only || self.yes;
        limits.read_only(read_only)
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        self.backend.read_at(buf, offset)
    }
    fn write_at(&self, buf: &[u8], offset: u64, fua: bool) -> Result<(), Errno> {
        self.backend.write_at(buf, offset, fua)
    }
    fn flush(&self) -> Result<(), Errno> {
        self.backend.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        self.backend.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), Errno> {
        self.backend.write_zeroes(offset, len, may_unmap)
    }
}

/// The limits of a backend, without opening it: for checks before anything is made.
///
/// # Errors
/// What the backend says of the size.
pub fn limits_of(spec: &AddSpec) -> Result<Limits, Failure> {
    open(spec).map(|(_, limits)| limits)
}

fn open(spec: &AddSpec) -> Result<(Opened, Limits), Failure> {
    let usage =
        |e: ublk_backends::Error| Failure::new(crate::wire::FailureKind::Usage, e.to_string());
    let (block, yes) = (spec.block_size, spec.read_only);
    let opened = match spec.backend {
        BackendSpec::Null { size } => {
            let null = Null::new(size, block).map_err(usage)?.read_only(yes);
            Opened::Null(Arc::new(null))
        }
        BackendSpec::Mem { size } => {
            let backend = Memory::new(size, block).map_err(usage)?;
            Opened::Memory(Arc::new(ReadOnly { backend, yes }))
        }
    };
    let limits = match &opened {
        Opened::Null(null) => null.limits(),
        Opened::Memory(memory) => memory.limits(),
    };
    Ok((opened, limits))
}

impl Engine for Real {
    fn open(&mut self, spec: &AddSpec) -> Result<Limits, Failure> {
        let (opened, limits) = open(spec)?;
        self.opened = Some((opened, limits));
        Ok(limits)
    }

    fn arm(&mut self, assignment: &Assignment) -> Result<Box<dyn Running>, Failure> {
        let (opened, limits) = self
            .opened
            .take()
            .ok_or_else(|| Failure::failed("assigned a device before the backend was open"))?;
        let geometry = &assignment.geometry;
        let within = Duration::from_millis(assignment.deadline_ms);
        let begun = Instant::now();
        let node = ublk_ctrl::nodes::open_char(geometry.dev_id(), within)?;
        let mut plan = Plan::new(limits.size).affinity(assignment.affinity.clone());
        plan.arm_deadline = within.saturating_sub(begun.elapsed());
        let server = match opened {
            Opened::Null(null) => Server::arm(node, geometry, plan, null),
            Opened::Memory(memory) => Server::arm(node, geometry, plan, memory),
        };
        let server = server.map_err(|e| Failure::failed(format!("cannot serve: {e}")))?;
        Ok(Box::new(server))
    }
}

impl Running for Server {
    fn ended_fd(&self) -> BorrowedFd<'_> {
        Self::ended_fd(self)
    }

    fn health(&self) -> Health {
        convert(&Self::health(self))
    }

    fn finish(&mut self, within: Duration) -> Result<Health, Failure> {
        let report = Self::finish(self, within).map_err(|e| Failure::failed(e.to_string()))?;
        let health = report.health;
        match (health.state, &health.first_error) {
            (State::Failed, Some(cause)) => Err(Failure::failed(cause.clone())),
            (State::Failed, None) => Err(Failure::failed("a queue failed")),
            _ => Ok(convert(&health)),
        }
    }
}

fn convert(health: &ublk_queue::Health) -> Health {
    let c = &health.counters;
    Health {
        state: health.state.name().to_owned(),
        first_error: health.first_error.clone(),
        own_mounts: false,
        stats: Stats {
            reads: c.reads,
            writes: c.writes,
            flushes: c.flushes,
            discards: c.discards,
            write_zeroes: c.write_zeroes,
            read_bytes: c.read_bytes,
            write_bytes: c.write_bytes,
            errors: c.errors,
            panics: c.panics,
            dropped: c.dropped,
            refused: c.refused,
            enters: c.enters,
        },
        queues: health
            .queues
            .iter()
            .map(|q| QueueReport {
                qid: q.qid.get(),
                state: q.state.name().to_owned(),
                in_hand: q.in_hand,
                pinned: q.pinned.as_ref().map(|mask| mask.iter().collect()),
                io_flusher: q.io_flusher,
                setup: q.ring.clone(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::FailureKind;

    fn spec(backend: BackendSpec, block_size: u32) -> AddSpec {
        AddSpec {
            backend,
            id: None,
            queues: 1,
            depth: 1,
            block_size,
            max_io_bytes: 4096,
            read_only: true,
        }
    }

    #[test]
    fn backends_are_what_was_asked_for() {
        for backend in [
            BackendSpec::Null { size: 1 << 30 },
            BackendSpec::Mem { size: 1 << 30 },
        ] {
            let limits = limits_of(&spec(backend, 4096)).unwrap();
            assert_eq!((limits.size, limits.logical_block_size), (1 << 30, 4096));
            assert!(limits.read_only);
        }
    }

    /// L13 Sizes that no device can have are usage errors.
    #[test]
    fn l13_bad_sizes_are_usage_errors() {
        for size in [0, 100, 513, u64::MAX] {
            let failure = limits_of(&spec(BackendSpec::Mem { size }, 512)).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Usage, "{size}");
        }
    }
}
