//! Get-data: names the place of a WRITE's data before the driver copies it (NEED_GET_DATA).

use ublk_core::iod::IoBounds;
use ublk_core::{Input, Tag};
use ublk_sys::UBLK_U_IO_NEED_GET_DATA;

use super::Lane;
use super::ending::DataLocation;
use crate::handler::Handler;
use crate::memref::MemRef;
use crate::port::{Descriptors, Port};

impl<P: Port, D: Descriptors, H: Handler> Lane<P, D, H> {
    /// Names the place of a WRITE's data: the handler's choice or the tag's buffer.
    pub(super) fn get_data(&mut self, port: &mut P, tag: Tag) {
        let bounds = IoBounds::new(self.shared.size(), self.max_io_bytes);
        let io = self.descriptors.load(tag).decode(&bounds);
        let place = io.ok().and_then(|io| self.place_of(tag, &io));
        let lies = match place {
            Some(_) => DataLocation::Handler,
            None => DataLocation::Buffer,
        };
        self.get_data_at(port, tag, lies, place);
    }

    pub(super) fn get_data_at(
        &mut self,
        port: &mut P,
        tag: Tag,
        lies: DataLocation,
        place: Option<MemRef<'static>>,
    ) {
        self.placed[tag.index()] = lies;
        if let Some(buffers) = &mut self.buffers {
            buffers.lend(tag);
        }
        let addr = place.map_or_else(|| self.shared.arena.addr(tag), |place| place.addr());
        let place = &mut self.tags[tag.index()];
        place.addr = addr;
        (place.state, _) = place.state.step(Input::Buffer);
        self.push_other(port, tag, UBLK_U_IO_NEED_GET_DATA);
    }
}
