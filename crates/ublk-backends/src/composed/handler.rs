//! Serves a composed device with operations on the queues' rings.

#![forbid(unsafe_code)]

use std::os::fd::AsFd;
use std::sync::Arc;

use ublk_core::iod::Io;
use ublk_core::{Backend, DataMode, Mode, Op, OpenDevice};
use ublk_queue::{Error, Forward, Handler, Part, Plan, Pool, Pooled, Request, Server};

use super::Composed;
use super::map::Piece;

/// Lets the engine read and write the members on the queue's ring. A request inside one member is forwarded like one of
/// a file device; others are split by the engine. Discard and write-zeroes are calls on a thread of the pool.
#[derive(Debug)]
pub struct ComposedHandler {
    composed: Arc<Composed>,
    rare: Pooled,
    /// Its threads end with the last handler.
    _pool: Arc<Pool>,
}

impl ComposedHandler {
    /// A piece as a part of the engine's. Member and position are inside, as the engine has checked.
    #[inline]
    fn part_of(&self, piece: Piece) -> Part {
        Part {
            file: u16::try_from(piece.member).unwrap_or(u16::MAX),
            offset: self.composed.members[piece.member].base() + piece.at,
            len: piece.len,
        }
    }
}

impl Handler for ComposedHandler {
    const FORWARDS: bool = true;
    const SPLITS: bool = true;

    #[inline]
    fn handle(&mut self, request: Request<'_>) {
        match request.op() {
            Op::Read | Op::Write => {
                let durable = request.flags().fua() && request.op() == Op::Write;
                if durable {
                    self.composed.count_sync();
                }
                let piece = self.composed.map.first(request.offset(), request.len());
                if piece.len != request.len() {
                    return request.forward(Forward::Parts { durable });
                }
                let Part { file, offset, .. } = self.part_of(piece);
                request.forward(Forward::Data {
                    file,
                    offset,
                    durable,
                });
            }
            Op::Flush => {
                self.composed.count_sync();
                request.forward(Forward::SyncAll);
            }
            _ => self.rare.handle(request),
        }
    }

    fn part(&mut self, io: &Io, done: u64) -> Part {
        self.part_of(self.composed.map.first(io.offset + done, io.len - done))
    }
}

impl Composed {
    /// Whether requests use the queue's ring in this mode; otherwise the queue's own thread makes calls, as for a file in
    /// memory ([`File::by_ring`](crate::File::by_ring)).
    #[must_use]
    pub fn by_ring(&self, data: DataMode) -> bool {
        self.members.iter().any(|member| member.by_ring(data))
    }

    /// Serves a device with the members, in the way that suits them and the device's mode: with operations on the
    /// queues' rings, or with calls on the queues' own threads. Sets [`Plan::files`].
    ///
    /// # Errors
    /// As for [`Server::arm`].
    pub fn arm(device: OpenDevice, mut plan: Plan, composed: Arc<Self>) -> Result<Server, Error> {
        let geometry = *device.geometry();
        if !composed.by_ring(Mode::of(geometry.features()).data) {
            return Server::arm(device, plan, composed);
        }
        let descriptors = composed.members.iter().map(|member| {
            let descriptor = member.as_fd().try_clone_to_owned();
            descriptor.map(Arc::new).map_err(Error::Thread)
        });
        plan.files = descriptors.collect::<Result<_, _>>()?;
        let tags = usize::from(geometry.depth()) * usize::from(geometry.queues());
        let limits = composed.limits();
        let rare = limits.max_discard != 0 || limits.max_write_zeroes != 0;
        let pool = Pool::start(&composed, usize::from(rare), tags).map_err(Error::Thread)?;
        let pool = Arc::new(pool);
        Server::arm_with(device, plan, move |_| ComposedHandler {
            composed: Arc::clone(&composed),
            rare: pool.handler(),
            _pool: Arc::clone(&pool),
        })
    }
}
