use super::*;
use crate::fake::{Act, FakeKernel};
use crate::slots::RESERVE;
use std::sync::{Arc, Mutex};
use ublk_core::kernel::Release;
use ublk_core::{DeviceSpec, Limits};
use ublk_sys as sys;
use ublk_sys::ublksrv_ctrl_cmd;

/// Hours: a script needs no clock, so a test that really waits is noticed.
const LONG: Duration = Duration::from_secs(7200);
const DONE: Act = Act::Answer(Ok(0));

fn id(n: u32) -> DevId {
    DevId::new(n).unwrap()
}

fn spec() -> CheckedSpec {
    let spec = DeviceSpec::new(Limits::new(1 << 30)).queues(64);
    spec.check(4096).unwrap()
}

/// A kernel that accepts every command and changes the geometry that was requested.
fn kernel(cmd_op: u32, header: &ublksrv_ctrl_cmd, buffer: &Buffer) -> Act {
    match cmd_op {
        sys::UBLK_U_CMD_GET_FEATURES => buffer.fill(&0x1f_ffffu64.to_ne_bytes()),
        sys::UBLK_U_CMD_ADD_DEV => {
            let mut info = ublksrv_ctrl_dev_info::read_from(&buffer.read()).unwrap();
            assert_eq!((header.dev_id, info.dev_id), (u32::MAX, u32::MAX));
            info.dev_id = 3;
            info.nr_hw_queues = info.nr_hw_queues.min(2);
            info.max_io_buf_bytes = 65536;
            info.ublksrv_pid = -1;
            buffer.fill(&info.to_bytes());
        }
        _ => {}
    }
    DONE
}

fn failing(errno: Errno) -> Control<FakeKernel> {
    Control::with_port(FakeKernel::new(move |op, header, buffer| match op {
        sys::UBLK_U_CMD_GET_FEATURES => kernel(op, header, buffer),
        _ => Act::Answer(Err(errno)),
    }))
}

fn acting(act: Act) -> Control<FakeKernel> {
    Control::with_port(FakeKernel::new(move |_, _, _| act))
}

/// L04 The geometry is what the kernel returned, and the parameters follow it.
#[test]
fn l04_the_answer_is_the_device() {
    let sent = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&sent);
    let mut control = Control::with_port(FakeKernel::new(move |op, header, buffer| {
        if op == sys::UBLK_U_CMD_SET_PARAMS {
            *seen.lock().unwrap() = Some((header.dev_id, buffer.read()));
        }
        kernel(op, header, buffer)
    }));
    let geometry = control.add(spec(), LONG).unwrap();
    assert_eq!((geometry.dev_id(), geometry.queues()), (id(3), 2));
    control.set_params(spec(), geometry, LONG).unwrap();
    let (dev, payload) = sent.lock().unwrap().take().unwrap();
    let params = ublk_params::read_from(&payload).unwrap();
    assert_eq!((dev, params.basic.max_sectors), (3, 128));
}

/// L27 ADD_DEV is not sent to a kernel that crashes in it; the message names the kernel and the cure. The user can
/// override this.
#[test]
fn l27_add_is_refused_where_it_would_crash() {
    let on = |release: &str| {
        Control::with_port(FakeKernel::new(kernel)).release(Release::parse(release))
    };
    for release in ["6.18.5+deb14-amd64", "6.17.0-24-generic"] {
        let mut control = on(release);
        let error = control.add(spec(), LONG).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(release) && text.contains("6.18.6"), "{text}");
        assert!(text.contains("--trust-kernel"), "{text}");
        assert!(control.port().seen.is_empty(), "nothing was sent");
        let trusting = DeviceSpec::new(Limits::new(1 << 30)).trust_kernel(true);
        control.add(trusting.check(4096).unwrap(), LONG).unwrap();
    }
    on("6.18.6").add(spec(), LONG).unwrap();
}

/// L84 A stopped device is not started again, whatever the driver would do; a new device with its number is.
#[test]
fn l84_what_was_stopped_does_not_start_again() {
    let mut control = Control::with_port(FakeKernel::new(kernel));
    let device = control.add(spec(), LONG).unwrap().dev_id();
    control.start(device, 1, LONG).unwrap();
    control.stop(device, LONG).unwrap();
    let sent = control.port().seen.len();
    let error = control.start(device, 1, LONG).unwrap_err();
    assert!(matches!(error, Error::WrongState { .. }), "{error}");
    assert!(
        error.to_string().contains("delete it and add it again"),
        "{error}"
    );
    assert_eq!(control.port().seen.len(), sent, "nothing was sent");
    control.start(id(9), 1, LONG).unwrap();
    control.delete(device, LONG).unwrap();
    assert_eq!(control.add(spec(), LONG).unwrap().dev_id(), device);
    control.start(device, 1, LONG).unwrap();
}

