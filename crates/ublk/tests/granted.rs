//! A feature that the driver drops silently is an error of the builder, with the tool's message.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ublk::backends::Null;
use ublk::core::{DataMode, Mode};
use ublk::{Builder, DevId, Errno, Features, Recovery};
use ublk_ctrl::Control;
use ublk_ctrl::fake::{Act, FakeKernel};
use ublk_sys::{self as sys, ublksrv_ctrl_dev_info};

const LONG: Duration = Duration::from_secs(60);

/// The commands that a kernel saw, and the features requested for a device.
type Seen = Arc<Mutex<(Vec<u32>, Features)>>;

/// A kernel that supports everything, drops these features from a device, and refuses its parameters.
fn kernel(dropped: Features) -> (Control<FakeKernel>, Seen) {
    let seen = Arc::new(Mutex::new((Vec::new(), Features::NONE)));
    let log = Arc::clone(&seen);
    let fake = FakeKernel::new(move |op, _, buffer| {
        let mut log = log.lock().expect("no panic");
        log.0.push(op);
        match op {
            sys::UBLK_U_CMD_GET_FEATURES => buffer.fill(&0x1f_ffff_u64.to_ne_bytes()),
            sys::UBLK_U_CMD_ADD_DEV => {
                let bytes = buffer.read().try_into().expect("a device's information");
                let mut info = ublksrv_ctrl_dev_info::from_bytes(&bytes);
                info.dev_id = 0;
                log.1 = Features::from_bits(info.flags);
                info.flags &= !dropped.bits();
                buffer.fill(&info.to_bytes());
            }
            sys::UBLK_U_CMD_SET_PARAMS => return Act::Answer(Err(Errno::EIO)),
            _ => {}
        }
        Act::Answer(Ok(0))
    });
    (Control::with_port(fake), seen)
}

/// A mode, a policy or an owner that the kernel does not grant is the error that the tool reports, too, and no device is
/// left behind.
#[test]
fn what_is_not_granted_is_an_error() {
    let null = || Builder::new(Null::new(1 << 20, 512).expect("a size")).deadline(LONG);
    let user_copy = null().mode(Mode::new(DataMode::UserCopy));
    let recovered = null().recovery(Recovery::Reissue);
    let unprivileged = null().features(Features::UNPRIVILEGED_DEV);
    for (builder, refused, told) in [
        (user_copy, Features::USER_COPY, "mode user-copy"),
        (recovered, Features::USER_RECOVERY, "with recovery reissue"),
        (unprivileged, Features::UNPRIVILEGED_DEV, "CAP_SYS_ADMIN"),
    ] {
        let (control, seen) = kernel(refused);
        let error = builder.controller(control).add().expect_err("refused");
        let (seen, asked) = &*seen.lock().expect("no panic");
        let not_granted = ublk_ctrl::Error::NotGranted {
            dev: DevId::new(0).expect("a number"),
            asked: *asked,
            refused,
        };
        assert_eq!(error.to_string(), not_granted.to_string());
        assert!(error.to_string().contains(told), "{error}");
        let ends = [sys::UBLK_U_CMD_ADD_DEV, sys::UBLK_U_CMD_DEL_DEV];
        assert_eq!(seen[seen.len() - 2..], ends, "{told}");
    }
    // What was not requested may be dropped: this device gets as far as its parameters, which the kernel refuses.
    let (control, seen) = kernel(Features::USER_COPY);
    let error = null().controller(control).add().expect_err("refused");
    assert!(error.to_string().contains("EIO"), "{error}");
    let (seen, _) = &*seen.lock().expect("no panic");
    let ends = [sys::UBLK_U_CMD_SET_PARAMS, sys::UBLK_U_CMD_DEL_DEV];
    assert_eq!(seen[seen.len() - 2..], ends);
}

/// The last of two modes or policies is requested, not both.
#[test]
fn the_last_mode_and_policy_count() {
    let null = || Builder::new(Null::new(1 << 20, 512).expect("a size")).deadline(LONG);
    let mode = |data| Mode::new(data);
    let quiesce = Features::QUIESCE;
    for (builder, wanted) in [
        (
            null()
                .mode(mode(DataMode::UserCopy).batched(true))
                .mode(mode(DataMode::GetData)),
            mode(DataMode::GetData).features(),
        ),
        (
            null()
                .mode(mode(DataMode::ZeroCopy))
                .mode(mode(DataMode::Copy)),
            Features::NONE,
        ),
        (
            null().recovery(Recovery::Reissue).recovery(Recovery::None),
            Features::NONE,
        ),
        (
            null().recovery(Recovery::Fail).recovery(Recovery::Queue),
            Recovery::Queue.features() | quiesce,
        ),
    ] {
        let (control, seen) = kernel(Features::NONE);
        builder
            .controller(control)
            .add()
            .expect_err("its parameters are refused");
        assert_eq!(seen.lock().expect("no panic").1, wanted);
    }
}
