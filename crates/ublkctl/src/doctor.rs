//! `doctor`: what keeps ublk devices from being made here, and the one line that mends it.

use serde::Serialize;
use std::path::Path;
use std::time::Duration;
use ublk_ctrl::probe::{self, Finding, Status};
use ublk_daemon::front;

/// One check, as it is printed.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub check: String,
    /// `ok`, `warn` or `fail`.
    pub status: &'static str,
    /// What was found.
    pub detail: String,
    /// What to do.
    pub fix: Option<String>,
}

impl From<Finding> for Check {
    fn from(finding: Finding) -> Self {
        Self {
            check: finding.check.to_string(),
            status: match finding.status {
                Status::Good => "ok",
                Status::Warning => "warn",
                Status::Bad => "fail",
            },
            detail: finding.detail,
            fix: finding.fix,
        }
    }
}

/// Makes every check.
pub fn look(program: &Path, within: Duration) -> Vec<Check> {
    let root = Path::new("/");
    let mut checks: Vec<Check> = [
        probe::module_loaded(root),
        probe::control_node(root),
        probe::io_uring_sysctl(root),
        probe::memlock_limit(),
        probe::device_limit(root),
    ]
    .into_iter()
    .map(Check::from)
    .collect();
    checks.push(permission(Path::new("/proc/self/status")));
    checks.push(driver(program, within));
    checks
}

/// CAP_SYS_ADMIN, bit 21 of the effective capabilities (linux/capability.h).
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Whether this process may make devices: the driver wants CAP_SYS_ADMIN.
fn permission(status: &Path) -> Check {
    let text = std::fs::read_to_string(status).unwrap_or_default();
    let caps = text
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|word| u64::from_str_radix(word.trim(), 16).ok());
    let (status, detail, fix) = match caps {
        Some(caps) if caps & CAP_SYS_ADMIN != 0 => ("ok", "CAP_SYS_ADMIN is there", None),
        Some(_) => (
            "fail",
            "no CAP_SYS_ADMIN: the driver refuses to make devices",
            Some("run as root: sudo ublkctl …"),
        ),
        None => (
            "warn",
            "the capabilities of this process cannot be read",
            None,
        ),
    };
    Check {
        check: "permission".to_owned(),
        status,
        detail: detail.to_owned(),
        fix: fix.map(str::to_owned),
    }
}

/// Whether the driver answers, and what it can do.
fn driver(program: &Path, within: Duration) -> Check {
    let check = "driver".to_owned();
    match front::features(program, within) {
        Ok(features) => {
            let names: Vec<&str> = features
                .features
                .iter()
                .filter(|f| f.available)
                .map(|f| f.name)
                .collect();
            Check {
                check,
                status: "ok",
                detail: format!("answers; features {}", names.join(" ")),
                fix: None,
            }
        }
        Err(failure) => Check {
            check,
            status: "fail",
            detail: failure.text,
            fix: failure.hint,
        },
    }
}

/// Whether any check failed.
pub fn is_ill(checks: &[Check]) -> bool {
    checks.iter().any(|c| c.status == "fail")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_is_a_bit_of_the_capabilities() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("status");
        for (text, status) in [
            ("Name:\tx\nCapEff:\t000001ffffffffff\n", "ok"),
            ("CapEff:\t0000000000200000\n", "ok"),
            ("CapEff:\t0000000000000000\n", "fail"),
            ("CapEff:\t000001ffffdfffff\n", "fail"),
            ("", "warn"),
        ] {
            std::fs::write(&file, text).unwrap();
            let check = permission(&file);
            assert_eq!(check.status, status, "{text}");
            assert_eq!(check.fix.is_some(), status == "fail");
        }
    }

    #[test]
    fn only_failed_checks_make_ill() {
        let check = |status| Check {
            check: String::new(),
            status,
            detail: String::new(),
            fix: None,
        };
        assert!(!is_ill(&[check("ok"), check("warn")]));
        assert!(is_ill(&[check("ok"), check("fail"), check("warn")]));
    }
}
