//! What a stop requires, and what prevents it.
#![forbid(unsafe_code)]

use crate::failure::{Failure, FailureKind};
use crate::in_use::holders::Holders;
use ublk_core::{DevState, Geometry, Recovery};

/// What must be done before a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Needs {
    /// Nothing can be lost, or it is already lost.
    Nothing,
    /// Dirty data must be written back.
    Sync,
}

/// What a stop needs, or why it would lose data. `unknown` says why the users could not be determined.
pub(super) fn verdict(
    info: &Geometry,
    holders: &Holders,
    unknown: Option<Failure>,
    force: bool,
) -> Result<Needs, Failure> {
    let (id, state) = (info.dev_id(), info.state());
    match state {
        DevState::Live => {
            if force {
                return Ok(Needs::Sync);
            }
            if let Some(failure) = unknown {
                let hint = failure.hint.clone().unwrap_or_default();
                return Err(failure.hint(format!(
                    "{hint}; nothing was stopped, --force stops the device anyway"
                )));
            }
            let losing = holders.losing();
            if losing.is_empty() {
                return Ok(Needs::Sync);
            }
            Err(
                Failure::new(FailureKind::Busy, format!("device {id} is {losing}: nothing was stopped")).hint(
                    "unmount and close it first; --force writes back dirty data and stops the device anyway: later writes \
                     are lost",
                ),
            )
        }
        _ if force || !state.is_recoverable() => Ok(Needs::Nothing),
        _ => {
            let why = if !holders.is_empty() {
                format!("is {holders}: their unwritten data would be lost")
            } else if let Some(unwritten) = unwritten(info, holders, unknown.as_ref()) {
                unwritten.why()
            } else {
                return Ok(Needs::Nothing);
            };
            Err(
                Failure::new(FailureKind::Busy, format!("device {id} waits for a server and {why}")).hint(format!(
                    "`ublkctl recover {id}` starts one; --force stops the device anyway and loses that data"
                )),
            )
        }
    }
}

/// What a device that waits for a server holds and could only write to one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwritten {
    /// Bytes of dirty data.
    Dirty(u64),
    /// Unknown: a last close waits for it.
    Closing,
}

impl Unwritten {
    fn why(self) -> String {
        match self {
            Self::Dirty(bytes) => format!("has {bytes} bytes of dirty data"),
            Self::Closing => "cannot be opened: a last close waits for write-back".to_owned(),
        }
    }

    /// The words for its loss.
    pub(super) fn lost(self) -> String {
        match self {
            Self::Dirty(bytes) => format!("{bytes} bytes had no server to go to"),
            Self::Closing => "a last close waited for write-back".to_owned(),
        }
    }
}

/// What a stop of a device that waits for a server is known to lose.
pub(super) fn unwritten(
    info: &Geometry,
    holders: &Holders,
    unknown: Option<&Failure>,
) -> Option<Unwritten> {
    if info.state() == DevState::Live || !info.state().is_recoverable() {
        return None;
    }
    let loses = Recovery::of(info.features()).stop_loses_dirty_data();
    if holders.dirty != 0 && loses {
        return Some(Unwritten::Dirty(holders.dirty));
    }
    let late = unknown.is_some_and(|failure| failure.kind == FailureKind::TimedOut);
    late.then_some(Unwritten::Closing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::geometry_in;
    use crate::in_use::mounts::Mount;
    use crate::in_use::openers::Opener;
    use ublk_core::Features;

    fn mounted() -> Holders {
        let mut mounted = Holders::default();
        mounted.mounts.push(Mount {
            point: "/mnt".into(),
            namespace: None,
        });
        mounted
    }

    fn open(writes: bool) -> Holders {
        let mut open = Holders::default();
        open.processes.push(Opener {
            pid: 9,
            name: "dd".to_owned(),
            descriptors: vec![3],
            writes,
        });
        open
    }

    /// L22, L41 A stop that would cost a user data is refused, whatever the policy; a waiting device is stopped only if
    /// nobody loses data; `--force` overrides both. All dirty data of a live device is written back first.
    #[test]
    fn l22_l41_stops_lose_nothing_unless_forced() {
        let mut claimed = Holders::default();
        claimed.claimed.push("/dev/ublkb7".to_owned());
        let dirty = Holders {
            dirty: 4096,
            ..Holders::default()
        };
        let (mounted, writer, reader) = (mounted(), open(true), open(false));
        let free = Holders::default();
        let (live, quiesced, dead, fail_io) = (1, 2, 0, 3);
        let of = |policy: Recovery| policy.features();
        let refused = None;
        let (nothing, sync) = (Some(Needs::Nothing), Some(Needs::Sync));
        type Row<'a> = (u16, Features, &'a Holders, Option<Needs>, Option<Needs>);
        let mut table: Vec<Row<'_>> = vec![
            (quiesced, of(Recovery::Queue), &free, nothing, nothing),
            (quiesced, of(Recovery::Queue), &reader, refused, nothing),
            (quiesced, of(Recovery::Reissue), &mounted, refused, nothing),
            (quiesced, of(Recovery::Reissue), &dirty, refused, nothing),
            (fail_io, of(Recovery::Fail), &mounted, refused, nothing),
            (fail_io, of(Recovery::Fail), &dirty, nothing, nothing),
            (dead, of(Recovery::Queue), &writer, nothing, nothing),
            (dead, of(Recovery::None), &free, nothing, nothing),
        ];
        for policy in Recovery::ALL {
            for holders in [&mounted, &claimed, &writer] {
                table.push((live, of(policy), holders, refused, sync));
            }
            for holders in [&reader, &free, &dirty] {
                table.push((live, of(policy), holders, sync, sync));
            }
        }
        for (state, features, holders, safe, forced) in table {
            let info = geometry_in(state, 1, features);
            let got = |force| verdict(&info, holders, None, force).ok();
            assert_eq!((got(false), got(true)), (safe, forced), "{state} {holders}");
            // A forced stop says what it loses (live devices: when it could not be written back).
            let lost = unwritten(&info, holders, None).map(Unwritten::lost);
            let loses = state == quiesced && holders.dirty != 0;
            assert_eq!(lost.is_some(), loses, "{state} {holders}");
        }
    }

    /// L41 If the users cannot be determined, the stop is refused.
    #[test]
    fn l41_what_is_not_known_is_refused() {
        let unknown = |kind| Some(Failure::new(kind, "open: no answer"));
        let free = Holders::default();
        let live = geometry_in(1, 1, Recovery::None.features());
        for kind in [FailureKind::TimedOut, FailureKind::Failed] {
            let failure = verdict(&live, &free, unknown(kind), false).unwrap_err();
            assert_eq!(failure.kind, kind);
            assert!(failure.hint.unwrap().contains("nothing was stopped"));
            assert_eq!(verdict(&live, &free, unknown(kind), true), Ok(Needs::Sync));
        }
        let waits = geometry_in(2, 1, Recovery::Queue.features());
        let failure = verdict(&waits, &free, unknown(FailureKind::TimedOut), false).unwrap_err();
        assert!(failure.text.contains("last close"), "{failure}");
    }

    #[test]
    fn the_one_who_is_in_the_way_is_named() {
        let live = geometry_in(1, 1, Recovery::None.features());
        let failure = verdict(&live, &mounted(), None, false).unwrap_err();
        assert!(failure.text.contains("mounted at /mnt"), "{failure}");
        assert!(failure.hint.unwrap().contains("--force"));
        let failure = verdict(&live, &open(true), None, false).unwrap_err();
        assert!(failure.text.contains("process 9 (dd)"), "{failure}");
    }
}
