//! The shipped udev rules with a real udev, in the guest that runs systemd.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::systemd::{Body, alone};
use crate::case::Case;
use crate::cli;
use crate::json;
use crate::run::{self, Output};
use crate::systemd::{BACK, Served, says, systemctl};
use crate::wait::{secs, until};

/// Users of the image, and the group that the rules give the control node to.
const ALICE: u32 = 1000;
const BOB: u32 = 1001;
const GROUP: u32 = 2001;
/// The group of disks.
const DISK: u32 = 6;

pub fn cases() -> Vec<Case> {
    let all: [(&str, Body); 2] = [
        ("systemd_udev_gives_users_their_devices", users),
        ("systemd_udev_names_a_device_for_fstab", named),
    ];
    all.into_iter()
        .map(|(name, body)| Case::new(name, move || alone(name, body)))
        .collect()
}

/// Runs a program as a user who is a member of the group, or none.
fn run_as(user: u32, member: bool, program: &str, args: &[&str]) -> Result<Output> {
    let (id, group) = (user.to_string(), GROUP.to_string());
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id]);
    if member {
        command.args(["--groups", &group]);
    } else {
        command.arg("--clear-groups");
    }
    command.arg(program).args(args).current_dir("/");
    command.env("XDG_RUNTIME_DIR", home(user));
    run::output(&mut command, secs(60))
}

fn home(user: u32) -> PathBuf {
    PathBuf::from(format!("/run/ublk-e2e-{user}"))
}

/// A member of the group creates, uses and deletes a device; the rule gives them its nodes. Another member can neither
/// open nor delete it, and a non-member cannot create any.
fn users() -> Result<()> {
    for user in [ALICE, BOB] {
        let home = home(user);
        fs::create_dir_all(&home)?;
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700))?;
        chown(&home, Some(user), Some(user))?;
    }
    let control = fs::metadata("/dev/ublk-control")?;
    ensure!(
        (control.gid(), control.mode() & 0o777) == (GROUP, 0o660),
        "{control:?}"
    );
    let add = ["add", "mem", "--size", "16M", "--json"];
    let refused = run_as(ALICE, false, "ublkctl", &add)?;
    ensure!(refused.code() == cli::code::FAILED, "{refused}");
    let added = run_as(ALICE, true, "ublkctl", &add)?.good()?;
    let added = serde_json::from_str(&added.stdout)?;
    let (id, node) = (json::number(&added, "id")?, json::text(&added, "path")?);
    let number = id.to_string();
    let result = owned(&node, &number);
    run_as(ALICE, true, "ublkctl", &["delete", &number])?.good()?;
    result?;
    ensure!(!Path::new(&node).exists(), "{node} is still there");
    Ok(())
}

fn owned(node: &str, id: &str) -> Result<()> {
    for path in [node, &format!("/dev/ublkc{id}")] {
        let data = fs::metadata(path)?;
        let found = (data.uid(), data.gid(), data.mode() & 0o777);
        ensure!(found == (ALICE, ALICE, 0o600), "{path}: {found:?}");
    }
    let to = format!("of={node}");
    let write = [
        "dd",
        "if=/dev/zero",
        &to,
        "bs=64K",
        "count=8",
        "conv=fsync,notrunc",
    ];
    run_as(ALICE, true, "busybox", &write)?.good()?;
    let other = run_as(BOB, true, "busybox", &write)?;
    ensure!(
        other.code() != 0 && other.stderr.contains("ermission"),
        "{other}"
    );
    let other = run_as(BOB, true, "ublkctl", &["delete", id])?;
    ensure!(other.code() == cli::code::FAILED, "{other}");
    ensure!(Path::new(node).exists());
    Ok(())
}

/// The UUID of an ext4 (`s_uuid`, 0x68 bytes into the superblock).
fn uuid(image: &Path) -> Result<String> {
    let mut bytes = [0; 16];
    fs::File::open(image)?.read_exact_at(&mut bytes, 1024 + 0x68)?;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    Ok(parts.join("-"))
}

/// fstab with only the name of the device: udev makes the link, systemd waits for it, also after a crash.
fn named() -> Result<()> {
    let device = Served::new("named", 11, 64 << 20, "recovery = \"reissue\"\n", "")?;
    let link = PathBuf::from("/dev/disk/by-ublk/named");
    let device = device.with_file_system_at(&link)?;
    device.mount()?;
    let target = fs::canonicalize(&link).context("the link")?;
    ensure!(
        target == device.node,
        "{} leads to {}",
        link.display(),
        target.display()
    );
    says(
        "dev-disk-by\\x2dublk-named.device",
        "ActiveState",
        "active",
        secs(10),
    )?;
    // As for any disk: links by its content, and nodes that belong to root.
    let by_uuid = Path::new("/dev/disk/by-uuid").join(uuid(&device.file)?);
    let same =
        || Ok((fs::canonicalize(&by_uuid).ok().as_deref() == Some(&*device.node)).then_some(()));
    until("the link by UUID", secs(10), same)?;
    for (path, gid, mode) in [
        (device.node.clone(), DISK, 0o660),
        (format!("/dev/ublkc{}", device.id).into(), 0, 0o600),
    ] {
        let data = fs::metadata(&path)?;
        let found = (data.uid(), data.gid(), data.mode() & 0o777);
        ensure!(found == (0, gid, mode), "{}: {found:?}", path.display());
    }
    crate::procfs::kill(device.server()?, rustix::process::Signal::KILL)?;
    device.back(1, BACK)?;
    ensure!(device.is_mounted()? && link.exists());
    device.unmount()?;
    systemctl(&["stop", &device.unit])?;
    until("the link to go", secs(10), || {
        Ok((!link.exists()).then_some(()))
    })
}
