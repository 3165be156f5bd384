//! An io_uring ring by hand: SQE64/SQE128, CQE16/CQE32, explicit acquire/release, registration.
