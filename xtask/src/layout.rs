//! `cargo xtask layout`: compares our structs and constants with the kernel's own headers.
//!
//! Fetches and unpacks the newest `linux-libc-dev` of the package index. A C program that includes its headers prints
//! every size, offset and value, and each is compared with the tables of `ublk-sys` and `uring-lite`. A name of
//! `linux/ublk_cmd.h` that we lack is a failure, or a warning if the header is newer than the one we follow.

mod compare;
mod header;
mod probe;
mod sample;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::manifest::Manifest;
use crate::{deb, kernel, paths};

/// The kernel series of the `linux/ublk_cmd.h` that `ublk-sys` repeats.
const FOLLOWED: (u32, u32) = (7, 3);

/// The headers that are included, in this order.
const HEADERS: [&str; 5] = [
    "linux/ublk_cmd.h",
    "linux/io_uring.h",
    "linux/blkzoned.h",
    "linux/fs.h",
    "linux/time_types.h",
];

/// One of our structs, from either crate.
#[derive(Debug)]
struct Struct {
    name: &'static str,
    size: usize,
    align: usize,
    fields: Vec<Field>,
}

/// One field of a [`Struct`]; a size of 0 is a flexible array, which C cannot measure.
#[derive(Debug)]
struct Field {
    name: &'static str,
    offset: usize,
    size: usize,
}

/// The crates' tables.
#[derive(Debug)]
struct Ours {
    constants: Vec<(&'static str, u64)>,
    structs: Vec<Struct>,
}

impl Ours {
    fn collect() -> Self {
        let mut constants = ublk_sys::table::CONSTANTS.to_vec();
        constants.extend_from_slice(uring_lite::sys::table::CONSTANTS);
        let ublk = ublk_sys::table::STRUCTS.iter().map(|row| Struct {
            name: row.name,
            size: row.size,
            align: row.align,
            fields: row
                .fields
                .iter()
                .filter(|field| !field.is_hole())
                .map(|field| Field {
                    name: field.name,
                    offset: field.offset,
                    size: field.size,
                })
                .collect(),
        });
        let ring = uring_lite::sys::table::STRUCTS.iter();
        let ring = ring.map(|&(name, size, align, fields)| Struct {
            name,
            size,
            align,
            fields: fields
                .iter()
                .map(|&(name, offset, size)| Field { name, offset, size })
                .collect(),
        });
        Self {
            constants,
            structs: ublk.chain(ring).collect(),
        }
    }
}

/// Fetches the headers, compiles, compares.
///
/// # Errors
/// The package, the compiler or the program fails; or there are differences, which are all printed.
pub fn run() -> Result<()> {
    let (series, include) = headers()?;
    println!(
        "headers: linux {}.{}, {}",
        series.0,
        series.1,
        include.display()
    );
    let ours = Ours::collect();
    let header = header::Header::read(&include, &HEADERS)?;
    let mut known = compare::present(&ours, &header);
    known.samples = sample::samples(&header);
    let theirs = probe::run(&include, &HEADERS, &known)?;
    let report = compare::compare(&ours, &header, &known, &theirs, series, FOLLOWED);
    for warning in &report.warnings {
        println!("warning: {warning}");
    }
    for failure in &report.failures {
        println!("FAIL: {failure}");
    }
    println!(
        "layout: {} structs, {} fields, {} constants, {} packed words compared, {} differences",
        theirs.structs.len(),
        theirs.fields.len(),
        theirs.constants.len(),
        theirs.samples.len(),
        report.failures.len()
    );
    if !report.failures.is_empty() {
        bail!(
            "our tables differ from the headers in {} places",
            report.failures.len()
        );
    }
    Ok(())
}

/// The series of the newest header package, and where it is unpacked.
///
/// # Errors
/// There is no such package, or it cannot be fetched and unpacked.
pub fn headers() -> Result<((u32, u32), PathBuf)> {
    let apt = kernel::archive(&Manifest::load()?)?;
    let package = apt
        .newest("linux-libc-dev")?
        .context("the package index has no linux-libc-dev")?;
    let series = header::series(&package.version)
        .with_context(|| format!("a version without numbers: {}", package.version))?;
    let root = paths::root().join("target/layout").join(&package.version);
    let done = root.join("complete");
    if !done.exists() {
        let file = apt.fetch(&package)?;
        let wanted = |path: &str| path.starts_with("/usr/") && path.ends_with(".h");
        unpack(&root, &deb::files(&file, wanted)?)?;
        fs::write(&done, &package.sha256)?;
    }
    Ok((series, root.join("usr/include")))
}

fn unpack(root: &Path, files: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    for (path, bytes) in files {
        let place = root.join(path.trim_start_matches('/'));
        let parent = place.parent().context("a file has a parent")?;
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
        fs::write(&place, bytes).with_context(|| place.display().to_string())?;
    }
    Ok(())
}
