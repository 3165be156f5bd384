//! A device served from the program's own epoll loop, without threads or callbacks of the library.
//!
//! `raw_epoll [SIZE_IN_BYTES] [QUEUES]`, as root with the ublk driver loaded. Requests are kept in memory; Ctrl-C stops
//! it. One thread sleeps in epoll for all queues and for signals; a second one sends the control commands, because
//! START_DEV and STOP_DEV wait for requests that the first one must serve meanwhile.
#![forbid(unsafe_code)]

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::event::{Timespec, epoll};
use ublk::core::{DeviceSpec, Op, QueueId};
use ublk::ctrl::{ControlThread, Controller, page_size};
use ublk::queue::{KeptRequest, Next, Plan, RawQueue};
use ublk::{DevId, Errno, Limits};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const DEADLINE: Duration = Duration::from_secs(30);
/// Epoll key of the signals; queues use their numbers.
const SIGNALS: u64 = u64::MAX;
/// Epoll key of the thread that sends control commands.
const CONTROL: u64 = u64::MAX - 1;

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let size = args.next().map_or(Ok(64 << 20), |arg| arg.parse())?;
    let queues = args.next().map_or(Ok(1), |arg| arg.parse())?;
    let mut memory = vec![0; usize::try_from(size)?];

    let limits = Limits::new(size).volatile_cache(false);
    let mut spec = DeviceSpec::new(limits);
    spec.queues = queues;
    let spec = spec.check(page_size())?;
    let mut control = ControlThread::start(DEADLINE)?;
    let geometry = control.add(spec, DEADLINE)?;
    let id = geometry.dev_id();
    let served = (|| {
        control.set_params(spec, geometry, DEADLINE)?;
        let device = control.open_device(id, DEADLINE)?;
        let plan = Plan::new(size);
        let qids = (0..geometry.queues()).filter_map(|qid| QueueId::new(qid).ok());
        let queues: Result<Vec<_>, _> =
            qids.map(|qid| RawQueue::arm(&device, &plan, qid)).collect();
        drop(device);
        serve(queues?, &mut memory, id, size)
    })();
    // The queues are gone, so nothing holds the device any more.
    control.delete(id, DEADLINE)?;
    served
}

/// Starts the device and serves it until it is stopped.
fn serve(
    mut queues: Vec<RawQueue>,
    memory: &mut [u8],
    id: DevId,
    size: u64,
) -> Result<(), Failure> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let watch = |fd: &dyn AsFd, key| {
        let key = epoll::EventData::new_u64(key);
        epoll::add(&poll, fd.as_fd(), key, epoll::EventFlags::IN)
    };
    for (key, queue) in (0..).zip(&queues) {
        watch(&queue.as_fd(), key)?;
    }
    let (mut signals, signalled) = UnixStream::pair()?;
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::low_level::pipe::register(signal, signalled.try_clone()?)?;
    }
    watch(&signals, SIGNALS)?;
    let start = move |control: &mut ControlThread| {
        control.start(id, std::process::id(), DEADLINE)?;
        control.prove_ready(id, size, DEADLINE)
    };
    let (mut done, mut results) = control(true, start)?;
    watch(&done, CONTROL)?;

    let mut events = Vec::with_capacity(8);
    // How long the queues allow the loop to sleep; `None` once all have ended.
    let mut next = Some(Next::Ready);
    while let Some(sleep) = next {
        events.clear();
        let spare = rustix::buffer::spare_capacity(&mut events);
        let time = match sleep {
            Next::Within(time) => Some(Timespec::try_from(time)?),
            _ => None,
        };
        match epoll::wait(&poll, spare, time.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        for event in &events {
            match event.data.u64() {
                SIGNALS => {
                    let _ = signals.read(&mut [0; 16])?;
                    (done, results) = control(false, move |control| control.stop(id, DEADLINE))?;
                    watch(&done, CONTROL)?;
                }
                CONTROL => {
                    // The thread's exit closes the socket, which would stay readable forever: remove it from the set.
                    epoll::delete(&poll, &done)?;
                    if results.recv_timeout(DEADLINE)?? {
                        println!("/dev/ublkb{id}");
                    }
                }
                _ => {}
            }
        }
        // Whatever woke us: the turn of an idle queue costs one system call.
        next = None;
        for queue in &mut queues {
            next = match (turn(queue, memory)?, next) {
                (Next::Ended, other) => other,
                (Next::Within(one), Some(Next::Within(other))) => {
                    Some(Next::Within(one.min(other)))
                }
                (Next::Ready, Some(other)) => Some(other),
                (next, _) => Some(next),
            };
        }
    }
    queues.into_iter().for_each(RawQueue::finish);
    Ok(())
}

/// Answers the requests that a queue has received, and returns when its next turn is due.
fn turn(queue: &mut RawQueue, memory: &mut [u8]) -> Result<Next, Failure> {
    loop {
        let next = queue.turn()?;
        let mut idle = true;
        for request in queue.by_ref() {
            answer(request, memory);
            idle = false;
        }
        if idle {
            return Ok(next);
        }
        // The next turn submits the answers to the driver.
    }
}

/// Answers at once; any later time would do as well.
fn answer(mut request: KeptRequest, memory: &mut [u8]) {
    let start = usize::try_from(request.offset()).unwrap_or(usize::MAX);
    let end = start.saturating_add(usize::try_from(request.len()).unwrap_or(usize::MAX));
    let result = match (request.op(), memory.get_mut(start..end)) {
        (Op::Read, Some(part)) => request.data_mut().map(|data| data.copy_from_slice(part)),
        (Op::Write, Some(part)) => request.data().map(|data| part.copy_from_slice(data)),
        (Op::Flush, _) => Ok(()),
        (_, None) => Err(Errno::EIO),
        _ => Err(Errno::EOPNOTSUPP),
    };
    request.complete(result);
}

/// The result of a control command's thread: a socket that closes when it is done, and a receiver for the result, which
/// says whether the device is now ready.
type Commanded = (UnixStream, Receiver<Result<bool, Failure>>);

/// Sends a control command from a separate thread.
fn control<F>(starts: bool, command: F) -> Result<Commanded, Failure>
where
    F: FnOnce(&mut ControlThread) -> Result<(), ublk::ctrl::Error> + Send + 'static,
{
    let (done, end) = UnixStream::pair()?;
    let (sender, results) = channel();
    std::thread::spawn(move || {
        let result = ControlThread::start(DEADLINE).and_then(|mut control| command(&mut control));
        // Fails only if the loop has ended.
        let _ = sender.send(result.map(|()| starts).map_err(Failure::from));
        drop(end);
    });
    Ok((done, results))
}
