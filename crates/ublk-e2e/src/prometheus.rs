//! `ublk-e2e --prometheus RULES DASHBOARD`: Prometheus itself judges what the exporter tells, the alert rules and the
//! dashboard. `promtool` checks the exposition and the rules; a Prometheus scrapes three devices that work, evaluates every
//! expression of the dashboard and every rule, and fires the alerts of devices that lose their server and their storage.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cli::{self, Spec};
use crate::direct_io::{Buffer, Direct};
use crate::wait::{secs, until};
use crate::{json, run};

const EXPORTER: &str = "127.0.0.1:9618";
const PROMETHEUS: &str = "127.0.0.1:9090";

/// How long Prometheus may take for what it does every second, under emulation.
const LIMIT: Duration = secs(120);

/// A process that ends with this.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let name = format!("{command:?}");
        let command = command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Self(command.spawn().context(name)?))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs all of it; the result is a line for people.
pub fn judge(args: &[String]) -> Result<String> {
    let [rules, dashboard] = args else {
        bail!("--prometheus RULES DASHBOARD");
    };
    let place = std::env::temp_dir().join(format!("ublk-prometheus-{}", std::process::id()));
    fs::create_dir_all(&place)?;
    let latencies = ["--metrics", "latencies"];
    let null = Spec::null("16M").with(&latencies);
    let null = null
        .with(&["--recovery", "queue", "--name", "fast"])
        .add()?;
    let mem = Spec::mem("4M").queues(2).with(&latencies).add()?;
    let image = place.join("disk");
    fs::File::create(&image)?.set_len(4 << 20)?;
    let socket = place.join("nbd.sock").display().to_string();
    let mut server = Command::new("qemu-nbd");
    server.args(["--persistent", "--format=raw", "--socket", &socket]);
    let server = Running::start(server.arg(&image))?;
    until("the NBD server", secs(20), || {
        Ok(Path::new(&socket).exists().then_some(()))
    })?;
    let uri = format!("nbd+unix:///?socket={socket}");
    let nbd = cli::ublkctl_json(&[
        "add",
        "nbd",
        &uri,
        "--retry",
        "never",
        "--metrics",
        "latencies",
    ])?;
    let nbd = json::text(&nbd, "path")?;
    let load = Load::start(&[null.node(), mem.node(), &nbd]);
    let _exporter = Running::start(&mut cli::command(&["exporter", "--listen", EXPORTER]))?;
    let text = until("the exporter's answer", secs(20), || {
        Ok(get(EXPORTER, "/metrics").ok())
    })?;
    promtool(&["check", "rules", rules], "")?;
    promtool(&["check", "metrics"], &text)?;
    let _prometheus = prometheus(&place, rules)?;
    let expressions = expressions(dashboard)?;
    let series = scraped()?;
    drop(server);
    null.kill_server("quiesced")?;
    for expression in &expressions {
        answer(expression).with_context(|| expression.clone())?;
    }
    let rules = healthy_rules()?;
    for alert in ["UblkServerGone", "UblkNbdDegraded", "UblkErrors"] {
        // Pending alerts count: the rules wait for minutes before they fire.
        answer(&format!("ALERTS{{alertname=\"{alert}\"}}")).context(alert)?;
    }
    load.end();
    cli::ublkctl(&["delete", &null.id.to_string(), "--force"])?.good()?;
    // It fails as well as succeeds: what was written last is lost with the NBD server.
    cli::ublkctl(&["delete", &nbd, "--force"])?;
    ensure!(!Path::new(&nbd).exists(), "{nbd} is still there");
    null.forget();
    mem.delete()?;
    fs::remove_dir_all(&place)?;
    Ok(format!(
        "promtool accepts {} metrics and {rules} rules; Prometheus has {series} series, {} expressions of the dashboard and \
         3 alerts have values",
        text.lines()
            .filter(|line| line.starts_with("# TYPE"))
            .count(),
        expressions.len()
    ))
}

/// Reads of all devices, on and on, whatever becomes of them.
struct Load(Arc<AtomicBool>, Vec<std::thread::JoinHandle<()>>);

