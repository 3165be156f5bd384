//! The driver's side of a queue: the owner of each tag, and what it may do.

use ublk_core::{DataMode, Errno, IoDesc, IoFlags, Op, Tag, Zone};
use ublk_queue::port::{Completion, IoCommand};
use ublk_sys::{UBLK_U_IO_COMMIT_AND_FETCH_REQ, UBLK_U_IO_FETCH_REQ, UBLK_U_IO_NEED_GET_DATA};

use crate::client::{Client, Sent};
use crate::client_memory::ClientMemory;
use crate::config::Config;
use crate::rng::Rng;

/// The driver's access to the server's memory. Implemented in the port, since it is unsafe.
pub(crate) trait Memory {
    fn write(&self, addr: u64, data: &[u8]);
    fn read(&self, addr: u64, len: usize) -> Vec<u8>;
}

/// The ring of a command, and its `user_data`.
pub(crate) type Word = (usize, u64);

#[derive(Debug, Clone)]
enum TagPhase {
    NotFetched,
    /// The command waits in the driver.
    Idle {
        word: Word,
        addr: u64,
    },
    /// The server has a request; with user copy, the data it has pushed so far.
    Delivered {
        sent: Box<Sent>,
        addr: u64,
        pushed: Vec<u8>,
        /// Position of its data in the memory that the client shares.
        shared: Option<usize>,
    },
    /// A WRITE waits for its buffer (get-data).
    NeedsData {
        sent: Box<Sent>,
    },
    Aborted,
}

/// One queue of the simulated device.
pub(crate) struct Queue {
    places: Vec<TagPhase>,
    pub(crate) descs: Vec<IoDesc>,
    pub(crate) stopping: bool,
    hostile: bool,
    max_io_bytes: u32,
    data: DataMode,
    batch: bool,
    /// The multishot fetches that wait.
    pub(crate) batch_fetches: Vec<Word>,
    pub(crate) last_delivered: Option<u16>,
    /// The client's memory, the number of this queue's first tag in it, and the percentage of requests with data in it.
    client_memory: Option<(ClientMemory, usize)>,
    shared_percent: u8,
    unregistered_percent: u8,
    pub(crate) shared_hits: usize,
    /// The metadata of each tag's READ, if requests have metadata.
    metadata: Option<Vec<Vec<u8>>>,
}

/// The metadata of data.
fn digest(data: &[u8]) -> Vec<u8> {
    let of_block = |block: &[u8]| {
        let sum = block.iter().fold(1_u64, |sum, byte| {
            sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*byte)
        });
        sum.to_le_bytes()
    };
    data.chunks(512).flat_map(of_block).collect()
}

/// Whether a READ's data and metadata are of the same write; blocks that were never written have all ones.
fn belong(data: &[u8], metadata: &[u8]) -> bool {
    let blocks = data.chunks(512).zip(metadata.chunks(8));
    metadata.len() == data.len() / 64
        && blocks.into_iter().all(|(block, metadata)| {
            let unwritten = metadata == [0xff; 8] && block.iter().all(|byte| *byte == 0);
            unwritten || metadata == digest(block)
        })
}

impl Queue {
    pub(crate) fn new(config: &Config, number: u16, memory: Option<&ClientMemory>) -> Self {
        let first = usize::from(config.depth) * usize::from(number);
        let depth = usize::from(config.depth);
        Self {
            places: vec![TagPhase::NotFetched; depth],
            descs: vec![IoDesc::default(); depth],
            stopping: false,
            hostile: config.hostile,
            max_io_bytes: config.max_io_bytes,
            data: config.data,
            batch: config.batch,
            batch_fetches: Vec::new(),
            last_delivered: None,
            client_memory: memory.map(|memory| (memory.clone(), first)),
            shared_percent: config.shared_percent,
            unregistered_percent: config.unregistered_percent,
            shared_hits: 0,
            metadata: config.metadata.then(|| vec![Vec::new(); depth]),
        }
    }

    pub(crate) fn all_fetched(&self) -> bool {
        !self
            .places
            .iter()
            .any(|place| matches!(place, TagPhase::NotFetched))
    }

    pub(crate) fn in_hand(&self) -> usize {
        self.places
            .iter()
            .filter(|place| {
                matches!(
                    place,
                    TagPhase::Delivered { .. } | TagPhase::NeedsData { .. }
                )
            })
            .count()
    }

