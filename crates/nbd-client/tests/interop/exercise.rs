//! Requests of all kinds in a random order against a model of the export.

use nbd_client::{BlockSizes, Command, CommandFlags, ErrorCode, Export, TransmissionFlags};

use crate::common::client::{Client, index};
use crate::common::program::Stop;

/// The longest request with data, in bytes.
const LONGEST: u64 = 64 << 10;

/// What the export must hold.
pub struct Model {
    bytes: Vec<u8>,
    /// Not what a TRIM left.
    known: Vec<bool>,
}

/// How many requests of each kind were answered well.
#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub reads: u32,
    pub writes: u32,
    pub trims: u32,
    pub zeroes: u32,
    pub flushes: u32,
    pub statuses: u32,
    pub caches: u32,
    pub refused: u32,
}

/// A generator of numbers that has the same ones each time.
pub struct Random(pub u64);

impl Random {
    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

impl Model {
    /// Begins with what the export holds.
    pub fn of(client: &mut Client, export: &Export) -> Self {
        let bytes = whole(client, export);
        let known = vec![true; bytes.len()];
        Self { bytes, known }
    }

    /// Begins with zeroes.
    pub fn zeroes(size: u64) -> Self {
        let size = usize::try_from(size).expect("small");
        Self {
            bytes: vec![0; size],
            known: vec![true; size],
        }
    }

    /// Compares the whole export.
    pub fn check(&self, found: &[u8]) -> Result<(), Stop> {
        self.compare(0, found)
    }

    fn compare(&self, at: usize, found: &[u8]) -> Result<(), Stop> {
        for (n, byte) in found.iter().enumerate() {
            let (is, known) = (self.bytes[at + n], self.known[at + n]);
            if known && is != *byte {
                let place = at + n;
                return Err(Stop::Fail(format!(
                    "byte {place} is {byte:#x} instead of {is:#x}"
                )));
            }
        }
        Ok(())
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.known[at..at + bytes.len()].fill(true);
    }
}

/// Reads the whole export in requests that it takes.
pub fn whole(client: &mut Client, export: &Export) -> Vec<u8> {
    let sizes = export.block_sizes.unwrap_or(BlockSizes::DEFAULT);
    let step =
        u64::from(sizes.maximum).min(LONGEST) / u64::from(sizes.minimum) * u64::from(sizes.minimum);
    let mut bytes = Vec::new();
    let mut at = 0;
    while at < export.size {
        let len = u32::try_from(step.min(export.size - at)).expect("short");
        bytes.extend(client.read(at, len));
        at += u64::from(len);
    }
    bytes
}

/// Sends `rounds` requests, each kind that the export has, and compares what it reads. With `fails` each of them may fail
/// with EIO, which leaves the export as it was.
pub fn exercise(
    client: &mut Client,
    export: &Export,
    model: &mut Model,
    (seed, rounds): (u64, u32),
    fails: bool,
) -> Result<Counts, Stop> {
    let mut random = Random(seed | 1);
    let mut counts = Counts::default();
    let sizes = export.block_sizes.unwrap_or(BlockSizes::DEFAULT);
    let least = u64::from(sizes.minimum);
    let longest = LONGEST.min(sizes.maximum.into()) / least * least;
    let has = |flag| export.flags.contains(flag);
    for _ in 0..rounds {
        let offset = random.below(export.size / least) * least;
        let most = longest.min(export.size - offset) / least;
        if most == 0 {
            continue;
        }
        let len = u32::try_from((random.below(most) + 1) * least).expect("short");
        let (at, size) = (usize::try_from(offset).expect("small"), index(len));
        let fua = match has(TransmissionFlags::SEND_FUA) && random.below(4) == 0 {
            true => CommandFlags::FUA,
            false => CommandFlags::default(),
        };
        let none = CommandFlags::default();
        let mut data = vec![0; size];
        let (command, flags, count) = match random.below(16) {
            0..6 => (Command::Read, none, &mut counts.reads),
            6..11 => {
                data.fill_with(|| random.below(256).to_le_bytes()[0]);
                (Command::Write, fua, &mut counts.writes)
            }
            11 if has(TransmissionFlags::SEND_TRIM) => (Command::Trim, none, &mut counts.trims),
            12 if has(TransmissionFlags::SEND_WRITE_ZEROES) => {
                let more = match random.below(3) {
                    0 => CommandFlags::NO_HOLE,
                    1 if has(TransmissionFlags::SEND_FAST_ZERO) => CommandFlags::FAST_ZERO,
                    _ => none,
                };
                (Command::WriteZeroes, fua | more, &mut counts.zeroes)
            }
            13 if has(TransmissionFlags::SEND_FLUSH) => (Command::Flush, none, &mut counts.flushes),
            14 if export.allocation.is_some() => (Command::BlockStatus, none, &mut counts.statuses),
            15 if has(TransmissionFlags::SEND_CACHE) => (Command::Cache, none, &mut counts.caches),
            _ => (Command::Read, none, &mut counts.reads),
        };
        if has(TransmissionFlags::READ_ONLY)
            && matches!(
                command,
                Command::Write | Command::Trim | Command::WriteZeroes
            )
        {
            continue;
        }
        let (offset, len) = match command {
            Command::Flush => (0, 0),
            _ => (offset, len),
        };
        let (result, extents) = client.ask(command, flags, offset, &mut data, len);
        match result {
            Ok(()) => *count += 1,
            Err(ErrorCode::EIO) if fails => {
                counts.refused += 1;
                continue;
            }
            // Its answer to FAST_ZERO where it would have to write.
            Err(ErrorCode::ENOTSUP) if flags == (flags | CommandFlags::FAST_ZERO) => {
                counts.refused += 1;
                continue;
            }
            Err(code) => return Err(Stop::Fail(format!("{command:?} {offset}+{len}: {code}"))),
        }
        match command {
            Command::Read => model.compare(at, &data)?,
            Command::Write | Command::WriteZeroes => model.set(at, &data),
            Command::Trim => model.known[at..at + size].fill(false),
            Command::BlockStatus => {
                let first = extents.first().map_or(0, |(len, _)| *len);
                if first == 0 {
                    return Err(Stop::Fail(format!("extents {extents:?}")));
                }
            }
            _ => {}
        }
    }
    Ok(counts)
}

/// A request beyond the end is refused, and the connection serves on.
pub fn beyond(client: &mut Client, export: &Export) -> Result<(), Stop> {
    let sizes = export.block_sizes.unwrap_or(BlockSizes::DEFAULT);
    let len = sizes.minimum.max(512);
    let none = CommandFlags::default();
    let mut data = vec![0; index(len)];
    let (result, _) = client.ask(Command::Read, none, export.size, &mut data, len);
    if result.is_ok() {
        return Err(Stop::Fail("a READ beyond the end succeeds".to_owned()));
    }
    client.read(0, len);
    Ok(())
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.reads += other.reads;
        self.writes += other.writes;
        self.trims += other.trims;
        self.zeroes += other.zeroes;
        self.flushes += other.flushes;
        self.statuses += other.statuses;
        self.caches += other.caches;
        self.refused += other.refused;
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all = [
            (self.reads, "READ"),
            (self.writes, "WRITE"),
            (self.trims, "TRIM"),
            (self.zeroes, "WRITE_ZEROES"),
            (self.flushes, "FLUSH"),
            (self.statuses, "BLOCK_STATUS"),
            (self.caches, "CACHE"),
            (self.refused, "refused FAST_ZERO"),
        ];
        let some: Vec<_> = all
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, name)| format!("{count} {name}"))
            .collect();
        f.write_str(&some.join(", "))
    }
}
