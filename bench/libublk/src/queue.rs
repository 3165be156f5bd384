//! The work of a queue's thread.

use std::rc::Rc;

use libublk::helpers::IoBuf;
use libublk::io::{BufDescList, UblkDev, UblkIOCtx, UblkQueue};
use libublk::{BufDesc, UblkError, UblkIORes, sys};

use crate::memory::Memory;

/// Seconds without requests after which the crate frees the memory of an idle queue.
const IDLE: u64 = 20;

/// Answers a request with its own length.
fn length(queue: &UblkQueue<'_>, tag: u16) -> i32 {
    i32::try_from(queue.get_iod(tag).nr_sectors << 9).unwrap_or(-libc::EINVAL)
}

fn complete(queue: &UblkQueue<'_>, tag: u16, buffer: BufDesc<'_>) {
    let answer = Ok(UblkIORes::Result(length(queue, tag)));
    if let Err(error) = queue.complete_io_cmd_unified(tag, buffer, answer) {
        eprintln!("bench-libublk: complete: {error}");
    }
}

fn new<'a>(id: u16, device: &'a UblkDev) -> Option<UblkQueue<'a>> {
    told(UblkQueue::new(id, device))
}

fn told<T>(result: Result<T, UblkError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            eprintln!("bench-libublk: queue: {error}");
            None
        }
    }
}

/// A null target in copy mode.
pub fn null(id: u16, device: &UblkDev) {
    let buffers = device.alloc_queue_io_bufs();
    let Some(queue) = new(id, device) else { return };
    let list = BufDescList::Slices(Some(&buffers));
    let Some(queue) = told(queue.submit_fetch_commands_unified(list)) else {
        return;
    };
    queue.wait_and_handle_io(|queue: &UblkQueue<'_>, tag: u16, _: &UblkIOCtx| {
        complete(
            queue,
            tag,
            BufDesc::Slice(buffers[usize::from(tag)].as_slice()),
        );
    });
}

/// A null target whose buffers the driver registers.
pub fn null_zero_copy(id: u16, device: &UblkDev) {
    let registrations: Vec<_> = (0..device.dev_info.queue_depth)
        .map(|tag| sys::ublk_auto_buf_reg {
            index: tag,
            flags: u8::try_from(sys::UBLK_AUTO_BUF_REG_FALLBACK).unwrap_or_default(),
            ..Default::default()
        })
        .collect();
    let Some(queue) = new(id, device) else { return };
    let list = BufDescList::AutoRegs(&registrations);
    let Some(queue) = told(queue.submit_fetch_commands_unified(list)) else {
        return;
    };
    queue.wait_and_handle_io(|queue: &UblkQueue<'_>, tag: u16, _: &UblkIOCtx| {
        complete(
            queue,
            tag,
            BufDesc::AutoReg(registrations[usize::from(tag)]),
        );
    });
}

/// A null target with a future for each tag.
pub fn null_async(id: u16, device: &UblkDev) {
    futures(id, device, |queue, tag, _| length(queue, tag));
}

/// A memory target with a future for each tag.
pub fn memory(id: u16, device: &UblkDev, memory: &Memory) {
    futures(id, device, |queue, tag, buffer| {
        let iod = queue.get_iod(tag);
        let Ok(offset) = usize::try_from(iod.start_sector << 9) else {
            return -libc::EINVAL;
        };
        let bytes = (iod.nr_sectors << 9) as usize;
        let done = match (iod.op_flags & 0xff, buffer.get_mut(..bytes)) {
            (sys::UBLK_IO_OP_READ, Some(buffer)) => memory.read(offset, buffer),
            (sys::UBLK_IO_OP_WRITE, Some(buffer)) => memory.write(offset, buffer),
            (sys::UBLK_IO_OP_FLUSH, _) => Some(()),
            _ => None,
        };
        match done {
            Some(()) => length(queue, tag),
            None => -libc::EINVAL,
        }
    });
}

/// Runs a future for each tag until the queue is down; `answer` returns the result of a request.
fn futures(
    id: u16,
    device: &UblkDev,
    answer: impl Fn(&UblkQueue<'_>, u16, &mut [u8]) -> i32 + Copy,
) {
    let Some(queue) = new(id, device) else { return };
    let queue = Rc::new(queue);
    let executor = Rc::new(smol::LocalExecutor::new());
    let mut tasks = Vec::new();
    for tag in 0..device.dev_info.queue_depth {
        let queue = Rc::clone(&queue);
        tasks.push(executor.spawn(async move {
            match tag_future(&queue, tag, answer).await {
                Ok(()) | Err(UblkError::QueueIsDown) => {}
                Err(error) => eprintln!("bench-libublk: tag {tag}: {error}"),
            }
        }));
    }
    let ticker = Rc::clone(&executor);
    smol::block_on(executor.run(async move {
        let run = || while ticker.try_tick() {};
        let done = || tasks.iter().all(smol::Task::is_finished);
        told(libublk::wait_and_handle_io_events(&queue, Some(IDLE), run, done).await);
    }));
}

async fn tag_future(
    queue: &UblkQueue<'_>,
    tag: u16,
    answer: impl Fn(&UblkQueue<'_>, u16, &mut [u8]) -> i32,
) -> Result<(), UblkError> {
    let mut buffer = IoBuf::<u8>::new(queue.dev.dev_info.max_io_buf_bytes as usize);
    let slice = BufDesc::Slice(buffer.as_slice());
    queue
        .submit_io_prep_cmd(tag, slice, 0, Some(&buffer))
        .await?;
    loop {
        let result = answer(queue, tag, buffer.as_mut_slice());
        let slice = BufDesc::Slice(buffer.as_slice());
        queue.submit_io_commit_cmd(tag, slice, result).await?;
    }
}
