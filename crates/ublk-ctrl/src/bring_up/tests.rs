use super::*;
use crate::Control;
use crate::fake::{Act, FakeKernel};
use ublk_core::{DeviceSpec, Limits, Mode};

const LONG: Duration = Duration::from_secs(60);

/// A control ring on a kernel with these features. At most the features may be queried.
fn kernel(features: Features) -> Control<FakeKernel> {
    Control::with_port(FakeKernel::new(move |op, _, buffer| {
        assert_eq!(op, ublk_sys::UBLK_U_CMD_GET_FEATURES);
        buffer.fill(&features.bits().to_ne_bytes());
        Act::Answer(Ok(0))
    }))
}

/// Optional features, and QUIESCE, are requested if the kernel supports them. Batch mode is not recoverable before 7.3.
#[test]
fn what_is_optional_is_asked_for_where_the_kernel_has_it() {
    let new = Features::from_bits(0x1f_ffff);
    let old = Features::from_bits(0x1fe);
    let ask =
        |kernel_has, asked, optional| negotiate(&mut kernel(kernel_has), asked, &[optional], LONG);
    let queue = Recovery::Queue.features();
    assert_eq!(ask(old, queue, Features::NONE), Ok(queue));
    assert_eq!(
        ask(new, queue, Features::NONE),
        Ok(queue | Features::QUIESCE)
    );
    let scan = Features::NO_AUTO_PART_SCAN;
    assert_eq!(ask(old, Features::NONE, scan), Ok(Features::NONE));
    assert_eq!(ask(new, Features::NONE, scan), Ok(scan));
    // A mode of two features is requested completely or not at all.
    let both = Features::AUTO_BUF_REG | Features::SUPPORT_ZERO_COPY;
    assert_eq!(
        ask(new.without(Features::AUTO_BUF_REG), Features::NONE, both),
        Ok(Features::NONE)
    );
    assert_eq!(ask(new, Features::NONE, both), Ok(both));
    let batch = Features::BATCH_IO;
    let between = new.without(Features::IO_DESC_SIZE);
    for recovery in Recovery::ALL {
        let asked = batch
            | recovery.features()
            | if recovery.is_recoverable() {
                Features::QUIESCE
            } else {
                Features::NONE
            };
        let got = ask(between, asked, Features::NONE);
        match recovery.is_recoverable() {
            true => assert_eq!(got, Err(Error::BatchNotRecoverable { recovery })),
            false => assert_eq!(got, Ok(asked)),
        }
        assert!(ask(new, asked, Features::NONE).is_ok());
    }
}

/// Any feature that the driver drops is an error that names mode and policy.
#[test]
fn what_is_dropped_in_silence_is_told() {
    let mode = Mode::default().features() | Features::USER_COPY;
    let asked = mode | Recovery::Reissue.features();
    for (dropped, told) in [
        (Features::USER_COPY, "mode user-copy"),
        (Features::USER_RECOVERY, "recovery reissue"),
        (Features::NONE, ""),
    ] {
        let spec = DeviceSpec::new(Limits::new(1 << 20)).features(asked);
        let checked = spec.check(4096).unwrap();
        let mut info = checked.dev_info();
        info.dev_id = 0;
        info.flags = asked.without(dropped).bits();
        let geometry = Geometry::from_reply(&info).unwrap();
        match granted(&checked, &geometry) {
            Ok(()) => assert!(dropped.is_empty()),
            Err(error) => {
                assert!(error.to_string().contains(told), "{error}");
                assert!(error.to_string().contains(&dropped.to_string()), "{error}");
            }
        }
    }
}
