//! The ublk control plane: /dev/ublk-control, typed commands, deadlines, errors.
