//! What a server may do once it serves. The test is a program of its own, because nothing of it can be undone.
#![expect(unsafe_code, reason = "a mapping by the system call itself")]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::panic;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;
use ublk_daemon::server::sandbox;

fn main() {
    if std::env::args().any(|word| word == "--list") {
        println!("a_confined_process_serves_and_no_more: test");
        return;
    }
    a_confined_process_serves_and_no_more();
    println!("test a_confined_process_serves_and_no_more ... ok\n");
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

fn a_confined_process_serves_and_no_more() {
    let dir = tempfile::tempdir().expect("a directory");
    let (data, new) = (dir.path().join("data"), dir.path().join("new"));
    let file = File::create(&data).expect("a file");
    let (near, far) = UnixDatagram::pair().expect("a pair");
    // An existing thread, like a queue's, which reports what it may do afterwards.
    let (go, wait) = mpsc::channel::<()>();
    let (given, gave) = mpsc::channel();
    let late = new.clone();
    sandbox::drop_capabilities();
    let queue = thread::spawn(move || {
        let _ = given.send(ublk_queue::thread::give_up_admin());
        let _ = wait.recv();
        (File::create(late).map(drop), status("CapEff"))
    });
    // As in a server, the filter is installed when the queues are armed, and refuses the call.
    assert_eq!(gave.recv(), Ok(true));
    sandbox::filter_calls(false);
    drop(go);
    let (created, effective) = queue.join().expect("the thread ends");
    assert!(denied(&created), "a thread that was there: {created:?}");
    let left = left();
    for (set, left) in [
        ("CapInh", 0),
        ("CapPrm", left),
        ("CapEff", left),
        ("CapAmb", 0),
    ] {
        assert_eq!(capabilities(&status(set)) & !left, 0, "{set}");
    }
    assert_eq!(effective, status("CapEff"));
    assert_eq!(status("NoNewPrivs"), "1");
    assert_eq!(status("Seccomp"), "2");
    refused(&data, &new);
    served(&file, &data);
    near.send(b"word").expect("a word");
    assert_eq!(far.recv(&mut [0; 8]).expect("a word"), 4);
}

/// Capabilities that this machine makes a server keep: see [`sandbox::drop_capabilities`].
fn left() -> u64 {
    const IPC_LOCK: u64 = 1 << 14;
    let limits = std::fs::read_to_string("/proc/self/limits").expect("limits");
    let locked = limits.lines().find(|l| l.starts_with("Max locked memory"));
    let unlimited = locked.is_some_and(|l| l.contains("unlimited"));
    u64::from(!unlimited) * IPC_LOCK
}

fn capabilities(text: &str) -> u64 {
    u64::from_str_radix(text, 16).expect("a mask")
}

fn refused(data: &Path, new: &Path) {
    assert!(denied(&File::create(new)));
    assert!(denied(&File::options().write(true).open(data)));
    assert!(denied(&Command::new("/bin/true").status()));
    assert!(denied(&std::net::UdpSocket::bind("127.0.0.1:0")));
    assert!(denied(&std::fs::remove_file(data)));
    assert!(denied(&UnixStream::connect(data)));
    assert!(denied(&map(libc::PROT_READ | libc::PROT_EXEC)));
    map(libc::PROT_READ).expect("memory that is no code");
}

/// What serving needs still works: data, syncs, late threads, memory, time, a panic with a backtrace.
fn served(file: &File, data: &Path) {
    file.write_all_at(b"served", 4096).expect("a write");
    file.sync_data().expect("a sync");
    let path = data.to_owned();
    let read = thread::Builder::new().name("late".to_owned());
    let read = read.spawn(|| std::fs::read(path)).expect("a late thread");
    let read = read.join().expect("it ends").expect("a read");
    assert_eq!(&read[4096..], b"served");
    drop(vec![1u8; 64 << 20]);
    thread::sleep(Duration::from_millis(2));
    let usual = panic::take_hook();
    let (say, said) = mpsc::channel();
    panic::set_hook(Box::new(move |_| {
        let trace = std::backtrace::Backtrace::force_capture();
        let _ = say.send(trace.to_string());
    }));
    let contained = panic::catch_unwind(|| panic!("contained"));
    panic::set_hook(usual);
    assert!(contained.is_err());
    let trace = said.recv().expect("a trace");
    assert!(trace.contains("sandbox::served"), "{trace}");
}

/// Maps a page that is never unmapped.
fn map(protection: i32) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at an address of the kernel's choice that nothing uses.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0) };
    match page {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn denied<T>(result: &io::Result<T>) -> bool {
    matches!(result, Err(e) if e.raw_os_error() == Some(libc::EPERM))
}

fn status(key: &str) -> String {
    let text = std::fs::read_to_string("/proc/thread-self/status").expect("a status");
    let value = |line: &str| Some(line.strip_prefix(key)?.strip_prefix(':')?.trim().to_owned());
    text.lines().find_map(value).unwrap_or_default()
}
