//! Changes of the server: the first connection, another after an outage, and moves.

use std::sync::atomic::Ordering;

use nbd_client::Command;
use ublk_core::Errno;

use crate::connect::Connected;
use crate::connection::Connection;
use crate::handler::{Link, NbdHandler};
use crate::status::LinkState;

impl NbdHandler {
    /// Acts on a change of where the device is to be.
    pub(crate) fn told_to_move(&mut self) {
        let device = &self.device;
        if device.stays.swap(false, Ordering::Relaxed) && device.connector.uri() != device.home() {
            let to = device.connector.uri();
            device.not_moved(
                self.queue,
                format!("not moved to {to}: it was told to stay"),
            );
        }
        let stays = self.device.connector.uri() == self.device.home();
        if stays {
            self.device.board.moved(self.queue);
        }
        if let Some(next) = self.next.take() {
            // It leads to where the device was to go before.
            next.close();
        }
        if let Link::Up(up) = &self.link
            && up.flushing.is_some()
        {
            // Writes may follow that this FLUSH does not cover.
            self.close();
        } else if !stays {
            self.ask_for_connection();
        } else if self.needs_none() {
            self.device.connector.cancel(self.queue);
            // Another time.
            self.renewing = false;
        }
    }

    /// Whether the queue has a connection to where it is to be.
    pub(crate) fn needs_none(&self) -> bool {
        matches!(self.link, Link::Up(_)) && self.device.connector.uri() == self.device.home()
    }

    /// Takes a new connection into use, at once or when the current one is drained.
    pub(crate) fn offered(&mut self, connected: Connected) {
        let is_up = matches!(self.link, Link::Up(_));
        if (is_up || self.device.board.is_moving(self.queue))
            && let Some(why) = self.device.changed(&connected.export)
        {
            let why = format!("not moved to {}: {why}", connected.peer);
            self.device.not_moved(self.queue, why);
            connected.close();
            if !is_up {
                self.ask_for_connection();
            }
            return;
        }
        match is_up {
            true => self.next = Some(connected),
            false => self.connected(connected),
        }
    }

    /// Switches a moving device to its new connection once the old one is drained and flushed.
    pub(crate) fn moved(&mut self) {
        if let Link::Up(up) = &self.link
            && self.next.is_some()
            && up.flushing.is_some()
            && up.replies.in_flight() == 0
            && !up.socket.is_sending()
        {
            self.hang_up();
        }
    }

    /// Switches to a new connection.
    pub(crate) fn connected(&mut self, connected: Connected) {
        if let Err(why) = self.device.leaves_for(&connected.uri) {
            connected.close();
            let why = format!("not moved to {}: {why}", connected.peer);
            self.device.not_moved(self.queue, why);
            return self.ask_for_connection();
        }
        let Connected {
            socket,
            uri: _,
            export,
            peer,
            tls,
            work: _,
        } = connected;
        let changed = self.device.changed(&export);
        self.device.board.moved(self.queue);
        let state = match &changed {
            Some(why) => {
                tracing::error!("{peer}: {why}: writes fail from now on");
                self.device.board.failed(format!("{peer}: {why}"));
                LinkState::ReadsOnly
            }
            None => LinkState::Up,
        };
        self.device.board.set(self.queue, state);
        let info = tls.as_ref().map(|tls| tls.info.clone());
        self.device.board.carried(info);
        let reads_only = changed.is_some();
        let mut up = Connection::new(
            socket,
            &export,
            self.depth,
            peer,
            reads_only,
            tls,
            self.registered,
        );
        up.most_records = self.device.tls_records.saturating_mul(2);
        let (reads_only, size) = (up.reads_only, up.size);
        self.link = Link::Up(Box::new(up));
        self.met = true;
        self.renewing = false;
        self.outgoing.fail(Errno::EIO, |slot| {
            slot.end() > size || (reads_only && slot.command != Command::Read)
        });
        let replayed = self.outgoing.replayed();
        self.device.board.replayed(replayed);
    }
}
