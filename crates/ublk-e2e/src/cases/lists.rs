//! `list`, `info`, `features`, and commands without a device.

use anyhow::{Result, ensure};

use crate::case::{Case, feature};
use crate::cli::{self, Spec, code, ublkctl, ublkctl_json};
use crate::{json, sysfs};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("list_shows_what_there_is", list),
        Case::new("features_are_the_kernels", features),
        Case::new("l32_without_an_id_nothing_is_deleted", without_an_id),
        Case::new("stats_count_what_was_done", stats),
    ]
}

fn list() -> Result<()> {
    ensure!(ublkctl_json(&["list"])? == serde_json::json!([]));
    let one = Spec::mem("16M").add()?;
    let two = Spec::null("1G").queues(2).add()?;
    let listed = ublkctl_json(&["list"])?;
    let entries = listed.as_array().cloned().unwrap_or_default();
    ensure!(entries.len() == 2, "{listed}");
    for (device, backend) in [(&one, "mem"), (&two, "null")] {
        let mut entries = entries.iter();
        let Some(entry) = entries.find(|e| e["id"] == device.id) else {
            anyhow::bail!("device {} is not in {listed}", device.id);
        };
        ensure!(json::text(entry, "state")? == "live", "{entry}");
        ensure!(json::text(entry, "backend")? == backend, "{entry}");
        ensure!(json::text(entry, "path")? == device.node(), "{entry}");
    }
    let text = ublkctl(&["list"])?.good()?.stdout;
    ensure!(
        text.contains(one.node()) && text.contains(two.node()),
        "{text}"
    );
    one.delete()?;
    two.delete()?;
    ensure!(ublkctl_json(&["list"])? == serde_json::json!([]));
    Ok(())
}

fn features() -> Result<()> {
    let value = ublkctl_json(&["features"])?;
    let list = json::find(&value, "features").and_then(|f| f.as_array().cloned());
    let list = list.unwrap_or_default();
    let has = |name: &str| {
        list.iter()
            .any(|f| f["name"] == name && f["available"] == true)
    };
    ensure!(has("CMD_IOCTL_ENCODE") && has("USER_COPY"), "{value}");
    for entry in &list {
        feature(&json::text(entry, "name")?, entry["available"] == true);
    }
    // What came after 6.12 is there in a kernel that has it, and only there.
    let newer = sysfs::kernel() >= (7, 0);
    ensure!(
        has("BATCH_IO") == newer,
        "BATCH_IO in {:?}: {value}",
        sysfs::kernel()
    );
    Ok(())
}

/// L32 A command without a device does nothing but complain, and a missing one does not end with 0.
fn without_an_id() -> Result<()> {
    let device = Spec::mem("16M").add()?;
    for command in ["delete", "stop", "info", "recover", "upgrade"] {
        cli::fails(&[command], code::USAGE, &["id"])?;
        // Not there, by whatever word: one code, one message.
        for word in [
            "all",
            "99",
            "1048576",
            "/dev/ublkb77",
            "/dev/ublkb77p1",
            "/dev/null",
        ] {
            cli::fails(&[command, word], code::NO_DEVICE, &["no ublk device"])?;
        }
    }
    for words in [["list", "all"], ["gc", "99"]] {
        cli::fails(&words, code::NO_DEVICE, &["no ublk device"])?;
    }
    cli::fails(
        &["resize", "all", "1G"],
        code::NO_DEVICE,
        &["no ublk device all"],
    )?;
    let direct = device.open()?;
    direct.write_pattern(0, 4096, 1)?;
    direct.check_pattern(0, 4096, 1)?;
    drop(direct);
    device.delete()
}

fn stats() -> Result<()> {
    let device = Spec::mem("16M").queues(2).add()?;
    let direct = device.open()?;
    let before = device.query()?;
    for place in 0..10 {
        direct.write_pattern(place * 4096, 4096, 1)?;
    }
    direct.check_pattern(0, 4096, 1)?;
    crate::run::good("blkdiscard", &["-o", "0", "-l", "4096", device.node()])?;
    let after = device.query()?;
    let grew = |key: &str| -> Result<u64> {
        Ok(json::number(&after, key)?.saturating_sub(json::number(&before, key)?))
    };
    ensure!(grew("writes")? == 10, "{} writes", grew("writes")?);
    ensure!(grew("write_bytes")? == 40_960);
    ensure!(grew("reads")? >= 1 && grew("discards")? == 1);
    ensure!(json::number(&after, "errors")? == 0, "{after}");
    drop(direct);
    device.delete()
}
