//! Async handlers on the simulated driver, with operations that complete late and in any order.

mod common;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Poll, Waker};

use common::sim::ALL_FAULTS;
use common::{run, run_until};
use ublk_core::{DataMode, Errno, Op};
use ublk_queue::WorkerError;
use ublk_queue::task::{Async, IoBuf, Ring, SharedFd, TaskRequest};
use ublk_sim::{Config, End};

/// A placeholder for the simulated ring's file; the ring ignores descriptors.
fn descriptor() -> SharedFd {
    SharedFd::new(File::open("/dev/null").expect("/dev/null"))
}

/// Serves a device from the simulated ring's file.
async fn serve(mut request: TaskRequest, file: SharedFd) -> Result<(), Errno> {
    let offset = request.offset();
    match request.op() {
        Op::Read => request.read_from(&file, offset).await,
        Op::Write => request.write_to(&file, offset).await,
        Op::Flush => request.ring().fdatasync(&file).await,
        _ => {
            let zeroes = vec![0; usize::try_from(request.len()).expect("small")];
            request
                .ring()
                .write(&file, zeroes, offset)
                .await
                .0
                .map(|_| ())
        }
    }
}

/// Polls a future once, within a task.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await
}

/// Requests served by operations have the right data, in every data mode, under all faults.
#[test]
fn requests_are_served_by_operations_in_every_mode() {
    for data in [DataMode::Copy, DataMode::GetData, DataMode::UserCopy] {
        for (seed, batch) in (0..16).zip([false, true].into_iter().cycle()) {
            let config = Config {
                queues: 2,
                data,
                batch: batch && data != DataMode::GetData,
                faults: ALL_FAULTS,
                ..Config::new(seed)
            };
            let file = descriptor();
            let make = || {
                let file = file.clone();
                Async::new(move |request| serve(request, file.clone()))
            };
            let run = run(&config, make);
            run.assert_clean(1000);
            assert_eq!(run.report.failed, 0, "{data:?}, seed {seed}");
        }
    }
}

/// L13 A range of a file whose end exceeds 64 bits is refused, even if the file is a stream and ignores the offset; the
/// request still has its data.
#[test]
fn l13_a_range_behind_64_bits_is_refused() {
    let config = Config::new(5);
    let file = descriptor();
    let run = run(&config, || {
        let file = file.clone();
        Async::new(move |mut request: TaskRequest| {
            let file = file.clone();
            async move {
                let last = u64::MAX - request.len() / 2;
                let refused = match request.op() {
                    Op::Read => request.read_from(&file, last).await,
                    Op::Write => request.write_to(&file, last).await,
                    _ => Err(Errno::EOVERFLOW),
                };
                assert_eq!(refused, Err(Errno::EOVERFLOW));
                serve(request, file).await
            }
        })
    });
    run.assert_clean(1000);
    assert_eq!(run.report.failed, 0);
}

/// With fewer slots than requests, tasks wait for each other and all are served.
#[test]
fn an_exhausted_pool_serves_all() {
    let config = Config {
        faults: ALL_FAULTS,
        ..Config::new(3)
    };
    let file = descriptor();
    let run = run(&config, || {
        let file = file.clone();
        Async::new(move |request| serve(request, file.clone())).operations(3)
    });
    run.assert_clean(1000);
    let seen = run.shared.seen.lock().expect("no panic");
    assert_eq!(seen.most, 3);
    assert!(seen.operations >= 1000);
}

/// L09, L56 A task ends while its operation still fills the request's buffer: the request is answered only after the
/// operation's completion, so that the driver never owns the buffer while it is written. The simulated kernel writes
/// garbage to it at that time, which the next request of the tag would show.
#[test]
fn l56_a_request_is_answered_after_its_operations() {
    for seed in 0..20 {
        let config = Config {
            queues: 2,
            faults: ALL_FAULTS,
            ..Config::new(seed)
        };
        let (file, count) = (descriptor(), Rc::new(Cell::new(0)));
        let run = run(&config, || {
            let (file, count) = (file.clone(), Rc::clone(&count));
            Async::new(move |mut request: TaskRequest| {
                let (file, count) = (file.clone(), Rc::clone(&count));
                async move {
                    count.set(count.get() + 1);
                    if request.op() == Op::Read && count.get() % 4 == 0 {
                        let buffer = request.take_data()?;
                        let mut read = request.ring().read(&file, buffer, request.offset());
                        assert!(poll_once(&mut read).await.is_pending());
                        if count.get() % 8 == 0 {
                            // Until the kernel has it.
                            request.ring().nop().await?;
                        }
                        drop(read);
                        return Err(Errno::EIO);
                    }
                    serve(request, file).await
                }
            })
        });
        run.assert_clean(1000);
        assert!(run.report.failed > 50);
        let seen = run.shared.seen.lock().expect("no panic");
        assert!(seen.cancelled > 10, "{seen:?}");
    }
}

