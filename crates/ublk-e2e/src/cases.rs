//! The cases, by theme.

mod attributes;
mod backing;
mod bad_input;
mod churn;
mod config;
mod data;
mod deaths;
mod discard;
mod doctor;
mod examples;
mod faults;
mod file;
mod file_matrix;
mod file_systems;
mod handover;
mod hang;
mod identity;
mod idle;
mod in_use;
mod kill;
mod lifecycle;
mod lists;
mod many;
mod mayhem;
mod measured;
mod modes;
mod nbd;
mod nbd_network;
mod nbd_servers;
mod nbd_tls;
mod odd_disks;
mod orphans;
mod processes;
mod recovery;
mod resize;
mod shared_matrix;
mod shared_memory;
mod stop;
mod stuck;
mod surroundings;
mod systemd;
mod udev;
mod unprivileged;
mod upgrade;

use crate::case::{Case, Set};

/// The cases of a set, the quick ones first.
pub fn all(set: Set) -> Vec<Case> {
    // The guest with systemd has its own cases, and lacks the tools of the others.
    if crate::systemd::here() {
        return [systemd::cases(), udev::cases()]
            .into_iter()
            .flatten()
            .collect();
    }
    let mut all = vec![
        lifecycle::cases(),
        modes::cases(),
        shared_memory::cases(),
        file_matrix::cases(),
        shared_matrix::cases(),
        recovery::cases(),
        deaths::cases(),
        resize::cases(),
        unprivileged::cases(),
    ];
    // Cases whose result depends on the kernel's driver.
    if set != Set::Brief {
        all.extend([
            idle::cases(),
            lists::cases(),
            churn::cases(),
            kill::cases(),
            hang::cases(),
            backing::cases(),
            odd_disks::cases(),
            many::cases(),
            mayhem::cases(),
            orphans::cases(),
            identity::cases(),
            in_use::cases(),
            stop::cases(),
            stuck::cases(),
            surroundings::cases(),
            upgrade::cases(),
            handover::cases(),
        ]);
    }
    if !matches!(set, Set::Brief | Set::Kernel) {
        all.extend([
            measured::cases(),
            nbd::cases(),
            nbd_tls::cases(),
            nbd_servers::cases(),
            nbd_network::cases(),
            attributes::cases(),
            data::cases(),
            discard::cases(),
            file_systems::cases(),
            faults::cases(),
            file::cases(),
            processes::cases(),
            bad_input::cases(),
            config::cases(),
            examples::cases(),
            doctor::cases(),
        ]);
    }
    let mut all: Vec<Case> = all.into_iter().flatten().collect();
    all.sort_by_key(|case| !case.is_simple());
    all
}

/// Queues × block sizes of most devices.
const MATRIX: [(usize, u32); 6] = [
    (1, 512),
    (2, 512),
    (4, 512),
    (1, 4096),
    (2, 4096),
    (4, 4096),
];
