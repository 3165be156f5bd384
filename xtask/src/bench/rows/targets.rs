//! Target devices: ours in each mode, the kernel's own, libublk's, and those of the kernel's test server.

use super::super::label::Label;

/// A file on tmpfs, and the command that makes it.
const TMPFS: &str = "/mnt/tmpfs/file";
const ON_TMPFS: &str = "tmpfs /mnt/tmpfs/file 256";
/// A file on ext4 on a RAM disk, and the command that makes it.
const EXT4: &str = "/mnt/ext4/file";
const ON_EXT4: &str = "ext4 /dev/ram1 /mnt/ext4/file 256";

/// The argument of fio for a zoned device.
const ZONED_CLIENT: &str = " --zonemode=zbd";

/// Memory that clients share with a server, and the command that makes it.
const SHARED: &str = "/mnt/shared/memory";
const SHARED_MEMORY: &str = "tmpfs /mnt/shared/memory 8";

/// Prefix of an example's path in the image.
pub const EXAMPLE: &str = "/usr/bin/ublk-example-";
/// The program of libublk's rows in the image.
pub const LIBUBLK: &str = "/usr/bin/bench-libublk";
/// The kernel's own test server in the image.
pub const KUBLK: &str = "/usr/bin/kublk";

/// Prefix of our NBD devices' names.
pub const NBD: &str = "nbd_";
/// Prefix of the names of clients without a device.
pub const FLOOR: &str = "floor_";

/// NBD servers of memory: kind of socket, where it listens, URI.
const SERVERS: [[&str; 3]; 3] = [
    ["unix", "/run/nbd.sock", "nbd+unix:///?socket=/run/nbd.sock"],
    ["tcp", "10809", "nbd://127.0.0.1"],
    ["card", "card:10809", "nbd://10.98.0.2"],
];

/// Something with a block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Its part of a row's name.
    pub name: String,
    /// Command of the server; empty for the kernel's own devices.
    pub server: String,
    /// The device, if it exists without a server or the server does not print its path.
    pub device: String,
    /// Command that removes the device of a server that leaves it behind when terminated; such devices run without a
    /// scheduler, like ours.
    pub stop: String,
    /// Command that runs beside the server while its device works; its instructions count as the server's own.
    pub beside: String,
    /// An attribute of the device's queue, and its value.
    pub queue: String,
    /// How the kernel makes a loop device, and of which file.
    pub looped: String,
    /// Where the server of the kernel's NBD device listens.
    pub kernel_nbd: String,
    /// Where the server of a client without a device listens.
    pub floor: String,
    /// Additional arguments of fio.
    pub client: String,
    /// Preparations.
    pub prepare: Vec<String>,
    /// Its description.
    pub label: Label,
    /// Number of jobs of a wall-clock row.
    pub jobs: u64,
    /// Part of the reduced set.
    pub reduced: bool,
}

impl Target {
    /// One of our devices: backend with its arguments, data mode, batches, queues.
    fn ours(name: &str, backend: &str, data: &str, batch: &str, queues: u64) -> Self {
        let data_word = if data.is_empty() { "auto" } else { data };
        Self {
            name: name.to_owned(),
            server: format!(
                "/usr/bin/ublkctl add {backend} -q {queues} -d 128 --foreground \
                 --data {data_word} --batch {batch}"
            ),
            label: Label::ublk(queues, data, batch == "on"),
            jobs: queues,
            ..Self::default()
        }
    }

    /// An example of the facade that is a server, in copy mode.
    fn example(name: &str, example: &str) -> Self {
        Self {
            name: name.to_owned(),
            server: format!("{EXAMPLE}{example} -q 1 -d 128"),
            label: Label::ublk(1, "copy", false),
            jobs: 1,
            ..Self::default()
        }
    }

    /// A libublk device; `data` is the mode that the kernel must report.
    fn libublk(name: &str, words: &str, data: &str, queues: u64) -> Self {
        Self {
            name: name.to_owned(),
            server: format!("{LIBUBLK} {words} -q {queues} -d 128"),
            label: Label::ublk(queues, data, false),
            jobs: queues,
            ..Self::default()
        }
    }

