//! `trace` and `trace convert`: figures, pictures, formats, and files that are cut, hostile, or on a full disk.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn ublkctl(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ublkctl"))
        .args(args)
        .output()
        .unwrap()
}

fn json(args: &[&str]) -> (Option<i32>, Value) {
    let output = ublkctl(&[args, &["--json"]].concat());
    let value = serde_json::from_slice(&output.stdout).expect("one JSON value");
    (output.status.code(), value)
}

/// An iolog: reads in sequence, writes at random, a sync now and then.
fn iolog(path: &Path, file: &str) {
    let mut text = format!("fio version 3 iolog\n0 {file} add\n0 {file} open\n");
    for i in 0..2000_u64 {
        let line = match i % 20 {
            19 => format!("{} {file} sync 0 0\n", i * 10),
            n if n % 2 == 0 => format!("{} {file} read {} 4096\n", i * 10, i / 2 % 256 * 4096),
            _ => format!("{} {file} write {} 8192\n", i * 10, i * 7919 % 127 * 8192),
        };
        text += &line;
    }
    text += &format!("20000 {file} close\n");
    fs::write(path, text).unwrap();
}

#[test]
fn figures_are_the_same_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    iolog(Path::new(&at("log")), "f");
    let (code, converted) = json(&["trace", "convert", &at("log"), &at("ublk"), "--to", "ublk"]);
    assert_eq!(
        (code, &converted["requests"]),
        (Some(0), &Value::from(2000)),
        "{converted}"
    );
    let (code, _) = json(&[
        "trace",
        "convert",
        &at("ublk"),
        &at("again"),
        "--to",
        "iolog",
        "--target",
        "f",
    ]);
    assert_eq!(code, Some(0));
    // Both came from the times and places of the first one.
    let lines = |name: &str| {
        fs::read_to_string(at(name))
            .unwrap()
            .lines()
            .filter(|l| !l.ends_with("close"))
            .count()
    };
    assert_eq!(lines("log"), lines("again"));
    let mut figures: Vec<Value> = ["log", "ublk", "again"]
        .iter()
        .map(|name| json(&["trace", &at(name)]).1)
        .collect();
    for value in &mut figures {
        value["file"] = Value::Null;
        value["format"] = Value::Null;
    }
    assert_eq!(figures[0], figures[1]);
    assert_eq!(figures[1], figures[2]);
    assert_eq!(figures[0]["ops"][0]["requests"], 1000);
    assert!(figures[0]["ops"][0]["sequential"].as_f64().unwrap() > 0.99);
    assert!(fs::metadata(at("ublk")).unwrap().len() * 2 < fs::metadata(at("log")).unwrap().len());
}

