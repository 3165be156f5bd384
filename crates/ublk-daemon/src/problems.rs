//! What is wrong with a serving device, from its health.
#![forbid(unsafe_code)]

use crate::report::{Health, Problem, ProblemKind, QueueReport};
use std::time::Duration;

/// A request that has been in hand for so long makes its queue stalled.
pub const STALLED: Duration = Duration::from_secs(10);

/// The problems of a device, the worst first.
pub(crate) fn of(health: &Health) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut add = |kind, text: String| found.push(Problem { kind, text });
    if health.state == "failed" {
        let cause = health.first_error.as_deref().unwrap_or("no cause is known");
        add(ProblemKind::Failed, format!("a queue has failed: {cause}"));
    }
    if let Some((queue, text)) = oldest(health).filter(|(queue, _)| is_stalled(queue)) {
        let name = name(queue);
        add(ProblemKind::Stalled, format!("{name}: {text}"));
    }
    if let Some(nbd) = health.nbd.as_ref().filter(|nbd| nbd.state != "up") {
        let why = nbd.last_error.as_deref().unwrap_or("no error is known");
        let text = format!("the NBD server {}: {}: {why}", nbd.uri, nbd.state);
        add(ProblemKind::Degraded, text);
    }
    let stats = &health.stats;
    if stats.panics > 0 {
        let text = match stats.panics {
            1 => "a panic in the backend, which failed a request".to_owned(),
            n => format!("{n} panics in the backend, each of which failed a request"),
        };
        add(ProblemKind::Panics, text);
    }
    if stats.errors > 0 {
        let first = health.first_failure.as_ref();
        let first = first.map(|first| format!(", the first: {}", first.text));
        let requests = match stats.errors {
            1 => "request",
            _ => "requests",
        };
        let text = format!(
            "{} {requests} failed{}",
            stats.errors,
            first.unwrap_or_default()
        );
        add(ProblemKind::Errors, text);
    }
    found
}

fn is_stalled(queue: &QueueReport) -> bool {
    age(queue).is_some_and(|age| age >= STALLED)
}

/// The age of a queue's oldest request.
pub(crate) fn age(queue: &QueueReport) -> Option<Duration> {
    let oldest = queue.oldest.as_ref()?;
    Some(Duration::from_millis(oldest.ms))
}

/// The queue with the oldest request of all, and a sentence about that.
fn oldest(health: &Health) -> Option<(&QueueReport, String)> {
    let queue = health.queues.iter().max_by_key(|queue| age(queue))?;
    let oldest = queue.oldest.as_ref()?;
    let text = format!(
        "a request has been unanswered for {} s: {}",
        oldest.ms / 1000,
        place(&oldest.place)
    );
    Some((queue, text))
}

/// Where a request is, for people.
fn place(place: &str) -> &str {
    match place {
        "waiting" => "it waits for a thread of the backend",
        "backend" => "the backend has it",
        "answer" => "its answer waits for the queue's thread",
        other => other,
    }
}

/// A queue's name for people.
pub(crate) fn name(queue: &QueueReport) -> String {
    match queue.thread {
        0 => format!("queue {}", queue.qid),
        thread => format!("queue {}, thread {thread}", queue.qid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{FirstFailure, OldestReport};

    fn queue(qid: u16, ms: Option<u64>, place: &str) -> QueueReport {
        let place = place.to_owned();
        QueueReport {
            qid,
            oldest: ms.map(|ms| OldestReport { ms, place }),
            ..QueueReport::default()
        }
    }

    #[test]
    fn a_good_device_has_no_problem() {
        let mut health = Health {
            state: "serving".to_owned(),
            ..Health::default()
        };
        assert_eq!(of(&health), []);
        health.queues = vec![queue(0, None, ""), queue(1, Some(9_999), "backend")];
        assert_eq!(of(&health), [], "old, but not yet too old");
    }

    #[test]
    fn l24_each_problem_is_told_with_what_is_known() {
        let mut health = Health {
            state: "failed".to_owned(),
            first_error: Some("no memory".to_owned()),
            queues: vec![
                queue(0, Some(10_000), "backend"),
                queue(3, Some(31_500), "answer"),
            ],
            first_failure: Some(FirstFailure {
                at: 1,
                text: "read of 512 bytes at 0 failed: EIO".to_owned(),
            }),
            ..Health::default()
        };
        (health.stats.panics, health.stats.errors) = (2, 7);
        let texts: Vec<(ProblemKind, String)> = of(&health)
            .into_iter()
            .map(|it| (it.kind, it.text))
            .collect();
        let expected = [
            (ProblemKind::Failed, "a queue has failed: no memory"),
            (
                ProblemKind::Stalled,
                "queue 3: a request has been unanswered for 31 s: its answer waits for the queue's thread",
            ),
            (
                ProblemKind::Panics,
                "2 panics in the backend, each of which failed a request",
            ),
            (
                ProblemKind::Errors,
                "7 requests failed, the first: read of 512 bytes at 0 failed: EIO",
            ),
        ];
        let expected = expected.map(|(kind, text)| (kind, text.to_owned()));
        assert_eq!(texts, expected);
    }
}
