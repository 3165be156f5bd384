use super::*;
use crate::fake::{Act, FakeKernel};
use crate::{Buffer, Command, Kind};
use std::sync::{Arc, Mutex};
use ublk_core::{DeviceSpec, Limits};
use ublk_sys as sys;
use ublk_sys::ublksrv_ctrl_cmd;

const LONG: Duration = Duration::from_secs(7200);
const DONE: Act = Act::Answer(Ok(0));

fn id() -> DevId {
    DevId::new(4).unwrap()
}

/// The device as the kernel would describe it.
fn describe(buffer: &Buffer, state: DevState, features: Features, path: usize) {
    let spec = DeviceSpec::new(Limits::new(1 << 30)).id(id());
    let mut info = spec.check(4096).unwrap().dev_info();
    info.state = state.to_raw();
    info.flags = features.bits();
    let mut bytes = buffer.read();
    bytes[path..].copy_from_slice(&info.to_bytes());
    buffer.fill(&bytes);
}

type Seen = Arc<Mutex<Vec<(u32, u64)>>>;

/// A kernel with these features, whose device goes through these states and stays in the last one. Commands other than
/// queries for information and features are recorded and answered by `act`.
fn kernel(
    features: u64,
    states: Vec<DevState>,
    act: impl FnMut(u32, &ublksrv_ctrl_cmd) -> Act + Send + 'static,
) -> (Control<FakeKernel>, Seen) {
    kernel_with(features, Features::NONE, states, act)
}

/// As `kernel`, with the features of the device.
fn kernel_with(
    features: u64,
    granted: Features,
    mut states: Vec<DevState>,
    mut act: impl FnMut(u32, &ublksrv_ctrl_cmd) -> Act + Send + 'static,
) -> (Control<FakeKernel>, Seen) {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let fake = FakeKernel::new(move |op, header, buffer| match op {
        sys::UBLK_U_CMD_GET_FEATURES => {
            buffer.fill(&features.to_ne_bytes());
            DONE
        }
        sys::UBLK_U_CMD_GET_DEV_INFO | sys::UBLK_U_CMD_GET_DEV_INFO2 => {
            let state = if states.len() > 1 {
                states.remove(0)
            } else {
                states[0]
            };
            describe(buffer, state, granted, header.dev_path_len.into());
            DONE
        }
        _ => {
            assert_eq!((header.dev_id, header.queue_id), (4, 0xffff));
            log.lock().unwrap().push((op, header.data[0]));
            act(op, header)
        }
    });
    (Control::with_port(fake), seen)
}

/// L34 Recovery starts in both recoverable states, as soon as the device has reached one and its old server's file is
/// closed; EBUSY until then is waited out.
#[test]
fn l34_recovery_waits_for_the_state_and_for_the_old_server() {
    for state in [DevState::Quiesced, DevState::FailIo] {
        let mut busy = 3;
        let (mut control, seen) = kernel(
            0,
            vec![DevState::Live, DevState::Live, state],
            move |_, _| {
                busy -= 1;
                Act::Answer(if busy < 0 { Ok(0) } else { Err(Errno::EBUSY) })
            },
        );
        control.start_recovery(id(), LONG).unwrap();
        assert_eq!(seen.lock().unwrap().len(), 4, "{state}");
        assert_eq!(seen.lock().unwrap()[0].0, 0xc020_7510);
    }
}

/// L34 A live or dead device cannot be recovered: nothing is sent, and the error names the state.
#[test]
fn l34_live_and_dead_devices_are_not_recovered() {
    for (state, hint) in [
        (DevState::Live, "the device is served"),
        (DevState::Dead, "nothing to recover"),
    ] {
        let (mut control, seen) = kernel(0, vec![state], |_, _| DONE);
        let short = Duration::from_millis(3);
        let error = control.start_recovery(id(), short).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.to_string().contains(hint), "{error}");
        assert!(seen.lock().unwrap().is_empty());
    }
    let busy = |_: u32, _: &ublksrv_ctrl_cmd| Act::Answer(Err(Errno::EBUSY));
    let (mut control, _) = kernel(0, vec![DevState::Quiesced], busy);
    let error = control.start_recovery(id(), Duration::from_millis(3));
    let error = error.unwrap_err().to_string();
    assert!(error.contains("still attached"), "{error}");
}