    /// A device of the kernel's test server; `data` is the mode that the kernel must report.
    fn kublk(name: &str, words: &str, data: &str) -> Self {
        let target = words.split(' ').next().unwrap_or_default();
        let rest = words.strip_prefix(target).unwrap_or_default();
        Self {
            name: format!("kublk_{name}"),
            server: format!("{KUBLK} add -t {target} -n 0 -q 1 -d 128 --foreground{rest}"),
            device: "/dev/ublkb0".to_owned(),
            stop: format!("{KUBLK} del -n 0"),
            label: Label::ublk(1, data, words.contains("--batch")),
            jobs: 1,
            ..Self::default()
        }
    }

    fn device(name: &str, device: &str, label: Label) -> Self {
        Self {
            name: name.to_owned(),
            device: device.to_owned(),
            label,
            jobs: 1,
            ..Self::default()
        }
    }

    fn looped(name: &str, way: &str, file: &str) -> Self {
        Self {
            name: name.to_owned(),
            looped: format!("{way} {file}"),
            label: Label::looped(way == "direct"),
            jobs: 1,
            ..Self::default()
        }
    }

    /// What there is instead of a server of ours.
    pub fn without_server(&self) -> String {
        match (self.looped.as_str(), self.floor.as_str()) {
            ("", "") => format!("nbd driver, {}", self.kernel_nbd),
            ("", floor) => format!("client without a device, {floor}"),
            (looped, _) => format!("loop device, {looped}"),
        }
    }

    fn on(mut self, prepare: &str) -> Self {
        self.prepare.push(prepare.to_owned());
        self
    }

    /// Keeps the I/O scheduler that the kernel chose, like other servers' devices.
    fn scheduled(mut self) -> Self {
        self.server += " --scheduler kernel";
        self
    }

    /// Makes its queues poll before they sleep.
    fn polling(mut self, how: &str) -> Self {
        self.server += &format!(" --poll {how}");
        self
    }

    /// Makes it measure this much.
    fn measuring(mut self, level: &str) -> Self {
        self.name += &format!("_{level}");
        self.server += &format!(" --metrics {level}");
        self
    }

    /// Records what it is asked, into a file in memory.
    fn recorded(mut self) -> Self {
        self.name += "_recorded";
        self.beside = "/usr/bin/ublkctl record 0 /tmp/trace".to_owned();
        self
    }

    /// Whether its device has zones.
    pub fn is_zoned(&self) -> bool {
        self.client == ZONED_CLIENT
    }

    /// Puts its clients' buffers into memory that it shares, an existing file.
    fn sharing(mut self, path: &str) -> Self {
        self.server += &format!(" --shm {path}");
        self.client = format!(" --mem=mmapshared:{path}");
        self.label.shm = true;
        self
    }

    fn reduced(self) -> Self {
        Self {
            reduced: true,
            ..self
        }
    }
}

/// Our file device on tmpfs; an empty mode is the server's choice.
fn file_tmpfs(name: &str, data: &str) -> Target {
    Target::ours(name, &format!("file {TMPFS}"), data, "off", 1).on(ON_TMPFS)
}

/// Our file device on ext4.
fn file_ext4(name: &str, data: &str) -> Target {
    Target::ours(name, &format!("file {EXT4}"), data, "off", 1).on(ON_EXT4)
}

