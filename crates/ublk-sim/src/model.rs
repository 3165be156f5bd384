//! How the simulated driver handles commands, and when.

use std::collections::{HashMap, HashSet, VecDeque};

use ublk_core::{Errno, QueueId, Tag};
use ublk_queue::BatchCommand;
use ublk_queue::port::{Completion, IoCommand};
use ublk_sys::batch::{Elem, ElemShape};
use uring_lite::Sqe64;

use crate::client::{BLOCK, Client, Zones};
use crate::client_memory::ClientMemory;
use crate::config::{Config, End};
use crate::disk::Disk;
use crate::driver::{Memory, Queue};
use crate::memory::ServerMemory;
use crate::rng::Rng;

/// The report of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of requests answered.
    pub completed: usize,
    /// Number of these that were answered with an errno.
    pub failed: usize,
    /// Number of requests delivered and not answered.
    pub unanswered: usize,
    /// Number of calls of enter.
    pub enters: usize,
    /// Number of commands that the driver took.
    pub commands: usize,
    /// Number of operations on the simulated file, including syncs.
    pub operations: usize,
    /// Number of syncs of the simulated file.
    pub syncs: usize,
    /// Number of requests whose data was in the client's memory.
    pub shared_hits: usize,
    /// Everything that the driver would refuse, hang on or lose data by; empty for a correct server.
    pub violations: Vec<String>,
}

/// A command or operation that was pushed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pushed {
    Tag(IoCommand),
    Batch(BatchCommand),
    Operation(Sqe64),
}

/// One thread's ring.
#[derive(Debug, Default)]
pub(crate) struct SimRing {
    /// Commands pushed but not submitted.
    pub(crate) pending: VecDeque<(u16, Pushed, u64)>,
    /// Completions posted but not visible.
    pub(crate) delayed: Vec<Completion>,
    /// Aborts that become visible at a later enter than the one that made them.
    pub(crate) late: Vec<Completion>,
    pub(crate) visible: VecDeque<Completion>,
    /// A wake-up that no sleep has taken.
    pub(crate) woken: bool,
    /// Memory that the kernel may access until the completion of this word is shown.
    pub(crate) lent: HashMap<u64, Lent>,
    pub(crate) closed: bool,
}

/// Memory of the server that an operation or a batch command uses.
#[derive(Debug, Clone)]
pub(crate) struct Lent {
    pub(crate) addr: u64,
    pub(crate) len: usize,
    /// The content that the kernel must find there; `None` if it writes.
    pub(crate) elements: Option<Vec<u8>>,
}

pub(crate) struct Model {
    pub(crate) config: Config,
    pub(crate) rng: Rng,
    pub(crate) client: Client,
    pub(crate) queues: Vec<Queue>,
    /// The memory that the client shares with the server.
    pub(crate) client_memory: Option<ClientMemory>,
    /// One for each port.
    pub(crate) rings: Vec<SimRing>,
    /// The ring whose commands are being taken.
    pub(crate) at: usize,
    /// Number of wake-ups so far.
    pub(crate) wakes: u64,
    /// Tags of the buffer ids in fetch completions.
    pub(crate) tag_buffers: Vec<Vec<u16>>,
    pub(crate) commits: usize,
    /// The tag whose commit is always refused.
    pub(crate) refused_tag: Option<u16>,
    pub(crate) aborted: bool,
    /// Slots of the buffer table that REGISTER filled, and whether the current chain has failed.
    pub(crate) registered: HashSet<u16>,
    pub(crate) chain_failed: bool,
    pub(crate) report: Report,
}

impl Model {
    pub(crate) fn new(config: Config) -> Self {
        let memory = (config.shared_percent > 0).then(|| {
            let tags = usize::from(config.depth) * usize::from(config.queues);
            let max = usize::try_from(config.max_io_bytes).unwrap_or(usize::MAX);
            ClientMemory::new(tags, max).expect("a file for the client's memory")
        });
        let queue = |n| Queue::new(&config, n, memory.as_ref());
        let mut client = Client::new(
            config.size,
            config.requests,
            config.read_percent,
            config.max_io_bytes,
        );
        let queues = (0..config.queues).map(queue).collect();
        client.zones = Zones::new(config.zone_size, config.size / BLOCK);
        client.disk = config.file.then(|| Disk::new(config.size));
        Self {
            rng: Rng::new(config.seed),
            client,
            queues,
            client_memory: memory,
            rings: Vec::new(),
            at: 0,
            wakes: 0,
            tag_buffers: vec![Vec::new(); 256],
            commits: 0,
            refused_tag: None,
            aborted: false,
            registered: HashSet::new(),
            chain_failed: false,
            report: Report::default(),
            config,
        }
    }

