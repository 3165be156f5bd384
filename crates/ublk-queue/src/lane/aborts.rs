//! The aborts that an ending queue still expects.

use std::time::Duration;

use ublk_core::Tag;

/// How many waits of [`ABORT_WAIT`] the aborts that have not come yet are granted.
const PATIENCE: u32 = 20;

/// How long one of these waits is.
pub(crate) const ABORT_WAIT: Duration = Duration::from_millis(5);

/// The tags that were with the driver at the first abort and have not come back since. The driver aborts tag by tag, so
/// a ring that is closed at the first abort is torn down in the midst of it. A commit that crossed the abort is never
/// answered: therefore waits are counted, and their number starts over with each tag that comes back.
#[derive(Debug)]
pub(super) struct Aborts {
    expected: Box<[bool]>,
    outstanding: u32,
    patience: u32,
}

impl Aborts {
    pub(super) fn new(depth: usize) -> Self {
        Self {
            expected: vec![false; depth].into_boxed_slice(),
            outstanding: 0,
            patience: 0,
        }
    }

    /// The first abort: `with_driver` says of each tag whether the driver has it.
    pub(super) fn begin(&mut self, with_driver: impl Iterator<Item = bool>) {
        for (expected, with_driver) in self.expected.iter_mut().zip(with_driver) {
            *expected = with_driver;
            self.outstanding += u32::from(with_driver);
        }
        self.patience = PATIENCE;
    }

    /// A tag came back. One that was committed after the first abort is not expected to, unless it is refused.
    #[cold]
    pub(super) fn came_back(&mut self, tag: Tag) {
        self.patience = PATIENCE;
        if std::mem::take(&mut self.expected[tag.index()]) {
            self.outstanding -= 1;
        }
    }

    /// True while there is an abort to wait for. Each call spends some of the patience.
    pub(super) fn wait(&mut self) -> bool {
        let waits = !self.is_over();
        self.patience -= u32::from(waits);
        waits
    }

    /// True once every abort is in, or the patience is spent.
    pub(super) const fn is_over(&self) -> bool {
        self.outstanding == 0 || self.patience == 0
    }
}
