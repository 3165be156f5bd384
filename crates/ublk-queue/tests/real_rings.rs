//! Workers and servers on real rings without a driver: what their threads do when nothing arrives or set-up fails.
#![expect(
    unsafe_code,
    reason = "a ring without entries, and a file that is not a ublk device"
)]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ublk_core::{Geometry, OpenDevice, QueueId};
use ublk_queue::port::Port;
use ublk_queue::port::{RingNeeds, RingPort};
use ublk_queue::{Error, Plan, Polling, Request, Server, Threads};

fn needs(polling: Polling) -> RingNeeds {
    let mut needs = RingNeeds::default();
    (needs.commands, needs.lanes, needs.polling) = (4, 1, polling);
    needs
}

/// L60 One wake-up ends one wait: a polling worker then sleeps again, like one that does not poll.
#[test]
fn l60_a_wake_keeps_a_polling_ring_awake_once() {
    let spin = Duration::from_micros(50);
    for polling in [Polling::Off, Polling::Fixed(spin), Polling::Adaptive(spin)] {
        let null = File::open("/dev/null").expect("there");
        let needs = needs(polling);
        // SAFETY: nothing is pushed.
        let port = unsafe { RingPort::new(&needs, &[null.as_fd()]) };
        let mut port = port.expect("a ring");
        // Arms the waker's poll, as a worker's first loop does.
        port.enter(1, Some(Duration::from_millis(1)))
            .expect("a ring that works");
        port.wake_handle().wake();
        let begun = Instant::now();
        let mut waits = 0;
        while begun.elapsed() < Duration::from_millis(200) {
            port.submit_and_wait(1, Some(Duration::from_millis(50)))
                .expect("a ring that works");
            while port.next().is_some() {}
            waits += 1;
        }
        assert!(waits < 20, "{polling:?}: {waits} returns in 200 ms");
    }
}

/// L55 A wake-up during polling, or during the sleep after it, ends the wait soon.
#[test]
fn l55_a_wake_ends_a_polling_wait() {
    for after in [Duration::from_micros(20), Duration::from_millis(20)] {
        let null = File::open("/dev/null").expect("there");
        let needs = needs(Polling::Fixed(Duration::from_millis(1)));
        // SAFETY: nothing is pushed.
        let port = unsafe { RingPort::new(&needs, &[null.as_fd()]) };
        let mut port = port.expect("a ring");
        let wake = port.wake_handle();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(after);
                wake.wake();
            });
            while begun.elapsed() < after {
                port.submit_and_wait(1, Some(Duration::from_secs(20)))
                    .expect("a ring that works");
            }
        });
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}

fn geometry(queues: u16) -> Geometry {
    let info = ublk_sys::ublksrv_ctrl_dev_info {
        nr_hw_queues: queues,
        queue_depth: 4,
        max_io_buf_bytes: 4096,
        ..Default::default()
    };
    Geometry::from_reply(&info).expect("a sound reply")
}

/// Not a ublk device: it refuses the commands.
fn zero(queues: u16) -> OpenDevice {
    let zero = File::options().read(true).write(true).open("/dev/zero");
    let zero = OwnedFd::from(zero.expect("there"));
    // SAFETY: no driver writes to any buffer, since none takes the commands.
    unsafe { OpenDevice::new(zero, geometry(queues)) }
}

fn plan(shared_threads: Option<Arc<Threads>>) -> Plan {
    let mut plan = Plan::new(1 << 20);
    plan.arm_deadline = Duration::from_secs(20);
    plan.shared_threads = shared_threads;
    plan
}

fn answer(request: Request<'_>) {
    request.complete(Ok(()));
}

fn panic_on_purpose() -> ! {
    std::panic::resume_unwind(Box::new("on purpose"))
}

/// L64 A panic while one device is set up ends neither the shared thread nor the devices on it.
#[test]
fn l64_a_newcomers_panic_ends_no_shared_thread() {
    let threads = Threads::start(1).expect("a thread");
    let arm = |panics: bool| {
        let plan = plan(Some(Arc::clone(&threads)));
        Server::arm_with(zero(1), plan, move |_| {
            if panics {
                panic_on_purpose();
            }
            answer
        })
        .map(drop)
        .expect_err("no driver")
    };
    assert!(!matches!(arm(false), Error::SetUpPanicked { .. }));
    let error = arm(true).to_string();
    assert_eq!(error, "queue 0: panic during set-up: on purpose");
    // The thread is alive, and answers.
    let again = arm(false);
    let is_alive = !matches!(again, Error::TimedOut { .. } | Error::Panicked { .. });
    assert!(is_alive, "{again}");
}

/// L64 A panic in the set-up of one queue is reported at once with its number, however long the others take.
#[test]
fn l64_a_set_up_panic_names_its_queue_at_once() {
    let begun = Instant::now();
    let server = Server::arm_with(zero(2), plan(None), |qid: QueueId| {
        if qid != QueueId::ZERO {
            panic_on_purpose();
        }
        std::thread::sleep(Duration::from_secs(5));
        answer
    });
    let error = server.map(drop).expect_err("a panic").to_string();
    assert_eq!(error, "queue 1: panic during set-up: on purpose");
    assert!(begun.elapsed() < Duration::from_secs(4));
}