    /// Addresses that the driver may still write to.
    pub(crate) fn armed_addrs(&self) -> Vec<u64> {
        let addr = |place: &TagPhase| match place {
            // Only in modes with addresses.
            TagPhase::Idle { addr, .. } if *addr != 0 => Some(*addr),
            _ => None,
        };
        self.places.iter().filter_map(addr).collect()
    }

    /// Handles a command; returns its immediate completion, if any, or what is wrong with it.
    pub(crate) fn command(
        &mut self,
        command: &IoCommand,
        word: Word,
        client: &mut Client,
        memory: &impl Memory,
    ) -> Result<Option<Completion>, String> {
        let user_data = word.1;
        let refused = |errno: Errno| {
            Ok(Some(Completion {
                user_data,
                res: errno.to_result(),
                flags: 0,
            }))
        };
        let tag = command.tag;
        self.check_addr(command)?;
        let has_addr = matches!(self.data, DataMode::Copy | DataMode::GetData);
        let Some(place) = self.places.get_mut(tag.index()) else {
            return refused(Errno::EINVAL);
        };
        let idle = TagPhase::Idle {
            word,
            addr: if has_addr { command.addr } else { 0 },
        };
        match (command.cmd_op, &*place) {
            (UBLK_U_IO_FETCH_REQ, TagPhase::NotFetched) => {
                *place = idle;
                Ok(None)
            }
            (UBLK_U_IO_NEED_GET_DATA, TagPhase::NeedsData { sent }) => {
                memory.write(command.addr, &sent.data);
                let sent = sent.clone();
                *place = TagPhase::Delivered {
                    sent,
                    addr: command.addr,
                    pushed: Vec::new(),
                    shared: None,
                };
                Ok(Some(Completion {
                    user_data,
                    res: 0,
                    flags: 0,
                }))
            }
            (UBLK_U_IO_COMMIT_AND_FETCH_REQ, TagPhase::Delivered { .. }) => {
                self.commit(command, idle, client, memory).map(|()| None)
            }
            (
                UBLK_U_IO_FETCH_REQ | UBLK_U_IO_COMMIT_AND_FETCH_REQ | UBLK_U_IO_NEED_GET_DATA,
                place,
            ) => Err(format!(
                "L10: command {:#x} for tag {tag} which is {place:?}",
                command.cmd_op
            )),
            _ => refused(Errno::EOPNOTSUPP),
        }
    }

    /// Takes the answer to a request, with which its tag is fetched again.
    fn commit(
        &mut self,
        command: &IoCommand,
        idle: TagPhase,
        client: &mut Client,
        memory: &impl Memory,
    ) -> Result<(), String> {
        let tag = command.tag;
        let has_addr = matches!(self.data, DataMode::Copy | DataMode::GetData);
        let place = &mut self.places[tag.index()];
        let TagPhase::Delivered {
            sent,
            addr,
            pushed,
            shared,
        } = &*place
        else {
            return Ok(());
        };
        if self.data == DataMode::Copy && *addr != command.addr {
            return Err(format!(
                "tag {tag} commits with another buffer than it was given"
            ));
        }
        let landed = sent.op == Op::ZoneAppend && command.result >= 0;
        if !has_addr && !landed && command.addr != 0 {
            return Err(format!("tag {tag}: an address in a mode without addresses"));
        }
        let reads = sent.op.wants_data() && command.result > 0;
        let buffer = match self.data {
            _ if let (Some(place), Some((memory, _))) = (shared, &self.client_memory) => {
                memory.read(*place, if reads { sent.len } else { 0 })
            }
            DataMode::UserCopy | DataMode::ZeroCopy | DataMode::ZeroCopyManual => pushed.clone(),
            _ => memory.read(command.addr, if reads { sent.len } else { 0 }),
        };
        if let Some(metadata) = &self.metadata
            && sent.op == Op::Read
            && command.result > 0
            && !belong(&buffer, &metadata[tag.index()])
        {
            return Err(format!("tag {tag}: metadata of other data"));
        }
        let sent = sent.clone();
        // After an abort the fetch half never completes; its CQE only comes when the ring ends.
        *place = if self.stopping {
            TagPhase::Aborted
        } else {
            idle
        };
        if !self.hostile {
            client.completed(&sent, command.result, command.addr, &buffer)?;
        } else {
            client.completed += 1;
        }
        Ok(())
    }

