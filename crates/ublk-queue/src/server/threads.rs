//! Assigns queues to threads.

use ublk_core::{Features, Geometry, QueueId};

use super::error::Error;
use super::plan::Plan;
use crate::worker::Share;

/// The queues of one thread, or its share of one queue.
pub(super) struct Assignment {
    pub(super) qids: Vec<QueueId>,
    pub(super) thread: u16,
    pub(super) share: Option<Share>,
}

/// Assigns queues to threads, or threads to queues.
pub(super) fn assignments(geometry: &Geometry, plan: &Plan) -> Result<Vec<Assignment>, Error> {
    let queues = geometry.queues();
    let qids = |from: u16, step: u16| {
        let qids = (from..queues).step_by(usize::from(step));
        qids.filter_map(|qid| QueueId::new(qid).ok()).collect()
    };
    let each = plan
        .options
        .threads_per_queue
        .clamp(1, geometry.depth().max(1));
    if each == 1 {
        let own = plan.threads.unwrap_or(queues);
        let shared = plan.shared_threads.as_ref().map(|threads| threads.count());
        let threads = shared.map_or(own, |count| u16::try_from(count).unwrap_or(u16::MAX));
        let threads = threads.clamp(1, queues.max(1));
        let assignment = |n| Assignment {
            qids: qids(n, threads),
            thread: 0,
            share: None,
        };
        return Ok((0..threads).map(assignment).collect());
    }
    let able = Features::PER_IO_DAEMON | Features::BATCH_IO;
    if !geometry.features().intersects(able) {
        return Err(Error::ThreadsPerQueue);
    }
    let mut assignments = Vec::new();
    for qid in qids(0, 1) {
        let shares = Share::deal(each, geometry.depth(), geometry.max_io_bytes());
        let shares = shares.map_err(|errno| Error::Buffers { qid, errno })?;
        for (thread, share) in (0..).zip(shares) {
            assignments.push(Assignment {
                qids: vec![qid],
                thread,
                share: Some(share),
            });
        }
    }
    Ok(assignments)
}
