//! Zoned devices and devices with integrity metadata in every mode: those that the driver allows keep their data, the others
//! are refused by name. The runner compares the cells with the expected ones.

use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};

use super::file_matrix::{MODES, Mode};
use super::zoned::pointers;
use crate::case::{Case, kind_cell};
use crate::cli::{self, Device, Spec, code};
use crate::direct_io::Buffer;
use crate::metadata_client as client;
use crate::volume::{self, Volume};
use crate::{pattern, sysfs};

const ZONE: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    ZonedMem,
    ZonedFile,
    IntegrityMem,
    IntegrityFile,
}

impl Kind {
    const ALL: [Self; 4] = [
        Self::ZonedMem,
        Self::ZonedFile,
        Self::IntegrityMem,
        Self::IntegrityFile,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::ZonedMem => "zoned-mem",
            Self::ZonedFile => "zoned-file",
            Self::IntegrityMem => "integrity-mem",
            Self::IntegrityFile => "integrity-file",
        }
    }

    const fn is_zoned(self) -> bool {
        matches!(self, Self::ZonedMem | Self::ZonedFile)
    }

    /// The first kernel that has it, and the driver's name of the feature.
    const fn since(self) -> ((u32, u32), &'static str) {
        match self.is_zoned() {
            true => ((6, 6), "ZONED"),
            false => ((7, 0), "INTEGRITY"),
        }
    }

    fn spec(self, storage: &Volume) -> Result<Spec> {
        let spec = match self {
            Self::ZonedFile | Self::IntegrityFile => {
                Spec::file(&storage.file("disk.img", 16 * ZONE)?)
            }
            _ => Spec::mem("16M"),
        };
        let more = match self.is_zoned() {
            true => ["--zone-size", "1M"],
            false => ["--integrity", "crc16:8:reftag"],
        };
        Ok(spec.block_size(4096).with(&more))
    }
}

pub fn cases() -> Vec<Case> {
    let of = |kind: Kind| {
        MODES.map(|mode| {
            let name = format!("matrix_{}_{}", kind.name(), mode.name());
            Case::new(name, move || served_or_refused(kind, mode))
        })
    };
    Kind::ALL.into_iter().flat_map(of).collect()
}

fn served_or_refused(kind: Kind, mode: Mode) -> Result<()> {
    let storage = Volume::new(volume::Kind::Tmpfs, 64 << 20)?;
    let spec = kind.spec(&storage)?.with(&mode.args());
    let outcome = outcome(kind, mode, &spec)?;
    kind_cell(kind.name(), &mode.name(), outcome);
    storage.remove()
}

fn outcome(kind: Kind, mode: Mode, spec: &Spec) -> Result<&'static str> {
    let args = spec.args();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    if mode.data != "user-copy" {
        // Before a kernel is asked.
        let word = if kind.is_zoned() {
            "zoned"
        } else {
            "integrity"
        };
        cli::fails(&args, code::USAGE, &[word, "--data user-copy"])?;
        return Ok("never");
    }
    let (since, feature) = kind.since();
    if sysfs::kernel() < since.max(mode.since) {
        let missing = match sysfs::kernel() < mode.since {
            true => "BATCH_IO",
            false => feature,
        };
        cli::fails(&args, code::FAILED, &["lacks", missing])?;
        return Ok("lacks");
    }
    let device = spec.add()?;
    match kind.is_zoned() {
        true => zones_are_kept(&device)?,
        false => metadata_is_kept(&device)?,
    }
    device.delete()?;
    Ok("ran")
}

/// A write at the pointer of a zone moves it, one elsewhere fails, and what was written is read.
fn zones_are_kept(device: &Device) -> Result<()> {
    let direct = device.open()?;
    let mut data = Buffer::new(64 << 10);
    pattern::fill(data.bytes_mut(), 3 * ZONE, 1);
    direct.file().write_all_at(data.bytes(), 3 * ZONE)?;
    let beyond = direct
        .file()
        .write_all_at(data.bytes(), 3 * ZONE + (128 << 10));
    ensure!(beyond.is_err(), "written beyond the pointer");
    direct.check_pattern(3 * ZONE, 64 << 10, 1)?;
    let pointers = pointers(device.node())?;
    ensure!(pointers[2] == 0 && pointers[3] == 128, "{pointers:?}");
    Ok(())
}

/// The kernel's protection information comes back with the data, and is right.
fn metadata_is_kept(device: &Device) -> Result<()> {
    let direct = device.open()?;
    direct.write_pattern(4096, 1 << 20, 1)?;
    direct.check_pattern(4096, 1 << 20, 1)?;
    let (mut data, mut metadata) = (Buffer::new(4096), [0; 8]);
    let read = client::read(direct.file(), 8192, &mut data, &mut metadata)?;
    ensure!(
        read == Ok(()) && metadata != [0xff; 8],
        "{read:?} {metadata:?}"
    );
    Ok(())
}
