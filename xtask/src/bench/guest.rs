//! The guests of the benchmark: QEMU's configuration, and their results.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::copies::{self, Routines};
use super::figures::{self, Figure};
use super::programs::{self, TEXT};
use super::rows::{self, EXAMPLE, KUBLK, LIBUBLK, Row};
use super::select::Selection;
use super::times::{COUNTED, Timed, Times};
use super::{hot, kublk, wall};
use crate::guest::accel::{self, Accel, Choice};
use crate::guest::image::{Contents, Image};
use crate::guest::{Guest, Machine, Outcome};
use crate::kernel::Kernel;
use crate::manifest::Manifest;
use crate::{build, paths, vm};

/// Excludes every source of randomness in the guest: clock, random numbers, addresses. The kernel's copies do not use
/// `rep movsb`, which the emulator counts per byte.
const CPU: &str = "max,-rdrand,-rdseed,-erms,-fsrm";
const CLOCK: [&str; 4] = [
    "-icount",
    "shift=0,sleep=off",
    "-rtc",
    "base=2025-01-01T00:00:00,clock=vm",
];
const CMDLINE: [&str; 5] = [
    "quiet",
    "mitigations=off",
    "panic=-1",
    "nokaslr",
    "norandmaps",
];
const DEADLINE: Duration = Duration::from_secs(3600);
/// Programs of the host in the images.
const TOOLS: [&str; 3] = ["fio", "busybox", "mkfs.ext4"];

/// The kernel's own devices in a guest.
#[derive(Clone, Copy, Debug)]
enum Devices {
    None,
    /// RAM disks, loop devices, null_blk.
    Local,
    /// Network block devices.
    Network,
    /// The same, and network cards.
    Cards,
}

/// An environment for benchmarks.
#[derive(Debug)]
pub struct Bench<'a> {
    manifest: &'a Manifest,
    kernel: &'a Kernel,
    image: Image,
    /// The image with the programs of network block devices, if they are needed. Apart from the other: the size of
    /// an image shifts figures.
    network: Option<Image>,
    /// Keeps the directory of the images.
    _place: TempDir,
    servers: Vec<PathBuf>,
    plugin: PathBuf,
    /// Addresses of the kernel's copy routines, once a guest was asked.
    copies: OnceCell<Routines>,
}

/// The result of a count.
#[derive(Debug)]
pub struct Counted {
    /// Figures of the rows that could be measured.
    pub figures: Vec<Figure>,
    /// Rows that could not be measured, and why.
    pub errors: Vec<String>,
    /// The server's hot spots by row, if requested.
    pub hot: Vec<(String, String)>,
    /// The QEMU command.
    pub command: String,
}

impl Counted {
    /// Differences to another count of the same rows.
    pub fn differences(&self, again: &Self) -> Vec<String> {
        let mut different = Vec::new();
        if self.figures.len() != again.figures.len() {
            different.push(format!(
                "{} rows were counted, then {}",
                self.figures.len(),
                again.figures.len()
            ));
        }
        for (one, other) in self.figures.iter().zip(&again.figures) {
            if !one.same(other) {
                different.push(format!("{}, then {}", one.line(), other.line()));
            }
        }
        different
    }
}

impl<'a> Bench<'a> {
    /// Builds servers, plugin and guest programs, and writes the image; rows whose server cannot be built here are
    /// deselected.
    ///
    /// # Errors
    /// A build fails, or a server's text is not at its address.
    pub fn new(
        manifest: &'a Manifest,
        kernel: &'a Kernel,
        selection: &mut Selection,
    ) -> Result<Self> {
        let programs = [
            ("icount-marker", "bench-guest"),
            ("icount-marker", "marker"),
        ];
        let mut built = build::guest(&vm::with_init(&programs))?;
        let init = built.remove(0);
        let servers = servers(manifest, kernel, selection)?;
        built.extend(servers.iter().cloned());
        let contents = Contents {
            init,
            programs: built,
            tools: TOOLS.map(str::to_owned).to_vec(),
            plugins: BTreeMap::new(),
            tree: None,
        };
        // A concurrent benchmark has its own image.
        let images = paths::vm().join("images");
        fs::create_dir_all(&images).with_context(|| images.display().to_string())?;
        let place = tempfile::tempdir_in(&images).context("a directory for the image")?;
        let image = Image::build(&contents, &place.path().join("bench.cpio"))?;
        let network = match selection.is_network() {
            false => None,
            true => {
                let mut contents = contents;
                contents.tools.push("nbdkit".to_owned());
                contents.plugins.clone_from(&manifest.plugins);
                Some(Image::build(&contents, &place.path().join("network.cpio"))?)
            }
        };
        Ok(Self {
            manifest,
            kernel,
            image,
            network,
            _place: place,
            servers,
            plugin: programs::plugin()?,
            copies: OnceCell::new(),
        })
    }