    /// Puts the data of some requests into the memory that the client shares: where it is there.
    fn share(&mut self, tag: usize, sent: &Sent, rng: &mut Rng) -> Option<usize> {
        let (client_memory, first) = self.client_memory.as_ref()?;
        if !sent.op.has_data() || self.hostile || !rng.chance(self.shared_percent) {
            return None;
        }
        let at = client_memory.place(first + tag);
        // A server that does not fill the client's memory exposes this to the client.
        let garbage = vec![0xdb; sent.len];
        let is_write = sent.op.brings_data();
        client_memory.write(at, if is_write { &sent.data } else { &garbage });
        self.descs[tag].op_flags |= IoFlags::SHMEM_ZC;
        self.descs[tag].addr = client_memory.addr(at);
        self.shared_hits += 1;
        Some(at)
    }

    /// Delivers a request to a random idle tag. `None` if no tag is idle or there is no request.
    pub(crate) fn deliver(
        &mut self,
        rng: &mut Rng,
        client: &mut Client,
        memory: &impl Memory,
    ) -> Option<(usize, Completion)> {
        let is_idle = |n: &usize| matches!(self.places[*n], TagPhase::Idle { .. });
        let idles: Vec<usize> = (0..self.places.len()).filter(is_idle).collect();
        if idles.is_empty() || self.stopping {
            return None;
        }
        let sent = client.next(rng)?;
        let tag = idles[rng.below(idles.len())];
        self.last_delivered = u16::try_from(tag).ok();
        let TagPhase::Idle { word, addr } = self.places[tag] else {
            return None;
        };
        let (ring, user_data) = word;
        self.descs[tag] = if self.hostile {
            random_desc(rng, addr)
        } else {
            desc_of(&sent, addr)
        };
        if let Some(metadata) = &mut self.metadata
            && matches!(sent.op, Op::Read | Op::Write)
        {
            metadata[tag] = vec![0xdb; sent.len / 64];
            self.descs[tag].op_flags |= IoFlags::INTEGRITY;
        }
        let place = self.share(tag, &sent, rng);
        if self.data == DataMode::ZeroCopy
            && place.is_none()
            && sent.op.has_data()
            && rng.chance(self.unregistered_percent)
        {
            self.descs[tag].op_flags |= IoFlags::NEED_REG_BUF;
        }
        match sent.op {
            // A server that reads the tag's own buffer gets this.
            _ if place.is_some() && self.data == DataMode::Copy => {
                memory.write(addr, &vec![0xdb; sent.len]);
            }
            _ if place.is_some() => {}
            Op::Write if self.data == DataMode::GetData => {
                self.places[tag] = TagPhase::NeedsData {
                    sent: Box::new(sent),
                };
                let completion = Completion {
                    user_data,
                    res: 1,
                    flags: 0,
                };
                return Some((ring, completion));
            }
            _ if self.data != DataMode::Copy => {}
            Op::Write => memory.write(addr, &sent.data),
            // A server that does not fill the buffer exposes this to the reader (L05).
            Op::Read => memory.write(addr, &vec![0xdb; sent.len]),
            _ => {}
        }
        let wanted = if sent.op.wants_data() { sent.len } else { 0 };
        let pushed = vec![0xdb; wanted];
        self.places[tag] = TagPhase::Delivered {
            sent: Box::new(sent),
            addr,
            pushed,
            shared: place,
        };
        let completion = Completion {
            user_data,
            res: 0,
            flags: 0,
        };
        Some((ring, completion))
    }

    /// Checks the `addr` of a command against the driver's rules.
    fn check_addr(&self, command: &IoCommand) -> Result<(), String> {
        let tag = command.tag;
        let overlaps = |(n, place): (usize, &TagPhase)| match place {
            TagPhase::Idle { addr, .. } | TagPhase::Delivered { addr, .. } => {
                n != tag.index() && addr.abs_diff(command.addr) < u64::from(self.max_io_bytes)
            }
            _ => false,
        };
        match self.data {
            DataMode::Copy if command.addr == 0 => Err(format!("tag {tag}: no buffer")),
            DataMode::Copy if self.places.iter().enumerate().any(overlaps) => Err(format!(
                "L03: the buffer of tag {tag} overlaps another tag's"
            )),
            DataMode::UserCopy | DataMode::ZeroCopy | DataMode::ZeroCopyManual
                if command.addr != 0 && command.cmd_op != UBLK_U_IO_COMMIT_AND_FETCH_REQ =>
            {
                Err(format!("tag {tag}: an address in a mode without addresses"))
            }
            _ => Ok(()),
        }
    }

