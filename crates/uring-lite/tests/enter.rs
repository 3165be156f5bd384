//! The ways a wait ends on the running kernel: timeout, signals, other threads, overflow, limits.
#![expect(unsafe_code, reason = "signals and capabilities for the tests")]

mod common;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use common::{DEADLINE, open, reap, ring, ring_on, skip};
use uring_lite::{Cqe16, EnterError, Fd, Ladder, RegisterError, Ring, Sqe64, SqeFlags, Waker, op};

const LADDER: [Ladder; 3] = [
    Ladder::SingleIssuerDefer,
    Ladder::CoopTaskrun,
    Ladder::Plain,
];

#[test]
fn l50_a_wait_ends_by_its_time() {
    for ladder in LADDER {
        let mut ring = ring_on::<Sqe64, Cqe16>(4, ladder);
        let start = Instant::now();
        let entered = ring
            .enter(1, Some(Duration::from_millis(30)))
            .expect("enter");
        assert!(
            entered.timed_out && !entered.interrupted && entered.ready == 0,
            "{entered:?}"
        );
        assert!(start.elapsed() >= Duration::from_millis(29));
        // If the same call submits, the kernel only reports the count.
        let (reader, _writer) = std::io::pipe().expect("pipe");
        ring.push(&op::poll_add(open(&reader), op::POLL_IN, false))
            .expect("room");
        let entered = ring
            .enter(1, Some(Duration::from_millis(10)))
            .expect("enter");
        assert!(entered.timed_out && entered.submitted == 1, "{entered:?}");
        // A zero timeout only looks.
        assert!(
            ring.enter(1, Some(Duration::ZERO))
                .expect("enter")
                .timed_out
        );
    }
}

extern "C" fn on_signal(_: libc::c_int) {}

/// L50 EINTR by a real signal, in the plain wait and in a wait after a submit.
#[test]
fn l50_a_signal_ends_the_wait() {
    let handler: extern "C" fn(libc::c_int) = on_signal;
    // SAFETY: all zeroes is a sigaction without flags: no SA_RESTART.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    // SAFETY: an empty handler is safe at any point; the structure lives for the call.
    let ret = unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    assert_eq!(ret, 0);
    let (send, threads) = mpsc::channel();
    let done = Arc::new(AtomicBool::new(false));
    let waiting = std::thread::spawn({
        let done = Arc::clone(&done);
        move || {
            let mut ring = ring::<Sqe64, Cqe16>(4);
            // SAFETY: no arguments.
            send.send(unsafe { libc::pthread_self() }).expect("send");
            let plain = ring.enter(1, DEADLINE).expect("EINTR is no error");
            let (reader, _writer) = std::io::pipe().expect("pipe");
            ring.push(&op::poll_add(open(&reader), op::POLL_IN, false))
                .expect("room");
            let submitting = ring.enter(1, None).expect("EINTR is no error");
            done.store(true, Ordering::Release);
            (plain, submitting)
        }
    });
    let thread = threads
        .recv_timeout(DEADLINE.expect("some"))
        .expect("the thread");
    let start = Instant::now();
    while !done.load(Ordering::Acquire) {
        assert!(
            start.elapsed() < Duration::from_secs(9),
            "the signal did not end the wait"
        );
        // SAFETY: the thread is not joined yet, so its id is valid.
        assert_eq!(unsafe { libc::pthread_kill(thread, libc::SIGUSR1) }, 0);
        // A signal before the thread sleeps ends nothing, so more than one may be needed.
        std::thread::park_timeout(Duration::from_millis(1));
    }
    let (plain, submitting) = waiting.join().expect("thread");
    assert!(
        plain.interrupted && !plain.timed_out && plain.submitted == 0,
        "{plain:?}"
    );
    assert!(
        submitting.interrupted && submitting.submitted == 1,
        "{submitting:?}"
    );
}

