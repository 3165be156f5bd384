use super::*;
use crate::entry::{Cqe16, Sqe64};

/// A plausible reply for 8 and 16 entries, as Linux 6.18 gives it.
fn params() -> sys::io_uring_params {
    sys::io_uring_params {
        sq_entries: 8,
        cq_entries: 16,
        flags: sys::IORING_SETUP_NO_SQARRAY,
        features: u32::MAX,
        sq_off: sys::io_sqring_offsets {
            tail: 4,
            ring_mask: 16,
            ring_entries: 24,
            flags: 36,
            dropped: 32,
            ..Default::default()
        },
        cq_off: sys::io_cqring_offsets {
            head: 8,
            tail: 12,
            ring_mask: 20,
            ring_entries: 28,
            overflow: 44,
            cqes: 64,
            ..Default::default()
        },
        ..Default::default()
    }
}

fn check(params: &sys::io_uring_params) -> Result<Sizes, SetupError> {
    check_params::<Sqe64, Cqe16>(params)
}

#[test]
fn sizes_follow_from_the_parameters() {
    assert_eq!(
        check(&params()),
        Ok(Sizes {
            ring: 64 + 16 * 16,
            sqes: 8 * 64
        })
    );
    let mut with_array = params();
    with_array.flags = 0;
    with_array.sq_off.array = 320;
    assert_eq!(
        check(&with_array),
        Ok(Sizes {
            ring: 320 + 8 * 4,
            sqes: 8 * 64
        })
    );
}

#[test]
fn a_missing_feature_is_named() {
    for (feature, name) in [
        (sys::IORING_FEAT_SINGLE_MMAP, "IORING_FEAT_SINGLE_MMAP"),
        (sys::IORING_FEAT_NODROP, "IORING_FEAT_NODROP"),
        (sys::IORING_FEAT_EXT_ARG, "IORING_FEAT_EXT_ARG"),
    ] {
        let mut p = params();
        p.features &= !feature;
        assert!(matches!(check(&p), Err(SetupError::Missing { what, .. }) if what == name));
    }
}

#[test]
fn an_unbelievable_answer_is_refused() {
    let spoil: [fn(&mut sys::io_uring_params); 7] = [
        |p| p.sq_entries = 0,
        |p| p.sq_entries = 6,
        |p| p.cq_entries = 12,
        |p| p.cq_entries = 1 << 20,
        |p| p.cq_off.cqes = 65,
        |p| p.cq_off.cqes = !7,
        |p| {
            p.flags = 0;
            p.sq_off.array = u32::MAX;
        },
    ];
    for (i, spoil) in spoil.iter().enumerate() {
        let mut p = params();
        spoil(&mut p);
        assert!(
            matches!(check(&p), Err(SetupError::BadLayout { .. })),
            "case {i}: {:?}",
            check(&p)
        );
    }
    // The kernel did not grant the flag that sets the entry size.
    assert!(matches!(
        check_params::<crate::Sqe128, Cqe16>(&params()),
        Err(SetupError::BadLayout { .. })
    ));
}

#[test]
fn the_ladder_goes_down_only() {
    let all = Builder::<Sqe64, Cqe16>::new(8).attempts();
    assert_eq!(all[0].0, Ladder::SingleIssuerDefer);
    assert_ne!(all[0].1 & sys::IORING_SETUP_NO_SQARRAY, 0);
    assert_eq!(all.last(), Some(&(Ladder::Plain, 0)));
    assert!(all.windows(2).all(|w| w[0].0 <= w[1].0));
    let plain = Builder::<Sqe64, Cqe16>::new(8)
        .ladder(Ladder::Plain)
        .attempts();
    assert!(
        plain
            .iter()
            .all(|a| a.0 == Ladder::Plain && a.1 & sys::IORING_SETUP_DEFER_TASKRUN == 0)
    );
}

#[test]
fn sizes_out_of_range_are_refused_before_the_kernel_is_asked() {
    let bad = [
        Builder::<Sqe64, Cqe16>::new(0),
        Builder::new(8).cq_entries(0),
        Builder::new(32769),
        Builder::new(8).cq_entries(65537),
        Builder::new(64).cq_entries(16),
    ];
    for builder in bad {
        assert!(
            matches!(
                builder.clone().build(),
                Err(SetupError::InvalidArgument { .. })
            ),
            "{builder:?}"
        );
    }
}

#[test]
fn errnos_of_set_up_say_what_to_do() {
    let builder = Builder::<Sqe64, Cqe16>::new(8);
    let error = |errno| builder.setup_error(Errno::new(errno));
    assert!(matches!(error(libc::EPERM), SetupError::Disabled { .. }));
    assert!(error(libc::EPERM).to_string().contains("io_uring_disabled"));
    assert_eq!(error(libc::ENOSYS), SetupError::NotSupported);
    assert!(matches!(
        error(libc::ENOMEM),
        SetupError::NoMemory { sq_entries: 8, .. }
    ));
    assert!(matches!(
        error(libc::EMFILE),
        SetupError::TooManyFiles { .. }
    ));
    assert!(matches!(error(libc::EFAULT), SetupError::Call { .. }));
}