/// Targets of the five standard jobs.
pub fn counted() -> Vec<Target> {
    let ours = |name: &str, backend: &str, data: &str, batch: &str| {
        Target::ours(name, backend, data, batch, 1)
    };
    let (null, mem) = ("null", "mem --size 256M");
    vec![
        ours("null", null, "copy", "off"),
        ours("null", null, "copy", "off").measuring("counters"),
        ours("null", null, "copy", "off").measuring("latencies"),
        ours("null", null, "copy", "off").recorded(),
        ours("null_scheduled", null, "copy", "off").scheduled(),
        ours("mem", mem, "copy", "off"),
        ours("null_batch", null, "copy", "on"),
        ours("null_zero_copy", null, "zero-copy", "off"),
        ours("null_batch_zero_copy", null, "zero-copy", "on"),
        ours("mem_batch", mem, "copy", "on"),
        ours("mem_get_data", mem, "get-data", "off"),
        ours("mem_user_copy", mem, "user-copy", "off"),
        mem_shm(),
        Target::example("null_async", "bench_async_null"),
        file_tmpfs("file_tmpfs", ""),
        file_tmpfs("file_tmpfs_copy", "copy"),
        file_tmpfs("file_tmpfs_user_copy", "user-copy"),
        file_ext4("file_ext4", ""),
        file_ext4("file_ext4", "").measuring("latencies"),
        file_ext4("file_ext4_copy", "copy"),
        file_ext4("file_ext4_zero_copy", "zero-copy"),
        ours(
            "file_ext4_batch_zero_copy",
            &format!("file {EXT4}"),
            "zero-copy",
            "on",
        )
        .on(ON_EXT4),
        file_ext4("file_ext4_zero_copy_shm", "zero-copy")
            .on(SHARED_MEMORY)
            .sharing(SHARED),
        file_ext4("file_ext4_zero_copy_scheduled", "zero-copy").scheduled(),
        Target::libublk("libublk_null", "null", "copy", 1),
        Target::libublk("libublk_null_zero_copy", "null --zero-copy", "zero-copy", 1),
        Target::libublk("libublk_null_async", "null --async", "copy", 1),
        Target::libublk("libublk_mem", "mem --size 256", "copy", 1),
        Target::kublk("null", "null", "copy"),
        Target::kublk("null_zero_copy", "null --auto_zc", "zero-copy"),
        Target::kublk("null_batch", "null --batch", "copy"),
        Target::kublk(
            "null_batch_zero_copy",
            "null --batch --auto_zc",
            "zero-copy",
        ),
        Target::kublk("loop_tmpfs", &format!("loop {TMPFS}"), "copy").on(ON_TMPFS),
        Target::kublk("loop_ext4", &format!("loop {EXT4}"), "copy").on(ON_EXT4),
        Target::kublk(
            "loop_ext4_zero_copy",
            &format!("loop --auto_zc {EXT4}"),
            "zero-copy",
        )
        .on(ON_EXT4),
        Target::kublk(
            "loop_ext4_batch_zero_copy",
            &format!("loop --batch --auto_zc {EXT4}"),
            "zero-copy",
        )
        .on(ON_EXT4),
        // By default it has another queue for polled requests; without it the driver completes in another, more
        // expensive way.
        Target::device("null_blk", "/dev/nullb0", Label::mq(2, 64)),
        Target::device("brd", "/dev/ram0", Label::bios()),
        Target::looped("loop_tmpfs", "buffered", TMPFS).on(ON_TMPFS),
        Target::looped("loop_ext4", "direct", EXT4).on(ON_EXT4),
    ]
}

/// Devices with integrity metadata and with zones, which are compared with memory in the same data mode.
pub fn special() -> Vec<Target> {
    let mem = |name: &str, more: &str| {
        let backend = format!("mem --size 256M --block-size 4096 {more}");
        Target::ours(name, &backend, "user-copy", "off", 1)
    };
    let mut zoned = mem("mem_zoned", "--zone-size 4M");
    zoned.client = ZONED_CLIENT.to_owned();
    // Writes to one zone are in sequence, and would be merged.
    zoned.queue = "nomerges 2".to_owned();
    vec![
        mem("mem_4k_blocks", ""),
        mem("mem_integrity", "--integrity crc16:8"),
        zoned,
    ]
}

/// A memory device whose clients share their buffers with it.
fn mem_shm() -> Target {
    Target::ours("mem_shm", "mem --size 256M", "copy", "off", 1)
        .on(SHARED_MEMORY)
        .sharing(SHARED)
}

