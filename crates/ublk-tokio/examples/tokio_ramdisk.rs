//! A RAM disk whose requests are answered by tasks of a tokio runtime.
//!
//! `tokio_ramdisk [SIZE_IN_BYTES] [QUEUES]`, as root with the ublk driver loaded; Ctrl-C stops it.
#![forbid(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets are inside the vector"
)]

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::RwLock;
use ublk::core::Op;
use ublk::{Builder, Errno, Limits, OwnedRequest};

const DEPTH: u16 = 64;

type Disk = Arc<RwLock<Vec<u8>>>;

async fn answer(mut request: OwnedRequest, disk: Disk) {
    let result = transfer(&mut request, &disk).await;
    request.complete(result);
}

async fn transfer(request: &mut OwnedRequest, disk: &Disk) -> Result<(), Errno> {
    let range = request.offset() as usize..(request.offset() + request.len()) as usize;
    match request.op() {
        Op::Read => {
            let disk = disk.read().await;
            request.data_mut()?.copy_from_slice(&disk[range]);
        }
        Op::Write => {
            let mut disk = disk.write().await;
            disk[range].copy_from_slice(request.data()?);
        }
        _ => return Err(Errno::EOPNOTSUPP),
    }
    Ok(())
}

async fn serve(size: u64, queues: u16) -> Result<(), Box<dyn std::error::Error>> {
    let disk: Disk = Arc::new(RwLock::new(vec![0; size as usize]));
    let limits = Limits::new(size).volatile_cache(false);
    let tags = usize::from(queues) * usize::from(DEPTH);
    let (feed, mut requests) = ublk_tokio::channel(tags);
    // Started before the device: its partition scan reads before `start` returns.
    let answering = tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            tokio::spawn(answer(request, Arc::clone(&disk)));
        }
    });
    let builder = Builder::handlers(limits, move |_queue| feed.clone())
        .queues(queues)
        .depth(DEPTH);
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    let device = ublk_tokio::start(builder).await?;
    println!("{}", device.path().display());
    std::future::poll_fn(|cx| match interrupt.poll_recv(cx) {
        std::task::Poll::Pending => terminate.poll_recv(cx),
        ready => ready,
    })
    .await;
    ublk_tokio::remove(device).await?;
    // The queues are gone, and with them the sending end of the channel.
    answering.await?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let size = args.next().map_or(Ok(64 << 20), |arg| arg.parse())?;
    let queues = args.next().map_or(Ok(1), |arg| arg.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(serve(size, queues))
}
