//! The cases, by theme.

mod attributes;
mod backing;
mod bad_input;
mod churn;
mod composed;
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
mod integrity;
mod kill;
mod kind_matrix;
mod lifecycle;
mod lists;
mod logs;
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
mod parameters;
mod processes;
mod recorded;
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
mod zoned;

use crate::case::{self, Case, Set};

/// Cases that [`Set::Change`] leaves out, because they repeat at length what a shorter one shows: the step by which a
/// policy differs is in the other policy's case, a holder differs from another only for the kernel.
const LONG: [&str; 21] = [
    "config_up_and_down_again_and_again",
    "l14_kill_under_verified_load_fail",
    "l14_kill_under_verified_load_queue",
    "l23_a_hundred_rounds_leave_nothing",
    "l31_kill_at_every_step_of_add_reissue",
    "l31_kill_at_every_step_of_upgrade_queue",
    "l31_kill_at_every_step_of_upgrade_reissue",
    "l31_kills_at_random_leave_nothing",
    "l34_kill_at_every_step_of_recover_fail",
    "l34_kill_at_every_step_of_recover_queue",
    "l35_upgrade_under_verified_load_queue",
    "l41_in_use_by_another_mount_namespace",
    "l41_in_use_by_btrfs",
    "l41_in_use_by_loop",
    "l41_in_use_by_md",
    "l41_in_use_by_xfs",
    "l44_upgrades_whose_caller_is_killed",
    "l84_contract_many_creators_at_once_never_hang",
    "many_devices_of_the_tool",
    "unprivileged_user_owns_a_device_copy",
    "unprivileged_user_owns_a_device_get-data",
];

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
        kind_matrix::cases(),
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
            composed::cases(),
            parameters::cases(),
            integrity::cases(),
            zoned::cases(),
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
            logs::cases(),
            measured::cases(),
            recorded::cases(),
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
    for name in LONG.iter().filter(|_| set == Set::Full) {
        let known = all.iter().any(|case| case.is_one_of(&[name]));
        assert!(known, "{name} is no case");
    }
    all.retain(|case| set != Set::Change || !case.is_one_of(&LONG));
    all.sort_by_key(|case| !case.is_simple());
    all
}

/// Queues × block sizes of the devices of a test for each; the corners of the matrix in a reduced set.
fn matrix() -> impl Iterator<Item = (usize, u32)> {
    let corner = |cell: &(usize, u32)| matches!(cell, (1, 512) | (4, 4096));
    let kept = move |cell: &(usize, u32)| !case::reduced() || corner(cell);
    MATRIX.into_iter().filter(kept)
}

/// All of them.
const MATRIX: [(usize, u32); 6] = [
    (1, 512),
    (2, 512),
    (4, 512),
    (1, 4096),
    (2, 4096),
    (4, 4096),
];
