//! What rings leave behind in a process, and what its children inherit. These tests count for the whole process, so
//! they are a test program of their own and run one at a time.

mod common;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use common::{reap, ring};
use uring_lite::{Cqe16, Cqe32, Sqe64, Sqe128, op};

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Descriptors and mappings of io_uring and eventfd.
fn left() -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fd")
        .expect("fd")
        .filter_map(Result::ok)
    {
        let target = std::fs::read_link(entry.path()).unwrap_or_default();
        if target.to_string_lossy().starts_with("anon_inode:") {
            *found.entry(format!("fd {}", target.display())).or_default() += 1;
        }
    }
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    let rings = maps
        .lines()
        .filter(|line| line.contains("[io_uring]"))
        .count();
    found.insert("mappings".to_owned(), rings);
    found
}

/// L23 a ring leaves no descriptor and no mapping, and children inherit nothing.
#[test]
fn l23_rings_leave_nothing_behind() {
    let _alone = alone();
    let before = left();
    {
        let mut ring = ring::<Sqe128, Cqe32>(8);
        let _waker = ring.waker().expect("waker");
        let during = left();
        assert_eq!(
            during["mappings"],
            before["mappings"] + 2,
            "the check sees a living ring"
        );
        assert_ne!(during, before);
    }
    for _ in 0..50 {
        let mut ring = ring::<Sqe128, Cqe32>(8);
        ring.waker().expect("waker");
        ring.push(&op::nop().into()).expect("room");
        reap(&mut ring, 1);
        ring.register_buf_ring(1, 8, false).expect("buffer ring");
    }
    assert_eq!(left(), before);
}

/// L23 close-on-exec, and MADV_DONTFORK on every mapping.
#[test]
fn l23_nothing_is_inherited() {
    let _alone = alone();
    let ring = ring::<Sqe64, Cqe16>(8);
    let fd = ring.as_fd().as_raw_fd();
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).expect("fdinfo");
    let flags = info
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .expect("flags");
    let flags = u32::from_str_radix(flags.trim(), 8).expect("octal");
    assert_ne!(flags & libc::O_CLOEXEC.cast_unsigned(), 0, "close-on-exec");
    // In VmFlags "dc" is "do not copy area on fork".
    let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
    let (mut of_ring, mut seen) = (false, 0);
    for line in smaps.lines() {
        of_ring |= line.contains("[io_uring]");
        let Some(flags) = line.strip_prefix("VmFlags:") else {
            continue;
        };
        if std::mem::take(&mut of_ring) {
            assert!(
                flags.split_whitespace().any(|f| f == "dc"),
                "inherited by fork: {flags}"
            );
            seen += 1;
        }
    }
    assert_eq!(seen, 2, "ring and entries are two mappings");
}
