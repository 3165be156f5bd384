//! libublk targets in the foreground: `null [--async|--zero-copy]` and `mem --size MIB`, each with `-q QUEUES -d
//! DEPTH`.
//!
//! Prints the device's path once it serves I/O; SIGTERM stops and deletes the device. Queue threads only do what the
//! crate's documentation shows for such targets.

mod arguments;
mod memory;
mod queue;
mod signal;

use std::process::ExitCode;
use std::sync::Arc;

use arguments::{Arguments, Kind};
use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::{UblkError, UblkFlags, sys};
use memory::Memory;

/// Largest request, same as ublkctl's default.
const LARGEST: u32 = 512 << 10;

fn main() -> ExitCode {
    let words = std::env::args().skip(1);
    let arguments = match Arguments::parse(words) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("bench-libublk: {error}");
            return ExitCode::from(2);
        }
    };
    match serve(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-libublk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments) -> Result<(), UblkError> {
    // Before other threads exist, so that all of them leave the signal to the one that waits for it.
    signal::hold_back();
    let mut flags = 0;
    if arguments.kind == Kind::NullZeroCopy {
        flags |= u64::from(sys::UBLK_F_AUTO_BUF_REG | sys::UBLK_F_SUPPORT_ZERO_COPY);
    }
    let control = UblkCtrlBuilder::default()
        .name("bench")
        .id(-1)
        .nr_queues(arguments.queues)
        .depth(arguments.depth)
        .io_buf_bytes(LARGEST)
        .ctrl_flags(flags)
        .dev_flags(UblkFlags::UBLK_DEV_F_ADD_DEV | UblkFlags::UBLK_DEV_F_SINGLE_CPU_AFFINITY)
        .build()?;
    let id = control.dev_info().dev_id;
    std::thread::spawn(move || {
        signal::wait();
        // The crate's control ring belongs to the thread that created it: another thread creates its own.
        let stopped = i32::try_from(id)
            .map_err(|_| UblkError::InvalidVal)
            .and_then(UblkCtrl::new_simple)
            .and_then(|stopper| stopper.kill_dev());
        if let Err(error) = stopped {
            eprintln!("bench-libublk: stop: {error}");
        }
    });
    let size = match arguments.kind {
        Kind::Mem { bytes } => bytes,
        _ => 250 << 30,
    };
    let target = move |device: &mut UblkDev| {
        device.set_default_params(size);
        Ok(())
    };
    let started = |control: &UblkCtrl| println!("{}", control.get_bdev_path());
    match arguments.kind {
        Kind::Null => control.run_target(target, queue::null, started)?,
        Kind::NullAsync => control.run_target(target, queue::null_async, started)?,
        Kind::NullZeroCopy => control.run_target(target, queue::null_zero_copy, started)?,
        Kind::Mem { bytes } => {
            let memory = Arc::new(Memory::new(bytes));
            let queue = move |id, device: &UblkDev| queue::memory(id, device, &memory);
            control.run_target(target, queue, started)?
        }
    };
    control.del_dev()?;
    Ok(())
}
