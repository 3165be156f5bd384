//! Requests answered by another thread: the queue's thread passes each one on as a token that any thread may hold and
//! answer, and continues. The other thread keeps the data in a map of written blocks.
//!
//! `threads [SIZE_IN_BYTES]`, as root with the ublk driver loaded; Ctrl-C stops it.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use ublk::core::Op;
use ublk::{Builder, Errno, Handler, Limits, OwnedRequest, Request};

const BLOCK: usize = 512;

/// The queue's half, which must not block.
struct HandOver(Sender<OwnedRequest>);

impl Handler for HandOver {
    fn handle(&mut self, request: Request<'_>) {
        // A token that is dropped, here because the other thread is gone, is answered with EIO and counted.
        let _ = self.0.send(request.detach());
    }
}

/// The other half, which may take as long as it likes and answer in any order.
fn answer(requests: &Receiver<OwnedRequest>) {
    let mut blocks: HashMap<u64, [u8; BLOCK]> = HashMap::new();
    for mut request in requests {
        let first = request.offset() / BLOCK as u64;
        let result = match request.op() {
            Op::Read => request.data_mut().map(|data| {
                for (number, block) in (first..).zip(data.chunks_mut(BLOCK)) {
                    // The whole buffer is filled, so that no data of older requests leaks (L05).
                    block.copy_from_slice(blocks.get(&number).unwrap_or(&[0; BLOCK]));
                }
            }),
            Op::Write => request.data().map(|data| {
                for (number, block) in (first..).zip(data.chunks_exact(BLOCK)) {
                    let mut kept = [0; BLOCK];
                    kept.copy_from_slice(block);
                    blocks.insert(number, kept);
                }
            }),
            _ => Err(Errno::EOPNOTSUPP),
        };
        request.complete(result);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let size = std::env::args()
        .nth(1)
        .map_or(Ok(64 << 20), |arg| arg.parse())?;
    let (requests, arrived) = channel();
    std::thread::spawn(move || answer(&arrived));
    let limits = Limits::new(size).volatile_cache(false);
    // One handler per queue, created on the queue's thread.
    Builder::handlers(limits, move |_queue| HandOver(requests.clone()))
        .queues(2)
        .run(|device| println!("{}", device.path().display()))?;
    Ok(())
}
