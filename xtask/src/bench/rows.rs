//! The work behind the figures: targets, and what fio does to them.

use std::fmt::Write;

/// Name of the row about the time from `add` to the first read.
pub const USABLE: &str = "add-to-usable";

/// I/Os between the two runs of a row: start-up is in both and drops out.
pub const IOS: u64 = 10_000;

/// What fio is always told.
const FIO: &str = "--ioengine=io_uring --direct=1 --thread --gtod_reduce=1 \
                   --norandommap --randrepeat=1 --size=200m --io_size=100g";

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Target and work.
    pub name: String,
    /// Command of the server, empty for the kernel's own devices.
    pub server: String,
    /// The device, empty when the server names it.
    pub device: String,
    /// Arguments of fio.
    pub fio: String,
}

/// Name, reading or writing mode, block size, depth, batch.
const WORKS: [(&str, &str, &str, u32, u32); 5] = [
    ("4k-randread-qd1", "randread", "4k", 1, 1),
    ("4k-randread-qd64", "randread", "4k", 64, 16),
    ("4k-randwrite-qd64", "randwrite", "4k", 64, 16),
    ("128k-read-qd8", "read", "128k", 8, 8),
    ("128k-write-qd8", "write", "128k", 8, 8),
];

/// All rows, servers first.
pub fn all() -> Vec<Row> {
    let add = |backend: &str, mode: &str| {
        format!("/usr/bin/ublkctl add {backend} -q 1 -d 128 --foreground {mode}")
    };
    let (null, mem) = ("null", "mem --size 256M");
    let targets = [
        ("null", add(null, "--data copy --batch off"), ""),
        ("mem", add(mem, "--data copy --batch off"), ""),
        ("null_batch", add(null, "--data copy --batch on"), ""),
        (
            "null_zero_copy",
            add(null, "--data zero-copy --batch off"),
            "",
        ),
        ("mem_batch", add(mem, "--data copy --batch on"), ""),
        ("mem_get_data", add(mem, "--data get-data --batch off"), ""),
        (
            "mem_user_copy",
            add(mem, "--data user-copy --batch off"),
            "",
        ),
        ("null_blk", String::new(), "/dev/nullb0"),
        ("brd", String::new(), "/dev/ram0"),
    ];
    let mut rows = Vec::new();
    for (target, server, device) in targets {
        for (work, mode, block, depth, batch) in WORKS {
            rows.push(Row {
                name: format!("{target}-{work}"),
                server: server.clone(),
                device: device.to_owned(),
                fio: format!(
                    "{FIO} --rw={mode} --bs={block} --iodepth={depth} \
                     --iodepth_batch_submit={batch} --iodepth_batch_complete_min=1 \
                     --iodepth_batch_complete_max={batch}"
                ),
            });
        }
    }
    rows
}

/// The file that tells the guest what to do.
pub fn plan(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        let _ = writeln!(text, "row {}", row.name);
        for (key, value) in [
            ("server", &row.server),
            ("device", &row.device),
            ("fio", &row.fio),
        ] {
            if !value.is_empty() {
                let _ = writeln!(text, "{key} {value}");
            }
        }
    }
    text
}

/// The same for the row about the time to the first read.
pub fn usable_plan(times: usize) -> String {
    format!("usable {USABLE}\nserver {}\n", usable_server()).repeat(times)
}

/// The command whose device is to be usable soon.
pub fn usable_server() -> &'static str {
    "/usr/bin/ublkctl add mem --size 1G -q 4 -d 128"
}

#[cfg(test)]
mod tests {
    use super::{all, plan};

    #[test]
    fn rows_have_names_of_their_own() {
        let rows = all();
        let mut names: Vec<_> = rows.iter().map(|row| &row.name).collect();
        names.sort();
        names.dedup();
        assert_eq!((names.len(), rows.len()), (45, 45));
        assert!(rows.iter().all(|row| !row.name.contains(' ')));
    }

    #[test]
    fn a_plan_has_what_a_row_has() {
        let text = plan(&all());
        assert!(text.contains("row null_blk-4k-randread-qd1\ndevice /dev/nullb0\nfio --ioengine"));
        assert!(text.contains("--rw=randread --bs=4k --iodepth=64 --iodepth_batch_submit=16"));
    }
}
