//! Counts the executions of each of the server's blocks between two markers.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// The blocks by the addresses of their instructions: a block that is translated again keeps its counter.
#[derive(Debug, Default)]
pub struct Hot {
    blocks: HashMap<Vec<u64>, Block>,
}

#[derive(Debug)]
struct Block {
    /// Never freed, since translated code may refer to it to the end.
    runs: &'static AtomicU64,
    told: u64,
}

impl Hot {
    /// The counter of a block.
    pub fn counter(&mut self, addresses: Vec<u64>) -> &'static AtomicU64 {
        let block = self.blocks.entry(addresses).or_insert_with(|| Block {
            runs: Box::leak(Box::default()),
            told: 0,
        });
        block.runs
    }

    /// The executions since the last call: a line per block, in the order of addresses.
    pub fn since(&mut self) -> String {
        let mut lines = Vec::new();
        for (addresses, block) in &mut self.blocks {
            let runs = block.runs.load(Ordering::Relaxed);
            let new = runs.wrapping_sub(block.told);
            block.told = runs;
            if new != 0 {
                lines.push((addresses, new));
            }
        }
        lines.sort();
        let mut text = String::new();
        for (addresses, new) in lines {
            let _ = write!(text, "{new}");
            for address in addresses {
                let _ = write!(text, " {address:x}");
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::Hot;

    #[test]
    fn runs_are_told_once() {
        let mut hot = Hot::default();
        hot.counter(vec![0x20, 0x24])
            .fetch_add(3, Ordering::Relaxed);
        hot.counter(vec![0x10]).fetch_add(1, Ordering::Relaxed);
        assert_eq!(hot.since(), "1 10\n3 20 24\n");
        hot.counter(vec![0x20, 0x24])
            .fetch_add(2, Ordering::Relaxed);
        assert_eq!(hot.since(), "2 20 24\n");
        assert_eq!(hot.since(), "");
    }
}