    pub(crate) fn in_hand(&self) -> usize {
        self.queues.iter().map(Queue::in_hand).sum()
    }

    /// Whether something will happen without the server's doing.
    pub(crate) fn can_progress(&self) -> bool {
        let started = self.queues.iter().all(Queue::all_fetched);
        let all_done = self.client.all_sent() && self.in_hand() == 0;
        let can_send = !self.client.all_sent() && self.in_hand() < self.places();
        let made = |ring: &SimRing| !ring.delayed.is_empty() || !ring.late.is_empty();
        self.rings.iter().any(made) || (started && !self.aborted && (all_done || can_send))
    }

    fn places(&self) -> usize {
        usize::from(self.config.depth) * self.queues.len()
    }

    pub(crate) fn hang(&mut self, what: &str) -> Result<(), Errno> {
        self.report.violations.push(what.to_owned());
        Err(Errno::ETIMEDOUT)
    }

    /// The ring whose commands are being taken.
    pub(crate) fn ring(&mut self) -> &mut SimRing {
        &mut self.rings[self.at]
    }

    /// Posts a completion for the current ring, to become visible at some time.
    pub(crate) fn complete(&mut self, completion: Completion) {
        self.ring().delayed.push(completion);
    }

    /// Takes commands of a ring; false if only some were taken.
    pub(crate) fn submit(&mut self, ring: usize) -> bool {
        self.at = ring;
        let all = self.ring().pending.len();
        let short = all > 1 && self.rng.chance(self.config.faults.short_submit);
        let take = if short { self.rng.below(all) } else { all };
        for _ in 0..take {
            if let Some((lane, command, user_data)) = self.ring().pending.pop_front() {
                match command {
                    // Cancelled silently, since the entry it was linked to had CQE_SKIP_SUCCESS.
                    Pushed::Tag(_) if std::mem::take(&mut self.chain_failed) => {}
                    Pushed::Tag(command) => self.command(lane, &command, user_data),
                    Pushed::Batch(command) => self.batch_command(lane, &command, user_data),
                    Pushed::Operation(sqe) => self.operation(&sqe),
                }
            }
        }
        !short
    }

    fn command(&mut self, lane: u16, command: &IoCommand, user_data: u64) {
        self.report.commands += 1;
        let is_fetch = command.cmd_op == ublk_sys::UBLK_U_IO_FETCH_REQ;
        let is_commit = command.cmd_op == ublk_sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ;
        let refusal = match (self.config.refuse_fetch, self.config.refuse_commit) {
            (Some((l, t, res)), _) if is_fetch && l == lane && t == command.tag.get() => Some(res),
            (_, Some((n, res))) if is_commit => {
                self.commits += 1;
                (self.commits == n).then_some(res)
            }
            _ => None,
        };
        let transient = self.rng.chance(self.config.faults.transient);
        let errnos = [Errno::ENOMEM, Errno::EAGAIN, Errno::ECANCELED, Errno::EINTR];
        let refusal = refusal.or_else(|| {
            let errno = errnos[self.rng.below(errnos.len())];
            transient.then(|| errno.to_result())
        });
        if let Some(res) = refusal {
            // Refusals are immediate: the completion is there when the enter returns.
            self.ring().visible.push_back(Completion {
                user_data,
                res,
                flags: 0,
            });
            return;
        }
        if is_commit {
            let index = lane * self.config.depth + command.tag.get();
            let left = left_registered(&self.registered, index);
            self.report.violations.extend(left);
        }
        let Some(queue) = self.queues.get_mut(usize::from(lane)) else {
            self.report.violations.push(format!("no lane {lane}"));
            return;
        };
        let word = (self.at, user_data);
        match queue.command(command, word, &mut self.client, &ServerMemory) {
            Ok(Some(completion)) => self.complete(completion),
            Ok(None) => {}
            Err(violation) => self.report.violations.push(violation),
        }
    }

    /// Takes a FETCH of a batch queue.
    fn batch_fetch(&mut self, lane: u16, user_data: u64) {
        let Some(queue) = self.queues.get_mut(usize::from(lane)) else {
            return;
        };
        if queue.stopping {
            let res = Errno::ENODEV.to_result();
            self.complete(Completion {
                user_data,
                res,
                flags: 0,
            });
            return;
        }
        if !queue.all_fetched() {
            // A device in recovery refuses it.
            let text = format!("lane {lane}: a fetch before all tags are prepared");
            self.report.violations.push(text);
        }
        if queue.batch_fetches.iter().any(|(ring, _)| *ring == self.at) {
            let text = format!("lane {lane}: a second fetch");
            self.report.violations.push(text);
        }
        queue.batch_fetches.push((self.at, user_data));
    }