    /// Counts the instructions of rows in one guest with this many CPUs.
    ///
    /// # Errors
    /// The guest did not run to its end, or wrote something unexpected.
    pub fn count(&self, rows: &[Row], cpus: usize, hot: bool) -> Result<Counted> {
        let (directory, _lock) = vm::run_directory("icount")?;
        let (out, blocks) = (directory.join("counts"), directory.join("blocks"));
        // Removes the result of an earlier run.
        let _ = fs::remove_file(&out);
        let mut plugin = format!(
            "{},lo={:x},hi={:x},out={},{}",
            self.plugin.display(),
            TEXT.0,
            TEXT.1,
            out.display(),
            self.copies(&directory)?.arguments()
        );
        if hot {
            plugin += &format!(",hot={}", blocks.display());
        }
        let mut machine = counting(cpus);
        machine.extra.extend(["-plugin".to_owned(), plugin]);
        println!(
            "counting {} rows on Linux {} with {cpus} CPU{}",
            rows.len(),
            self.kernel.release,
            if cpus == 1 { "" } else { "s" }
        );
        let network = rows.iter().any(Row::is_network);
        let devices = if rows.iter().any(Row::has_card) {
            machine.extra.extend(CARDS.map(str::to_owned));
            Devices::Cards
        } else if network {
            Devices::Network
        } else {
            Devices::Local
        };
        let (lines, command) = self.run(machine, &directory, &rows::plan(rows), devices)?;
        let text = fs::read_to_string(&out).with_context(|| out.display().to_string())?;
        let snapshots = figures::snapshots(&text)?;
        let (mut figures, mut errors) = (Vec::new(), Vec::new());
        for row in rows {
            match figures::figure(row, &lines, &snapshots) {
                Ok(figure) => figures.push(figure),
                Err(error) => errors.push(format!("{}: {error:#}", row.name)),
            }
        }
        let mut places = Vec::new();
        if hot {
            let blocks = fs::read_to_string(&blocks).context("the plugin's file of blocks")?;
            for row in rows {
                let Some(figure) = figures.iter().find(|figure| figure.name == row.name) else {
                    continue;
                };
                if let Some(server) = self.server(row) {
                    places.push((
                        row.name.clone(),
                        hot::places(server, &blocks, figure.mark, figure.ios)?,
                    ));
                }
            }
        }
        Ok(Counted {
            figures,
            errors,
            hot: places,
            command,
        })
    }

    /// Addresses of the kernel's copy routines: asked of a guest, once.
    fn copies(&self, directory: &Path) -> Result<Routines> {
        if let Some(known) = self.copies.get() {
            return Ok(*known);
        }
        let program = [
            "/usr/bin/bench-guest",
            "--symbols",
            copies::USER,
            copies::PAGES,
        ];
        let outcome = self.boot(
            &self.image,
            counting(1),
            directory,
            &program,
            Vec::new(),
            Vec::new(),
        )?;
        let found = Routines::parse(&outcome.lines)?;
        Ok(*self.copies.get_or_init(|| found))
    }

    /// The host's path of the program that serves a row.
    fn server(&self, row: &Row) -> Option<&Path> {
        let program = Path::new(row.target.server.split(' ').next()?);
        let mut servers = self.servers.iter();
        servers
            .find(|server| server.file_name() == program.file_name())
            .map(PathBuf::as_path)
    }

    /// Times an event in a guest with four CPUs: with the host's clock or, `counted`, with one that advances a
    /// nanosecond per instruction.
    ///
    /// # Errors
    /// The guest did not run to its end, or wrote something unexpected.
    pub fn time(&self, timed: Timed, counted: bool) -> Result<Times> {
        let (directory, _lock) = vm::run_directory(timed.name())?;
        let accel = accel::choose(Choice::Auto, self.kernel, &self.image)?;
        let (machine, accelerator) = match counted {
            true => (counting(4), COUNTED.to_owned()),
            false => (accel.machine(), accel.to_string()),
        };
        let devices = match timed.is_network() {
            true => Devices::Network,
            false => Devices::None,
        };
        let (lines, _) = self.run(machine, &directory, &timed.plan(), devices)?;
        Times::of(timed, &accelerator, &lines)
    }

    /// Measures wall-clock rows in a guest with four CPUs.
    ///
    /// # Errors
    /// The guest did not run to its end.
    pub fn wall(&self, rows: &[Row], accel: Accel) -> Result<wall::Walls> {
        let (directory, _lock) = vm::run_directory("wall")?;
        println!(
            "{} wall-clock rows on Linux {} under {accel}",
            rows.len(),
            self.kernel.release
        );
        let (network, local): (Vec<Row>, Vec<Row>) =
            rows.iter().cloned().partition(Row::is_network);
        let mut lines = Vec::new();
        let mut commands = Vec::new();
        for (rows, devices) in [(local, Devices::Local), (network, Devices::Network)] {
            if rows.is_empty() {
                continue;
            }
            let plan = rows::plan(&rows);
            let (more, command) = self.run(accel.machine(), &directory, &plan, devices)?;
            lines.extend(more);
            commands.push(command);
        }
        Ok(wall::Walls::of(rows, &lines, &commands.join("\n")))
    }

