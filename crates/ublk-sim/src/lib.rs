//! A seeded model of the ublk driver for tests.
