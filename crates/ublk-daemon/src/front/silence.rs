//! Why a question to a device has no answer, and what to do about it.

use super::measure::ours;
use crate::failure::{Failure, FailureKind};
use crate::state::{ProcessId, Record, Store};
use std::time::Duration;
use ublk_core::DevId;

/// How a question ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// Nobody listens.
    Unheard,
    /// No answer in that time.
    Late(Duration),
    /// The answer is not to this question.
    Unknown,
}

/// What is known of the processes of a device.
#[derive(Debug, Clone, Default)]
struct Processes {
    /// Whether the device exists and is ours.
    there: bool,
    recoverable: bool,
    server: bool,
    agent: bool,
    server_pid: Option<u32>,
    /// The one that is stopped, by a signal or a debugger, and which one that is.
    stopped: Option<(u32, &'static str)>,
}

impl Processes {
    fn of(store: &Store, record: &Record) -> Self {
        Self {
            there: true,
            recoverable: record.spec.recovery.is_recoverable(),
            server: store.has_server(record),
            agent: store.has_agent(record),
            server_pid: record.server.map(|it| it.pid),
            stopped: stopped(record),
        }
    }
}

/// The processes of a device that may have gone since it was asked.
fn processes(id: DevId) -> Processes {
    let found = Store::of_user().ok().and_then(|store| {
        let (_, record) = ours(&store, &[id]).ok()?.pop()?;
        Some(Processes::of(&store, &record))
    });
    found.unwrap_or_default()
}

fn stopped(record: &Record) -> Option<(u32, &'static str)> {
    let both = [(record.server, "server"), (record.agent, "agent")];
    let mut both = both
        .into_iter()
        .filter_map(|(process, what)| Some((process?, what)));
    let found = both.find(|(process, _)| ProcessId::is_stopped(process));
    found.map(|(process, what)| (process.pid, what))
}

impl Silence {
    /// The failure of a question to a device.
    pub(super) fn failure(self, id: DevId) -> Failure {
        self.told(id, &processes(id))
    }

    /// The same for a device whose record is at hand.
    pub(super) fn failure_of(self, id: DevId, store: &Store, record: &Record) -> Failure {
        self.told(id, &Processes::of(store, record))
    }

    /// The failure of a change, which waits in the sockets of a process that is stopped or busy.
    pub(super) fn of_change(self, id: DevId) -> Failure {
        self.told_of_change(id, &processes(id))
    }

    fn told_of_change(self, id: DevId, it: &Processes) -> Failure {
        let mut failure = self.told(id, it);
        if matches!(self, Self::Late(_)) && it.server && it.agent {
            failure.text += "; the change is made once it does";
            failure.kind = FailureKind::TimedOut;
        }
        failure
    }

    fn told(self, id: DevId, it: &Processes) -> Failure {
        if !it.there {
            return Failure::no_such_device(id);
        }
        let recover = format!("`ublkctl recover {id}` starts another");
        let delete = format!("`ublkctl delete {id}` removes the device");
        if !it.server {
            let hint = match it.recoverable {
                true => format!("{recover}; {delete}"),
                false => delete,
            };
            return Failure::failed(format!("the server of device {id} is gone")).hint(hint);
        }
        if !it.agent {
            let text = format!(
                "the agent of device {id} is gone, through which its server is asked; the server goes on"
            );
            return Failure::failed(text).hint(recover);
        }
        if let Some((pid, what)) = it.stopped {
            let text = format!(
                "the {what} of device {id}, process {pid}, does not answer: it is stopped, by a signal or a debugger"
            );
            return Failure::failed(text).hint(format!("`kill -CONT {pid}` lets it go on"));
        }
        match (self, it.server_pid) {
            (Self::Unknown, _) => Failure::failed(format!(
                "the server of device {id} is older than this program: it does not know the question"
            ))
            .hint(format!("`ublkctl upgrade {id}` starts one of this version")),
            (Self::Late(time), Some(pid)) => Failure::failed(format!(
                "the server of device {id}, process {pid}, has not answered in {} s",
                time.as_secs_f64()
            ))
            .hint(format!(
                "see `ublkctl logs {id}`; if it does not come back, `kill -9 {pid}` ends it"
            )),
            _ => Failure::failed(format!("the processes of device {id} do not answer"))
                .hint(format!("try again; see `ublkctl logs {id}`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each cause has its own words, and what to do is for that cause.
    #[test]
    fn each_cause_is_told_apart() {
        let id = DevId::new(3).unwrap();
        let well = Processes {
            there: true,
            recoverable: true,
            server: true,
            agent: true,
            server_pid: Some(77),
            stopped: None,
        };
        let late = Silence::Late(Duration::from_secs(3));
        let table: [(Silence, Processes, &str, &str); 7] = [
            (
                late,
                Processes {
                    server: false,
                    ..well.clone()
                },
                "server of device 3 is gone",
                "`ublkctl recover 3`",
            ),
            (
                late,
                Processes {
                    server: false,
                    recoverable: false,
                    ..well.clone()
                },
                "server of device 3 is gone",
                "`ublkctl delete 3`",
            ),
            (
                Silence::Unheard,
                Processes {
                    agent: false,
                    ..well.clone()
                },
                "agent of device 3 is gone",
                "`ublkctl recover 3`",
            ),
            (
                late,
                Processes {
                    stopped: Some((77, "server")),
                    ..well.clone()
                },
                "process 77, does not answer: it is stopped",
                "`kill -CONT 77`",
            ),
            (
                Silence::Unknown,
                well.clone(),
                "older than this program",
                "`ublkctl upgrade 3`",
            ),
            (
                late,
                well.clone(),
                "process 77, has not answered in 3 s",
                "see `ublkctl logs 3`; if it does not come back, `kill -9 77`",
            ),
            (Silence::Unheard, well, "do not answer", "try again"),
        ];
        for (silence, processes, text, hint) in table {
            let failure = silence.told(id, &processes);
            assert!(failure.text.contains(text), "{}", failure.text);
            let told = failure.hint.unwrap_or_default();
            assert!(told.starts_with(hint), "{}: {told}", failure.text);
            assert!(!told.contains("upgrade") || silence == Silence::Unknown);
            let waits = silence == late && processes.server;
            let change = silence.told_of_change(id, &processes).text;
            assert_eq!(change.contains("is made once"), waits, "{change}");
        }
        let gone = late.told(id, &Processes::default());
        assert_eq!(gone.kind, crate::failure::FailureKind::NoSuchDevice);
    }
}