    /// The elements of a batch command, as bytes and decoded.
    fn elements(&mut self, lane: u16, command: &BatchCommand) -> (Vec<u8>, Vec<Elem>) {
        let shape = ElemShape::from_flags(command.flags);
        let size = usize::from(command.elem_bytes);
        let bytes = ServerMemory.read(command.addr, usize::from(command.nr_elem) * size);
        let elems: Vec<_> = bytes
            .chunks(size)
            .filter_map(|elem| shape.decode(elem).ok())
            .collect();
        if elems.len() != usize::from(command.nr_elem) {
            self.report
                .violations
                .push(format!("lane {lane}: elements of a wrong shape"));
        }
        (bytes, elems)
    }

    fn batch_command(&mut self, lane: u16, command: &BatchCommand, user_data: u64) {
        self.report.commands += 1;
        if command.cmd_op == ublk_sys::UBLK_U_IO_FETCH_IO_CMDS {
            return self.batch_fetch(lane, user_data);
        }
        let prep = command.cmd_op == ublk_sys::UBLK_U_IO_PREP_IO_CMDS;
        let size = usize::from(command.elem_bytes);
        let (bytes, elems) = self.elements(lane, command);
        let Some(queue) = self.queues.get_mut(usize::from(lane)) else {
            return;
        };
        let mut taken = 0;
        let mut failed = None;
        for elem in elems {
            // The driver stops at the first element that fails; PREP takes all or nothing.
            if !prep {
                self.commits += 1;
            }
            let chance = if prep && taken > 0 {
                0
            } else {
                self.config.faults.transient
            };
            failed = match self.config.refuse_commit {
                Some((n, res))
                    if !prep
                        && (self.commits == n || self.refused_tag == Some(elem.header.tag)) =>
                {
                    self.refused_tag = Some(elem.header.tag);
                    Some(Errno::new(-res))
                }
                _ => self.rng.chance(chance).then_some(Errno::ENOMEM),
            };
            if failed.is_some() {
                break;
            }
            let Ok(tag) = Tag::new(elem.header.tag) else {
                continue;
            };
            let cmd_op = match prep {
                true => ublk_sys::UBLK_U_IO_FETCH_REQ,
                false => ublk_sys::UBLK_U_IO_COMMIT_AND_FETCH_REQ,
            };
            let qid = QueueId::new(command.qid).unwrap_or(QueueId::ZERO);
            let mut one = IoCommand::new(cmd_op, qid, tag);
            one.result = elem.header.result;
            // An element has one of the two, depending on its shape.
            one.addr = elem.buf_addr | elem.zone_lba;
            let index = lane * self.config.depth + tag.get();
            if !prep {
                let left = left_registered(&self.registered, index);
                self.report.violations.extend(left);
            }
            if let Err(violation) =
                queue.command(&one, (self.at, 0), &mut self.client, &ServerMemory)
            {
                self.report.violations.push(violation);
            }
            taken += 1;
        }
        let res = match failed {
            Some(errno) if taken == 0 => errno.to_result(),
            _ if prep => 0,
            _ => i32::try_from(taken * size).unwrap_or(i32::MAX),
        };
        let lent = Lent {
            addr: command.addr,
            len: bytes.len(),
            elements: Some(bytes),
        };
        self.ring().lent.insert(user_data, lent);
        self.complete(Completion {
            user_data,
            res,
            flags: 0,
        });
    }

    /// Batch mode: delivers several requests to a waiting fetch, and ends the fetch now and then.
    fn deliver_batch(&mut self, lane: usize) {
        let queue = &mut self.queues[lane];
        if queue.batch_fetches.is_empty() {
            return;
        }
        let n = self.rng.below(queue.batch_fetches.len());
        let (ring, user_data) = queue.batch_fetches[n];
        if self.rng.chance(5) {
            queue.batch_fetches.swap_remove(n);
            let res = Errno::ENOBUFS.to_result();
            self.rings[ring].delayed.push(Completion {
                user_data,
                res,
                flags: 0,
            });
            return;
        }
        let mut tags = Vec::new();
        for _ in 0..self.rng.below(8) {
            let delivered = queue.deliver(&mut self.rng, &mut self.client, &ServerMemory);
            tags.extend(delivered.and(queue.last_delivered));
        }
        let free = self.tag_buffers.iter().position(Vec::is_empty);
        let (Some(bid), false) = (free, tags.is_empty()) else {
            return;
        };
        let res = i32::try_from(tags.len() * 2).unwrap_or(0);
        self.tag_buffers[bid] = tags;
        // IORING_CQE_F_BUFFER and IORING_CQE_F_MORE.
        let flags = u32::try_from(bid).unwrap_or(0) << 16 | 3;
        self.rings[ring].delayed.push(Completion {
            user_data,
            res,
            flags,
        });
    }

