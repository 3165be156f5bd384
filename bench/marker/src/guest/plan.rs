//! Parses the host's plan: a file of `key value` lines.
//!
//! | key | value |
//! |---|---|
//! | `row` | name of a row whose instructions are counted; the lines up to the next name belong to it |
//! | `wall` | name of a wall-clock row |
//! | `usable` | name of a row for the time from `add` to the first read |
//! | `reconnect` | name of a row for the time from the return of its NBD server to the answer of a READ |
//! | `prepare` | a preparation: a word and its values; done once per guest |
//! | `server` | command of the server; it prints the device path once the device serves I/O |
//! | `device` | path of a device that exists without a server, or whose server does not print it |
//! | `stop` | command that ends such a server and deletes its device, which runs without a scheduler |
//! | `beside` | command that runs while the device works: it prints a line on standard error once it does, and ends at SIGINT |
//! | `queue` | name and value of an attribute in the device's `queue` directory, written before the work |
//! | `loop` | `buffered` or `direct`, and the file of a loop device |
//! | `kernel-nbd` | the kernel's NBD device, of the server at that unix socket or port |
//! | `floor` | work of a client without a device: unix socket or port of an NBD server, fio's mode and block size, depth |
//! | `fio` | arguments of fio, except `--filename` and the amount; a second line adds to them |
//! | `jobs` | number of fio jobs (1) |
//! | `ios` | difference in I/Os of each job between the small and the large run (10000) |
//! | `seconds` | duration of a wall-clock row (2) |
//! | `times` | number of outages of a `reconnect` row (1) |

use anyhow::{Context, Result, bail};

use crate::floor::Job;

/// How a row is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// Instructions between markers.
    #[default]
    Counted,
    /// Time.
    Wall,
    /// Time from `add` to the first read.
    Usable,
    /// Time from the return of the server to the answer of a READ.
    Reconnect,
}

/// One measurement.
#[derive(Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// How it is measured.
    pub kind: Kind,
    /// Preparations.
    pub prepare: Vec<Vec<String>>,
    /// The server's command.
    pub server: Vec<String>,
    /// The device, if no server makes it or the server does not print its path.
    pub device: String,
    /// The command that ends such a server.
    pub stop: Vec<String>,
    /// A command that runs beside the server.
    pub beside: Vec<String>,
    /// Attributes of the device's `queue` directory.
    pub queue: Vec<(String, String)>,
    /// The file of a loop device, and whether it uses direct I/O.
    pub looped: Option<(String, bool)>,
    /// The server of the kernel's NBD device.
    pub kernel_nbd: Option<String>,
    /// The work of a client without a device.
    pub floor: Option<Job>,
    /// The arguments of fio.
    pub fio: Vec<String>,
    /// Number of fio's jobs.
    pub jobs: u64,
    /// I/Os of each job between the two counted runs.
    pub ios: u64,
    /// Duration of a wall-clock run in seconds.
    pub seconds: u64,
    /// Number of outages.
    pub times: u32,
}

impl Row {
    fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            prepare: Vec::new(),
            server: Vec::new(),
            device: String::new(),
            stop: Vec::new(),
            beside: Vec::new(),
            queue: Vec::new(),
            looped: None,
            kernel_nbd: None,
            floor: None,
            fio: Vec::new(),
            jobs: 1,
            ios: 10_000,
            seconds: 2,
            times: 1,
        }
    }

    fn check(&self) -> Result<()> {
        let sources = [
            !self.server.is_empty(),
            !self.device.is_empty(),
            self.looped.is_some(),
            self.kernel_nbd.is_some(),
            self.floor.is_some(),
        ];
        let silent = sources == [true, true, false, false, false];
        if silent == self.stop.is_empty() {
            bail!(
                "{}: a server and a device need a stop, and a stop these",
                self.name
            );
        }
        if !silent && sources.iter().filter(|there| **there).count() != 1 {
            bail!(
                "{}: one of a server, a device, a loop device and a floor",
                self.name
            );
        }
        let timed = matches!(self.kind, Kind::Usable | Kind::Reconnect);
        if timed && self.server.is_empty() {
            bail!("{}: no server", self.name);
        }
        let idle = timed || self.floor.is_some();
        if idle != self.fio.is_empty() {
            bail!("{}: no work for fio", self.name);
        }
        if self.jobs == 0 || self.ios == 0 || self.seconds == 0 || self.times == 0 {
            bail!("{}: nothing to do", self.name);
        }
        Ok(())
    }
}

