//! The cases, by theme.

mod attributes;
mod bad_input;
mod config;
mod data;
mod discard;
mod doctor;
mod examples;
mod faults;
mod file;
mod file_matrix;
mod file_systems;
mod hang;
mod idle;
mod kill;
mod lifecycle;
mod lists;
mod modes;
mod orphans;
mod processes;
mod recovery;
mod resize;
mod shared_memory;
mod stop;
mod systemd;
mod udev;
mod unprivileged;
mod upgrade;

use crate::case::Case;

/// All cases, the quick ones first.
pub fn all() -> Vec<Case> {
    // The guest with systemd has cases of its own, and the others need tools that it lacks.
    if crate::systemd::here() {
        return [systemd::cases(), udev::cases()]
            .into_iter()
            .flatten()
            .collect();
    }
    let mut all: Vec<Case> = [
        lifecycle::cases(),
        attributes::cases(),
        data::cases(),
        discard::cases(),
        modes::cases(),
        idle::cases(),
        shared_memory::cases(),
        file_systems::cases(),
        faults::cases(),
        file::cases(),
        file_matrix::cases(),
        processes::cases(),
        lists::cases(),
        bad_input::cases(),
        config::cases(),
        kill::cases(),
        hang::cases(),
        recovery::cases(),
        orphans::cases(),
        resize::cases(),
        stop::cases(),
        unprivileged::cases(),
        upgrade::cases(),
        examples::cases(),
        doctor::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    all.sort_by_key(|case| !case.is_simple());
    all
}

/// Queues × block sizes: what most devices are made of.
const MATRIX: [(usize, u32); 6] = [
    (1, 512),
    (2, 512),
    (4, 512),
    (1, 4096),
    (2, 4096),
    (4, 4096),
];