#[test]
fn commands_are_sent_encoded() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let mut control = Control::with_port(FakeKernel::new(move |op, header, buffer| {
        let line = (op, header.dev_id, header.data[0], buffer.len());
        log.lock().unwrap().push(line);
        assert_eq!(header.queue_id, 0xffff);
        assert_eq!((header.len, header.dev_path_len), (buffer.len(), 0));
        if op == sys::UBLK_U_CMD_GET_DEV_INFO {
            buffer.fill(&spec().dev_info().to_bytes());
        }
        if op == sys::UBLK_U_CMD_GET_QUEUE_AFFINITY {
            buffer.fill(&5u64.to_ne_bytes());
        }
        DONE
    }));
    control.start(id(1), 4711, LONG).unwrap();
    control.stop(id(2), LONG).unwrap();
    control.delete(id(3), LONG).unwrap();
    let queue = QueueId::new(9).unwrap();
    let cpus = control.affinity(id(4), queue, LONG).unwrap();
    assert_eq!(cpus.to_string(), "0,2");
    assert_eq!(control.get_params(id(6), LONG), Ok(None));
    // The fake echoes the request, so the id belongs to no device.
    assert!(matches!(
        control.info(id(5), LONG),
        Err(Error::BadReply { .. })
    ));
    let expected = [
        (0xc020_7506, 1, 4711, 0),
        (0xc020_7507, 2, 0, 0),
        (0xc020_7505, 3, 0, 0),
        (0x8020_7501, 4, 9, 1024),
        (0x8020_7509, 6, 0, 512),
        (0x8020_7502, 5, 0, 64),
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[test]
fn features_are_asked_once_and_compared() {
    let mut control = Control::with_port(FakeKernel::new(|op, header, buffer| {
        if op == sys::UBLK_U_CMD_GET_FEATURES {
            buffer.fill(&0x1feu64.to_ne_bytes());
            return DONE;
        }
        kernel(op, header, buffer)
    }));
    assert_eq!(control.features(LONG), Ok(Features::from_bits(0x1fe)));
    let asked = DeviceSpec::new(Limits::new(1 << 30)).features(Features::BATCH_IO);
    let error = control.add(asked.check(4096).unwrap(), LONG).unwrap_err();
    assert!(error.to_string().contains("BATCH_IO (since Linux 7.0)"));
    control.add(spec(), LONG).unwrap();
    let seen = &control.port().seen;
    assert_eq!(
        *seen,
        [sys::UBLK_U_CMD_GET_FEATURES, sys::UBLK_U_CMD_ADD_DEV],
        "nothing is added that cannot be had"
    );
}

#[test]
fn an_old_kernel_is_refused_by_name() {
    for errno in [Errno::ENODEV, Errno::EOPNOTSUPP, Errno::EPERM] {
        let error = acting(Act::Answer(Err(errno))).add(spec(), LONG);
        assert_eq!(error, Err(Error::TooOld { errno }));
        assert!(error.unwrap_err().to_string().contains("6.5"));
    }
}

/// L27 A START that never completes is cancelled at its deadline: it has done nothing and is gone.
#[test]
fn l27_start_is_cancelled_at_its_deadline() {
    for end in [Errno::EINTR, Errno::ECANCELED] {
        let mut control = acting(Act::UntilCancelled(Err(end)));
        let error = control.start(id(1), 1, LONG).unwrap_err();
        assert_eq!(
            error,
            Error::TimedOut {
                operation: Operation::Start,
                dev: Some(id(1)),
                after: LONG,
                abandoned: false
            }
        );
        assert_eq!((control.pending(), control.port().cancels), (0, 1));
        assert_eq!(control.port().seen.len(), 1, "not said again");
        assert!(error.hint().contains("fetched every tag"), "{error}");
    }
}

/// L27 A command that succeeds while it is being cancelled succeeds, and one that fails returns its own error.
#[test]
fn l27_an_end_during_the_grace_counts() {
    let mut done = acting(Act::UntilCancelled(Ok(0)));
    assert_eq!(done.start(id(1), 1, LONG), Ok(()));
    let mut refused = acting(Act::UntilCancelled(Err(Errno::EEXIST)));
    let error = refused.start(id(1), 1, LONG).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EEXIST));
}

