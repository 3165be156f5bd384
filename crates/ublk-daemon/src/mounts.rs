//! Is a file system of a device mounted where this process lives? (L36)

use std::fs;

/// Where file systems of `/dev/ublkbID` or of its partitions are mounted in the mount namespace of
/// this process. A server that shares the namespace with one may never end: the last unmount at its
/// exit would write to itself.
#[must_use]
pub fn of_device(id: u32) -> Vec<String> {
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else {
        return Vec::new();
    };
    points(&mounts, &numbers(id))
}

/// The numbers (`major:minor`) of `/dev/ublkbID` and of its partitions, none where it is not there.
#[must_use]
pub fn numbers(id: u32) -> Vec<String> {
    let Ok(whole) = fs::read_to_string(format!("/sys/block/ublkb{id}/dev")) else {
        return Vec::new();
    };
    let mut numbers = vec![whole.trim().to_owned()];
    let parts = fs::read_dir(format!("/sys/block/ublkb{id}"));
    for part in parts.into_iter().flatten().flatten() {
        if let Ok(number) = fs::read_to_string(part.path().join("dev")) {
            numbers.push(number.trim().to_owned());
        }
    }
    numbers
}

/// Mount points (field 5) of the lines whose `major:minor` (field 3) is one of `numbers`
/// (proc_pid_mountinfo(5)).
fn points(mountinfo: &str, numbers: &[String]) -> Vec<String> {
    mountinfo
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let number = fields.nth(2)?;
            let point = fields.nth(1)?;
            numbers
                .iter()
                .any(|n| n == number)
                .then(|| point.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L36 A file system of the own device is found in the mount table.
    #[test]
    fn l36_own_mounts_are_detected() {
        let table = "36 35 98:0 /mnt1 /mnt/parent rw,noatime master:1 - ext3 /dev/root rw\n\
                     40 35 259:3 / /mnt/mine rw - ext4 /dev/ublkb0 rw\n\
                     41 35 259:4 / /mnt/part rw - xfs /dev/ublkb0p1 rw\n";
        let numbers = ["259:3".to_owned(), "259:4".to_owned()];
        assert_eq!(points(table, &numbers), ["/mnt/mine", "/mnt/part"]);
        assert!(points(table, &["9:8".to_owned()]).is_empty());
        assert!(points("short\n", &numbers).is_empty());
        assert!(of_device(1_048_575).is_empty());
    }
}