/// Network block devices: ours, without and with batches, and the kernel's, all without a scheduler; clients without
/// a device.
pub fn network() -> Vec<Target> {
    let mut all = Vec::new();
    for [socket, at, uri] in SERVERS {
        let prepare = &format!("nbdkit {at} 256");
        for (kind, data, batch) in [
            ("", "copy", "off"),
            ("_batch", "copy", "on"),
            ("_zero_copy", "zero-copy", "off"),
        ] {
            let name = format!("{NBD}{socket}{kind}");
            let backend = format!("nbd {uri}");
            all.push(Target::ours(&name, &backend, data, batch, 1).on(prepare));
        }
        let kernel = Target {
            name: format!("kernel_nbd_{socket}"),
            kernel_nbd: at.to_owned(),
            label: Label::mq(1, 128),
            jobs: 1,
            ..Target::default()
        };
        all.push(kernel.on(prepare));
    }
    let floors = SERVERS.map(|[socket, at, _]| {
        let floor = Target {
            name: format!("{FLOOR}{socket}"),
            floor: at.to_owned(),
            jobs: 1,
            ..Target::default()
        };
        floor.on(&format!("nbdkit {at} 256"))
    });
    all.extend(floors);
    all
}

/// Data modes of a memory device for large requests that are not merged.
pub fn large() -> Vec<Target> {
    let mem = |name: &str, data: &str| Target::ours(name, "mem --size 256M", data, "off", 1);
    vec![
        mem("mem", "copy"),
        mem("mem_user_copy", "user-copy"),
        mem_shm(),
    ]
}

/// Targets that are compared at every size.
pub fn sized() -> Vec<Target> {
    vec![
        file_ext4("file_ext4_copy", "copy"),
        file_ext4("file_ext4_zero_copy", "zero-copy"),
        Target::looped("loop_ext4", "direct", EXT4).on(ON_EXT4),
    ]
}

/// One queue, and two, in a guest with two CPUs.
pub fn queues() -> Vec<Target> {
    let null = |queues| {
        let name = format!("smp_null_{queues}q");
        Target::ours(&name, "null", "copy", "off", queues)
    };
    vec![null(1), null(2)]
}

/// Targets of wall-clock rows, with one queue and with several.
pub fn wall() -> Vec<Target> {
    let mut all = Vec::new();
    for queues in [1, 4] {
        let ours = |name: &str, backend: &str, data: &str, batch: &str| {
            Target::ours(&format!("{name}_{queues}q"), backend, data, batch, queues)
        };
        let (null, mem) = ("null", "mem --size 256M");
        all.extend([
            ours("null", null, "copy", "off").reduced(),
            ours("null_poll_fixed", null, "copy", "off")
                .polling("fixed")
                .reduced(),
            ours("null_poll_adaptive", null, "copy", "off")
                .polling("adaptive")
                .reduced(),
            ours("null_zero_copy", null, "zero-copy", "off"),
            ours("null_batch", null, "copy", "on"),
            ours("mem", mem, "copy", "off").reduced(),
            Target::libublk(&format!("libublk_null_{queues}q"), "null", "copy", queues),
        ]);
        let name = format!("nullb{queues}q");
        let device = Target::device(
            &format!("null_blk_{queues}q"),
            &format!("/dev/{name}"),
            // Another one for polled requests, as above.
            Label::mq(queues + 1, 128),
        );
        all.push(Target {
            jobs: queues,
            ..device.on(&format!("null_blk {name} {queues}")).reduced()
        });
    }
    all.extend([
        Target::device("brd", "/dev/ram0", Label::bios()),
        Target::looped("loop_tmpfs", "buffered", TMPFS)
            .on(ON_TMPFS)
            .reduced(),
        Target::looped("loop_ext4", "direct", EXT4)
            .on(ON_EXT4)
            .reduced(),
    ]);
    all
}

/// Two queues for four jobs, which four processors can run at once.
pub fn scaling() -> Target {
    Target::ours("null_2q", "null", "copy", "off", 2)
}

/// An NBD server by one connection and by four, each with its queue.
pub fn connections() -> [Target; 2] {
    let [[socket, at, uri], ..] = SERVERS;
    [1, 4].map(|queues| {
        let name = format!("{NBD}{socket}_{queues}c");
        let target = Target::ours(&name, &format!("nbd {uri}"), "copy", "off", queues);
        target.on(&format!("nbdkit {at} 256"))
    })
}

/// A backend with CPU work, on a queue with one thread and with two.
pub fn busy() -> [Target; 2] {
    [1, 2].map(|threads| {
        let mut target = Target::example(&format!("busy_{threads}t"), "bench_busy").reduced();
        target.server += &format!(" -t {threads}");
        target
    })
}
