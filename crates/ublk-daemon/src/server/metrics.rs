//! Tells the agent what the device has done, in as many messages as the queues take.

use std::time::Instant;

use ublk_metrics::{QueueSnapshot, Snapshot};

use crate::link::message::FromServer;
use crate::link::{Link, MAX_MESSAGE};

/// How many bytes of queues go into one message, at least one queue. A queue with latencies of every kind has some 70 KiB at
/// most.
const ENOUGH: usize = MAX_MESSAGE / 3;

/// Sends a snapshot by the deadline.
pub(super) fn tell(link: &Link, ticket: u64, mut snapshot: Snapshot, deadline: Instant) {
    let mut queues = std::mem::take(&mut snapshot.queues).into_iter().peekable();
    loop {
        let mut part = snapshot.clone();
        let mut bytes = 0;
        while let Some(queue) = queues.next_if(|_| bytes < ENOUGH) {
            bytes += size_of_json(&queue);
            part.queues.push(queue);
        }
        let more = queues.peek().is_some();
        let message = FromServer::Metrics {
            ticket,
            snapshot: part,
            more,
        };
        if let Err(e) = link.send_by(&message, deadline) {
            return tracing::warn!("cannot send to the agent: {e}");
        }
        if !more {
            return;
        }
    }
}

fn size_of_json(queue: &QueueSnapshot) -> usize {
    serde_json::to_vec(queue).map_or(0, |json| json.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use ublk_metrics::{Level, Operation, buckets};

    /// A snapshot of many queues with every bucket in use arrives in parts that fit, and is whole.
    #[test]
    fn the_largest_snapshot_fits_the_link() {
        let mut snapshot = Snapshot::new(Level::Latencies, u64::MAX, u64::MAX);
        for qid in 0..40 {
            let mut queue = QueueSnapshot::new(qid, 0);
            for kind in Operation::ALL {
                let op = queue.op_mut(kind);
                (op.requests, op.bytes) = (u64::MAX, u64::MAX);
                for bucket in 0..buckets::COUNT {
                    let nanos = buckets::start_of(bucket);
                    op.latency.record(Duration::from_nanos(nanos));
                }
            }
            snapshot.queues.push(queue);
        }
        let (near, far) = Link::pair().unwrap();
        let sent = snapshot.clone();
        let deadline = Instant::now() + Duration::from_secs(20);
        let sender = std::thread::spawn(move || tell(&near, 7, sent, deadline));
        let mut got: Option<Snapshot> = None;
        loop {
            let message: FromServer = far.recv(deadline).unwrap();
            let FromServer::Metrics {
                ticket: 7,
                snapshot: part,
                more,
            } = message
            else {
                panic!("{message:?}");
            };
            match &mut got {
                None => got = Some(part),
                Some(all) => all.queues.extend(part.queues),
            }
            if !more {
                break;
            }
        }
        sender.join().unwrap();
        assert_eq!(got, Some(snapshot));
    }
}
