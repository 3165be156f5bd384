//! Runs fio and accepts its result only if it is complete.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::run;
use crate::wait::secs;

/// A run of fio.
#[derive(Debug, Clone, Default)]
pub struct Fio {
    args: Vec<String>,
}

/// The result of a run, summed over its jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// Number of jobs with a result.
    pub jobs: usize,
    /// Bytes read, including those for verification.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Number of reads.
    pub reads: u64,
    /// Number of writes.
    pub writes: u64,
    /// Number of trims.
    pub trims: u64,
    /// Bytes trimmed.
    pub trimmed: u64,
    /// Nanoseconds from the submission of a read to its completion, of the last job: the median, nine in ten, 99 %.
    pub reads_took: [u64; 3],
}

impl Fio {
    /// A run on a file or device with direct I/O that ends at the first error.
    pub fn new(file: &str) -> Self {
        let args = [
            "--name=job",
            &format!("--filename={file}"),
            "--direct=1",
            "--ioengine=libaio",
            "--output-format=json",
            "--group_reporting=0",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--randseed=7",
            "--allrandrepeat=1",
        ];
        Self {
            args: args.iter().map(|w| (*w).to_owned()).collect(),
        }
    }

    /// Adds `--name=value`.
    pub fn set(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.args.push(format!("--{name}={value}"));
        self
    }

    /// Runs it; every job must end without an error, and there must be `jobs` of them.
    pub fn run(&self, jobs: usize) -> Result<Done> {
        let output = run::output(Command::new("fio").args(&self.args), secs(120))?.good()?;
        let done = parse(&output.stdout).with_context(|| output.to_string())?;
        ensure!(done.jobs == jobs, "{} jobs answered: {output}", done.jobs);
        Ok(done)
    }
}

/// Parses fio's JSON. fio may print notes before it.
fn parse(text: &str) -> Result<Done> {
    let start = text.find('{').context("no JSON")?;
    let value: Value = serde_json::from_str(&text[start..])?;
    let jobs = value
        .get("jobs")
        .and_then(Value::as_array)
        .context("no jobs")?;
    let mut done = Done::default();
    for job in jobs {
        let number = |path: &str| job.pointer(path).and_then(Value::as_u64);
        let error = number("/error").context("a job without `error`")?;
        ensure!(error == 0, "a job failed with errno {error}");
        let failed = number("/total_err").unwrap_or(0);
        ensure!(failed == 0, "{failed} I/O errors");
        done.jobs += 1;
        done.read += number("/read/io_bytes").context("no bytes read")?;
        done.written += number("/write/io_bytes").context("no bytes written")?;
        done.reads += number("/read/total_ios").unwrap_or(0);
        done.writes += number("/write/total_ios").unwrap_or(0);
        done.trims += number("/trim/total_ios").unwrap_or(0);
        done.trimmed += number("/trim/io_bytes").unwrap_or(0);
        let percentile = |name| number(&format!("/read/clat_ns/percentile/{name}.000000"));
        done.reads_took = [50, 90, 99].map(|name| percentile(name).unwrap_or(0));
    }
    ensure!(
        done.read + done.written + done.trimmed > 0,
        "fio did nothing"
    );
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"note: both iodepth >= 1 and synchronous I/O engine
        {"fio version": "fio-3.39", "jobs": [
        {"error": 0, "read": {"io_bytes": 100}, "write": {"io_bytes": 200}},
        {"error": 0, "read": {"io_bytes": 1}, "write": {"io_bytes": 2}}]}"#;

    /// L90 An error, a missing field, a run that did nothing: none passes.
    #[test]
    fn l90_errors_of_fio_are_seen() {
        let done = parse(GOOD).expect("a good run");
        let wanted = Done {
            jobs: 2,
            read: 101,
            written: 202,
            ..Done::default()
        };
        assert_eq!(done, wanted);
        for (from, to) in [
            (
                r#"{"error": 0, "read": {"io_bytes": 1}"#,
                r#"{"error": 84, "read": {"io_bytes": 1}"#,
            ),
            (
                r#""error": 0, "read": {"io_bytes": 1}"#,
                r#""read": {"io_bytes": 1}"#,
            ),
            (
                r#""error": 0, "read": {"io_bytes": 1}"#,
                r#""error": 0, "total_err": 3, "read": {"io_bytes": 1}"#,
            ),
            (r#""jobs""#, r#""works""#),
            (r#"{"io_bytes": 2}}]}"#, r#"{"io_bytes": 2}}"#),
            (r#""write": {"io_bytes": 2}"#, r#""write": {}"#),
        ] {
            let text = GOOD.replace(from, to);
            assert_ne!(text, GOOD, "{from}");
            assert!(parse(&text).is_err(), "{to}");
        }
        let idle = GOOD
            .replace("100", "0")
            .replace("200", "0")
            .replace(": 1}", ": 0}");
        assert!(parse(&idle.replace(": 2}", ": 0}")).is_err());
        assert!(parse("fio: no JSON at all").is_err());
    }

    /// L90 The real fio, if installed, on a file: a good run passes, and a byte changed behind its back is detected.
    #[test]
    fn l90_fio_finds_a_changed_byte() {
        if run::good("fio", &["--version"]).is_err() {
            eprintln!("SKIP l90_fio_finds_a_changed_byte: no fio on this host");
            return;
        }
        let path = std::env::temp_dir().join(format!("ublk-e2e-fio-{}", std::process::id()));
        let file = path.to_str().expect("plain").to_owned();
        let fio = Fio::new(&file)
            .set("direct", 0)
            .set("size", "256k")
            .set("bs", "4k")
            .set("iodepth", 8)
            .set("verify", "crc32c");
        let write = fio.clone().set("rw", "write").set("do_verify", 1).run(1);
        let change = std::fs::read(&path).map(|mut data| {
            data[70_000] ^= 4;
            std::fs::write(&path, data)
        });
        let verify = fio.set("rw", "read").set("verify_only", 1).run(1);
        let _ = std::fs::remove_file(&path);
        let done = write.expect("a plain file keeps data");
        assert_eq!(done.written, 256 << 10);
        change.expect("readable").expect("writable");
        assert!(verify.is_err(), "{verify:?}");
    }
}
