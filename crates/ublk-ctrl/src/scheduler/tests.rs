use super::*;
use std::fs::{create_dir_all, read_to_string, write};
use std::io::Write;
use std::time::Instant;
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);

fn id(n: u32) -> DevId {
    DevId::new(n).unwrap()
}

/// A sysfs tree with device 1, and its attribute.
fn device() -> (TempDir, Nodes, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let nodes = Nodes::under(dir.path());
    let file = nodes.scheduler(id(1));
    create_dir_all(file.parent().unwrap()).unwrap();
    (dir, nodes, file)
}

/// An active scheduler is disabled, and `none` is left alone: by this process and by a child.
#[test]
fn a_scheduler_is_taken_away_where_there_is_one() {
    let (_dir, nodes, file) = device();
    let ours = |nodes: &Nodes, n| nodes.no_scheduler(id(n));
    let by_child = |nodes: &Nodes, n| nodes.no_scheduler_by_child(id(n), LONG);
    for take in [ours, by_child] {
        for (before, after) in [
            ("none [mq-deadline] kyber\n", "none"),
            ("[none] mq-deadline\n", "[none] mq-deadline\n"),
        ] {
            write(&file, before).unwrap();
            assert_eq!(take(&nodes, 1), Ok(()));
            let got = read_to_string(&file).unwrap();
            // Unlike an attribute, a file keeps the rest of a longer text.
            assert!(got.starts_with(after), "{before}: {got}");
        }
        let error = take(&nodes, 2).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::ENOENT));
    }
    std::fs::remove_file(&file).unwrap();
    std::os::unix::fs::symlink("/dev/null", &file).unwrap();
    let error = nodes.no_scheduler_by_child(id(1), LONG).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EIO), "{error}");
}

/// L80 The serving process does not block in the attribute: a child does, and is left running at the deadline.
#[test]
fn l80_a_child_waits_for_what_is_in_flight() {
    let (_dir, nodes, file) = device();
    let made = std::process::Command::new("mkfifo").arg(&file).status();
    assert!(made.unwrap().success());
    // Both ends are open, so no open blocks.
    let mut ends = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&file)
        .unwrap();
    let begun = Instant::now();
    let error = nodes.no_scheduler_by_child(id(1), SHORT).unwrap_err();
    assert_eq!(error.kind(), crate::Kind::TimedOut, "{error}");
    assert!(begun.elapsed() < LONG / 2);
    // The child still works: it reads what arrives.
    writeln!(ends, "[none] mq-deadline").unwrap();
    let taken = crate::wait::until(begun + LONG, || {
        rustix::io::ioctl_fionread(&ends).map(|left| (left == 0).then_some(()))
    });
    assert_eq!(taken, Ok(Some(())));
}
