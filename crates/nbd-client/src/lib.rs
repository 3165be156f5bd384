//! The client side of the NBD protocol (doc/proto.md of the NBD project), without I/O: bytes in, events out.
//!
//! * [`Uri`] names an export: `nbd://host:port/export` and its relatives.
//! * [`Handshake`] consumes what the server sends before the export is open and produces the answers: fixed newstyle with GO, and
//!   EXPORT_NAME for servers without GO; STARTTLS; structured replies and extended headers; block sizes; meta contexts.
//! * [`Request`] is a command's header. [`Replies`] consumes what the server sends from then on: it says into which request's
//!   buffer, and where in it, the next bytes go, and when a request is answered.
//!
//! Whoever uses them owns sockets, time, buffers and threads. Neither parser allocates what a server chooses: lengths are
//! compared with what was asked for, or with a limit of this crate, before a byte of it is kept. A server that breaks the
//! protocol is an error after which the connection is of no use.
#![forbid(unsafe_code)]

mod bytes;
mod error;
mod extents;
mod framing;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod handshake;
mod replies;
mod request;
mod uri;
mod wire;

pub use error::{ErrorCode, ProtocolError};
pub use framing::Framing;
pub use handshake::{BlockSizes, Export, Handshake, Listed, Options, Step};
pub use replies::{Event, Replies, Simple};
pub use request::{Command, CommandFlags, Request};
pub use uri::{Address, Uri, UriError};
pub use wire::TransmissionFlags;
