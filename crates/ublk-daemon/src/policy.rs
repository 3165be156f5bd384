//! Recovery policies: which are possible for a device.
#![forbid(unsafe_code)]

use crate::failure::{Failure, FailureKind};
use crate::spec::{AddSpec, BackendSpec};
use ublk_core::kernel::{Fault, Release};
use ublk_core::{DataMode, Features, Recovery};

/// Refuses a policy that the backend cannot support, before anything is created.
///
/// # Errors
/// A usage failure with the reason.
pub fn check(spec: &AddSpec) -> Result<(), Failure> {
    if spec.unprivileged {
        of_user(spec)?;
    }
    match (&spec.backend, spec.recovery) {
        (_, Recovery::None) if spec.supervise => Err(Failure::new(
            FailureKind::Usage,
            "--supervise needs --recovery: without it the device dies with its server",
        )
        .hint("add --recovery reissue, queue or fail")),
        (_, Recovery::None) => Ok(()),
        (BackendSpec::Mem { .. } | BackendSpec::Fault { .. }, policy) => Err(Failure::new(
            FailureKind::Usage,
            format!(
                "--recovery {policy}: the contents of a memory device die with its server, so a new server would return zeroes"
            ),
        )
        .hint("omit --recovery, or use a backend that keeps its data")),
        _ => Ok(()),
    }
}

/// Refuses features that the driver reserves for root's servers: a server that fills less than it reports could expose
/// kernel memory to a reader.
fn of_user(spec: &AddSpec) -> Result<(), Failure> {
    let root = |what: String| {
        Err(Failure::new(
            FailureKind::Usage,
            format!("{what}: the driver supports it for devices of root only"),
        )
        .hint("omit it, or run as root; unprivileged devices support --data copy and get-data, and --batch"))
    };
    match (spec.mode.data, spec.recovery) {
        (DataMode::Copy | DataMode::GetData, Recovery::None) => Ok(()),
        (DataMode::Copy | DataMode::GetData, policy) => root(format!("--recovery {policy}")),
        (data, _) => root(format!("--data {}", data.name())),
    }
}

/// Whether the server of a live device can be replaced without an I/O error on a kernel with this release.
///
/// # Errors
/// The reason why not.
pub fn may_replace(granted: Features, kernel: Option<&Release>) -> Result<(), Failure> {
    let policy = Recovery::of(granted);
    let why = match policy {
        Recovery::None => {
            return Err(Failure::failed(
                "the device was created without recovery, so no other server can take it over",
            )
            .hint("delete it and add it again with --recovery reissue"));
        }
        Recovery::Fail => "with policy `fail` all I/O fails while there is no server",
        _ if granted.contains(Features::BATCH_IO) => {
            if let Some(release) = kernel.filter(|k| k.has(Fault::BatchHandOver)) {
                let fault = Fault::BatchHandOver;
                return Err(Failure::new(
                    FailureKind::KernelFault,
                    format!("some I/O would fail during and after the upgrade: kernel {release}: {fault}"),
                )
                .hint(format!(
                    "{}; --allow-errors upgrades anyway",
                    fault.remedy()
                )));
            }
            // Seen on 7.3.4, where the fault of failing I/O afterwards is fixed.
            "in batch mode the driver fails requests that arrive while I/O is held"
        }
        Recovery::Queue if !granted.contains(Features::QUIESCE) => {
            "this kernel cannot hold I/O (QUIESCE needs Linux 6.16), and with policy `queue` requests in flight in the old server fail"
        }
        _ => return Ok(()),
    };
    Err(Failure::failed(format!("some I/O would fail: {why}")).hint(
        "--allow-errors upgrades anyway; policy `reissue` without batch commands never needs it",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes;
    use ublk_core::Mode;

    fn spec(backend: BackendSpec, recovery: Recovery, batch: bool) -> AddSpec {
        let mode = Mode::default().batched(batch);
        AddSpec {
            backend,
            recovery,
            mode,
            ..fakes::spec()
        }
    }

    /// L14 A backend whose data dies with its server supports no recovery, and says why.
    #[test]
    fn l14_memory_that_dies_is_not_recovered() {
        for policy in Recovery::ALL {
            let mem = spec(BackendSpec::Mem { size: 4096 }, policy, false);
            let null = spec(BackendSpec::Null { size: 4096 }, policy, false);
            assert!(check(&null).is_ok());
            match check(&mem) {
                Ok(()) => assert_eq!(policy, Recovery::None),
                Err(failure) => assert_eq!(failure.kind, FailureKind::Usage),
            }
        }
    }

    /// Features that the driver refuses to unprivileged users, or strips silently, are refused by name before anything
    /// is created.
    #[test]
    fn users_have_what_the_driver_gives_them() {
        for data in DataMode::ALL {
            for policy in Recovery::ALL {
                let mut spec = spec(BackendSpec::Null { size: 4096 }, policy, false);
                spec.mode.data = data;
                assert!(check(&spec).is_ok());
                spec.unprivileged = true;
                let may =
                    matches!(data, DataMode::Copy | DataMode::GetData) && policy == Recovery::None;
                match check(&spec) {
                    Ok(()) => assert!(may, "{data} {policy}"),
                    Err(failure) => {
                        assert!(!may, "{failure}");
                        assert_eq!(failure.kind, FailureKind::Usage);
                        assert!(failure.text.contains("of root only"), "{failure}");
                    }
                }
            }
        }
    }

    /// L35 If replacing a server would cost requests, it is refused with the reason.
    #[test]
    fn l35_upgrades_that_lose_requests_are_refused() {
        let quiesce = Features::QUIESCE;
        for (granted, why) in [
            (Recovery::Reissue.features(), None),
            (Recovery::Reissue.features() | quiesce, None),
            (Recovery::Queue.features() | quiesce, None),
            (Recovery::Queue.features(), Some("6.16")),
            (Recovery::Fail.features() | quiesce, Some("policy `fail`")),
            (Features::NONE, Some("without recovery")),
        ] {
            match (may_replace(granted, None), why) {
                (Ok(()), None) => {}
                (Err(failure), Some(why)) => assert!(failure.text.contains(why), "{failure:?}"),
                other => panic!("{granted}: {other:?}"),
            }
        }
    }

    /// L84 No kernel upgrades a batch device without a message, and where a kernel is known to fail its I/O
    /// permanently, the message names its release.
    #[test]
    fn l84_upgrades_of_batch_devices_are_refused_by_release() {
        let granted = Recovery::Reissue.features() | Features::QUIESCE | Features::BATCH_IO;
        let on = |release: &str| may_replace(granted, Release::parse(release).as_ref());
        for release in ["7.0.14", "7.2.6", "7.3.0-rc2"] {
            let failure = on(release).unwrap_err();
            assert_eq!(failure.kind, FailureKind::KernelFault);
            assert!(failure.text.contains(release), "{failure:?}");
            assert!(failure.hint.unwrap().contains("7.2.7"));
        }
        for release in ["7.2.7", "7.3.0-rc3", "7.3.4", "unknown"] {
            let failure = on(release).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Failed);
            assert!(failure.text.contains("batch mode"), "{failure:?}");
        }
    }
}
