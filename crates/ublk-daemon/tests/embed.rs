//! A program that embeds ublk. The first call of `main` forks its helper, so this test has its own `main`.

use std::time::{Duration, Instant};
use ublk_ctrl::{Controller, Error};
use ublk_daemon::embed;

fn main() {
    let list = std::env::args().any(|word| word == "--list");
    if list {
        println!("helper_is_made_early_and_only_then: test");
        return;
    }
    helper_is_made_early_and_only_then();
    println!("test helper_is_made_early_and_only_then ... ok\n");
    println!("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
}

fn helper_is_made_early_and_only_then() {
    let mut helper = embed::start_early().expect("one thread");
    assert_ne!(helper.pid(), std::process::id());
    // Another process answers, whatever this host has.
    match helper.features(Duration::from_secs(10)) {
        Ok(features) => assert!(!features.is_empty()),
        Err(Error::ControllerGone { message }) => panic!("{message}"),
        Err(error) => assert!(!error.hint().is_empty()),
    }
    // With a second thread the child would inherit locks that nothing can release: refused.
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv());
    let late = embed::start_early().expect_err("two threads");
    assert!(late.to_string().contains("2 threads"), "{late}");
    drop(done);
    let _ = thread.join().expect("the thread ends");
    // The helper exits when its owner drops it.
    let (pid, begun) = (helper.pid(), Instant::now());
    helper.finish();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}