/// L25 A panic in a task costs its own request, even while an operation has the request's buffer.
#[test]
fn l25_a_panic_in_a_task_answers_eio_and_the_queue_goes_on() {
    for seed in 0..20 {
        let config = Config {
            faults: ALL_FAULTS,
            ..Config::new(seed)
        };
        let (file, count) = (descriptor(), Rc::new(Cell::new(0)));
        let run = run(&config, || {
            let (file, count) = (file.clone(), Rc::clone(&count));
            Async::new(move |mut request: TaskRequest| {
                let (file, count) = (file.clone(), Rc::clone(&count));
                async move {
                    count.set(count.get() + 1);
                    match count.get() % 20 {
                        // At once, later, and with an operation in flight.
                        0 => std::panic::resume_unwind(Box::new("on purpose")),
                        1 => {
                            request.ring().nop().await?;
                            std::panic::resume_unwind(Box::new("on purpose"))
                        }
                        2 if request.op() == Op::Read => {
                            let buffer = request.take_data()?;
                            let mut read = request.ring().read(&file, buffer, 0);
                            assert!(poll_once(&mut read).await.is_pending());
                            request.ring().nop().await?;
                            std::panic::resume_unwind(Box::new("on purpose"))
                        }
                        _ => serve(request, file).await,
                    }
                }
            })
        });
        run.assert_clean(1000);
        assert!(run.panics() >= 100);
        assert_eq!(run.report.failed as u64, run.panics());
    }
}

/// A panic while the future is made, before any poll.
#[test]
fn l25_a_panic_before_the_future_is_contained() {
    let count = Cell::new(0);
    let run = run(&Config::new(5), || {
        let count = &count;
        Async::new(move |_request| {
            count.set(count.get() + 1);
            if count.get() % 10 == 0 {
                std::panic::resume_unwind(Box::new("on purpose"));
            }
            std::future::ready(Err(Errno::EIO))
        })
    });
    run.assert_clean(1000);
    assert_eq!((run.report.failed, run.panics()), (1000, 100));
}

/// L55 Tasks that wait for other threads wake the sleeping engine at once.
#[test]
fn l55_tasks_are_woken_by_other_threads() {
    for seed in 0..10 {
        let config = Config {
            queues: 2,
            depth: 4,
            faults: ALL_FAULTS,
            ..Config::new(seed)
        };
        type Asked = (Arc<Mutex<Option<bool>>>, Waker);
        let (ask, asked) = mpsc::channel::<Asked>();
        let thread = std::thread::spawn(move || {
            while let Ok((answer, waker)) = asked.recv() {
                *answer.lock().expect("no panic") = Some(true);
                waker.wake();
            }
        });
        let file = descriptor();
        let run = run(&config, || {
            let (ask, file) = (ask.clone(), file.clone());
            Async::new(move |request| {
                let (ask, file) = (ask.clone(), file.clone());
                async move {
                    let answer = Arc::new(Mutex::new(None));
                    let mut sent = false;
                    poll_fn(|cx| {
                        if !std::mem::replace(&mut sent, true) {
                            let question = (Arc::clone(&answer), cx.waker().clone());
                            ask.send(question).expect("the thread lives");
                        }
                        match *answer.lock().expect("no panic") {
                            Some(_) => Poll::Ready(()),
                            None => Poll::Pending,
                        }
                    })
                    .await;
                    serve(request, file).await
                }
            })
        });
        run.assert_clean(1000);
        drop(ask);
        thread.join().expect("no panic");
    }
}

/// L55 A task that is never woken shows as a hang: the check above can fail.
#[test]
fn l55_a_task_that_nobody_wakes_is_seen_as_a_hang() {
    let config = Config {
        patience: std::time::Duration::from_millis(50),
        ..Config::new(1)
    };
    let run = run(&config, || {
        Async::new(|request: TaskRequest| async move {
            let _request = request;
            std::future::pending().await
        })
    });
    assert!(
        run.report.violations[0].starts_with("L55"),
        "{:?}",
        run.report
    );
    assert!(run.result.is_err());
}

