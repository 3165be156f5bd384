//! Invalid input yields a reason and an exit code, and leaves nothing behind.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::case::Case;
use crate::cli::{self, Spec, code, fails};
use crate::wait::secs;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("bad_input_is_refused", refused),
        Case::new("l33_second_server_on_the_same_id", second_server),
        Case::new(
            "l13_memory_device_beyond_the_address_space",
            too_much_memory,
        ),
    ]
}

/// Arguments, exit code, and parts of the message.
type Row = (&'static [&'static str], i32, &'static [&'static str]);

const TABLE: &[Row] = &[
    (
        &["add", "mem", "--size", "1000"],
        code::USAGE,
        &["1000", "512"],
    ),
    (
        &["add", "mem", "--size", "6K", "--block-size", "4096"],
        code::USAGE,
        &["6144", "4096"],
    ),
    (&["add", "mem", "--size", "0"], code::USAGE, &["size"]),
    (&["add", "null", "--size", "0"], code::USAGE, &["size"]),
    (&["add", "null", "--size", "8E"], code::USAGE, &["8 eib"]),
    (&["add", "null", "--size", "16E"], code::USAGE, &["64 bits"]),
    (
        &["add", "null", "--size", "9223372036854775808"],
        code::USAGE,
        &["8 eib"],
    ),
    (&["add", "mem", "--size", "ten"], code::USAGE, &["ten"]),
    (&["add", "mem"], code::USAGE, &["--size"]),
    (&["add", "tape", "--size", "1G"], code::USAGE, &["tape"]),
    (
        &["add", "mem", "--size", "1G", "--depth", "0"],
        code::USAGE,
        &["depth", "0"],
    ),
    (
        &["add", "mem", "--size", "1G", "--depth", "4097"],
        code::USAGE,
        &["depth", "4097"],
    ),
    (
        &["add", "mem", "--size", "1G", "--queues", "0"],
        code::USAGE,
        &["queues", "0"],
    ),
    (
        &["add", "mem", "--size", "1G", "--queues", "4097"],
        code::USAGE,
        &["queues", "4097"],
    ),
    (
        &["add", "mem", "--size", "1G", "--block-size", "1000"],
        code::USAGE,
        &["1000", "512"],
    ),
    (
        &["add", "mem", "--size", "1G", "--block-size", "8192"],
        code::USAGE,
        &["8192", "4096"],
    ),
    (
        &["add", "mem", "--size", "1G", "--max-io", "0"],
        code::USAGE,
        &["0"],
    ),
    (
        &["add", "mem", "--size", "1G", "--max-io", "5000"],
        code::USAGE,
        &["5000"],
    ),
    (
        &["add", "mem", "--size", "1G", "--max-io", "64M"],
        code::USAGE,
        &["32"],
    ),
    (
        &["add", "mem", "--size", "1G", "--id", "1048576"],
        code::USAGE,
        &["1048576"],
    ),
    (&["delete", "12345"], code::NO_DEVICE, &["12345"]),
    (&["stop", "12345"], code::NO_DEVICE, &["12345"]),
    (&["info", "12345"], code::NO_DEVICE, &["12345"]),
    (&["frobnicate"], code::USAGE, &["frobnicate"]),
];

fn refused() -> Result<()> {
    for (args, code, parts) in TABLE {
        let output = fails(args, *code, parts)?;
        ensure!(output.stdout.is_empty(), "something on stdout: {output}");
        let left = cli::left_over();
        ensure!(left.is_empty(), "`{}` left {left:?}", args.join(" "));
    }
    Ok(())
}

/// L33 The reason why a server could not be created reaches the caller at once, and the first server is not disturbed.
fn second_server() -> Result<()> {
    let first = Spec::mem("16M").with(&["--id", "7"]).add()?;
    ensure!(first.id == 7, "asked for id 7, got {}", first.id);
    let direct = first.open()?;
    direct.write_pattern(0, 4096, 1)?;
    let start = Instant::now();
    for _ in 0..3 {
        let args = ["add", "mem", "--size", "16M", "--id", "7"];
        fails(&args, code::FAILED, &["7", "in use"])?;
    }
    ensure!(
        start.elapsed() < secs(20),
        "three refusals took {:?}",
        start.elapsed()
    );
    direct
        .check_pattern(0, 4096, 1)
        .context("the first device")?;
    drop(direct);
    first.delete()
}

/// L13 A size that a block device may have, but memory may not: the backend's own reason is reported.
fn too_much_memory() -> Result<()> {
    let args = ["add", "mem", "--size", "4E"];
    let output = fails(&args, code::FAILED, &["smaller size"])?;
    ensure!(output.stdout.is_empty(), "{output}");
    cli::nothing_left(secs(5))
}