/// L34 A recovery continues even if the server that began it died before it fetched anything; kernels such as 6.12
/// refuse a second START. The EINVAL of a device without recovery is reported.
#[test]
fn l34_a_recovery_already_begun_is_gone_on_with() {
    let refused = |_: u32, _: &ublksrv_ctrl_cmd| Act::Answer(Err(Errno::EINVAL));
    let states = || vec![DevState::Quiesced];
    let (mut control, seen) = kernel_with(0, Features::USER_RECOVERY, states(), refused);
    control.start_recovery(id(), LONG).unwrap();
    assert_eq!(seen.lock().unwrap().len(), 1);
    let (mut control, _) = kernel(0, states(), refused);
    let error = control.start_recovery(id(), LONG).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL));
}

/// L27 END_USER_RECOVERY is cancelled at its deadline if a tag is never fetched.
#[test]
fn l27_end_recovery_is_cancelled_at_its_deadline() {
    let (mut control, seen) = kernel(0, vec![DevState::Quiesced], |_, header| {
        assert_eq!(header.data, [4711]);
        Act::UntilCancelled(Err(Errno::EINTR))
    });
    let error = control.end_recovery(id(), 4711, LONG).unwrap_err();
    assert!(matches!(
        error,
        Error::TimedOut {
            abandoned: false,
            ..
        }
    ));
    assert!(error.to_string().contains("fetched every tag"), "{error}");
    assert_eq!(*seen.lock().unwrap(), [(0xc020_7511, 4711)]);
}

/// A command that the kernel lacks is not sent, and the error names the kernel that introduced it.
#[test]
fn missing_commands_name_the_kernel_that_brings_them() {
    type F = fn(&mut Control<FakeKernel>) -> Result<(), Error>;
    let cases: [(F, &str); 3] = [
        (|c| c.quiesce(id(), LONG), "QUIESCE (since Linux 6.16)"),
        (
            |c| c.update_size(id(), 4096, LONG),
            "UPDATE_SIZE (since Linux 6.16)",
        ),
        (
            |c| c.try_stop(id(), LONG),
            "SAFE_STOP_DEV (since Linux 7.0)",
        ),
    ];
    for (command, text) in cases {
        let (mut control, seen) = kernel(0x1fe, vec![DevState::Live], |_, _| DONE);
        let error = command(&mut control).unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert!(seen.lock().unwrap().is_empty());
        let (mut control, seen) = kernel(u64::MAX, vec![DevState::Live], |_, _| DONE);
        command(&mut control).unwrap();
        assert_eq!(seen.lock().unwrap().len(), 1);
    }
    let unknown = |_: u32, _: &ublksrv_ctrl_cmd| Act::Answer(Err(Errno::EOPNOTSUPP));
    let (mut control, _) = kernel(u64::MAX, vec![DevState::Live], unknown);
    let error = control.delete_async(id(), LONG).unwrap_err().to_string();
    assert!(error.contains("Linux 6.9"), "{error}");
    let error = control.quiesce(id(), LONG).unwrap_err().to_string();
    assert!(error.contains("created without"), "{error}");
}

/// Kernels before 7.0 crash in UPDATE_SIZE for a device without a disk: it is sent only to live devices, in sectors,
/// and only with a valid size.
#[test]
fn l02_update_size_is_for_live_devices_and_in_sectors() {
    for state in [DevState::Dead, DevState::Quiesced, DevState::FailIo] {
        let (mut control, seen) = kernel(u64::MAX, vec![state], |_, _| DONE);
        let error = control.update_size(id(), 8192, LONG).unwrap_err();
        assert!(matches!(error, Error::WrongState { .. }), "{error}");
        assert!(seen.lock().unwrap().is_empty(), "{state}");
    }
    let (mut control, seen) = kernel(u64::MAX, vec![DevState::Live], |_, _| DONE);
    for size in [0, 513, u64::MAX] {
        let error = control.update_size(id(), size, LONG).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
    }
    control.update_size(id(), 8192, LONG).unwrap();
    assert_eq!(*seen.lock().unwrap(), [(0xc020_7515, 16)]);
}

#[test]
fn commands_of_the_later_life_are_sent_encoded() {
    let (mut control, seen) = kernel(u64::MAX, vec![DevState::Live], |_, _| DONE);
    let id = id();
    for command in [
        Command::Quiesce { id },
        Command::TryStop { id },
        Command::DeleteAsync { id },
    ] {
        control.call(command, Duration::from_secs(2)).unwrap();
    }
    let seen = seen.lock().unwrap();
    let ops: Vec<u32> = seen.iter().map(|(op, _)| *op).collect();
    assert_eq!(ops, [0xc020_7516, 0xc020_7517, 0x8020_7514]);
    // Milliseconds of the deadline; 0 would mean no limit.
    assert!((1..=2000).contains(&seen[0].1), "{}", seen[0].1);
}