/// L55 Tasks of two queues on one thread wake each other: neither sleeps on a task that is ready.
#[test]
fn l55_tasks_of_two_queues_on_a_thread_wake_each_other() {
    for seed in 0..10 {
        let config = Config {
            queues: 2,
            depth: 4,
            ..Config::new(seed)
        };
        let file = descriptor();
        // Tasks that wait for the other queue's next task; none once no more will come.
        let waiting: Rc<RefCell<Vec<Waker>>> = Rc::default();
        let served = Rc::new(Cell::new(0));
        let run = run(&config, || {
            let (file, waiting, served) = (file.clone(), Rc::clone(&waiting), Rc::clone(&served));
            Async::new(move |request: TaskRequest| {
                let (file, waiting, served) =
                    (file.clone(), Rc::clone(&waiting), Rc::clone(&served));
                async move {
                    served.set(served.get() + 1);
                    for waker in waiting.borrow_mut().drain(..) {
                        waker.wake();
                    }
                    if request.qid().get() == 0 && served.get() < 500 {
                        let turn = served.get();
                        poll_fn(|cx| {
                            if served.get() != turn {
                                return Poll::Ready(());
                            }
                            waiting.borrow_mut().push(cx.waker().clone());
                            Poll::Pending
                        })
                        .await;
                    }
                    serve(request, file).await
                }
            })
        });
        run.assert_clean(1000);
    }
}

/// A task that wakes itself is polled again, and does not starve the ring.
#[test]
fn a_task_that_yields_goes_on() {
    let config = Config {
        faults: ALL_FAULTS,
        ..Config::new(9)
    };
    let file = descriptor();
    let run = run(&config, || {
        let file = file.clone();
        Async::new(move |request| {
            let file = file.clone();
            async move {
                for _ in 0..20 {
                    let mut yielded = false;
                    poll_fn(|cx| {
                        if std::mem::replace(&mut yielded, true) {
                            return Poll::Ready(());
                        }
                        cx.waker().wake_by_ref();
                        Poll::Pending
                    })
                    .await;
                }
                serve(request, file).await
            }
        })
    });
    run.assert_clean(1000);
}

/// L10 A buffer that is kept beyond its request's task delays the answer until it is released.
#[test]
fn l10_a_buffer_that_is_kept_keeps_its_request() {
    let config = Config {
        requests: 200,
        read_percent: 100,
        ..Config::new(4)
    };
    let kept = Rc::new(RefCell::new(Vec::new()));
    let run = run(&config, || {
        let kept = Rc::clone(&kept);
        Async::new(move |mut request: TaskRequest| {
            let kept = Rc::clone(&kept);
            async move {
                let before: Vec<_> = kept.borrow_mut().drain(..).collect();
                drop(before);
                if request.op() == Op::Read {
                    let buffer = request.take_data()?;
                    assert!(matches!(request.data_mut(), Err(Errno::EBUSY)));
                    assert!(request.take_data().is_err());
                    if request.tag().get().is_multiple_of(2) {
                        request.give_back(buffer);
                        request.data_mut()?.fill(0);
                    } else {
                        kept.borrow_mut().push(buffer.slice(0, 1));
                        // Some task must release it.
                        request.ring().nop().await?;
                        let mine: Vec<_> = kept.borrow_mut().drain(..).collect();
                        drop(mine);
                        return Err(Errno::EIO);
                    }
                }
                Ok(())
            }
        })
    });
    run.assert_clean(200);
}

/// L10 The same if the task ends at its first poll: the tag delivers no other request while its buffer is kept.
#[test]
fn l10_a_tag_brings_no_request_while_its_buffer_is_kept() {
    let config = Config {
        requests: 400,
        read_percent: 100,
        ..Config::new(4)
    };
    let kept = Rc::new(RefCell::new(VecDeque::new()));
    let count = Rc::new(Cell::new(0));
    let run = run(&config, || {
        let (kept, count) = (Rc::clone(&kept), Rc::clone(&count));
        Async::new(move |mut request: TaskRequest| {
            let (kept, count) = (Rc::clone(&kept), Rc::clone(&count));
            async move {
                count.set(count.get() + 1);
                let tag = request.tag();
                assert!(
                    kept.borrow().iter().all(|(of, _)| *of != tag),
                    "answered early"
                );
                let buffer = request.take_data()?;
                kept.borrow_mut().push_back((tag, buffer));
                // Fewer than there are tags, and none at the end.
                let most = if count.get() < 350 { 6 } else { 0 };
                while kept.borrow().len() > most {
                    let oldest = kept.borrow_mut().pop_front();
                    drop(oldest);
                }
                Err(Errno::EIO)
            }
        })
    });
    run.assert_clean(400);
    assert_eq!((run.report.failed, run.panics()), (400, 0));
}

/// L26 A quiesce ends the lane once its tasks have ended.
#[test]
fn l26_tasks_run_on_until_nothing_is_in_hand() {
    for seed in 0..20 {
        let config = Config {
            end: End::Quiesce(300),
            faults: ALL_FAULTS,
            ..Config::new(seed)
        };
        let file = descriptor();
        let run = run(&config, || {
            let file = file.clone();
            Async::new(move |request| serve(request, file.clone()))
        });
        assert_eq!(run.report.violations, Vec::<String>::new());
        assert_eq!(run.result, Ok(()));
        assert!(run.report.completed >= 300);
        assert_eq!(run.report.failed, 0);
    }
}