/// Reads the text of the file.
///
/// # Errors
/// An unknown key, a line before the first row, or a row without a device or a job.
pub fn parse(text: &str) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (key, value) = line
            .split_once(' ')
            .with_context(|| format!("line without a value: {line:?}"))?;
        let kind = match key {
            "row" => Some(Kind::Counted),
            "wall" => Some(Kind::Wall),
            "usable" => Some(Kind::Usable),
            "reconnect" => Some(Kind::Reconnect),
            _ => None,
        };
        if let Some(kind) = kind {
            rows.push(Row::new(value, kind));
            continue;
        }
        let row = rows.last_mut().context("a line before the first row")?;
        let args = value.split_whitespace().map(str::to_owned);
        match key {
            "server" => row.server = args.collect(),
            "stop" => row.stop = args.collect(),
            "beside" => row.beside = args.collect(),
            "device" => row.device = value.to_owned(),
            "prepare" => row.prepare.push(args.collect()),
            "queue" => {
                let (name, value) = value
                    .split_once(' ')
                    .context("an attribute without a value")?;
                row.queue.push((name.to_owned(), value.to_owned()));
            }
            "loop" => {
                let (way, file) = value.split_once(' ').context("a loop device of no file")?;
                row.looped = Some((file.to_owned(), way == "direct"));
            }
            "kernel-nbd" => row.kernel_nbd = Some(value.to_owned()),
            "floor" => row.floor = Some(Job::parse(value)?),
            "fio" => row.fio.extend(args),
            "jobs" => row.jobs = value.parse().context("jobs")?,
            "ios" => row.ios = value.parse().context("ios")?,
            "seconds" => row.seconds = value.parse().context("seconds")?,
            "times" => row.times = value.parse().context("times")?,
            _ => bail!("unknown key {key:?}"),
        }
    }
    rows.iter().try_for_each(Row::check)?;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::{Kind, parse};

    #[test]
    fn rows_have_their_lines() {
        let rows = parse(
            "row a\nserver x add --foreground\nfio --rw=read\nfio --bs=4k\njobs 2\nios 7\n\
             row b\ndevice /dev/nullb0\nfio --rw=write\nusable c\nserver x add\n\
             wall d\nprepare tmpfs /a/b 256\nqueue nomerges 2\nloop direct /a/b\nfio --rw=read\nseconds 1\n",
        )
        .unwrap();
        assert_eq!(rows[0].server, ["x", "add", "--foreground"]);
        assert_eq!(rows[0].fio, ["--rw=read", "--bs=4k"]);
        assert_eq!((rows[0].jobs, rows[0].ios), (2, 7));
        assert_eq!(rows[1].device, "/dev/nullb0");
        assert_eq!((rows[1].jobs, rows[1].ios), (1, 10_000));
        assert_eq!((rows[1].kind, rows[2].kind), (Kind::Counted, Kind::Usable));
        let silent = parse("row a\nserver x\nstop x del\ndevice /dev/y\nfio --x").unwrap();
        assert_eq!(silent[0].stop, ["x", "del"]);
        let back = parse("reconnect a\nprepare nbdkit /x 96\nserver x add\ntimes 10\n").unwrap();
        assert_eq!((back[0].kind, back[0].times), (Kind::Reconnect, 10));
        let floor = parse("row a\nfloor /x randread 4k 64\n").unwrap();
        assert!(floor[0].floor.is_some() && floor[0].fio.is_empty());
        assert_eq!(rows[3].kind, Kind::Wall);
        assert_eq!(rows[3].prepare, [["tmpfs", "/a/b", "256"]]);
        assert_eq!(rows[3].queue, [("nomerges".to_owned(), "2".to_owned())]);
        assert_eq!(rows[3].looped, Some(("/a/b".to_owned(), true)));
    }

    #[test]
    fn half_a_row_is_an_error() {
        for text in [
            "server x",
            "row a\nfio --x",
            "row a\nserver x",
            "row a\nserver x\ndevice y\nfio --x",
            "row a\nserver x\nloop direct /y\nfio --x",
            "row a\nserver x\nstop z\nfio --x",
            "row a\ndevice y\nstop z\nfio --x",
            "row a\nserver x\nfio --x\njobs 0",
            "row a\nserver x\nfio --x\nios many",
            "row a\nloop direct\nfio --x",
            "row a\ndevice y\nqueue nomerges\nfio --x",
            "row a\nfloor /x randread 4k",
            "row a\nfloor /x randread 4k 1\nfio --x",
            "row a\nfloor /x randread 4k 1\ndevice y",
            "reconnect a\nserver x\ntimes 0",
            "reconnect a\nserver x\nfio --x",
            "usable a\ndevice y",
            "row a\nmistake x",
            "row",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