/// L27 A command that cannot be cancelled is abandoned. A STOP finds room in addition to all of these, and their late
/// completions release their slots.
#[test]
fn l27_stuck_commands_are_abandoned_with_room_for_a_stop() {
    let stop_works = FakeKernel::new(|op, _, _| match op {
        sys::UBLK_U_CMD_STOP_DEV => DONE,
        _ => Act::Stuck,
    });
    let mut control = Control::with_port(stop_works.capacity(5));
    let places = 5 - RESERVE;
    for n in 1..=places {
        let error = control.delete(id(1), LONG).unwrap_err();
        assert!(matches!(
            error,
            Error::TimedOut {
                abandoned: true,
                ..
            }
        ));
        assert!(error.to_string().contains("stays behind"), "{error}");
        assert_eq!(control.pending(), n);
    }
    let full = control.delete(id(1), LONG).unwrap_err();
    assert!(matches!(full, Error::Exhausted { pending: 3, .. }));
    assert_eq!(control.port().seen.len(), places, "not sent");
    assert_eq!(control.stop(id(1), LONG), Ok(()));
    control.port_mut().release(0);
    assert_eq!(control.stop(id(1), LONG), Ok(()));
    assert_eq!(control.pending(), 0, "late ends were reaped on the way");
    assert!(control.delete(id(1), LONG).is_err());
    assert_eq!(control.pending(), 1);
}

/// L28 Each errno is reported as such, at once and without a retry, never as success.
#[test]
fn l28_errnos_are_not_masked() {
    type F = fn(&mut Control<FakeKernel>) -> Result<(), Error>;
    let add: F = |c| c.add(spec(), LONG).map(drop);
    let start: F = |c| c.start(id(1), 1, LONG);
    let stop: F = |c| c.stop(id(1), LONG);
    let delete: F = |c| c.delete(id(1), LONG);
    let info: F = |c| c.info(id(1), LONG).map(drop);
    let cases: [(F, Errno, &str, usize); 14] = [
        (add, Errno::EEXIST, "the number is in use", 2),
        (add, Errno::EACCES, "device limit", 2),
        (add, Errno::ENOSPC, "every device number is taken", 2),
        (add, Errno::EPERM, "CAP_SYS_ADMIN", 2),
        (add, Errno::EINVAL, "combination of features", 2),
        (add, Errno::ENODEV, "older than Linux 6.5", 2),
        (add, Errno::ENOMEM, "free memory", 2),
        (start, Errno::EEXIST, "already live", 1),
        (start, Errno::EBUSY, "still attached", 1),
        // Sent once, followed by a query whether the device's commands must carry its path.
        (start, Errno::EINVAL, "set the parameters first", 2),
        (start, Errno::ENODEV, "no ublk device 1", 1),
        (stop, Errno::ENODEV, "no ublk device 1", 1),
        (delete, Errno::ENODEV, "no ublk device 1", 1),
        (info, Errno::EAGAIN, "try again", 1),
    ];
    for (command, errno, text, sent) in cases {
        let mut control = failing(errno);
        let error = command(&mut control).unwrap_err();
        assert!(error.to_string().contains(text), "{errno:?}: {error}");
        assert_eq!(error.errno(), Some(errno), "{error}");
        assert_eq!(control.port().seen.len(), sent, "{errno:?}");
    }
}

/// A kernel that interrupts the first attempt.
fn interrupting(then: Act) -> Control<FakeKernel> {
    let mut first = true;
    Control::with_port(FakeKernel::new(move |_, _, _| {
        if std::mem::take(&mut first) {
            return Act::Answer(Err(Errno::EINTR));
        }
        then
    }))
}

/// L50 A command interrupted by a signal is sent again if nothing has changed.
#[test]
fn l50_interrupted_commands() {
    let mut control = interrupting(DONE);
    assert_eq!(control.start(id(1), 1, LONG), Ok(()));
    assert_eq!(control.port().seen.len(), 2);
    let refused = Act::Answer(Err(Errno::EBUSY));
    let error = interrupting(refused).start(id(1), 1, LONG).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EBUSY));
    // DEL had removed the device before the interruption.
    let gone = Act::Answer(Err(Errno::ENODEV));
    assert_eq!(interrupting(gone).delete(id(1), LONG), Ok(()));
    let error = interrupting(gone).stop(id(1), LONG).unwrap_err();
    assert_eq!(error.kind(), crate::Kind::NoDevice);
    let mut control = interrupting(DONE);
    let raw = Request::new(
        Operation::Raw(0x16),
        sys::UBLK_U_CMD_QUIESCE_DEV,
        Some(id(1)),
    );
    let error = control.raw(&raw, LONG).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINTR));
    assert_eq!(control.port().seen.len(), 1, "may have had half its effect");
}

