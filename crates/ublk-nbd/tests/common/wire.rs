//! The byte stream of a test server: a socket, with or without TLS.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection, StreamOwned};

pub enum Wire {
    Plain(UnixStream),
    Tls(Box<StreamOwned<ServerConnection, UnixStream>>),
}

impl Wire {
    pub const fn is_tls(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    pub fn start_tls(self, config: &Arc<ServerConfig>) -> io::Result<Self> {
        let Self::Plain(stream) = self else {
            panic!("TLS in TLS");
        };
        let session = ServerConnection::new(Arc::clone(config)).expect("a session");
        Ok(Self::Tls(Box::new(StreamOwned::new(session, stream))))
    }

    fn tls(&mut self) -> &mut StreamOwned<ServerConnection, UnixStream> {
        match self {
            Self::Tls(stream) => stream,
            Self::Plain(_) => panic!("a fault of TLS without TLS"),
        }
    }

    /// The records of some bytes.
    fn records(&mut self, bytes: &[u8]) -> Vec<u8> {
        let session = &mut self.tls().conn;
        session.writer().write_all(bytes).expect("room");
        let mut records = Vec::new();
        while session.wants_write() {
            session.write_tls(&mut records).expect("memory");
        }
        records
    }

    /// Sends half of the records.
    pub fn write_half(&mut self, bytes: &[u8]) -> io::Result<()> {
        let records = self.records(bytes);
        self.tls().sock.write_all(&records[..records.len() / 2])
    }

    /// Sends records of which the last byte is another one.
    pub fn write_corrupt(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut records = self.records(bytes);
        *records.last_mut().expect("a record") ^= 1;
        self.tls().sock.write_all(&records)
    }

    pub fn close_notify(&mut self) -> io::Result<()> {
        self.tls().conn.send_close_notify();
        self.tls().flush()
    }

    pub fn update_keys(&mut self) {
        let update = self.tls().conn.refresh_traffic_keys();
        update.expect("TLS 1.3");
    }
}

impl Read for Wire {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(bytes),
            Self::Tls(stream) => stream.read(bytes),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
