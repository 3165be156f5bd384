//! The aborts that an ending queue still expects.

use std::time::Duration;

use ublk_core::Tag;

/// Number of waits of [`ABORT_WAIT`] for aborts that have not arrived.
const PATIENCE: u32 = 20;

/// Length of one of these waits.
pub(crate) const ABORT_WAIT: Duration = Duration::from_millis(5);

/// Tracks the tags that were with the driver at the first abort and have not come back since. The driver aborts tag by
/// tag, so a ring that is closed at the first abort is torn down in the middle of the others. A commit that crossed the
/// abort is never answered: therefore the number of waits is limited (L62), and starts over with each tag that comes back.
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

    /// Begins at the first abort; `with_driver` says of each tag whether the driver has it.
    pub(super) fn begin(&mut self, with_driver: impl Iterator<Item = bool>) {
        for (expected, with_driver) in self.expected.iter_mut().zip(with_driver) {
            *expected = with_driver;
            self.outstanding += u32::from(with_driver);
        }
        self.patience = PATIENCE;
    }

    /// Records that a tag came back. A tag committed after the first abort is not expected to, unless it is refused.
    #[cold]
    pub(super) fn came_back(&mut self, tag: Tag) {
        self.patience = PATIENCE;
        if std::mem::take(&mut self.expected[tag.index()]) {
            self.outstanding -= 1;
        }
    }

    /// True while there is an abort to wait for. Each call uses up one wait.
    pub(super) fn wait(&mut self) -> bool {
        let waits = !self.is_over();
        self.patience -= u32::from(waits);
        waits
    }

    /// True once every abort has arrived, or the waits are used up.
    pub(super) const fn is_over(&self) -> bool {
        self.outstanding == 0 || self.patience == 0
    }
}
