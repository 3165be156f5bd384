//! Requests of a zoned memory device: the driver copies between a request and the device's memory.

#![forbid(unsafe_code)]

use std::sync::Arc;

use ublk_core::{Op, OpenDevice};
use ublk_queue::{Error, Handler, Inline, Mapped, Plan, Request, Server, Zoned};

use super::ZonedDevice;
use crate::Memory;

impl ZonedDevice<Memory> {
    /// Serves a device: like [`Server::arm`], but data is copied once, between the request and the device's memory.
    ///
    /// # Errors
    /// As for [`Server::arm`].
    pub fn arm(device: OpenDevice, plan: Plan, zoned: Arc<Self>) -> Result<Server, Error> {
        Server::arm_with(device, plan, move |_| {
            let zoned = Arc::clone(&zoned);
            let mut others = Inline::new(Arc::clone(&zoned));
            let handler: Box<dyn FnMut(Request<'_>)> = Box::new(move |request| {
                if request.copies_by_driver() {
                    zoned.move_data(request, &mut others);
                } else {
                    others.handle(request);
                }
            });
            Zoned(handler)
        })
    }

    fn move_data(&self, mut request: Request<'_>, others: &mut Inline<Self>) {
        let (offset, len) = (request.offset(), request.len());
        let bytes = usize::try_from(len).unwrap_or(usize::MAX);
        let result = match request.op() {
            // What is behind a write pointer is not in memory.
            Op::Read if self.readable(offset).is_ok_and(|there| len <= there) => {
                request.push_from(self.data.region(offset, bytes))
            }
            Op::Write => self.write_with(offset, len, |at| {
                request.pull_into(self.data.region(at, bytes))
            }),
            Op::ZoneAppend => {
                let landed = self.append_with(offset, len, |at| {
                    request.pull_into(self.data.region(at, bytes))
                });
                match landed {
                    Ok(at) => return request.complete_append(at),
                    Err(errno) => Err(errno),
                }
            }
            _ => return others.handle(request),
        };
        request.complete(result);
    }
}
