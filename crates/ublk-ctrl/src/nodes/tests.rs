use super::*;
use std::fs::{create_dir_all, write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);

fn id(n: u32) -> DevId {
    DevId::new(n).unwrap()
}

fn root() -> (TempDir, Nodes) {
    let dir = tempfile::tempdir().unwrap();
    create_dir_all(dir.path().join("dev")).unwrap();
    let nodes = Nodes::under(dir.path());
    (dir, nodes)
}

/// L38 Ready means: exists, opens, has its size. A node that appears late is waited for.
#[test]
fn l38_ready_is_exists_opens_and_size() {
    let (_dir, nodes) = root();
    let late = nodes.clone();
    let udev = std::thread::spawn(move || {
        std::thread::sleep(SHORT);
        // Created complete, like a device node.
        let made = late.dev.join("made");
        write(&made, [0; 4096]).unwrap();
        std::fs::rename(made, late.block_device(id(0))).unwrap();
    });
    assert_eq!(nodes.prove_ready(id(0), 4096, LONG), Ok(()));
    udev.join().unwrap();
    assert_eq!(
        nodes.prove_ready(id(0), 8192, LONG),
        Err(Error::WrongSize {
            dev: id(0),
            want: 8192,
            got: 4096
        })
    );
}

/// Creates a disk's directory in sysfs.
fn disk(nodes: &Nodes, n: u32, sectors: &str) {
    let disk = nodes.sys.join(format!("class/block/ublkb{n}"));
    create_dir_all(&disk).unwrap();
    write(disk.join("size"), sectors).unwrap();
}

/// L80 Readiness is detected without an open, even while every open would block. A FIFO's open blocks like that.
#[test]
fn l80_ready_is_seen_without_an_open() {
    let (_dir, nodes) = root();
    let late = nodes.clone();
    let udev = std::thread::spawn(move || {
        std::thread::sleep(SHORT);
        disk(&late, 0, "8\n");
        let fifo = late.block_device(id(0));
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
    });
    assert_eq!(nodes.see_ready(id(0), 4096, LONG), Ok(()));
    udev.join().unwrap();
    let (dev, want, got) = (id(0), 8192, 4096);
    let wrong = Err(Error::WrongSize { dev, want, got });
    assert_eq!(nodes.see_ready(id(0), 8192, LONG), wrong);
}

/// L38 L80 The reason why a device is not ready is reported without an open, too.
#[test]
fn l38_what_is_seen_to_keep_a_device_from_being_ready() {
    let (_dir, nodes) = root();
    let error = nodes.see_ready(id(1), 4096, SHORT).unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    // A node without its disk.
    write(nodes.block_device(id(2)), []).unwrap();
    let error = nodes.see_ready(id(2), 4096, SHORT).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENXIO));
    // The node of another disk: a block device of this host, if it has any.
    let disks = read_dir("/sys/class/block").into_iter().flatten().flatten();
    let node = |name: std::ffi::OsString| Path::new("/dev").join(name);
    let known = disks.map(|disk| node(disk.file_name()));
    if let Some(known) = known.into_iter().find(|node| node.exists()) {
        symlink(known, nodes.block_device(id(3))).unwrap();
        disk(&nodes, 3, "8\n");
        write(nodes.sys.join("class/block/ublkb3/dev"), "259:77777\n").unwrap();
        let error = nodes.see_ready(id(3), 4096, SHORT).unwrap_err();
        assert!(error.errno() != Some(Errno::ENXIO), "{error}");
    }
    // An error that waiting cannot fix is reported at once.
    symlink("ublkb4", nodes.block_device(id(4))).unwrap();
    let begun = std::time::Instant::now();
    assert!(nodes.see_ready(id(4), 4096, LONG).is_err());
    assert!(begun.elapsed() < LONG / 2);
}