    /// Whether the server has to register the pages of this tag's request.
    pub(crate) fn is_unregistered(&self, tag: Tag) -> bool {
        let flags = self.descs.get(tag.index()).map_or(0, |desc| desc.op_flags);
        self.data == DataMode::ZeroCopyManual || flags & IoFlags::NEED_REG_BUF != 0
    }

    /// The data of a WRITE that the server has (user copy).
    pub(crate) fn pull(&self, tag: Tag, range: std::ops::Range<usize>) -> Result<&[u8], Errno> {
        match self.places.get(tag.index()) {
            Some(TagPhase::Delivered { sent, shared, .. })
                if sent.op.brings_data() && shared.is_none() =>
            {
                sent.data.get(range).ok_or(Errno::EINVAL)
            }
            Some(TagPhase::Delivered { .. }) => Err(Errno::EACCES),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Where the data of a READ that the server has goes (user copy).
    pub(crate) fn push(
        &mut self,
        tag: Tag,
        range: std::ops::Range<usize>,
    ) -> Result<&mut [u8], Errno> {
        match self.places.get_mut(tag.index()) {
            Some(TagPhase::Delivered {
                sent,
                pushed,
                shared: None,
                ..
            }) if sent.op.wants_data() => pushed.get_mut(range).ok_or(Errno::EINVAL),
            Some(TagPhase::Delivered { .. }) => Err(Errno::EACCES),
            _ => Err(Errno::EINVAL),
        }
    }

    /// The metadata of a WRITE that the server has.
    pub(crate) fn pull_metadata(&self, tag: Tag) -> Result<Vec<u8>, Errno> {
        match self.places.get(tag.index()) {
            Some(TagPhase::Delivered { sent, .. })
                if sent.op == Op::Write && self.metadata.is_some() =>
            {
                Ok(digest(&sent.data))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// Where the metadata of a READ that the server has goes.
    pub(crate) fn push_metadata(&mut self, tag: Tag) -> Result<&mut Vec<u8>, Errno> {
        match self.places.get(tag.index()) {
            Some(TagPhase::Delivered { sent, .. }) if sent.op == Op::Read => {
                let metadata = self.metadata.as_mut().ok_or(Errno::EINVAL)?;
                metadata.get_mut(tag.index()).ok_or(Errno::EINVAL)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    /// Aborts the idle commands.
    pub(crate) fn abort(&mut self) -> Vec<(usize, Completion)> {
        self.stopping = true;
        let mut completions = Vec::new();
        for place in &mut self.places {
            if let TagPhase::Idle {
                word: (ring, user_data),
                ..
            } = *place
            {
                if self.batch {
                    *place = TagPhase::Aborted;
                    continue;
                }
                let completion = Completion {
                    user_data,
                    res: Errno::ENODEV.to_result(),
                    flags: 0,
                };
                completions.push((ring, completion));
                *place = TagPhase::Aborted;
            }
        }
        completions
    }
}

fn desc_of(sent: &Sent, addr: u64) -> IoDesc {
    let sector = |bytes: usize| u64::try_from(bytes / 512).unwrap_or(u64::MAX);
    let start = if sent.op == Op::Flush {
        u64::MAX
    } else {
        sector(sent.offset)
    };
    let unit = match sent.op {
        Op::ReportZones => Zone::ENCODED,
        _ => 512,
    };
    let nr_sectors = u32::try_from(sent.len / unit).unwrap_or(u32::MAX);
    IoDesc::new(
        sent.op as u32 | if sent.fua { 1 << 13 } else { 0 },
        start,
        nr_sectors,
        addr,
    )
}

fn random_desc(rng: &mut Rng, addr: u64) -> IoDesc {
    let [a, b] = [rng.next_u64(), rng.next_u64()];
    // Small values are as likely as large ones, so that some pass the checks.
    let start = b >> (rng.below(64));
    let op_flags = u32::try_from(a >> 32).unwrap_or(0) >> rng.below(32);
    let nr_sectors = u32::try_from(a & 0xffff_ffff).unwrap_or(0) >> rng.below(32);
    IoDesc::new(op_flags, start, nr_sectors, addr)
}
