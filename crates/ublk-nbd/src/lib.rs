//! A ublk device backed by an NBD server.
//!
//! [`Nbd::open`] connects to an export and learns its size and features. [`Nbd::arm`] serves a device with it: each
//! queue has a connection of its own if the server allows several (`NBD_FLAG_CAN_MULTI_CONN`), driven on the queue's
//! own ring. All requests of one turn of the queue leave in one gathered send, one receive takes all available replies,
//! and the data of large reads is received straight into the request's buffer. In zero copy all data goes between the socket and
//! the pages of the client's request; replies then come one at a time, so only large requests gain.
//!
//! A separate thread reconnects lost connections, with a growing delay between attempts. Until then requests wait as
//! long as the [`Retry`] policy allows; those that were in flight are sent again. No queue's thread ever waits for the
//! server.
//!
//! # TLS
//! The URIs `nbds://` and `nbds+unix://` need the default feature `tls` (rustls with ring, which needs a C compiler to
//! build); they are refused without it. The kernel carries the session if it can, with the same operations of the ring as for plain text.
//! Otherwise, and always on unix sockets, a thread does ([`Carrier`]).
//!
//! # What a reconnect preserves
//! A request that was in flight is replayed, which is harmless: a READ has no effect, and WRITE, TRIM, WRITE_ZEROES and
//! FLUSH have the same effect when they are executed twice, since the block layer never has two overlapping writes in
//! flight. Two things are beyond the protocol:
//!
//! * A server that loses what it had answered but not yet flushed (a crash of its machine) loses it for the device,
//!   too: the next FLUSH on the new connection succeeds. Use a server whose cache survives it, or `O_SYNC` on top.
//! * A server that goes on executing requests of the old connection after the new one is up may execute a replayed
//!   write once more, late. Servers that end a connection together with its requests do not.

mod allocation;
mod backend;
mod connect;
mod connection;
mod connector;
mod device;
mod failed;
mod handler;
#[cfg(feature = "tls")]
mod ktls;
mod moving;
mod options;
mod outgoing;
mod promise;
mod registered;
#[cfg(feature = "tls")]
mod relay;
mod security;
mod socket;
mod status;
mod stream;
mod timed;
mod timer;
#[cfg(feature = "tls")]
mod tls;
mod transport;

pub use allocation::Allocation;
pub use backend::{Nbd, OpenError, SeveralConnections};
pub use connect::{ConnectError, Offer, info, list};
pub use device::Announce;
pub use handler::NbdHandler;
pub use options::{NbdOptions, ParseRetryError, Retry, TlsOptions};
pub use security::TlsSetupError;
pub use status::{LinkState, Status};
pub use transport::{Carrier, TlsInfo};
