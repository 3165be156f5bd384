//! ublk-backends alone: a memory device used directly by several threads, without a driver.

#![forbid(unsafe_code)]

use ublk_backends::{Memory, Null};
use ublk_core::{Backend, Errno};

const PART: usize = 1 << 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // 64 GiB, whatever the machine has: only written pages take memory.
    let memory = Memory::new(64 << 30, 4096)?;
    std::thread::scope(|scope| {
        let writers = (0..4_u8).map(|writer| {
            let memory = &memory;
            scope.spawn(move || {
                memory.write_at(&vec![writer + 1; PART], u64::from(writer) << 34, false)
            })
        });
        let writers: Vec<_> = writers.collect();
        writers
            .into_iter()
            .try_for_each(|w| w.join().map_err(|_| Errno::EIO)?)
    })?;
    let mut data = vec![0; PART];
    for writer in 0..4_u8 {
        memory.read_at(&mut data, u64::from(writer) << 34)?;
        assert!(data.iter().all(|b| *b == writer + 1), "part {writer}");
    }
    let used = memory.resident()?;
    assert!((4 << 20..8 << 20).contains(&used), "{used} bytes for 4 MiB");
    memory.discard(0, 64 << 30)?;
    assert_eq!(memory.resident()?, 0);
    assert_eq!(
        memory.read_at(&mut data, (64 << 30) - 4096),
        Err(Errno::EIO)
    );
    assert!(Null::new(1000, 512).is_err());
    println!("ublk-backends: {used} bytes in use before the discard, none after");
    Ok(())
}
