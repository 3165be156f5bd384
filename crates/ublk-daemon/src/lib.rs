//! Processes of a ublk server: front, agent and server, and their link.