/// L52 the kernel's own overflow: CQEs wait outside the ring, are counted, and all come.
#[test]
fn l52_an_overflow_loses_nothing() {
    for ladder in LADDER {
        let built = Ring::<Sqe64, Cqe16>::builder(8)
            .cq_entries(8)
            .ladder(ladder)
            .build();
        let mut ring = built.expect("ring");
        for round in 0..4_u64 {
            for id in 0..8 {
                ring.push(&op::nop().user_data(round * 8 + id))
                    .expect("room");
            }
            ring.submit().expect("submit");
        }
        assert_eq!(ring.cq_ready(), 8, "{ladder:?}");
        let ids: Vec<u64> = reap(&mut ring, 32).iter().map(|c| c.user_data).collect();
        assert_eq!(ids, (0..32).collect::<Vec<_>>(), "{ladder:?}");
        // Three times eight waited outside; nothing was lost or dropped.
        assert!(ring.overflow_enters() >= 3, "{ladder:?}");
        assert_eq!((ring.overflowed(), ring.dropped()), (0, 0), "{ladder:?}");
    }
}

/// L52 a chain that fails in the middle cancels its rest, and only its own.
#[test]
fn l52_a_chain_is_one_chain() {
    let mut ring = ring::<Sqe64, Cqe16>(8);
    let link = |id| op::nop().user_data(id).flags(SqeFlags::LINK);
    let fail = op::fsync(Fd::registered(9), false)
        .user_data(2)
        .flags(SqeFlags::LINK);
    ring.push_linked(&[link(1), fail, link(3), op::nop().user_data(4)])
        .expect("room");
    ring.push(&op::nop().user_data(5)).expect("room");
    let mut results: Vec<_> = reap(&mut ring, 5)
        .iter()
        .map(|c| (c.user_data, c.res))
        .collect();
    results.sort_unstable();
    let cancelled = -libc::ECANCELED;
    assert_eq!(
        results,
        [
            (1, 0),
            (2, -libc::EBADF),
            (3, cancelled),
            (4, cancelled),
            (5, 0)
        ]
    );
}

/// A ring created here and entered elsewhere: `Ring` cannot be sent, and the kernel would refuse.
#[test]
fn a_single_issuer_ring_knows_its_thread() {
    let ring = ring::<Sqe64, Cqe16>(4);
    if ring.setup().ladder != Ladder::SingleIssuerDefer {
        return skip("the kernel is older than 6.1 and has no DEFER_TASKRUN");
    }
    let fd = ring.as_fd().try_clone_to_owned().expect("dup");
    let errno = std::thread::spawn(move || {
        use std::os::fd::AsRawFd;
        let none: *const libc::c_void = std::ptr::null();
        // SAFETY: no pointers, nothing to submit.
        let ret =
            unsafe { libc::syscall(libc::SYS_io_uring_enter, fd.as_raw_fd(), 0, 0, 1, none, 0) };
        (ret, std::io::Error::last_os_error().raw_os_error())
    });
    assert_eq!(errno.join().expect("thread"), (-1, Some(libc::EEXIST)));
    assert!(EnterError::WrongThread.to_string().contains("thread"));
}

/// Voluntary context switches of this thread so far.
fn switches() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").expect("status");
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"))
        .expect("line");
    line.trim().parse().expect("number")
}

/// L55 an idle ring with a waker does not wake up.
#[test]
fn l55_an_idle_ring_does_not_wake_up() {
    let mut ring = ring::<Sqe64, Cqe16>(4);
    let _waker = ring.waker().expect("waker");
    // Arms the poll.
    ring.enter(1, Some(Duration::from_millis(1)))
        .expect("enter");
    let before = switches();
    let entered = ring
        .enter(1, Some(Duration::from_millis(300)))
        .expect("enter");
    assert!(entered.timed_out && !entered.woken, "{entered:?}");
    assert!(
        switches() - before <= 2,
        "woke {} times while idle",
        switches() - before
    );
    assert_eq!(ring.next_cqe(), None);
}