/// A node that cannot appear in this `/dev` is reported as such, long before the deadline. In a devtmpfs, or while the
/// kernel has no such device, it is waited for.
#[test]
fn a_dev_without_new_nodes_is_told_as_that() {
    let (dir, nodes) = root();
    disk(&nodes, 1, "8\n");
    create_dir_all(dir.path().join("sys/class/ublk-char/ublkc1")).unwrap();
    create_dir_all(dir.path().join("proc/self")).unwrap();
    let (major, minor) = sys::device_number(std::fs::metadata(dir.path()).unwrap().dev());
    let mounted = |kind: &str| {
        let text = format!(
            "21 1 0:5 / / rw - rootfs none rw\n22 21 {major}:{minor} / /dev rw,nosuid shared:2 - {kind} dev rw\n"
        );
        write(&nodes.mounts, text).unwrap();
    };
    let no_node = |error: &Error| matches!(error, Error::NoNode { .. });
    for (kind, dev, told) in [
        (Some("tmpfs"), 1, true),
        (Some("devtmpfs"), 1, false),
        (Some("tmpfs"), 2, false),
        (None, 1, true),
    ] {
        match kind {
            Some(kind) => mounted(kind),
            None => write(&nodes.mounts, "21 1 0:5 / / rw - rootfs none rw\n").unwrap(),
        }
        let looks = [
            nodes.open_char(id(dev), SHORT).map(drop),
            nodes.prove_ready(id(dev), 4096, SHORT),
            nodes.see_ready(id(dev), 4096, SHORT),
        ];
        for error in looks.map(Result::unwrap_err) {
            assert_eq!(no_node(&error), told, "{kind:?}: {error}");
        }
        let at_once = nodes.can_serve(id(dev));
        assert_eq!(at_once.is_err(), told, "{kind:?}: {at_once:?}");
    }
    mounted("tmpfs");
    let begun = Instant::now();
    let error = nodes.open_char(id(1), LONG).unwrap_err();
    assert!(no_node(&error) && begun.elapsed() < LONG / 4, "{error}");
    assert_eq!(
        (error.kind(), error.dev()),
        (crate::Kind::Other, Some(id(1)))
    );
    assert!(error.to_string().contains("/dev/ublkc1"), "{error}");
    std::fs::remove_file(&nodes.mounts).unwrap();
    let error = nodes.open_char(id(1), SHORT).unwrap_err();
    assert_eq!(error.kind(), crate::Kind::TimedOut, "{error}");
}

/// L38 A node that never appears, never opens, or lost its disk: each has its own error.
#[test]
fn l38_what_keeps_a_device_from_being_ready() {
    let (_dir, nodes) = root();
    let error = nodes.prove_ready(id(1), 4096, SHORT).unwrap_err();
    assert!(matches!(
        error,
        Error::TimedOut {
            operation: Operation::ProveReady,
            abandoned: false,
            ..
        }
    ));
    assert!(error.hint().contains("udevadm settle"));
    // Opening a socket fails with ENXIO, like a node without a disk.
    let _socket = UnixListener::bind(nodes.block_device(id(2))).unwrap();
    let error = nodes.prove_ready(id(2), 4096, SHORT).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::ENXIO));
    assert!(error.to_string().contains("is gone"), "{error}");
    // An error that waiting cannot fix is reported at once.
    symlink("ublkb3", nodes.block_device(id(3))).unwrap();
    let begun = std::time::Instant::now();
    assert!(nodes.prove_ready(id(3), 4096, LONG).is_err());
    assert!(begun.elapsed() < LONG / 2);
}

#[test]
fn the_character_device_opens_for_both_ways() {
    let (_dir, nodes) = root();
    write(nodes.char_device(id(5)), b"x").unwrap();
    let fd = nodes.open_char(id(5), LONG).unwrap();
    let mut file = File::from(fd);
    std::io::Write::write_all(&mut file, b"y").unwrap();
    let error = nodes.open_char(id(6), SHORT).unwrap_err();
    assert_eq!(
        (error.kind(), error.dev()),
        (crate::Kind::TimedOut, Some(id(6)))
    );
}

#[test]
fn devices_are_listed_from_sysfs_else_from_the_nodes() {
    let (dir, nodes) = root();
    assert_eq!(nodes.list_devices(), Ok(vec![]));
    for name in [
        "ublkc10",
        "ublkc2",
        "ublkb2",
        "ublk-control",
        "ublkcx",
        "ublkc1048576",
    ] {
        write(dir.path().join("dev").join(name), "").unwrap();
    }
    assert_eq!(nodes.list_devices(), Ok(vec![id(2), id(10)]));
    create_dir_all(dir.path().join("sys/class/ublk-char/ublkc7")).unwrap();
    assert_eq!(nodes.list_devices(), Ok(vec![id(7)]));
    let nowhere = Nodes::under(&dir.path().join("nowhere"));
    assert!(nowhere.list_devices().is_err());
}
