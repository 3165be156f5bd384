//! Get-data: gives the driver the address of a WRITE's data before the driver copies it (NEED_GET_DATA).

use ublk_core::iod::IoBounds;
use ublk_core::{Input, Tag};
use ublk_sys::UBLK_U_IO_NEED_GET_DATA;

use super::Lane;
use super::ending::DataLocation;
use crate::handler::Handler;
use crate::memref::MemRef;
use crate::port::{Descriptors, Port};

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    /// Gives the driver the address of a WRITE's data: the handler's choice or the tag's buffer.
    pub(super) fn get_data(&mut self, port: &mut P, tag: Tag) {
        let bounds = IoBounds::new(self.shared.size(), self.max_io_bytes);
        let io = self.descriptors.load(tag).decode(&bounds);
        if let Ok(io) = &io {
            self.stamp_early(tag, io.op);
        }
        let memory = io.ok().and_then(|io| self.data_address(tag, &io));
        let location = match memory {
            Some(_) => DataLocation::Handler,
            None => DataLocation::Buffer,
        };
        self.get_data_at(port, tag, location, memory);
    }

    pub(super) fn get_data_at(
        &mut self,
        port: &mut P,
        tag: Tag,
        location: DataLocation,
        memory: Option<MemRef<'static>>,
    ) {
        self.shared.meters.get_data_rounds.add(1);
        self.placed[tag.index()] = location;
        if let Some(buffers) = &mut self.buffers {
            buffers.lend(tag);
        }
        let addr = memory.map_or_else(|| self.shared.arena.addr(tag), |memory| memory.addr());
        let slot = &mut self.tags[tag.index()];
        slot.addr = addr;
        (slot.state, _) = slot.state.step(Input::Buffer);
        self.push_other(port, tag, UBLK_U_IO_NEED_GET_DATA);
    }
}
