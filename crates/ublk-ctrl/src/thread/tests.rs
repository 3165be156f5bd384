use super::*;
use crate::{Error, Operation};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::ThreadId;
use ublk_core::{DevId, Features};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);

fn id(n: u32) -> DevId {
    DevId::new(n).expect("small")
}

/// Handlers that record commands, and are stuck in STOP until the returned end is dropped.
struct Host {
    seen: Arc<Mutex<Vec<(Operation, ThreadId)>>>,
    made: Arc<AtomicUsize>,
    _free: Sender<()>,
    control: ControlThread,
}

fn host() -> Host {
    let (free, stuck) = channel::<()>();
    let stuck = Arc::new(Mutex::new(stuck));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let made = Arc::new(AtomicUsize::new(0));
    let (log, count) = (Arc::clone(&seen), Arc::clone(&made));
    let make = move || -> Result<Handler, Error> {
        count.fetch_add(1, Ordering::Relaxed);
        let (log, stuck) = (Arc::clone(&log), Arc::clone(&stuck));
        Ok(Box::new(move |command, _| {
            let line = (command.operation(), std::thread::current().id());
            log.lock().expect("not poisoned").push(line);
            match command {
                Command::Stop { .. } => {
                    // Ends when the test ends.
                    drop(stuck.lock().map(|s| s.recv()));
                    Ok(Reply::Done)
                }
                Command::Start { .. } => panic!("scripted panic"),
                _ => Ok(Reply::Features(Features::USER_COPY)),
            }
        }))
    };
    let control = ControlThread::with(make, LONG).expect("starts");
    Host {
        seen,
        made,
        _free: free,
        control,
    }
}

/// The maximum number of late threads, which live as long as `life`.
fn late(life: &Arc<()>) -> Vec<Weak<()>> {
    (0..MAX_LOST).map(|_| Arc::downgrade(life)).collect()
}

/// L20 No command is issued on the caller's thread, which may serve a queue.
#[test]
fn l20_commands_run_on_another_thread() {
    let mut host = host();
    assert_eq!(host.control.features(LONG), Ok(Features::USER_COPY));
    let seen = host.seen.lock().expect("not poisoned");
    assert_eq!(seen[0].0, Operation::Features);
    assert_ne!(seen[0].1, std::thread::current().id());
}

/// L27 A thread stuck in the kernel blocks neither its caller nor the next command.
#[test]
fn l27_a_stuck_thread_is_left_behind() {
    let mut host = host();
    let begun = Instant::now();
    let error = host.control.stop(id(4), SHORT).expect_err("stuck");
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(
        error,
        Error::TimedOut {
            operation: Operation::Stop,
            dev: Some(id(4)),
            after: SHORT,
            abandoned: true
        }
    );
    assert!(error.to_string().contains("then stop again"), "{error}");
    assert_eq!(host.control.features(LONG), Ok(Features::USER_COPY));
    assert_eq!(host.made.load(Ordering::Relaxed), 2);
    // The late threads live as long as this value.
    let life = Arc::new(());
    host.control.lost = late(&life);
    let error = host.control.features(LONG).expect_err("too many");
    assert!(matches!(
        error,
        Error::Exhausted {
            pending: MAX_LOST,
            ..
        }
    ));
}

/// L24 A thread that dies is reported, and the next command gets a new one.
#[test]
fn l24_a_dead_thread_is_told() {
    let mut host = host();
    let error = host.control.start(id(1), 1, LONG).expect_err("panics");
    assert!(matches!(error, Error::ControllerGone { .. }), "{error}");
    assert_eq!(host.control.features(LONG), Ok(Features::USER_COPY));
}

/// L29 Dropped on another thread with a command stuck: returns at once and deletes nothing.
#[test]
fn l29_dropping_waits_for_nothing_and_deletes_nothing() {
    let mut host = host();
    host.control.stop(id(1), SHORT).expect_err("stuck");
    host.control.features(LONG).expect("a new thread");
    let begun = Instant::now();
    let control = host.control;
    std::thread::spawn(move || drop(control))
        .join()
        .expect("no panic");
    assert!(begun.elapsed() < Duration::from_secs(20));
    let seen = host.seen.lock().expect("not poisoned");
    let operations: Vec<_> = seen.iter().map(|s| s.0).collect();
    assert_eq!(operations, [Operation::Stop, Operation::Features]);
}

#[test]
fn a_failed_start_is_told() {
    let error = ControlThread::with(|| Err(Error::MissingModule), LONG);
    assert_eq!(error.expect_err("fails"), Error::MissingModule);
    let error = ControlThread::with(|| panic!("scripted panic"), LONG);
    assert!(matches!(error, Err(Error::ControllerGone { .. })));
}

/// L27 A late command that has ended no longer counts. One that ends a device finds room in addition to those that have
/// not.
#[test]
fn l27_what_was_late_and_has_ended_counts_no_more() {
    let mut host = host();
    let ended = Arc::new(());
    host.control.lost = late(&ended);
    let delete = Command::Delete { id: id(4) };
    assert!(host.control.call(delete, LONG).is_ok());
    assert!(host.control.features(LONG).is_err());
    drop(ended);
    assert!(host.control.features(LONG).is_ok());
    // A thread that was left behind counts as long as it is in the kernel.
    for pending in 1..=2 {
        host.control.stop(id(4), SHORT).expect_err("stuck");
        assert_eq!(host.control.lost.len(), pending);
    }
}