impl Load {
    fn start(nodes: &[&str]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let of = |node: &&str| {
            let (node, over) = ((*node).to_owned(), Arc::clone(&over));
            std::thread::spawn(move || {
                let mut buffer = Buffer::new(4096);
                while !over.load(Ordering::Relaxed) {
                    if let Ok(device) = Direct::open(Path::new(&node)) {
                        use std::os::unix::fs::FileExt;
                        let _ = device.file().read_exact_at(buffer.bytes_mut(), 0);
                        let _ = device.file().write_all_at(buffer.bytes(), 4096);
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        };
        let threads = nodes.iter().map(of).collect();
        Self(over, threads)
    }

    /// Ends the reads. One that waits for a dead server ends with its device.
    fn end(self) {
        self.0.store(true, Ordering::Relaxed);
        drop(self.1);
    }
}

/// Runs promtool, which must accept the input.
fn promtool(args: &[&str], input: &str) -> Result<()> {
    let path = std::env::temp_dir().join("promtool-input");
    fs::write(&path, input)?;
    let mut command = Command::new("promtool");
    command.args(args).stdin(fs::File::open(&path)?);
    let output = run::output(&mut command, LIMIT)?;
    let all = format!("{}{}", output.stdout, output.stderr);
    // What it only advises is an error here.
    ensure!(output.good().is_ok(), "promtool {}: {all}", args.join(" "));
    Ok(())
}

/// Starts a Prometheus that scrapes the exporter and evaluates the rules every second.
fn prometheus(place: &Path, rules: &str) -> Result<Running> {
    let config = place.join("prometheus.yml");
    let text = format!(
        "global:\n  scrape_interval: 1s\n  evaluation_interval: 1s\nrule_files: [{rules:?}]\n\
         scrape_configs:\n  - job_name: ublk\n    static_configs:\n      - targets: [{EXPORTER:?}]\n"
    );
    fs::write(&config, text)?;
    let mut command = Command::new("prometheus");
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!(
        "--storage.tsdb.path={}",
        place.join("tsdb").display()
    ));
    command.arg(format!("--web.listen-address={PROMETHEUS}"));
    Running::start(command.arg("--log.level=error"))
}

/// Waits until Prometheus has scraped the exporter a few times without an error; the number of series.
fn scraped() -> Result<u64> {
    answer("up{job=\"ublk\"} == 1")?;
    answer("count_over_time(ublk_server_up[1m]) >= 4")?;
    let count = answer("count({__name__=~\"ublk_.+\"})")?;
    let value = count.pointer("/0/value/1").and_then(Value::as_str);
    let value: u64 = value.context("a count")?.parse()?;
    ensure!(value > 100, "{value} series");
    Ok(value)
}

/// What Prometheus answers to an expression once it has a value for it.
fn answer(expression: &str) -> Result<Value> {
    let path = format!("/api/v1/query?query={}", encoded(expression));
    let mut last = String::new();
    let found = until("a value", LIMIT, || {
        std::thread::sleep(Duration::from_millis(200));
        let Ok(text) = get(PROMETHEUS, &path) else {
            return Ok(None);
        };
        let reply: Value = serde_json::from_str(&text).context(text.clone())?;
        ensure!(json::text(&reply, "status")? == "success", "{text}");
        let result = reply.pointer("/data/result").context("no result")?.clone();
        last = text;
        let some = result.as_array().is_some_and(|it| !it.is_empty());
        Ok(some.then_some(result))
    });
    found.with_context(|| format!("{expression}: {last}"))
}

/// The number of rules, which Prometheus has evaluated without an error.
fn healthy_rules() -> Result<usize> {
    until("all rules evaluated", LIMIT, || {
        let reply: Value = serde_json::from_str(&get(PROMETHEUS, "/api/v1/rules")?)?;
        let rules = reply.pointer("/data/groups/0/rules");
        let rules = rules.and_then(Value::as_array).context("no rules")?;
        for rule in rules {
            let error = rule.get("lastError").and_then(Value::as_str);
            ensure!(error.is_none_or(str::is_empty), "{rule}");
        }
        let is_ok = |rule: &Value| rule.get("health").and_then(Value::as_str) == Some("ok");
        Ok(rules.iter().all(is_ok).then_some(rules.len()))
    })
}

/// The expressions of the dashboard's panels, for all devices.
fn expressions(dashboard: &str) -> Result<Vec<String>> {
    fn collect(value: &Value, into: &mut Vec<String>) {
        match value {
            Value::Array(all) => all.iter().for_each(|it| collect(it, into)),
            Value::Object(all) => {
                for (key, value) in all {
                    match value.as_str().filter(|_| key == "expr") {
                        Some(text) => into.push(
                            text.replace("$device", ".+")
                                .replace("$__rate_interval", "30s"),
                        ),
                        None => collect(value, into),
                    }
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    collect(
        &serde_json::from_str(&fs::read_to_string(dashboard)?)?,
        &mut found,
    );
    ensure!(found.len() > 10, "{} expressions", found.len());
    let left = found.iter().find(|it| it.contains('$'));
    ensure!(left.is_none(), "an unknown variable: {left:?}");
    Ok(found)
}

/// The body of a page.
fn get(address: &str, path: &str) -> Result<String> {
    let address: SocketAddr = address.parse()?;
    let mut stream = TcpStream::connect_timeout(&address, secs(5))?;
    stream.set_read_timeout(Some(secs(30)))?;
    // HTTP/1.0: the body comes in one piece.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    let (head, body) = reply.split_once("\r\n\r\n").context("no body")?;
    let status = head.split(' ').nth(1);
    ensure!(status == Some("200"), "{path}: {reply}");
    Ok(body.to_owned())
}

/// Percent-encodes a query.
fn encoded(text: &str) -> String {
    let byte = |b: u8| match b.is_ascii_alphanumeric() {
        true => char::from(b).to_string(),
        false => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::{encoded, expressions};

    #[test]
    fn expressions_of_the_dashboard_are_found_whole() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/grafana-dashboard.json"
        );
        let text = std::fs::read_to_string(path).expect("the dashboard");
        let found = expressions(path).expect("expressions");
        assert_eq!(found.len(), text.matches("\"expr\":").count());
        assert!(found.iter().any(|it| it.contains("[30s]")));
    }

    #[test]
    fn queries_are_encoded() {
        assert_eq!(encoded("a{b=\"ü\"}"), "a%7Bb%3D%22%C3%BC%22%7D");
    }
}
