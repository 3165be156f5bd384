//! ublk-queue alone: the engine on a driver of a few lines.
//!
//! The driver writes a block, reads it back, and stops the device; the handler is a memory of one block. The data read
//! must be the data written.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use ublk_core::iod::IoBounds;
use ublk_core::{Errno, IoDesc, Op, QueueId, Tag};
use ublk_queue::port::{Completion, Descriptors, Full, IoCommand, Port, Wake};
use ublk_queue::{LaneSpec, Request, State, Worker};

const BLOCK: usize = 4096;

/// The other side of the engine: a queue of one tag, and the requests to send.
#[derive(Default)]
struct Driver {
    asks: VecDeque<(Op, u8)>,
    current: Option<(Op, u8)>,
    descriptor: IoDesc,
    completions: VecDeque<Completion>,
    commands: Vec<(IoCommand, u64)>,
    answered: Vec<(Op, i32)>,
    /// A read that returned other data than was written.
    wrong: Option<(u8, u8)>,
}

impl Driver {
    /// Handles a command: settles the request it answers, and delivers the next one or the end.
    fn take(&mut self, command: &IoCommand, user_data: u64) {
        if let Some((op, byte)) = self.current.take() {
            self.answered.push((op, command.result));
            if op == Op::Read {
                // SAFETY: in copy mode the driver may read a tag's buffer from its commit on, and this one is 4096
                // bytes long; the engine does not access it until the next completion.
                let data = unsafe { std::slice::from_raw_parts(command.addr as *const u8, BLOCK) };
                // Not an assertion: the engine contains panics.
                if let Some(found) = data.iter().find(|b| **b != byte) {
                    self.wrong = Some((byte, *found));
                }
            }
        }
        let Some((op, byte)) = self.asks.pop_front() else {
            let res = Errno::ENODEV.to_result();
            self.completions.push_back(Completion { user_data, res, flags: 0 });
            return;
        };
        if op == Op::Write {
            // SAFETY: as above, and the driver may write the buffer, too.
            unsafe { std::ptr::write_bytes(command.addr as *mut u8, byte, BLOCK) };
        }
        self.current = Some((op, byte));
        self.descriptor = IoDesc::new(op as u32, 16, 8, command.addr);
        self.completions.push_back(Completion { user_data, res: 0, flags: 0 });
    }
}

#[derive(Clone)]
struct Tiny(Rc<RefCell<Driver>>);

struct NoWake;

impl Wake for NoWake {
    // Everything runs on one thread, which is awake.
    fn wake(&self) {}
}

// SAFETY: a command completes once, when the driver has a request or an abort for its tag; addresses are only used
// before that.
unsafe impl Port for Tiny {
    type Wake = NoWake;
    type Command = (IoCommand, u64);

    fn prepare(&self, _lane: u16, command: &IoCommand, user_data: u64) -> Self::Command {
        (*command, user_data)
    }
    fn push(&mut self, command: &Self::Command, result: i32, addr: u64) -> Result<(), Full> {
        let (command, user_data) = *command;
        let mut command = command;
        (command.result, command.addr) = (result, addr);
        self.0.borrow_mut().commands.push((command, user_data));
        Ok(())
    }
    fn space(&mut self) -> u32 {
        u32::MAX
    }
    fn pending(&mut self) -> u32 {
        u32::try_from(self.0.borrow().commands.len()).unwrap_or(u32::MAX)
    }
    fn enter(&mut self, want: u32, _timeout: Option<Duration>) -> Result<(), Errno> {
        let mut driver = self.0.borrow_mut();
        if want > 0 && driver.commands.is_empty() && driver.completions.is_empty() {
            // Nothing would ever end this wait.
            return Err(Errno::EIO);
        }
        for (command, user_data) in std::mem::take(&mut driver.commands) {
            driver.take(&command, user_data);
        }
        Ok(())
    }
    fn next(&mut self) -> Option<Completion> {
        self.0.borrow_mut().completions.pop_front()
    }
    fn wake_handle(&self) -> NoWake {
        NoWake
    }
    fn describe(&self) -> String {
        "a few lines".to_owned()
    }
}

impl Descriptors for Tiny {
    fn load(&self, _tag: Tag) -> IoDesc {
        self.0.borrow().descriptor
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tiny = Tiny(Rc::default());
    tiny.0
        .borrow_mut()
        .asks
        .extend([(Op::Write, 7), (Op::Read, 7), (Op::Write, 9), (Op::Read, 9)]);
    let mut memory = vec![0; BLOCK];
    let handler = move |mut request: Request<'_>| {
        let result = match request.op() {
            Op::Read => request.data_mut().map(|data| data.copy_from_slice(&memory)),
            _ => request.data().map(|data| memory.copy_from_slice(data)),
        };
        request.complete(result);
    };
    let mut worker = Worker::new(tiny.clone(), Arc::new(AtomicBool::new(false)));
    let bounds = IoBounds::new(1 << 20, BLOCK as u32);
    let queue = QueueId::new(0)?;
    let lane = worker.add_lane(LaneSpec::new(queue, 1, bounds, tiny.clone(), handler))?;
    worker.arm()?;
    let result = worker.run();
    worker.finish(&result);
    result?;
    let full = BLOCK as i32;
    let wanted = [
        (Op::Write, full),
        (Op::Read, full),
        (Op::Write, full),
        (Op::Read, full),
    ];
    assert_eq!(tiny.0.borrow().answered, wanted);
    assert_eq!(tiny.0.borrow().wrong, None, "(written, read)");
    assert_eq!(lane.state(), State::Empty);
    assert_eq!((lane.counters().reads, lane.counters().writes), (2, 2));
    println!("ublk-queue: {} requests answered in full", wanted.len());
    Ok(())
}
