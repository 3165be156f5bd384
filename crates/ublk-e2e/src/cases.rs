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
mod nbd_moves;
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
mod silences;
mod stop;
mod stuck;
mod surroundings;
mod systemd;
mod udev;
mod unprivileged;
mod upgrade;
mod zoned;
mod zoned_file_systems;

use crate::case::{self, Case, Set};
use crate::sysfs;

/// Cases that [`Set::Brief`] and [`Set::Change`] leave out, because they repeat at length what a shorter one shows: the step by
/// which a policy, a mode or a transport differs is in another's case, a holder differs from another only for the kernel.
const LONG: [&str; 67] = [
    "composed_stripe_keeps_data_in_every_mode",
    "config_up_and_down_again_and_again",
    "fio_crc32c_md5_mixed_sizes_q1_b512",
    "idle_devices_cost_little_user_copy",
    "idle_devices_cost_little_zero_copy",
    "l01_each_queue_has_its_own_descriptors_q2",
    "l12_discard_and_write_zeroes_q4_b4096",
    "l14_kill_under_verified_load_fail",
    "l14_kill_under_verified_load_queue",
    "l20_depths_from_1_to_4096",
    "l23_a_hundred_rounds_leave_nothing",
    "l27_delete_with_a_silent_server_that_goes_on",
    "l27_resize_with_a_silent_server_*",
    "l27_upgrade_with_a_silent_server_that_is_killed",
    "l30_a_signal_leaves_the_device_fail",
    "l30_a_signal_leaves_the_device_queue",
    "l31_kill_at_every_step_of_add_reissue",
    "l31_kill_at_every_step_of_delete_reissue",
    "l31_kill_at_every_step_of_upgrade_queue",
    "l31_kill_at_every_step_of_upgrade_reissue",
    "l31_kill_server_under_io_q1",
    "l31_kills_at_random_leave_nothing",
    "l34_kill_at_every_step_of_recover_fail",
    "l34_kill_at_every_step_of_recover_queue",
    "l34_recover_fail_twice",
    "l34_recover_queue_twice",
    "l35_upgrade_of_a_mounted_file_system",
    "l35_upgrade_under_verified_load_queue",
    "l41_in_use_by_a_partition",
    "l41_in_use_by_a_writer",
    "l41_in_use_by_another_mount_namespace",
    "l41_in_use_by_btrfs",
    "l41_in_use_by_loop",
    "l41_in_use_by_lvm",
    "l41_in_use_by_md",
    "l41_in_use_by_swap",
    "l41_in_use_by_xfs",
    "l44_an_upgrade_with_few_descriptors",
    "l44_upgrades_while_it_is_mounted_and_unmounted",
    "l44_upgrades_whose_caller_is_killed",
    "l53_lives_of_one_number_are_told_apart",
    "l71_a_file_system_under_load_outlives_its_nbd_server_four_connections",
    "l71_a_file_system_under_load_outlives_its_nbd_server_tcp",
    "l71_a_killed_nbd_server_costs_no_request_tls",
    "l71_a_killed_nbd_server_costs_no_request_unix",
    "l71_a_mounted_file_system_outlives_its_nbd_server",
    "l71_dirty_pages_wait_for_their_nbd_server",
    "l81_requests_to_a_slow_disk_wait_side_by_side",
    "l84_contract_many_creators_at_once_never_hang",
    "many_devices_of_the_tool",
    "nbd_data_is_verified_in_every_mode",
    "nbd_devices_between_two_servers_wait_for_a_word",
    "nbd_memory_pressure_waits_for_the_server",
    "nbd_nbd_server_serves_files",
    "nbd_qemu_nbd_serves_qcow2_with_a_snapshot",
    "nbd_serves_xfs",
    "nbd_tls_over_a_unix_socket_is_carried_by_a_thread",
    "record_in_other_modes",
    "stats_agree_with_fio_and_the_kernel_get_data_batch_off",
    "stats_agree_with_fio_and_the_kernel_user_copy_batch_off",
    "stats_percentiles_agree_with_fio_batch_on",
    "ten_rounds_of_the_tool",
    "unprivileged_user_owns_a_device_copy",
    "unprivileged_user_owns_a_device_get-data",
    "xfs_make_fill_remount_check_q1_b512",
    "zoned_btrfs_survives_its_server",
    "zoned_f2fs_keeps_files",
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
            zoned_file_systems::cases(),
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
            silences::cases(),
            measured::cases(),
            recorded::cases(),
            nbd::cases(),
            nbd_moves::cases(),
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
    // Older kernels lack what some of these need.
    let whole = set == Set::Full && sysfs::kernel() >= (7, 3);
    for name in LONG.iter().filter(|_| whole) {
        let known = all.iter().any(|case| case.is_one_of(&[name]));
        assert!(known, "{name} is no case");
    }
    all.retain(|case| !case::is_quick() || !case.is_one_of(&LONG));
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
