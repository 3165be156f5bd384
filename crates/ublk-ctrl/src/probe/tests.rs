use super::*;
use std::fs::{create_dir_all, write};
use std::path::PathBuf;

fn put(root: &Path, path: &str, text: &str) -> PathBuf {
    let file = root.join(path);
    create_dir_all(file.parent().unwrap()).unwrap();
    write(&file, text).unwrap();
    file
}

fn is(finding: &Finding, status: Status, detail: &str) {
    assert_eq!(finding.status, status, "{finding}");
    assert!(finding.detail.contains(detail), "{finding}");
    assert_eq!(finding.fix.is_some(), status != Status::Good, "{finding}");
    assert!(!finding.to_string().contains('\n'));
}

#[test]
fn module_and_node() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    is(&module_loaded(root), Status::Bad, "not loaded");
    is(&control_node(root), Status::Bad, "does not exist");
    create_dir_all(root.join("sys/module/ublk_drv")).unwrap();
    is(&module_loaded(root), Status::Good, "loaded");
    let node = put(root, "dev/ublk-control", "");
    is(&control_node(root), Status::Good, "can be opened");
    std::fs::remove_file(&node).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(&node).unwrap();
    is(&control_node(root), Status::Bad, "has no driver");
}

#[test]
fn io_uring_is_allowed_limited_or_forbidden() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    is(&io_uring_sysctl(root), Status::Good, "no sysctl");
    let set = |value: &str| put(root, "proc/sys/kernel/io_uring_disabled", value);
    set("0\n");
    is(&io_uring_sysctl(root), Status::Good, "is 0");
    set("1\n");
    is(&io_uring_sysctl(root), Status::Warning, "root and no group");
    put(root, "proc/sys/kernel/io_uring_group", "42\n");
    is(&io_uring_sysctl(root), Status::Warning, "group 42");
    // Permitted processes are distinguished from others.
    let status = |text: &str| put(root, "proc/self/status", text);
    status("Gid:\t5\t5\t5\t5\nGroups:\t7 41 \nCapEff:\t0000000000000000\n");
    is(&io_uring_sysctl(root), Status::Bad, "group 42");
    status("Gid:\t5\t5\t5\t5\nGroups:\t7 42 \nCapEff:\t0000000000000000\n");
    is(&io_uring_sysctl(root), Status::Good, "and this process may");
    status("Gid:\t42\t42\t42\t42\nGroups:\t\nCapEff:\t0000000000000000\n");
    is(&io_uring_sysctl(root), Status::Good, "and this process may");
    status("Gid:\t5\t5\t5\t5\nGroups:\t\nCapEff:\t0000000000200000\n");
    is(&io_uring_sysctl(root), Status::Good, "and this process may");
    set("2\n");
    is(&io_uring_sysctl(root), Status::Bad, "disabled for all");
}

/// L84 A known fault of the kernel is reported in advance, with a fix.
#[test]
fn l84_faults_of_the_kernel_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let of = |text: &str| kernel_faults(root, Release::parse(text).as_ref());
    let one = |text: &str| {
        let [finding] = of(text).try_into().unwrap();
        finding
    };
    is(&one("7.3.4+deb13-amd64"), Status::Good, "no known fault");
    is(&one("nonsense"), Status::Good, "unknown release");
    is(&one("6.18.5-arch1-1"), Status::Bad, "ADD_DEV crashes");
    is(&one("6.18.40"), Status::Warning, "get lost");
    is(&one("7.2.12+deb13-amd64"), Status::Good, "UBSAN");
    put(root, "proc/sys/kernel/panic_on_warn", "1\n");
    is(&one("7.2.12+deb13-amd64"), Status::Warning, "UBSAN");
    let found = of("7.0.14");
    assert_eq!(found.len(), 3, "{found:?}");
    is(&found[0], Status::Warning, "batch mode");
}

/// L59 A low limit of locked memory is reported in bytes, with a way to raise it.
#[test]
fn l59_locked_memory() {
    is(&memlock(None), Status::Good, "no limit");
    is(&memlock(Some(1 << 30)), Status::Good, "1073741824");
    is(&memlock(Some(65536)), Status::Warning, "65536");
    assert_eq!(memlock_limit().check, Check::LockedMemory);
}

/// L39 The finding says what the device limit counts.
#[test]
fn l39_device_limit() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    is(&device_limit(root), Status::Good, "no limit");
    put(root, "sys/module/ublk_drv/parameters/ublks_max", "2\n");
    is(&device_limit(root), Status::Good, "0 devices, limit 2");
    for n in 0..2 {
        create_dir_all(root.join(format!("sys/class/ublk-char/ublkc{n}"))).unwrap();
    }
    let finding = device_limit(root);
    is(&finding, Status::Warning, "2 devices, limit 2");
    assert!(finding.detail.contains("6.14"), "{finding}");
}