    pub(crate) fn interrupted(&mut self) -> bool {
        self.rng.chance(self.config.faults.interrupt)
    }

    /// Delivers requests, or aborts when the time has come. Does nothing before every tag is fetched (L20).
    pub(crate) fn progress(&mut self) {
        if self.aborted || !self.queues.iter().all(Queue::all_fetched) {
            return;
        }
        let quiesce = matches!(self.config.end, End::Quiesce(n) if self.client.completed >= n);
        if quiesce || (self.client.all_sent() && self.in_hand() == 0) {
            return self.abort();
        }
        if self.config.batch {
            for lane in 0..self.queues.len() {
                self.deliver_batch(lane);
            }
            return;
        }
        for queue in &mut self.queues {
            for _ in 0..self.rng.below(8) {
                if let Some((ring, completion)) =
                    queue.deliver(&mut self.rng, &mut self.client, &ServerMemory)
                {
                    self.rings[ring].delayed.push(completion);
                }
            }
        }
    }

    /// Aborts the commands that wait in the driver, once.
    fn abort(&mut self) {
        self.aborted = true;
        let late = self.config.faults.late_aborts;
        for queue in &mut self.queues {
            for (ring, user_data) in queue.batch_fetches.drain(..) {
                let completion = Completion {
                    user_data,
                    res: Errno::ENODEV.to_result(),
                    flags: 0,
                };
                let ring = &mut self.rings[ring];
                // A fetch's completions come in order, its end last.
                ring.visible.extend(ring.delayed.drain(..));
                match self.rng.chance(late) {
                    true => ring.late.push(completion),
                    false => ring.visible.push_back(completion),
                }
            }
            for (ring, completion) in queue.abort() {
                let ring = &mut self.rings[ring];
                match self.rng.chance(late) {
                    true => ring.late.push(completion),
                    false => ring.delayed.push(completion),
                }
            }
        }
    }

    /// Time passes: late aborts may become visible from now on.
    pub(crate) fn pass(&mut self, ring: usize, all: bool) {
        for n in (0..self.rings[ring].late.len()).rev() {
            if all || self.rng.chance(60) {
                let completion = self.rings[ring].late.swap_remove(n);
                self.rings[ring].delayed.push(completion);
            }
        }
    }

    /// Makes some completions of a ring visible, in any order, and now and then a stale one.
    pub(crate) fn show(&mut self, ring: usize) {
        if self.rng.chance(self.config.faults.stale) {
            let word = match self.rng.below(3) {
                // Another generation, another lane, another tag; never one of the ring's own words.
                0 => 7 << 32 | self.rng.next_u64() & 0xf,
                1 => (self.rng.next_u64() & 0xff) << 16 | 0x100_0000,
                _ => 0xfff,
            };
            self.rings[ring].visible.push_back(Completion {
                user_data: word,
                res: 0,
                flags: 0,
            });
        }
        // Completions that the driver delivered before it aborted are visible at the next enter that looks: nothing new
        // comes in between. Otherwise any part of them may be late.
        let delayed = self.rings[ring].delayed.len();
        let now = match self.aborted {
            true => delayed,
            false => self.rng.below(delayed + 1),
        };
        for _ in 0..now {
            let n = self.rng.below(self.rings[ring].delayed.len());
            let completion = self.rings[ring].delayed.swap_remove(n);
            if let Some(disk) = &mut self.client.disk {
                disk.seen(completion.user_data);
            }
            self.rings[ring].visible.push_back(completion);
        }
    }

    /// The server closes a ring: no work may be left for it, and the memory it holds must still exist.
    pub(crate) fn close(&mut self, ring: usize) {
        self.rings[ring].closed = true;
        let late = self.rings[ring].late.len();
        if late > 0 {
            let text = format!("L62: a ring is closed with {late} aborts still to come");
            self.report.violations.push(text);
        }
    }
}

/// A request whose pages are still in the ring's table does not complete, and before 6.17 the server cannot even
/// unregister them any more.
fn left_registered(registered: &HashSet<u16>, index: u16) -> Option<String> {
    let left = registered.contains(&index);
    left.then(|| format!("slot {index} is registered when its request is answered"))
}
