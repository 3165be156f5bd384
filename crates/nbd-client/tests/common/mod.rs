//! A small client with sockets over the protocol core, and servers of others.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod client;
pub mod program;
