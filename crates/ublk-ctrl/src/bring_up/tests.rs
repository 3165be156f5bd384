use super::*;
use crate::Control;
use crate::fake::{Act, FakeKernel};
use std::os::fd::AsFd;
use ublk_core::{DeviceSpec, Errno, Limits, Mode};
use ublk_sys::{self as sys, Uapi, ublksrv_ctrl_dev_info};

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

/// A kernel with every feature; its device 3 has two queues, waits for a server, and gets this answer to SET_PARAMS.
fn device(set_params: Result<u32, Errno>) -> Control<FakeKernel> {
    Control::with_port(FakeKernel::new(move |op, _, buffer| {
        let describe = |mut info: ublksrv_ctrl_dev_info| {
            (info.dev_id, info.nr_hw_queues, info.state) = (3, 2, 2);
            buffer.fill(&info.to_bytes());
        };
        match op {
            sys::UBLK_U_CMD_GET_FEATURES => buffer.fill(&u64::MAX.to_ne_bytes()),
            sys::UBLK_U_CMD_ADD_DEV => {
                describe(ublksrv_ctrl_dev_info::read_from(&buffer.read()).unwrap());
            }
            sys::UBLK_U_CMD_GET_DEV_INFO => {
                let spec = DeviceSpec::new(Limits::new(1 << 20)).check(4096);
                describe(spec.unwrap().dev_info());
            }
            sys::UBLK_U_CMD_SET_PARAMS => return Act::Answer(set_params),
            _ => {}
        }
        Act::Answer(Ok(0))
    }))
}

/// Bring-up and recovery send their commands in order; a recovery sets no parameters (L34).
#[test]
fn both_sequences_end_in_a_live_device() {
    let limit = TimeLimit::Each(LONG);
    let spec = DeviceSpec::new(Limits::new(1 << 20)).queues(2);
    let spec = spec.features(Features::SHMEM_ZC).check(4096).unwrap();
    let mut control = device(Ok(0));
    let added = Added::add(&mut control, spec, limit).unwrap();
    let memory = tempfile::tempfile().unwrap();
    memory.set_len(4096).unwrap();
    let set_up = added.set_up(&mut control, Some(memory.as_fd()), limit);
    let (unserved, buffers) = set_up.unwrap();
    assert_eq!(buffers, [SharedBuffer::new(0, 0, 4096)]);
    assert_eq!(unserved.affinity(&mut control, limit).unwrap().len(), 2);
    unserved.go_live(&mut control, 1, limit).unwrap();
    assert_eq!(
        control.port().seen,
        [
            sys::UBLK_U_CMD_GET_FEATURES,
            sys::UBLK_U_CMD_ADD_DEV,
            sys::UBLK_U_CMD_SET_PARAMS,
            sys::UBLK_U_CMD_REG_BUF,
            sys::UBLK_U_CMD_GET_QUEUE_AFFINITY,
            sys::UBLK_U_CMD_GET_QUEUE_AFFINITY,
            sys::UBLK_U_CMD_START_DEV,
        ]
    );

    let mut control = device(Ok(0));
    let id = unserved.id();
    let error = params(&mut control, id, limit).unwrap_err();
    assert!(error.to_string().contains("never started"), "{error}");
    let unserved = Unserved::take_over(&mut control, id, LONG, limit).unwrap();
    assert_eq!(unserved.affinity(&mut control, limit).unwrap().len(), 2);
    unserved.go_live(&mut control, 1, limit).unwrap();
    assert_eq!(
        control.port().seen,
        [
            sys::UBLK_U_CMD_GET_PARAMS,
            sys::UBLK_U_CMD_GET_DEV_INFO,
            sys::UBLK_U_CMD_START_USER_RECOVERY,
            sys::UBLK_U_CMD_GET_DEV_INFO,
            sys::UBLK_U_CMD_GET_QUEUE_AFFINITY,
            sys::UBLK_U_CMD_GET_QUEUE_AFFINITY,
            sys::UBLK_U_CMD_END_USER_RECOVERY,
        ]
    );
}

/// Where udev never gives the node to its user, half of a common limit is left to report that.
#[test]
fn time_is_left_to_report_a_node_that_stays_closed() {
    let spec = DeviceSpec::new(Limits::new(1 << 20)).features(Features::UNPRIVILEGED_DEV);
    let end = Instant::now() + Duration::from_secs(1);
    let limit = TimeLimit::Until(end);
    let mut control = device(Err(Errno::EACCES));
    let added = Added::add(&mut control, spec.check(4096).unwrap(), limit).unwrap();
    let error = added.set_up(&mut control, None, limit).unwrap_err();
    assert_eq!(error.errno(), Some(Errno::EACCES));
    assert!(Instant::now() < end);
    assert_eq!(TimeLimit::Each(LONG).next_for_udev(), LONG);
}