    /// The accelerator for guests here.
    ///
    /// # Errors
    /// KVM was requested and does not work.
    pub fn accel(&self, choice: Choice) -> Result<Accel> {
        accel::choose(choice, self.kernel, &self.image)
    }

    fn run(
        &self,
        machine: Machine,
        directory: &Path,
        plan: &str,
        devices: Devices,
    ) -> Result<(Vec<String>, String)> {
        let file = directory.join("plan");
        fs::write(&file, plan).with_context(|| file.display().to_string())?;
        let mut modules = vec![("ublk_drv".to_owned(), String::new())];
        let more: &[(&str, &str)] = match devices {
            Devices::None => &[],
            Devices::Local => &[
                ("null_blk", "nr_devices=1 submit_queues=1"),
                // The second ram disk holds a file system with a file of 256 MiB.
                ("brd", "rd_nr=2 rd_size=393216"),
                ("loop", "max_loop=1"),
                ("ext4", ""),
            ],
            Devices::Network => &[NBD],
            Devices::Cards => &[NBD, ("e1000", "")],
        };
        let more = more
            .iter()
            .map(|(name, words)| ((*name).to_owned(), (*words).to_owned()));
        modules.extend(more);
        let image = match devices {
            Devices::Network | Devices::Cards => {
                self.network.as_ref().context("an image for the network")?
            }
            _ => &self.image,
        };
        let files = vec![("/bench.plan".to_owned(), file)];
        let program = ["/usr/bin/bench-guest", "/bench.plan"];
        let outcome = self.boot(image, machine, directory, &program, modules, files)?;
        Ok((outcome.lines, outcome.command))
    }

    fn boot(
        &self,
        image: &Image,
        machine: Machine,
        directory: &Path,
        program: &[&str],
        modules: Vec<(String, String)>,
        files: Vec<(String, PathBuf)>,
    ) -> Result<Outcome> {
        let guest = Guest {
            kernel: self.kernel,
            image,
            machine,
            cmdline: CMDLINE.map(str::to_owned).to_vec(),
            modules,
            sets: Vec::new(),
            files,
            program: program.iter().map(|word| (*word).to_owned()).collect(),
            env: Vec::new(),
            deadline: DEADLINE,
            directory: directory.to_owned(),
            harmless: self
                .manifest
                .harmless
                .iter()
                .map(|h| h.line.clone())
                .collect(),
        };
        let outcome = guest.run(&mut |line| {
            if !line.is_empty() {
                println!("  {line}");
            }
        })?;
        ensure!(outcome.verdict.is_good(), "{}", outcome.report());
        Ok(outcome)
    }
}

/// Builds the servers that the rows need; rows whose server cannot be built here are deselected.
fn servers(
    manifest: &Manifest,
    kernel: &Kernel,
    selection: &mut Selection,
) -> Result<Vec<PathBuf>> {
    // Always needed: it reads a device's properties back, for every server.
    let mut servers = vec![programs::ublkctl()?];
    let words = |row: Row| row.target.server.split(' ').next().map(str::to_owned);
    let mut needed: Vec<String> = selection.all().into_iter().filter_map(words).collect();
    needed.sort();
    needed.dedup();
    for program in needed {
        if let Some(example) = program.strip_prefix(EXAMPLE) {
            servers.push(programs::example(example)?);
        } else if program == LIBUBLK {
            match programs::libublk() {
                Ok(program) => servers.push(program),
                // It needs the crate registry and libclang; the others are still worth measuring without it.
                Err(error) => selection.skip(LIBUBLK, &format!("{error:#}")),
            }
        } else if program == KUBLK {
            match kublk::build(manifest, kernel) {
                Ok(program) => servers.push(program),
                // The same without the kernel's source or a C compiler.
                Err(error) => selection.skip(KUBLK, &format!("{error:#}")),
            }
        }
    }
    Ok(servers)
}

/// The kernel's nbd driver.
const NBD: (&str, &str) = ("nbd", "nbds_max=1 max_part=0");

/// Two network cards with a cable between them. The driver of this one sends pages in place and leaves segments and
/// checksums to the card, which the emulation does outside of the guest.
const CARDS: [&str; 8] = [
    "-netdev",
    "hubport,id=here,hubid=0",
    "-device",
    "e1000,netdev=here,romfile=",
    "-netdev",
    "hubport,id=there,hubid=0",
    "-device",
    "e1000,netdev=there,romfile=",
];

/// A machine whose clock counts its instructions.
fn counting(cpus: usize) -> Machine {
    Machine {
        qemu: "qemu-system-x86_64".to_owned(),
        accel: "tcg,thread=single".to_owned(),
        cpu: CPU.to_owned(),
        cpus,
        memory: 3072,
        extra: CLOCK.map(str::to_owned).to_vec(),
    }
}