/// A kernel with an unprivileged device: it refuses commands without the path before it checks anything else, and
/// DEL_DEV_ASYNC always.
fn unprivileged() -> (Control<FakeKernel>, Seen) {
    let seen = Seen::default();
    let log = Arc::clone(&seen);
    let path = b"/dev/ublkc4\0";
    let fake = FakeKernel::new(move |op, header, buffer| {
        log.lock().unwrap().push((op, header.dev_path_len.into()));
        if header.dev_path_len == 0 || op == sys::UBLK_U_CMD_DEL_DEV_ASYNC {
            return Act::Answer(Err(Errno::EINVAL));
        }
        assert_eq!(&buffer.read()[..12], path);
        assert_eq!(header.dev_path_len, 12);
        if buffer.len() == 12 + 64 {
            describe(buffer, DevState::Live, Features::UNPRIVILEGED_DEV, 12);
        }
        DONE
    });
    (Control::with_port(fake), seen)
}

/// Commands for an unprivileged device carry its path, whoever sends them; the device's kind is detected once.
#[test]
fn unprivileged_devices_are_named_by_their_path() {
    let (mut control, seen) = unprivileged();
    control.stop(id(), LONG).unwrap();
    let geometry = control.info(id(), LONG).unwrap();
    assert_eq!(geometry.state(), DevState::Live);
    control.delete_async(id(), LONG).unwrap();
    let expected = [
        (sys::UBLK_U_CMD_STOP_DEV, 0),
        (sys::UBLK_U_CMD_GET_DEV_INFO2, 12),
        (sys::UBLK_U_CMD_STOP_DEV, 12),
        (sys::UBLK_U_CMD_GET_DEV_INFO, 12),
        (sys::UBLK_U_CMD_DEL_DEV_ASYNC, 12),
        (sys::UBLK_U_CMD_DEL_DEV, 12),
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

/// SET_PARAMS waits until udev has given an unprivileged device to its user, up to the deadline; another user's device
/// stays theirs.
#[test]
fn a_users_device_waits_for_udev() {
    let spec = ublk_core::DeviceSpec::new(ublk_core::Limits::new(1 << 20))
        .features(Features::UNPRIVILEGED_DEV)
        .check(4096)
        .unwrap();
    for (refusals, given) in [(3, true), (u32::MAX, false)] {
        let mut left = refusals;
        let fake = FakeKernel::new(move |op, header, buffer| match op {
            sys::UBLK_U_CMD_GET_FEATURES => {
                buffer.fill(&u64::MAX.to_ne_bytes());
                DONE
            }
            sys::UBLK_U_CMD_ADD_DEV => {
                describe(buffer, DevState::Dead, Features::UNPRIVILEGED_DEV, 0);
                DONE
            }
            _ => {
                assert_ne!(header.dev_path_len, 0);
                left = left.saturating_sub(1);
                match left {
                    0 => DONE,
                    _ => Act::Answer(Err(Errno::EACCES)),
                }
            }
        });
        let mut control = Control::with_port(fake);
        let geometry = control.add(spec, LONG).unwrap();
        let set = control.set_params(spec, geometry, Duration::from_millis(50));
        match set {
            Ok(()) => assert!(given),
            Err(error) => {
                assert!(
                    !given && matches!(error, Error::NoPermission { .. }),
                    "{error}"
                );
                assert!(error.to_string().contains("udev rules"), "{error}");
            }
        }
    }
    let fake = FakeKernel::new(|_, header, _| {
        Act::Answer(Err(match header.dev_path_len {
            0 => Errno::EINVAL,
            _ => Errno::EACCES,
        }))
    });
    let error = Control::with_port(fake).stop(id(), LONG).unwrap_err();
    assert!(matches!(error, Error::NoPermission { .. }), "{error}");
}

/// L28 EINVAL for a privileged device is the command's own error: it is reported, and nothing is sent twice.
#[test]
fn l28_an_einval_of_the_command_itself_is_told() {
    let (mut control, seen) = kernel(u64::MAX, vec![DevState::Quiesced], |_, _| {
        Act::Answer(Err(Errno::EINVAL))
    });
    let error = control.end_recovery(id(), 1, LONG).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EINVAL));
    assert!(error.to_string().contains("without recovery"), "{error}");
    assert_eq!(seen.lock().unwrap().len(), 1);
}
