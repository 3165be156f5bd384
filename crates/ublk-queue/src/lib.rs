//! The ublk data plane: workers, lanes, requests, handlers.
