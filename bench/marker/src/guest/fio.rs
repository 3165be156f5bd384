//! One run of fio.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs fio on a device for `ios` I/Os and says how many it did by its own account.
///
/// # Errors
/// fio cannot be started, ends with another status than 0, or does not say how many.
pub fn run(arguments: &[String], device: &str, ios: u64) -> Result<u64> {
    let mut command = Command::new("/usr/bin/fio");
    command
        .args(arguments)
        .arg(format!("--filename={device}"))
        .arg(format!("--number_ios={ios}"))
        // Last: the options before it hold for every job.
        .arg("--name=bench")
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped());
    let output = command.output().context("fio")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("fio, {}: {} {}", output.status, errors.trim(), text.trim());
    }
    issued(&text).with_context(|| format!("fio does not say what it did: {}", text.trim()))
}

/// The sum of reads and writes in `issued rwts: total=R,W,T,S short=…`.
fn issued(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("issued rwts: total="))?;
    let counts = line.split_whitespace().next()?;
    counts
        .split(',')
        .take(2)
        .map(|count| count.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::issued;

    #[test]
    fn what_was_issued_is_found() {
        let text = "  cpu : usr=1%\n     issued rwts: total=1000,0,0,0 short=0,0,0,0 dropped=0\n";
        assert_eq!(issued(text), Some(1000));
        assert_eq!(issued("issued rwts: total=0,7,0,0"), Some(7));
        assert_eq!(issued("issued rwts: total="), None);
        assert_eq!(issued("nothing"), None);
    }
}
