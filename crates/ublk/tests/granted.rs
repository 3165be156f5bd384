//! A feature that the driver drops silently is an error of the builder, with the tool's message.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use ublk::backends::Null;
use ublk::core::{DataMode, Mode};
use ublk::{Builder, Errno, Features, Recovery};
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

/// Mode, recovery policy and owner: no caller gets another device than requested, and none is left behind.
#[test]
fn what_is_not_granted_is_an_error() {
    let null = || Builder::new(Null::new(1 << 20, 512).expect("a size")).deadline(LONG);
    let user_copy = null().mode(Mode::new(DataMode::UserCopy));
    let recovered = null().recovery(Recovery::Reissue);
    let unprivileged = null().features(Features::UNPRIVILEGED_DEV);
    for (builder, dropped, told) in [
        (user_copy, Features::USER_COPY, "mode user-copy"),
        (recovered, Features::USER_RECOVERY, "with recovery reissue"),
        (unprivileged, Features::UNPRIVILEGED_DEV, "CAP_SYS_ADMIN"),
        // It continues to the parameters, which this kernel refuses.
        (null(), Features::USER_COPY, "EIO"),
    ] {
        let (control, seen) = kernel(dropped);
        let error = builder.controller(control).add().expect_err("refused");
        assert!(error.to_string().contains(told), "{error}");
        let (seen, _) = &*seen.lock().expect("no panic");
        assert_eq!(seen.last(), Some(&sys::UBLK_U_CMD_DEL_DEV), "{told}");
    }
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
