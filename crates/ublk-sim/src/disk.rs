//! The file behind the server's operations: its content, and which parts of it are durable.

use std::collections::HashMap;
use std::ops::Range;

/// Durability is tracked in blocks of this size.
const BLOCK: usize = 4096;

/// The simulated file, as large as the device.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) bytes: Vec<u8>,
    /// The last change of each block that completed, the last that was answered to the block layer, and the last that a
    /// sync made durable. Changes are numbered from 1.
    written: Vec<u64>,
    answered: Vec<u64>,
    durable: Vec<u64>,
    changes: u64,
    /// Changes whose operation has been carried out but whose completion has not been seen.
    unseen: HashMap<u64, Range<usize>>,
    /// Number of operations carried out, and of syncs among them.
    pub(crate) operations: usize,
    pub(crate) syncs: usize,
}

/// The changes that a FLUSH must make durable.
pub(crate) type Promise = Vec<(usize, u64)>;

impl Disk {
    pub(crate) fn new(size: usize) -> Self {
        let blocks = vec![0; size.div_ceil(BLOCK)];
        Self {
            bytes: vec![0; size],
            written: blocks.clone(),
            answered: blocks.clone(),
            durable: blocks,
            ..Self::default()
        }
    }

    fn blocks(range: &Range<usize>) -> Range<usize> {
        range.start / BLOCK..range.end.div_ceil(BLOCK)
    }

    /// Records that the operation of this word has changed a range.
    pub(crate) fn changed(&mut self, user_data: u64, range: Range<usize>) {
        self.unseen.insert(user_data, range);
    }

    /// The server sees the completion of an operation: its data is in the page cache.
    pub(crate) fn seen(&mut self, user_data: u64) {
        if let Some(range) = self.unseen.remove(&user_data) {
            self.changes += 1;
            self.written[Self::blocks(&range)].fill(self.changes);
        }
    }

    /// A sync begins: changes that have completed become durable, but none that complete while it runs.
    pub(crate) fn sync(&mut self) {
        self.syncs += 1;
        self.durable.clone_from(&self.written);
    }

    /// A write, discard or write-zeroes was answered with success.
    pub(crate) fn answered(&mut self, range: &Range<usize>) {
        for block in Self::blocks(range) {
            self.answered[block] = self.written[block];
        }
    }

    /// The changes that a FLUSH that arrives now must make durable.
    pub(crate) fn promise(&self) -> Promise {
        let blocks = self.answered.iter().zip(&self.durable).enumerate();
        blocks
            .filter(|(_, (answered, durable))| answered > durable)
            .map(|(block, (answered, _))| (block, *answered))
            .collect()
    }

    /// The first block of a promise that is not durable.
    pub(crate) fn broken(&self, promise: &Promise) -> Option<usize> {
        let broken = |(block, change): &&(usize, u64)| self.durable[*block] < *change;
        promise.iter().find(broken).map(|(block, _)| *block)
    }

    /// Whether all of a range is durable.
    pub(crate) fn is_durable(&self, range: &Range<usize>) -> bool {
        Self::blocks(range).all(|block| self.durable[block] >= self.written[block])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// L07 A sync covers what had completed when it began, and nothing after.
    #[test]
    fn l07_a_sync_covers_what_completed_before_it() {
        let mut disk = Disk::new(4 * BLOCK);
        disk.changed(1, 0..BLOCK);
        disk.changed(2, BLOCK..2 * BLOCK);
        disk.seen(1);
        disk.sync();
        disk.seen(2);
        disk.answered(&(0..2 * BLOCK));
        let promise = disk.promise();
        assert_eq!(disk.broken(&promise), Some(1));
        assert!(disk.is_durable(&(0..BLOCK)) && !disk.is_durable(&(0..2 * BLOCK)));
        disk.sync();
        assert_eq!(disk.broken(&promise), None);
    }
}