/// L65 Safe code cannot send a command whose payload names memory.
#[test]
fn l65_memory_is_not_named_by_raw_commands() {
    let mut control = Control::with_port(FakeKernel::new(|_, _, _| DONE));
    let request = Request::new(Operation::Raw(0x18), sys::UBLK_U_CMD_REG_BUF, Some(id(1)));
    assert!(matches!(
        control.raw(&request, LONG),
        Err(Error::Spec { .. })
    ));
    assert!(control.port().seen.is_empty());
}

/// L32 Every command fails for a device that does not exist, and no command means "all".
#[test]
fn l32_a_missing_device_is_an_error() {
    let commands = [
        Command::Stop { id: id(7) },
        Command::Delete { id: id(7) },
        Command::Info { id: id(7) },
        Command::GetParams { id: id(7) },
        Command::Start {
            id: id(7),
            server_pid: 1,
        },
    ];
    for command in commands {
        let error = failing(Errno::ENODEV).call(command, LONG).unwrap_err();
        assert_eq!(error.kind(), crate::Kind::NoDevice, "{error}");
        assert_eq!(error.dev(), Some(id(7)));
        assert!(error.to_string().contains("no ublk device 7"), "{error}");
    }
}

/// L53 Unknown completions, and those of earlier generations and of cancel requests, are ignored.
#[test]
fn l53_stale_completions_are_told_apart() {
    let mut control = Control::with_port(FakeKernel::new(|op, _, _| match op {
        sys::UBLK_U_CMD_STOP_DEV => Act::Answer(Err(Errno::EIO)),
        _ => DONE,
    }));
    control.start(id(1), 1, LONG).unwrap();
    // Slot 0 began with generation 1, whose word appears again with success.
    for word in [1 << 32, 1 << 32 | 1 << 16, u64::MAX, 0, 9] {
        control.port_mut().inject(word, 0);
    }
    let error = control.stop(id(1), LONG).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EIO));
    assert_eq!(control.pending(), 0);
}

#[test]
fn a_host_without_the_driver_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let error = Control::open_at(&dir.path().join("ublk-control")).unwrap_err();
    assert_eq!(error, Error::MissingModule);
    assert!(error.to_string().contains("modprobe ublk_drv"));
    if Path::new("/dev/ublk-control").exists() {
        eprintln!("skipped: this host has the ublk driver");
        return;
    }
    assert_eq!(Control::open().unwrap_err(), Error::MissingModule);
}

/// The real ring on files that are not control nodes: the command reaches the kernel, completes, and its memory is
/// returned.
#[test]
fn the_real_ring_carries_commands() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // A missing ring is a failure, not a pass (L91).
    let mut control = Control::open_at(file.path()).expect("a ring on this host");
    let errno = Errno::EOPNOTSUPP;
    for _ in 0..200 {
        let answer = control.features(LONG);
        assert_eq!(answer, Err(Error::TooOld { errno }));
        let error = control.stop(id(1), LONG).unwrap_err();
        assert_eq!(error.errno(), Some(errno), "{error}");
    }
    assert_eq!(control.pending(), 0);
    // A cancel request without a target is answered too, and a wait without a completion ends in time.
    control.port.cancel(77, 78).unwrap();
    let completion = control.port.wait(LONG).unwrap();
    let res = Errno::ENOENT.to_result();
    let user_data = 77;
    assert_eq!(completion, Some(Completion { user_data, res }));
    let begun = Instant::now();
    assert_eq!(control.port.wait(Duration::from_millis(20)), Ok(None));
    assert!(begun.elapsed() >= Duration::from_millis(20));
}

/// L27 A command that is interrupted forever ends at the deadline.
#[test]
fn l27_interrupts_without_end_have_a_deadline() {
    let kernel = FakeKernel::new(|_, _, _| Act::Answer(Err(Errno::EINTR)));
    let mut control = Control::with_port(kernel);
    for deadline in [Duration::ZERO, Duration::from_millis(20)] {
        let stopped = control.stop(DevId::new(1).unwrap(), deadline).unwrap_err();
        assert_eq!(stopped.kind(), crate::Kind::TimedOut, "{stopped}");
    }
}
