use super::*;
use crate::{Level, Operation};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;
use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// A device with a value for every metric.
fn full() -> Device {
    let mut snapshot = Snapshot::new(Level::Latencies, 1_700_000_000_000_000_000, 5);
    for qid in 0..2 {
        let mut queue = QueueSnapshot::new(qid, 0);
        for op in Operation::ALL {
            let op = queue.op_mut(op);
            (op.requests, op.bytes, op.errors) = (10, 40_960, 1);
            op.latency.record(Duration::from_micros(100));
            op.latency.record(Duration::from_secs(60));
            op.backend_ns = 30_000_000_000;
        }
        queue.errnos = vec![(5, 4), (28, 3)];
        queue.in_flight = 3;
        queue.batches.counts[2] = 7;
        queue.batches.requests = 35;
        queue.busy_ns = 1_500_000_000;
        snapshot.queues.push(queue);
    }
    Device {
        name: "a \"name\" with \\ and\nlines".to_owned(),
        agent_up: Some(true),
        nbd: Some(Nbd {
            up: true,
            connections: 1,
            reconnects: 2,
            replayed: 3,
        }),
        ..Device::new("ublkb0", "nbd", snapshot)
    }
}

fn registry() -> Registry {
    let mut registry = Registry::default();
    let gone = || Device {
        device: "ublkb7".to_owned(),
        ..Device::default()
    };
    let devices = move || vec![full(), gone()];
    registry.register_collector(Box::new(Collector::new(devices)));
    registry
}

fn exposition() -> String {
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry()).expect("a string");
    text
}

/// Names of all samples.
fn names() -> BTreeSet<String> {
    let text = exposition();
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let name = |line: &str| line.split(['{', ' ']).next().unwrap_or_default().to_owned();
    samples.map(name).collect()
}

#[test]
fn values_are_those_of_the_snapshot() {
    let text = exposition();
    let labels = r#"device="ublkb0",name="a \"name\" with \\ and\nlines",backend="nbd""#;
    for wanted in [
        format!("ublk_server_up{{{labels}}} 1"),
        "ublk_server_up{device=\"ublkb7\",name=\"\",backend=\"\"} 0".to_owned(),
        format!("ublk_reads_completed_total{{{labels},queue=\"1\"}} 10"),
        format!("ublk_written_bytes_total{{{labels},queue=\"0\"}} 40960"),
        format!("ublk_io_now{{{labels},queue=\"0\"}} 3"),
        format!("ublk_errors_total{{{labels},op=\"flush\"}} 2"),
        format!("ublk_errnos_total{{{labels},errno=\"28\"}} 6"),
        format!("ublk_queue_busy_seconds_total{{{labels},queue=\"0\"}} 1.5"),
        format!("ublk_request_duration_seconds_count{{{labels},op=\"read\"}} 4"),
        format!("ublk_request_duration_seconds_bucket{{{labels},op=\"read\",le=\"+Inf\"}} 4"),
        format!(
            "ublk_request_duration_seconds_bucket{{{labels},op=\"read\",le=\"0.000131072\"}} 2"
        ),
        format!("ublk_backend_time_seconds_total{{{labels},op=\"read\"}} 60"),
        format!("ublk_batch_size_bucket{{{labels},le=\"7\"}} 14"),
        format!("ublk_batch_size_sum{{{labels}}} 70"),
        format!("ublk_nbd_reconnects_total{{{labels}}} 2"),
        format!("ublk_server_start_time_seconds{{{labels}}} 1700000000"),
    ] {
        let found = text.lines().any(|line| {
            // Floating point may have a fraction of zero.
            line == wanted || line.strip_suffix(".0") == Some(&wanted)
        });
        assert!(found, "{wanted}\n{text}");
    }
    assert!(!text.contains("ublkb7\",name=\"\",backend=\"\",queue"));
}

/// OpenMetrics ends with its mark, and each family comes once.
#[test]
fn openmetrics_is_whole() {
    let mut text = String::new();
    text::encode(&mut text, &registry()).expect("a string");
    assert!(text.ends_with("# EOF\n"));
    let types: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("# TYPE"))
        .collect();
    let once: BTreeSet<_> = types.iter().collect();
    assert_eq!(once.len(), types.len());
}

/// `promtool`, where `cargo xtask` unpacks it or in PATH.
fn promtool() -> Option<PathBuf> {
    let unpacked = "../../target/vm/tools/prometheus/usr/bin";
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join(unpacked);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = std::iter::once(unpacked).chain(std::env::split_paths(&path));
    all.find_map(|dir| Some(dir.join("promtool")).filter(|file| file.is_file()))
}

/// Prometheus's own checker accepts the exposition and the alert rules, and refuses what is wrong.
#[test]
fn promtool_accepts_metrics_and_rules() {
    let Some(promtool) = promtool() else {
        eprintln!(
            "SKIP promtool_accepts_metrics_and_rules: no promtool here; `cargo xtask vm-shell` unpacks it"
        );
        return;
    };
    let check = |text: &str| {
        let mut command = Command::new(&promtool);
        let child = command.args(["check", "metrics"]).stdin(Stdio::piped());
        let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.expect("promtool");
        let mut input = child.stdin.take().expect("a pipe");
        input.write_all(text.as_bytes()).expect("it reads");
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (output.status.success() && said.is_empty(), said)
    };
    let (good, said) = check(&exposition());
    assert!(good, "{said}");
    assert!(
        !check("ublk_reads 1\nublk_reads 2\n").0,
        "it checks nothing"
    );
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/prometheus-alerts.yml");
    let output = Command::new(&promtool)
        .args(["check", "rules"])
        .arg(rules)
        .output();
    let output = output.expect("promtool");
    assert!(output.status.success(), "{output:?}");
}

/// A metric's name without the suffixes of a histogram's samples.
fn words(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let all = text
        .split(|c| !word(c))
        .filter(|it| it.starts_with("ublk_"));
    all.map(str::to_owned).collect()
}

/// Each metric that the dashboard, the alert rules and the documentation name exists, and the documentation names all.
#[test]
fn documents_name_metrics_that_exist() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let read = |name: &str| std::fs::read_to_string(docs.join(name)).expect("a document");
    let names = names();
    let base = |name: &String| {
        let histogram = ["_bucket", "_sum", "_count"];
        let base = histogram.iter().find_map(|end| name.strip_suffix(end));
        base.unwrap_or(name).to_owned()
    };
    let bases: BTreeSet<_> = names.iter().map(base).collect();
    // Crates and files of the project that begin alike.
    let others = ["ublk_drv", "ublk_metrics", "ublk_cmd"];
    for document in [
        "grafana-dashboard.json",
        "prometheus-alerts.yml",
        "observability.md",
    ] {
        let used = words(&read(document));
        let unknown: Vec<_> = used
            .iter()
            .filter(|name| !names.contains(*name) && !bases.contains(*name))
            .filter(|name| !others.contains(&name.as_str()))
            .collect();
        assert!(
            unknown.is_empty(),
            "{document} names what no device has: {unknown:?}"
        );
        assert!(!used.is_empty(), "{document}");
    }
    let documented = words(&read("observability.md"));
    let missing: Vec<_> = bases.difference(&documented).collect();
    assert!(
        missing.is_empty(),
        "docs/observability.md lacks {missing:?}"
    );
}
