//! One run of fio.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// Runs fio on a device for `ios` I/Os per job and returns the number of I/Os that fio reports.
///
/// # Errors
/// fio cannot be started, ends with a status other than 0, or does not report the number.
pub fn run(arguments: &[String], device: &str, ios: u64) -> Result<u64> {
    let text = output(arguments, device, &[format!("--number_ios={ios}")])?;
    issued(&text).with_context(|| format!("fio does not say what it did: {}", text.trim()))
}

/// Runs fio on a device for some seconds, with half a second of ramp-up, and returns the sum over all jobs.
///
/// # Errors
/// As for [`run`].
pub fn timed(arguments: &[String], device: &str, seconds: u64) -> Result<Value> {
    let more = [
        "--time_based".to_owned(),
        format!("--runtime={seconds}"),
        "--ramp_time=500ms".to_owned(),
        "--group_reporting".to_owned(),
        // From submission on: on a busy machine a request may complete before its submission returns.
        "--lat_percentiles=1".to_owned(),
        "--clat_percentiles=0".to_owned(),
        "--percentile_list=50:99:99.9".to_owned(),
        "--output-format=json".to_owned(),
    ];
    let text = output(arguments, device, &more)?;
    // fio may print notes before the JSON.
    let start = text.find('{').context("fio printed no JSON")?;
    let all: Value = serde_json::from_str(&text[start..]).context("JSON of fio")?;
    summary(&all).with_context(|| format!("fio does not say what it did: {all}"))
}

fn output(arguments: &[String], device: &str, more: &[String]) -> Result<String> {
    let mut command = Command::new("/usr/bin/fio");
    command
        .args(arguments)
        .arg(format!("--filename={device}"))
        .args(more)
        // Last: the options before it apply to every job.
        .arg("--name=bench")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped());
    let output = command.output().context("fio")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("fio, {}: {} {}", output.status, errors.trim(), text.trim());
    }
    Ok(text)
}

/// The sum of reads and writes in `issued rwts: total=R,W,T,S short=…`, over all jobs.
fn issued(text: &str) -> Option<u64> {
    let lines = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("issued rwts: total="));
    let mut sum = None;
    for line in lines {
        let counts = line.split_whitespace().next()?;
        let both: u64 = counts
            .split(',')
            .take(2)
            .map(|count| count.parse::<u64>().ok())
            .sum::<Option<u64>>()?;
        sum = Some(sum.unwrap_or(0) + both);
    }
    sum
}

/// Reads and writes of a group of jobs; a group either reads or writes.
fn summary(all: &Value) -> Option<Value> {
    let job = all["jobs"].as_array()?.first()?;
    let errors = job["error"].as_i64()?;
    let busy = |side: &&str| job[side]["total_ios"].as_u64().is_some_and(|ios| ios > 0);
    let side = ["read", "write"].into_iter().find(busy)?;
    let latency = &job[side]["lat_ns"]["percentile"];
    Some(json!({
        "side": side,
        "errors": errors,
        "ios": job[side]["total_ios"].as_u64()?,
        "iops": job[side]["iops"].as_f64()?,
        "milliseconds": job[side]["runtime"].as_u64()?,
        "p50_ns": latency["50.000000"].as_u64()?,
        "p99_ns": latency["99.000000"].as_u64()?,
        "p999_ns": latency["99.900000"].as_u64()?,
        "client_switches": job["ctx"].as_u64()?,
    }))
}

#[cfg(test)]
mod tests {
    use super::{issued, summary};
    use serde_json::json;

    #[test]
    fn what_was_issued_is_found() {
        let text = "  cpu : usr=1%\n     issued rwts: total=1000,0,0,0 short=0,0,0,0 dropped=0\n";
        assert_eq!(issued(text), Some(1000));
        assert_eq!(issued(&text.repeat(2)), Some(2000));
        assert_eq!(issued("issued rwts: total=0,7,0,0"), Some(7));
        assert_eq!(issued("issued rwts: total="), None);
        assert_eq!(issued("nothing"), None);
    }

    #[test]
    fn the_busy_side_is_summed_up() {
        let side = json!({"total_ios": 5, "iops": 2.5, "runtime": 2000, "lat_ns": {"percentile":
            {"50.000000": 1, "99.000000": 2, "99.900000": 3}}});
        let mut all = json!({"jobs": [{"error": 0, "ctx": 9, "read": {"total_ios": 0}}]});
        assert_eq!(summary(&all), None);
        all["jobs"][0]["write"] = side;
        let sum = summary(&all).unwrap();
        assert_eq!((&sum["side"], &sum["ios"]), (&json!("write"), &json!(5)));
        assert_eq!((&sum["p50_ns"], &sum["p999_ns"]), (&json!(1), &json!(3)));
    }
}