#[test]
fn text_fits_a_terminal_and_the_picture_is_svg() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    iolog(Path::new(&at("log")), "f");
    let output = ublkctl(&["trace", &at("log"), "--svg", &at("x.svg")]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    for word in ["requests     2000", "working set", "flush", "SEQUENTIAL"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    let figures = text.lines().skip(1).filter(|l| !l.starts_with("picture"));
    for line in figures {
        assert!(
            line.chars().count() <= 80,
            "{} columns: {line}",
            line.chars().count()
        );
    }
    assert!(fs::read_to_string(at("x.svg")).unwrap().starts_with("<svg"));
    assert!(
        !ublkctl(&["trace", &at("log"), "--svg", "/dev/full"])
            .status
            .success()
    );
}

/// A trace that was cut off is read up to its last whole block, with a warning; one that makes no sense is an error.
#[test]
fn bad_files_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    iolog(Path::new(&at("log")), "f");
    json(&["trace", "convert", &at("log"), &at("ublk"), "--to", "ublk"]);
    let whole = fs::read(at("ublk")).unwrap();
    fs::write(at("cut"), &whole[..whole.len() - 50]).unwrap();
    let (code, value) = json(&["trace", &at("cut")]);
    assert_eq!(
        (code, &value["requests"]),
        (Some(0), &Value::from(1024)),
        "{value}"
    );
    assert!(
        value["warnings"][0]
            .as_str()
            .unwrap()
            .contains("ends early"),
        "{value}"
    );
    // What is not as it was written fails, with the figures of what precedes it, and with one JSON value.
    let mut damaged = whole.clone();
    damaged[whole.len() - 50] ^= 1;
    fs::write(at("damaged"), damaged).unwrap();
    let (code, value) = json(&["trace", &at("damaged")]);
    assert_eq!(
        (code, &value["requests"]),
        (Some(1), &Value::from(1024)),
        "{value}"
    );
    let (code, value) = json(&["trace", &at("log"), "--svg", "/dev/full"]);
    assert_eq!(
        (code, &value["requests"], &value["svg"]),
        (Some(1), &Value::from(2000), &Value::Null),
        "{value}"
    );
    for (name, bytes, message) in [
        ("empty", &b""[..], "the file is empty"),
        ("noise", &[0xff; 5000], "unknown format"),
        ("header", &whole[..20], "header of the trace is damaged"),
        (
            "line",
            b"fio version 3 iolog\n0 f add\n1 f read 0 512\n1 f read 0\n",
            "line 4: the length is missing; what precedes it is sound, 1 request",
        ),
        (
            "old",
            b"fio version 1 iolog\n",
            "version 1 is not supported",
        ),
    ] {
        fs::write(at(name), bytes).unwrap();
        let (code, value) = json(&["trace", &at(name)]);
        let told = value["error"]["message"].as_str().unwrap_or_default();
        assert!(code == Some(1) && told.contains(message), "{name}: {value}");
        assert!(value["error"]["hint"].is_string());
        let (code, _) = json(&["trace", "convert", &at(name), &at("out"), "--to", "ublk"]);
        assert_eq!(code, Some(1), "{name}");
        assert!(!Path::new(&at("out")).exists(), "{name}");
    }
    let (code, value) = json(&["trace", "convert", &at("log"), "/dev/full", "--to", "iolog"]);
    assert_eq!(
        (code, &value["error"]["errno"]),
        (Some(1), &Value::from(28)),
        "{value}"
    );
    let left = fs::read_dir(dir.path()).unwrap().filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .ends_with(".tmp")
    });
    assert_eq!(left.count(), 0);
}

/// What fio recorded, converted to our format and back, fio replays: the same requests, the same bytes.
#[test]
fn fio_replays_a_converted_log() {
    if Command::new("fio").arg("--version").output().is_err() {
        eprintln!("SKIP: no fio on this machine (apt-get install fio)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let fio = |args: &[String]| {
        let output = Command::new("fio")
            .args(["--name=t", "--output-format=json", "--ioengine=psync"])
            .args(args)
            .current_dir(dir.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let begin = text.find('{').expect("JSON");
        let value: Value = serde_json::from_str(&text[begin..]).unwrap();
        let job = &value["jobs"][0];
        let figures = |op: &str| (job[op]["total_ios"].as_u64(), job[op]["io_bytes"].as_u64());
        (figures("read"), figures("write"))
    };
    let disk = at("disk");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let recorded = fio(&[
        format!("--filename={disk}"),
        "--rw=randrw".into(),
        "--bssplit=4k/50:16k/50".into(),
        "--size=1M".into(),
        format!("--write_iolog={}", at("log")),
    ]);
    let (code, _) = json(&["trace", "convert", &at("log"), &at("ublk"), "--to", "ublk"]);
    assert_eq!(code, Some(0));
    let (code, _) = json(&[
        "trace",
        "convert",
        &at("ublk"),
        &at("back"),
        "--to",
        "iolog",
        "--target",
        &disk,
    ]);
    assert_eq!(code, Some(0));
    let replayed = fio(&[
        format!("--read_iolog={}", at("back")),
        "--replay_no_stall=1".into(),
    ]);
    assert_eq!(recorded, replayed);
    let (_, value) = json(&["trace", &at("ublk")]);
    let op = |n: usize| {
        let op = &value["ops"][n];
        (op["requests"].as_u64(), op["bytes"].as_u64())
    };
    assert_eq!((op(0), op(1)), recorded);
}