/// L09 A worker that must leave with operations in flight leaks their memory, and the requests stay unanswered.
#[test]
fn l09_a_worker_that_leaves_drops_no_buffer_of_an_operation() {
    let config = Config {
        enter_fails: Some((20, libc::EBADF)),
        ..Config::new(6)
    };
    let file = descriptor();
    let run = run(&config, || {
        let file = file.clone();
        Async::new(move |request| serve(request, file.clone()))
    });
    assert!(run.result.is_err());
    assert!(run.report.unanswered > 0);
    assert!(ublk_queue::task::leaked_operations() > 0);
}

/// L56 A worker that is told to leave cancels the operations of its tasks and waits for them: their buffers are freed,
/// and only the requests remain.
#[test]
fn l56_a_worker_that_is_told_to_leave_reaps_its_operations() {
    let leave = Arc::new(AtomicBool::new(false));
    let bytes: Arc<[u8]> = Arc::from(vec![7; 4096]);
    let config = Config::new(8);
    let file = descriptor();
    let served = Rc::new(Cell::new(0));
    let run = run_until(&config, Arc::clone(&leave), || {
        let (file, served) = (file.clone(), Rc::clone(&served));
        let (leave, bytes) = (Arc::clone(&leave), Arc::clone(&bytes));
        Async::new(move |request| {
            let (file, served) = (file.clone(), Rc::clone(&served));
            let (leave, bytes) = (Arc::clone(&leave), Arc::clone(&bytes));
            async move {
                served.set(served.get() + 1);
                if served.get() > 300 {
                    leave.store(true, Ordering::Relaxed);
                    // In flight when the worker leaves.
                    request.ring().write(&file, bytes, 0).await.0?;
                }
                serve(request, file).await
            }
        })
    });
    assert_eq!(run.result, Err(WorkerError::Left));
    assert_eq!(run.report.violations, Vec::<String>::new());
    assert!(run.report.unanswered > 0);
    let seen = run.shared.seen.lock().expect("no panic");
    assert!(seen.cancelled > 0);
    assert_eq!(seen.left, 0, "the kernel has none");
    drop(seen);
    drop(run);
    assert_eq!(Arc::strong_count(&bytes), 1);
}

/// A transfer that its task abandoned (a timeout) can be repeated once the kernel has returned the buffer.
#[test]
fn a_transfer_that_is_given_up_can_be_tried_again() {
    let config = Config::new(9);
    let (file, busy) = (descriptor(), Rc::new(Cell::new(0)));
    let run = run(&config, || {
        let (file, busy) = (file.clone(), Rc::clone(&busy));
        Async::new(move |mut request: TaskRequest| {
            let (file, busy) = (file.clone(), Rc::clone(&busy));
            async move {
                if request.op() == Op::Read {
                    let (offset, ring) = (request.offset(), request.ring());
                    let mut given_up = Box::pin(request.read_from(&file, offset));
                    assert!(poll_once(&mut given_up).await.is_pending());
                    // Until the kernel has it.
                    ring.nop().await?;
                    drop(given_up);
                    // Another operation of the ring may still fill it.
                    while request.data_mut().is_err() {
                        busy.set(busy.get() + 1);
                        ring.nop().await?;
                    }
                }
                serve(request, file).await
            }
        })
    });
    run.assert_clean(1000);
    assert_eq!(run.report.failed, 0);
    assert!(busy.get() > 0);
}

/// L55 An operation that a queue's task starts on the ring of another queue of the thread is pushed before the thread
/// sleeps.
#[test]
fn l55_a_task_may_use_the_ring_of_another_queue_of_its_thread() {
    for (seed, requests) in (0..30).flat_map(|seed| [3, 8, 20].map(|n| (seed, n))) {
        // Few requests, so that nothing else ends a sleep.
        let config = Config {
            queues: 2,
            depth: 4,
            requests,
            read_percent: 100,
            ..Config::new(seed)
        };
        let first: Rc<RefCell<Option<Ring>>> = Rc::default();
        let borrows = || {
            let first = Rc::clone(&first);
            Async::new(move |mut request: TaskRequest| {
                let first = Rc::clone(&first);
                async move {
                    if request.qid().get() == 0 {
                        first.borrow_mut().get_or_insert_with(|| request.ring());
                    } else {
                        request.ring().nop().await?;
                        let other = first.borrow().clone();
                        if let Some(other) = other {
                            other.nop().await?;
                        }
                    }
                    request.data_mut()?.fill(0);
                    Ok(())
                }
            })
        };
        let run = run(&config, borrows);
        assert_eq!(run.report.violations, Vec::<String>::new(), "{seed}");
        first.take();
    }
}
