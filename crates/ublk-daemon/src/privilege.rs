//! Whether the driver treats the caller as root, or as a user whose devices are unprivileged.
#![forbid(unsafe_code)]

use std::fs;

/// CAP_SYS_ADMIN, bit 21 of the capabilities (linux/capability.h).
const CAP_SYS_ADMIN: u64 = 1 << 21;

/// Whether this process has CAP_SYS_ADMIN in the initial user namespace; otherwise its devices are unprivileged
/// (UBLK_F_UNPRIVILEGED_DEV, Linux 6.3). If that cannot be determined, the caller counts as privileged, and the driver
/// decides.
#[must_use]
pub fn is_privileged() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    of(&status, &map)
}

fn of(status: &str, uid_map: &str) -> bool {
    let word = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let caps = word.and_then(|w| u64::from_str_radix(w.trim(), 16).ok());
    let capable = caps.is_none_or(|caps| caps & CAP_SYS_ADMIN != 0);
    // The initial namespace maps every user to itself (user_namespaces(7)).
    let words: Vec<&str> = uid_map.split_ascii_whitespace().collect();
    let machine = words.is_empty() || words == ["0", "0", "4294967295"];
    capable && machine
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_of_a_container_is_a_user_of_the_machine() {
        let machine = "         0          0 4294967295\n";
        let container = "         0     100000      65536\n";
        let status = |caps: &str| format!("Name:\tx\nCapEff:\t{caps}\n");
        let root = status("000001ffffffffff");
        assert!(of(&root, machine));
        assert!(of(&status("0000000000200000"), machine));
        assert!(!of(&root, container));
        assert!(!of(&status("0000000000000000"), machine));
        assert!(!of(&status("000001ffffdfffff"), machine));
        assert!(of("", ""));
    }
}
