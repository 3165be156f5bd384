//! `replay` and `bench`: what reaches the target, what is refused, and what a terminal shows.

use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::num::NonZero;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn ublkctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ublkctl"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn json(args: &[&str]) -> (Option<i32>, Value) {
    let output = ublkctl(&[args, &["--json"]].concat());
    let value = serde_json::from_slice(&output.stdout).expect("one JSON value");
    (output.status.code(), value)
}

/// A directory with a file of zeroes, written out so that reads reach it.
fn place() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    fs::write(&disk, vec![0; 4 << 20]).unwrap();
    let disk = disk.display().to_string();
    (dir, disk)
}

/// An iolog of writes and reads: every second 4 KiB block of the first MiB.
fn iolog(dir: &Path) -> String {
    let mut text = "fio version 3 iolog\n0 f add\n0 f open\n".to_owned();
    for i in 0..128_u64 {
        text += &format!("{} f write {} 4096\n", i * 100, i * 8192);
        text += &format!("{} f read {} 4096\n", i * 100 + 50, i * 8192);
    }
    text += "12800 f sync 0 0\n12900 f close\n";
    let path = dir.join("log");
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

#[test]
fn a_trace_is_replayed_at_its_times_and_only_reads_unless_told() {
    let (dir, disk) = place();
    let log = iolog(dir.path());
    let (code, value) = json(&["replay", &log, &disk]);
    assert_eq!(code, Some(0), "{value}");
    assert_eq!(
        (&value["requests"], &value["not_written"]),
        (&Value::from(128), &Value::from(129))
    );
    assert!(value["elapsed"].as_u64().unwrap() > 12_000_000, "{value}");
    assert!(value["late"]["p50"].is_u64() && value["read"]["p99"].is_u64());
    assert!(fs::read(&disk).unwrap().iter().all(|b| *b == 0));
    let (code, value) = json(&[
        "replay", &log, &disk, "--write", "--speed", "max", "-d", "8",
    ]);
    assert_eq!(
        (code, &value["requests"]),
        (Some(0), &Value::from(257)),
        "{value}"
    );
    let content = fs::read(&disk).unwrap();
    assert!(content.starts_with(b"ublkload") && content[4096..8192].iter().all(|b| *b == 0));
    // Once more: what was written is no data of anybody.
    let (code, value) = json(&["replay", &log, &disk, "--write", "--speed", "10"]);
    assert_eq!(code, Some(0), "{value}");
    assert_eq!(fs::read(&disk).unwrap(), content, "the same data each time");
}

#[test]
fn targets_in_use_or_with_data_are_not_written_to() {
    let (dir, disk) = place();
    let log = iolog(dir.path());
    let refused = |args: &[&str], kind: &str, words: &str| {
        let (code, value) = json(args);
        let told = value["error"]["message"].as_str().unwrap_or_default();
        assert!(code == Some(1) && told.contains(words), "{args:?}: {value}");
        assert_eq!(value["error"]["kind"], kind, "{value}");
        assert!(
            value["error"]["hint"].as_str().unwrap().contains("--force"),
            "{value}"
        );
    };
    let mut content = vec![0; 4 << 20];
    content[(4 << 20) - 1] = 1;
    fs::write(&disk, &content).unwrap();
    let bench = [
        "bench",
        &disk,
        "--rw",
        "randwrite",
        "--time",
        "1",
        "--warm-up",
        "0",
    ];
    refused(&["replay", &log, &disk, "--write"], "failed", "holds data");
    refused(&bench, "failed", "holds data");
    assert_eq!(fs::read(&disk).unwrap(), content);
    content[(4 << 20) - 1] = 0;
    fs::write(&disk, &content).unwrap();
    let held = File::open(&disk).unwrap();
    held.lock().unwrap();
    refused(&["replay", &log, &disk, "--write"], "busy", "is in use");
    refused(&bench, "busy", "is in use");
    assert_eq!(fs::read(&disk).unwrap(), content);
    let forced = [&bench[..], &["--force"]].concat();
    let (code, value) = json(&forced);
    assert_eq!(code, Some(0), "{value}");
    assert_ne!(fs::read(&disk).unwrap(), content);
}

/// fio and `replay` leave the same bytes behind.
#[test]
fn fio_and_replay_write_the_same() {
    if Command::new("fio").arg("--version").output().is_err() {
        eprintln!("SKIP: no fio on this machine (apt-get install fio)");
        return;
    }
    let (dir, disk) = place();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let fio = |args: &[&str]| {
        let common = ["--name=t", "--ioengine=psync", "--buffer_pattern=0xab"];
        let output = Command::new("fio")
            .args(common)
            .args(args)
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let (record, file) = (
        format!("--write_iolog={}", at("log")),
        format!("--filename={disk}"),
    );
    fio(&[
        &file,
        "--rw=randwrite",
        "--bssplit=4k/60:32k/40",
        "--size=4M",
        "--io_size=1M",
        &record,
    ]);
    let recorded = fs::read(&disk).unwrap();
    assert!(recorded.contains(&0xab) && recorded.contains(&0));
    fs::write(at("fio"), vec![0; 4 << 20]).unwrap();
    fs::write(at("ours"), vec![0; 4 << 20]).unwrap();
    let convert = |from: &str, to: &str, args: &[&str]| {
        let (from, to) = (at(from), at(to));
        let (code, value) = json(&[&["trace", "convert", &from, &to], args].concat());
        assert_eq!(code, Some(0), "{value}");
    };
    convert("log", "ublk", &["--to", "ublk"]);
    convert("ublk", "back", &["--to", "iolog", "--target", &at("fio")]);
    fio(&[&format!("--read_iolog={}", at("back"))]);
    let (code, value) = json(&[
        "replay",
        &at("ublk"),
        &at("ours"),
        "--write",
        "--fill",
        "0xab",
        "--speed",
        "max",
    ]);
    assert_eq!(code, Some(0), "{value}");
    assert!(
        fs::read(at("fio")).unwrap() == recorded,
        "fio replayed something else"
    );
    assert!(
        fs::read(at("ours")).unwrap() == recorded,
        "replay wrote something else"
    );
}

#[test]
fn a_measurement_a_sweep_and_a_comparison_have_figures() {
    let (dir, disk) = place();
    let svg = dir.path().join("x.svg").display().to_string();
    let quick = ["--time", "1", "--warm-up", "0", "-d", "4"];
    let (code, value) = json(&[&["bench", &disk, "--svg", &svg], &quick[..]].concat());
    assert_eq!(code, Some(0), "{value}");
    let run = &value["runs"][0];
    assert_eq!(
        (&run["size"], &run["depth"], &run["rw"]),
        (
            &Value::from(4096),
            &Value::from(4),
            &Value::from("randread")
        )
    );
    assert!(
        run["iops"].as_f64().unwrap() > 10.0
            && run["read"]["p999"].is_u64()
            && run["write"].is_null()
    );
    assert!(
        fs::read_to_string(&svg)
            .unwrap()
            .contains("Latency by percentile")
    );
    let other = dir.path().join("other").display().to_string();
    fs::copy(&disk, &other).unwrap();
    let (code, value) = json(&[&["bench", &disk, "--compare", &other], &quick[..]].concat());
    assert_eq!(code, Some(0), "{value}");
    let found = &value["comparison"];
    assert!(
        found["noise"].is_f64() && found["a"]["iops"].is_f64() && found["significant"].is_boolean(),
        "{value}"
    );
    let (code, value) = json(&[
        "bench",
        &disk,
        "--sweep",
        "size",
        "--time",
        "1",
        "--warm-up",
        "0",
        "--rw",
        "read",
    ]);
    assert_eq!(code, Some(0), "{value}");
    let sizes: Vec<_> = value["runs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|run| run["size"].as_u64().unwrap())
        .collect();
    assert_eq!(sizes, [4096, 16_384, 65_536, 262_144, 1 << 20]);
    assert!(value.get("error").is_none(), "{value}");
    let (code, value) = json(&[&["bench", &disk, "--svg", "/dev/full"], &quick[..]].concat());
    assert_eq!(code, Some(1), "{value}");
    assert!(
        value["runs"][0]["iops"].is_f64() && value["error"]["exit_code"] == 1,
        "{value}"
    );
}

#[test]
fn bad_targets_are_told() {
    let (dir, disk) = place();
    let small = dir.path().join("small").display().to_string();
    fs::write(&small, [0; 100]).unwrap();
    let empty = dir.path().join("empty").display().to_string();
    fs::write(&empty, []).unwrap();
    let directory = dir.path().display().to_string();
    // Without the driver there is no device, and that is what to cure.
    let absent = json(&["stats", "1048570"]).0.unwrap();
    let trace = iolog(dir.path());
    for (args, code, words) in [
        (vec!["bench", "/no/such/disk"], 1, "No such file"),
        (vec!["bench", "no-such-disk"], 1, "No such file"),
        (vec!["bench", "1048570"], absent, "ublk"),
        (vec!["replay", &trace, "/dev/ublkb1048570"], absent, "ublk"),
        (vec!["bench", &disk, "--span", "1T"], 2, "--span"),
        (vec!["bench", &disk, "--time", "-1"], 2, "from 0.1 to 3600"),
        (
            vec!["bench", &disk, "--svg", &directory],
            1,
            "is a directory",
        ),
        (
            vec!["bench", "/dev/null"],
            2,
            "neither a file nor a block device",
        ),
        (vec!["bench", &empty], 2, "is empty"),
        (vec!["bench", &small, "--buffered"], 2, "do not fit"),
        (vec!["bench", &disk, "--size", "1000"], 2, "multiple of 512"),
        (
            vec!["bench", &disk, "--size", "16M", "-d", "1024"],
            2,
            "memory",
        ),
        (vec!["replay", "/no/such/trace", &disk], 1, "No such file"),
        (vec!["replay", &small, &disk], 1, "unknown format"),
        (vec!["replay", &disk, &disk, "--speed", "0"], 2, "factor"),
    ] {
        let (found, value) = json(&args);
        let told = value["error"]["message"].as_str().unwrap_or_default();
        assert!(
            found == Some(code) && told.contains(words),
            "{args:?}: {value}"
        );
        assert!(value["error"]["hint"].is_string(), "{args:?}: {value}");
    }
}

/// A command in a terminal of this size: its exit code, all that it wrote, and the last screen.
fn in_terminal(args: &[&str], (rows, columns): (u16, u16)) -> (Option<i32>, String, vt100::Parser) {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_ublkctl"))
        .args(args)
        .env("LC_ALL", "C.UTF-8")
        .env("TERM", "xterm")
        .stdin(slave.try_clone().unwrap())
        .stdout(slave.try_clone().unwrap())
        .stderr(slave)
        .spawn()
        .unwrap();
    let mut master = File::from(master);
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut buf = [0; 4096];
        // EIO once nobody has the other side open.
        while let Ok(n) = master.read(&mut buf) {
            bytes.extend(&buf[..n]);
        }
        bytes
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                panic!("{args:?} does not end");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let bytes = reader.join().unwrap();
    let (rows, columns) = (NonZero::new(rows).unwrap(), NonZero::new(columns).unwrap());
    let mut parser = vt100::Parser::new(rows, columns, 100);
    parser.process(&bytes);
    (
        status.code(),
        String::from_utf8_lossy(&bytes).into_owned(),
        parser,
    )
}

/// A line without what differs from run to run: numbers, units, bars.
fn shape(line: &str) -> String {
    let unit = |word: &str| {
        let word = word.strip_suffix("/s").unwrap_or(word);
        ["ns", "µs", "ms", "s", "k", "M", "B", "KiB", "MiB", "GiB"].contains(&word)
    };
    let number = |word: &str| word.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let mut words: Vec<&str> = Vec::new();
    for word in line.split_whitespace() {
        match word {
            word if number(word) => words.push("#"),
            word if unit(word) && words.last() == Some(&"#") => {}
            word if word.starts_with('█') => {}
            word => words.push(word),
        }
    }
    words.join(" ")
}

/// What `bench` leaves on a screen of 80 by 24: rate, percentiles, histogram, and no rest of the progress bar.
#[test]
fn bench_fits_a_terminal() {
    let (_dir, disk) = place();
    let args = ["bench", &disk, "--time", "2", "--warm-up", "1", "-d", "4"];
    let (code, all, parser) = in_terminal(&args, (24, 80));
    assert_eq!(code, Some(0), "{all}");
    assert!(all.contains("in flight ["), "no progress: {all}");
    let lines: Vec<String> = parser
        .screen()
        .contents()
        .lines()
        .map(str::to_owned)
        .collect();
    let mut shapes: Vec<String> = lines.iter().map(|line| shape(line)).collect();
    // Rows of the histogram look the same; warnings before the figures come and go.
    shapes.dedup();
    let begin = shapes
        .iter()
        .position(|line| line.contains("in flight"))
        .expect("the first line");
    let wanted = [
        format!("{disk}: # reads at random, # in flight"),
        "# requests/s # unsteadiness # % own CPU # %".to_owned(),
        String::new(),
        "LATENCY MEAN MIN P50 P90 P99 P99.9 MAX".to_owned(),
        "read # # # # # # #".to_owned(),
        String::new(),
        "# – # # %".to_owned(),
    ];
    assert_eq!(shapes[begin..], wanted, "{}", parser.screen().contents());
    for row in 0..24 {
        let warning = lines
            .get(usize::from(row))
            .is_some_and(|l| l.contains("WARN"));
        assert!(
            !parser.screen().row_wrapped(row) || warning,
            "row {row} is too long:\n{}",
            parser.screen().contents()
        );
    }
}

/// A terminal of 20 by 5 has no room for bars and tables: a figure in each line, and no progress.
#[test]
fn bench_in_a_tiny_terminal() {
    let (_dir, disk) = place();
    let args = ["bench", &disk, "--time", "1", "--warm-up", "0"];
    let (code, all, _) = in_terminal(&args, (5, 20));
    assert_eq!(code, Some(0), "{all}");
    assert!(
        !all.contains("in flight [") && all.contains(" p99 "),
        "{all}"
    );
    for line in all
        .lines()
        .filter(|l| !l.contains("WARN") && !l.contains("in flight"))
    {
        assert!(line.trim_end().chars().count() <= 24, "{line}");
    }
    // Without a terminal there is no progress either, and nothing that only a terminal understands.
    let output = ublkctl(&args);
    assert!(output.status.success());
    assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b));
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("LATENCY")
    );
}
