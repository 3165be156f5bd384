//! The fio jobs.

use super::Kind;

/// fio's common arguments for counts.
const COUNTED: &str = "--ioengine=io_uring --direct=1 --thread --gtod_reduce=1 \
                       --norandommap --randrepeat=1 --size=200m --io_size=100g";
/// fio's common arguments for wall-clock rows, which need the latency of single requests.
const WALL: &str =
    "--ioengine=io_uring --direct=1 --thread --norandommap --randrepeat=1 --size=200m";

/// A fio job.
#[derive(Clone, Debug)]
pub struct Work {
    /// Its part of a row's name.
    pub name: String,
    /// fio's name for reading or writing.
    mode: &'static str,
    /// Block size.
    block: String,
    /// Requests of a job in flight.
    pub depth: u64,
    /// Maximum number of requests submitted and reaped at once.
    batch: u64,
    /// Number of jobs.
    pub jobs: u64,
    /// Pins each job to its own CPU.
    apart: bool,
    /// Difference in I/Os of each job between the two runs of a count.
    pub ios: u64,
    /// Duration of a wall-clock run in seconds.
    pub seconds: u64,
    /// Part of the reduced set.
    pub reduced: bool,
}

impl Work {
    fn new(mode: &'static str, block: &str, depth: u64, batch: u64) -> Self {
        Self {
            name: format!("{block}-{mode}-qd{depth}"),
            mode,
            block: block.to_owned(),
            depth,
            batch,
            jobs: 1,
            apart: false,
            ios: 10_000,
            seconds: 2,
            reduced: false,
        }
    }

    fn jobs(self, jobs: u64) -> Self {
        Self {
            name: format!("{}-{jobs}j", self.name),
            jobs,
            apart: true,
            ..self
        }
    }

    /// The same work of a client without a device, whose server listens there; it has no use for a maximum of requests
    /// that are submitted at once.
    pub fn floor(&self, at: &str) -> String {
        let Self {
            mode, block, depth, ..
        } = self;
        format!("{at} {mode} {block} {depth}")
    }

    /// The arguments of fio.
    pub fn fio(&self, kind: Kind) -> String {
        let base = match kind {
            Kind::Counted { .. } => COUNTED,
            Kind::Wall => WALL,
        };
        let Self {
            mode,
            block,
            depth,
            batch,
            jobs,
            ..
        } = self;
        let mut text = format!(
            "{base} --rw={mode} --bs={block} --iodepth={depth} --iodepth_batch_submit={batch} \
             --iodepth_batch_complete_min=1 --iodepth_batch_complete_max={batch}"
        );
        if self.apart {
            let last = jobs - 1;
            let cpus = if last == 0 {
                "0".to_owned()
            } else {
                format!("0-{last}")
            };
            text += &format!(" --numjobs={jobs} --cpus_allowed={cpus} --cpus_allowed_policy=split");
        }
        text
    }
}

/// The five standard jobs of every target whose instructions are counted.
pub fn protocol() -> Vec<Work> {
    vec![
        Work::new("randread", "4k", 1, 1),
        Work::new("randread", "4k", 64, 16),
        Work::new("randwrite", "4k", 64, 16),
        Work::new("read", "128k", 8, 8),
        Work::new("write", "128k", 8, 8),
    ]
}

/// Block sizes, in KiB, at which zero copy is compared with copies.
pub const SIZES: [u64; 8] = [4, 8, 16, 32, 64, 128, 256, 512];

/// Sequential reads and writes of all sizes.
pub fn sizes() -> Vec<Work> {
    let mut works = Vec::new();
    for size in SIZES {
        for mode in ["read", "write"] {
            let mut work = Work::new(mode, &format!("{size}k"), 8, 8);
            work.name = format!("size-{size}k-{mode}");
            work.ios = 2_000;
            works.push(work);
        }
    }
    works
}

/// Small random requests, for devices with metadata or zones; fio does not read from empty zones.
pub fn special(zoned: bool) -> Vec<Work> {
    let modes = ["randread", "randwrite"].into_iter();
    let modes = modes.filter(|mode| !zoned || *mode == "randwrite");
    modes.map(|mode| Work::new(mode, "4k", 64, 16)).collect()
}

/// Large random requests, which the block layer cannot merge.
pub fn large() -> Vec<Work> {
    ["randread", "randwrite"]
        .map(|mode| Work::new(mode, "128k", 8, 8))
        .to_vec()
}

/// The jobs of network block devices: a request costs their server, too, so fewer of the large ones are counted.
pub fn network() -> Vec<Work> {
    let mut works = Vec::new();
    for (block, depth, batch, ios) in [
        ("4k", 1, 1, 2_000),
        ("4k", 64, 16, 5_000),
        ("64k", 8, 8, 800),
        ("128k", 8, 8, 800),
        ("1m", 4, 4, 160),
    ] {
        let modes = match block {
            "4k" => ["randread", "randwrite"],
            _ => ["read", "write"],
        };
        for mode in modes {
            let mut work = Work::new(mode, block, depth, batch);
            work.ios = ios;
            works.push(work);
        }
    }
    works
}

/// One job, and two at once.
pub fn jobs() -> Vec<Work> {
    let work = || Work::new("randread", "4k", 64, 16);
    vec![work().jobs(1), work().jobs(2)]
}

/// As many jobs as the guest has processors.
pub fn scaling() -> Work {
    Work::new("randread", "4k", 64, 16).jobs(4)
}

/// As many jobs as the guest has processors, which one queue takes, too.
pub fn connections() -> Work {
    Work::new("randread", "4k", 16, 16).jobs(4)
}

/// Enough requests to keep every thread busy.
pub fn busy() -> Work {
    let mut work = Work::new("randread", "4k", 16, 16);
    work.name += "-1j";
    work.reduced = true;
    work
}

/// Every depth, two sizes, reads and writes, with this many jobs.
pub fn wall(jobs: u64) -> Vec<Work> {
    let mut works = Vec::new();
    for (block, read, write) in [("4k", "randread", "randwrite"), ("128k", "read", "write")] {
        for mode in [read, write] {
            for depth in [1, 16, 64, 128] {
                let mut work = Work::new(mode, block, depth, depth.min(16)).jobs(jobs);
                work.reduced = mode == read && [1, 64].contains(&depth);
                works.push(work);
            }
        }
    }
    works
}
