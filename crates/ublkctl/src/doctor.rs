//! `doctor`: finds out why ublk devices cannot be created here, with a one-line fix for each problem.

use serde::Serialize;
use std::path::Path;
use std::time::Duration;
use ublk_ctrl::probe::{self, Finding, Status};
use ublk_daemon::{front, privilege};

/// One check, as printed.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was checked.
    pub check: String,
    /// `ok`, `warn` or `fail`.
    pub status: &'static str,
    /// Details.
    pub detail: String,
    /// The fix.
    pub fix: Option<String>,
}

impl From<Finding> for Check {
    fn from(finding: Finding) -> Self {
        Self {
            check: finding.check.to_string(),
            status: match finding.status {
                Status::Good => "ok",
                Status::Warning => "warn",
                _ => "fail",
            },
            detail: finding.detail,
            fix: finding.fix,
        }
    }
}

/// Runs all checks.
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
    let release = ublk_ctrl::kernel_release();
    let faults = probe::kernel_faults(root, release.as_ref());
    checks.extend(faults.into_iter().map(Check::from));
    let opens = checks
        .iter()
        .any(|c| c.check == "control node" && c.status == "ok");
    checks.push(permission(privilege::is_privileged(), opens));
    checks.push(driver(program, within));
    checks
}

/// Which devices this process may create: only CAP_SYS_ADMIN gets all features of the driver.
fn permission(privileged: bool, control_opens: bool) -> Check {
    let (status, detail, fix) = match (privileged, control_opens) {
        (true, _) => ("ok", "this process has CAP_SYS_ADMIN", None),
        (false, true) => (
            "warn",
            "no CAP_SYS_ADMIN: unprivileged devices only, with data modes copy and get-data, without recovery",
            Some("run as root to get everything else: sudo ublkctl …"),
        ),
        (false, false) => (
            "fail",
            "no CAP_SYS_ADMIN, and no access to the control node",
            Some("run as root, or install udev/60-ublkctl.rules and join the group `ublk`"),
        ),
    };
    Check {
        check: "permission".to_owned(),
        status,
        detail: detail.to_owned(),
        fix: fix.map(str::to_owned),
    }
}

/// Whether the driver answers, and its features.
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
                detail: format!("responds; features: {}", names.join(" ")),
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
    fn users_with_access_are_warned_others_fail() {
        for (privileged, opens, status) in [
            (true, true, "ok"),
            (true, false, "ok"),
            (false, true, "warn"),
            (false, false, "fail"),
        ] {
            let check = permission(privileged, opens);
            assert_eq!(check.status, status);
            assert_eq!(check.fix.is_some(), !privileged);
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