/// L55 no wake-up is lost: two threads produce work and wake, in every phase of the ring's loop; a lost wake-up is a
/// timeout.
#[test]
fn l55_no_wake_is_lost() {
    const EACH: u64 = 20_000;
    for ladder in LADDER {
        let mut ring = ring_on::<Sqe64, Cqe16>(4, ladder);
        let waker: Waker = ring.waker().expect("waker");
        let work = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (waker, work) = (waker.clone(), Arc::clone(&work));
                std::thread::spawn(move || {
                    for i in 0..EACH {
                        work.fetch_add(1, Ordering::Relaxed);
                        waker.wake();
                        if i % 64 == 0 {
                            // Gives the ring time to park, so that some wake-ups meet a sleep.
                            std::thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let (mut nops, mut sleeps, mut slept) = (0, 0, 0);
        while work.load(Ordering::Relaxed) < 2 * EACH {
            // Some of the ring's own traffic between the wakes.
            if sleeps % 3 == 0 {
                ring.push(&op::nop().user_data(1)).expect("room");
                nops += 1;
            }
            let entered = ring.enter(2, DEADLINE).expect("enter");
            slept += u32::from(entered.woken && entered.ready > 0);
            assert!(
                !entered.timed_out,
                "a wake was lost: {entered:?} on {ladder:?}"
            );
            sleeps += 1;
            while let Some(cqe) = ring.next_cqe() {
                assert_eq!(cqe.user_data, 1);
                nops -= 1;
            }
        }
        for thread in threads {
            thread.join().expect("waker");
        }
        reap(&mut ring, nops);
        eprintln!("{ladder:?}: {sleeps} waits, {slept} of them asleep when woken");
        assert!(slept > 0, "the ring never slept: nothing was tested");
    }
}

/// L55 a wake-up reaches a sleeping ring at once, not at its next timeout.
#[test]
fn l55_a_wake_is_seen_at_once() {
    let mut ring = ring::<Sqe64, Cqe16>(4);
    let waker = ring.waker().expect("waker");
    let (send, start) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        for () in start {
            // Long enough that the ring sleeps; an earlier wake-up is seen as well.
            std::thread::park_timeout(Duration::from_millis(5));
            waker.wake();
        }
    });
    for _ in 0..20 {
        let begin = Instant::now();
        send.send(()).expect("send");
        let mut woken = false;
        while !woken {
            // A wake-up ends the wait for any number of completions.
            let entered = ring.enter(8, DEADLINE).expect("enter");
            assert!(!entered.timed_out, "not woken");
            woken = entered.woken;
            assert_eq!(ring.next_cqe(), None);
        }
        assert!(
            begin.elapsed() < Duration::from_secs(2),
            "woken after {:?}",
            begin.elapsed()
        );
    }
    drop(send);
    thread.join().expect("thread");
}

/// L59 the limit of locked memory gives ENOMEM, and the error names the limit.
#[test]
fn l59_locked_memory_is_named() {
    let test = || {
        if !give_up_ipc_lock() {
            return skip("CAP_IPC_LOCK cannot be given up here");
        }
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: one rlimit, written during the call.
        let ret = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
        assert_eq!(ret, 0);
        if limit.rlim_cur > 64 << 20 {
            return skip("the limit of locked memory is above 64 MiB");
        }
        let mut ring = ring::<Sqe64, Cqe16>(4);
        let size = usize::try_from(limit.rlim_cur).expect("small") + (1 << 20);
        let mut memory = vec![1_u8; size];
        // SAFETY: `memory` outlives the ring, which does no I/O.
        let result = unsafe { ring.register_buffers(&[(memory.as_mut_ptr(), size)]) };
        let Err(RegisterError::NoMemory { memlock, .. }) = &result else {
            panic!("{result:?}")
        };
        assert_eq!(*memlock, Some(limit.rlim_cur));
        assert!(
            result
                .expect_err("no memory")
                .to_string()
                .contains(&limit.rlim_cur.to_string())
        );
        // The fallback that needs no locked memory works.
        ring.register_buffers_sparse(4).expect("sparse");
    };
    let thread = std::thread::Builder::new().name("l59_locked_memory_is_named".to_owned());
    thread.spawn(test).expect("thread").join().expect("test");
}

/// Drops CAP_IPC_LOCK (14) of this thread; capabilities are per thread.
fn give_up_ipc_lock() -> bool {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    // _LINUX_CAPABILITY_VERSION_3: two sets of effective, permitted, inheritable.
    let mut header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let mut data = [[0_u32; 3]; 2];
    // SAFETY: version 3 reads the header and writes two sets.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, data.as_mut_ptr()) } != 0 {
        return false;
    }
    data[0][0] &= !(1 << 14);
    // SAFETY: version 3 reads the header and two sets.
    unsafe { libc::syscall(libc::SYS_capset, &raw mut header, data.as_ptr()) == 0 }
}
