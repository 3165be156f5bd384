use super::*;
use ublk_core::Features;
use ublk_core::kernel::Fault;

fn id(n: u32) -> DevId {
    DevId::new(n).unwrap()
}

fn every() -> Vec<Error> {
    let (dev, operation) = (Some(id(7)), Operation::Stop);
    let after = Duration::from_secs(3);
    let message = String::from("what it was");
    let mut all = vec![
        Error::MissingModule,
        Error::IoUringDisabled { sysctl: Some(2) },
        Error::IoUringDisabled { sysctl: None },
        Error::Ring {
            message: message.clone(),
        },
        Error::TooOld {
            errno: Errno::ENODEV,
        },
        Error::Unsupported(Missing {
            features: Features::QUIESCE,
        }),
        Error::KernelFault {
            operation: Operation::Add,
            fault: Fault::AddCrashes,
            release: "6.18.5".into(),
        },
        Error::UnknownCommand { operation, dev },
        Error::DeviceLimit,
        Error::NoFreeId,
        Error::IdInUse { dev },
        Error::NoSuchDevice { operation, dev },
        Error::Exhausted {
            operation,
            pending: 3,
        },
        Error::Spec {
            message: message.clone(),
        },
        Error::BadReply {
            operation,
            message: message.clone(),
        },
        Error::NoNode {
            operation,
            dev: id(7),
            node: "/dev/ublkc7".to_owned(),
        },
        Error::WrongSize {
            dev: id(7),
            want: 2,
            got: 1,
        },
        Error::ControllerGone { message },
    ];
    for &operation in [&[Operation::Raw(0x15)], Operation::ALL].concat().iter() {
        for raw in 0..5 {
            all.push(Error::WrongState {
                operation,
                dev: id(7),
                state: ublk_core::DevState::from_raw(raw),
            });
        }
        for abandoned in [false, true] {
            all.push(Error::TimedOut {
                operation,
                dev,
                after,
                abandoned,
            });
        }
        for errno in 1..=133 {
            all.push(Error::of_command(operation, dev, Errno::new(errno)));
        }
    }
    all
}

/// L27 Every error says, in one line, what happened and what to do.
#[test]
fn l27_every_error_says_what_to_do() {
    for error in every() {
        let (summary, hint) = (error.summary(), error.hint());
        assert!(!summary.is_empty() && hint.len() > 10, "{error:?}");
        assert!(!hint.ends_with('.') && !hint.contains('\n'), "{hint}");
        assert!(!hint.contains("  "), "{hint}");
        assert_eq!(error.to_string(), format!("{summary}; {hint}"));
    }
}

/// L28 An error keeps its errno.
#[test]
fn l28_no_errno_is_lost() {
    for operation in [Operation::Add, Operation::Start, Operation::Delete] {
        for n in 1..=133 {
            let errno = Errno::new(n);
            let error = Error::of_command(operation, Some(id(1)), errno);
            assert_eq!(error.errno(), Some(errno), "{operation}: {error:?}");
        }
    }
}

/// L39 The error explains what the device limit counts on this kernel, and how to raise it.
#[test]
fn l39_device_limit_is_explained() {
    let text = Error::of_command(Operation::Add, None, Errno::EACCES).to_string();
    for part in ["ublks_max", "64", "6.3 to 6.14", "unprivileged"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn kinds_for_exit_codes() {
    let of = |op, errno| Error::of_command(op, Some(id(1)), errno).kind();
    assert_eq!(of(Operation::Delete, Errno::ENODEV), Kind::NoDevice);
    assert_eq!(of(Operation::Add, Errno::EPERM), Kind::Permission);
    assert_eq!(of(Operation::Add, Errno::EEXIST), Kind::Busy);
    assert_eq!(of(Operation::Start, Errno::EBUSY), Kind::Busy);
    assert_eq!(of(Operation::Add, Errno::EINVAL), Kind::Other);
    assert_eq!(Error::MissingModule.kind(), Kind::Other);
    let spec = ublk_core::DeviceSpec::new(ublk_core::Limits::new(0));
    let error = Error::from(spec.check(4096).unwrap_err());
    assert_eq!(error.kind(), Kind::Usage);
}

#[cfg(feature = "serde")]
#[test]
fn errors_cross_a_socket() {
    for error in every() {
        let text = serde_json::to_string(&error).unwrap();
        assert_eq!(
            serde_json::from_str::<Error>(&text).unwrap(),
            error,
            "{text}"
        );
    }
}

#[test]
fn sentences_read_well() {
    let dev = Some(id(3));
    let timed_out = |operation, abandoned| {
        Error::TimedOut {
            operation,
            dev,
            after: Duration::from_secs(1),
            abandoned,
        }
        .summary()
    };
    use Operation as Op;
    let sentences = [
        (
            timed_out(Op::Start, false),
            "start device 3: cancelled at the deadline",
        ),
        (
            timed_out(Op::Stop, true),
            "stop device 3: not finished by the deadline, and cannot be cancelled",
        ),
        (
            timed_out(Op::ProveReady, false),
            "wait until ready: device 3: the node did not appear by the deadline",
        ),
        (
            Error::of_command(Op::OpenChar, dev, Errno::EBUSY).summary(),
            "open the character device of device 3: another server has the device open: device or resource \
             busy (EBUSY)",
        ),
        (
            Error::of_command(Op::Affinity, dev, Errno::EINVAL).summary(),
            "get queue affinity of device 3: invalid argument (EINVAL)",
        ),
        (
            Error::of_command(Op::Raw(0x15), dev, Errno::EIO).summary(),
            "command 0x15 on device 3: input/output error (EIO)",
        ),
    ];
    for (got, want) in sentences {
        assert_eq!(got, want);
    }
}
