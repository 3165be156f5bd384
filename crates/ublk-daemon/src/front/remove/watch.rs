//! Watches whether a server can still answer the write-back.

use super::LOOKING;
use crate::helper::Helper;
use crate::state::{Record, Store};
use std::path::Path;
use ublk_core::{DevId, DevState};
use ublk_ctrl::Controller;

/// Checks whether a device's server is still there during a write-back.
pub(super) struct Watch<'a> {
    program: &'a Path,
    id: DevId,
    record: Option<Record>,
    helper: Option<Helper>,
    /// Whether no server was there at the last check.
    pub dead: bool,
}

impl<'a> Watch<'a> {
    pub(super) const fn new(program: &'a Path, id: DevId, record: Option<Record>) -> Self {
        Self {
            program,
            id,
            record,
            helper: None,
            dead: false,
        }
    }

    /// Whether the write-back can never finish: the device has lost its server, and no agent is about to start another.
    pub(super) fn is_dead(&mut self) -> bool {
        let ended = match (&self.record, Store::of_user()) {
            (Some(record), Ok(store)) => {
                if record.spec.supervise && store.has_agent(record) {
                    return false;
                }
                !store.has_server(record)
            }
            _ => false,
        };
        self.dead = ended || self.state().is_some_and(|state| state != DevState::Live);
        self.dead
    }

    fn state(&mut self) -> Option<DevState> {
        if self.helper.is_none() {
            self.helper = Helper::start(self.program).ok();
        }
        let info = self.helper.as_mut()?.info(self.id, LOOKING);
        info.ok().map(|info| info.state())
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some(helper) = self.helper.take() {
            helper.finish();
        }
    }
}
