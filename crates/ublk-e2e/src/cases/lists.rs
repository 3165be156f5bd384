//! `list`, `info`, `features`, and commands without a device.

use anyhow::{Result, ensure};

use super::stop::Backing;
use crate::case::{Case, feature};
use crate::cli::{self, Spec, code, ublkctl, ublkctl_json};
use crate::{json, sysfs};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("list_shows_what_there_is", list),
        Case::new("features_are_the_kernels", features),
        Case::new(
            "l32_contract_without_an_id_nothing_is_deleted",
            without_an_id,
        ),
        Case::new("stats_count_what_was_done", stats),
        Case::new(
            "contract_lists_name_backing_and_serving",
            names_what_is_behind,
        ),
        Case::new("contract_any_word_names_a_device", any_word),
        Case::new("contract_several_devices_have_a_result_each", several),
        Case::new("contract_all_devices_are_stopped_and_deleted", all_of_ours),
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
    // Features newer than 6.12 are reported by kernels that have them, and only by those.
    let newer = sysfs::kernel() >= (7, 0);
    ensure!(
        has("BATCH_IO") == newer,
        "BATCH_IO in {:?}: {value}",
        sysfs::kernel()
    );
    Ok(())
}

/// L32 A command without a device is a usage error, and one for a missing device fails.
fn without_an_id() -> Result<()> {
    let device = Spec::mem("16M").add()?;
    for command in ["delete", "stop", "info", "recover", "upgrade"] {
        cli::fails(&[command], code::USAGE, &["id"])?;
        // A missing device has one exit code and one message, however it is named.
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
    for args in [["list", "all"], ["gc", "99"]] {
        cli::fails(&args, code::NO_DEVICE, &["no ublk device"])?;
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

/// `list` and `info` show the backend of a device, for people and for scripts.
fn names_what_is_behind() -> Result<()> {
    let backing = Backing::new("lists");
    std::fs::File::create(backing.path())?.set_len(8 << 20)?;
    let path = backing.path().to_string_lossy().into_owned();
    let args = [
        "--name",
        "seen",
        "--offset",
        "1M",
        "--length",
        "4M",
        "--recovery",
        "reissue",
    ];
    let device = Spec::file(backing.path())
        .with(&args)
        .with(&["--supervise", "--poll", "fixed:10"])
        .add()?;
    let info = device.query()?;
    let wanted = serde_json::json!({
        "path": path, "offset": 1 << 20, "length": 4 << 20, "moving_to": null
    });
    ensure!(info["backing"] == wanted, "{info}");
    ensure!(info["supervised"] == true && info["threads"] == 1, "{info}");
    ensure!(info["polling"] == "fixed:10", "{info}");
    ensure!(info["shared_memory"].is_null(), "{info}");
    let text = ublkctl(&["ls"])?.good()?.stdout;
    let wanted = format!("{path} from 1 MiB");
    for part in ["NAME", "BACKING", "seen", &wanted] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    let text = ublkctl(&["info", "seen"])?.good()?.stdout;
    for part in ["supervised", "1 per queue, polling fixed:10", &wanted] {
        ensure!(text.contains(part), "no {part:?} in {text}");
    }
    device.delete()
}

/// A device can be named by its number, its nodes, its name, any link to one of these, and its partitions.
fn any_word() -> Result<()> {
    let device = Spec::mem("16M").with(&["--name", "word"]).add()?;
    let id = device.id;
    let aside = std::env::temp_dir().join("ublk-e2e-link");
    let _ = std::fs::remove_file(&aside);
    std::os::unix::fs::symlink("/dev/ublkctl/word", &aside)?;
    let args = [
        id.to_string(),
        format!("/dev/ublkb{id}"),
        format!("ublkc{id}"),
        format!("/dev/ublkc{id}"),
        format!("/dev/ublkb{id}p1"),
        "word".to_owned(),
        "/dev/ublkctl/word".to_owned(),
        aside.to_string_lossy().into_owned(),
        format!("/sys/../dev/ublkb{id}"),
    ];
    for word in &args {
        let info = ublkctl_json(&["info", word])?;
        ensure!(info["id"] == id, "{word}: {info}");
        let listed = ublkctl_json(&["list", word])?;
        ensure!(listed[0]["id"] == id, "{word}: {listed}");
    }
    std::fs::remove_file(&aside)?;
    // A node of another name, and one that is not ublk's.
    let node = std::env::temp_dir().join("ublk-e2e-node");
    let _ = std::fs::remove_file(&node);
    let numbers = sysfs::text(id, "dev")?;
    let (major, minor) = numbers.trim().split_once(':').unwrap_or_default();
    crate::run::good(
        "busybox",
        &["mknod", &node.to_string_lossy(), "b", major, minor],
    )?;
    let info = ublkctl_json(&["info", &node.to_string_lossy()]);
    std::fs::remove_file(&node)?;
    ensure!(info?["id"] == id);
    cli::fails(
        &["delete", "/dev/null"],
        code::NO_DEVICE,
        &["no ublk device /dev/null"],
    )?;
    ublkctl(&["rm", "/dev/ublkctl/word"])?.good()?;
    device.forget();
    cli::nothing_left(crate::wait::secs(5))
}

/// Each of several devices is tried and reported; the worst result decides the exit code; JSON is one array.
fn several() -> Result<()> {
    let (one, two) = (Spec::mem("16M").add()?, Spec::null("1G").add()?);
    let (a, b) = (one.id.to_string(), two.id.to_string());
    let infos = ublkctl_json(&["info", &a, &b])?;
    ensure!(
        infos[0]["id"] == one.id && infos[1]["id"] == two.id,
        "{infos}"
    );
    // A missing or refused device does not hide the others.
    let output = ublkctl(&["delete", &a, "nobody", &b, "--json"])?;
    ensure!(output.code() == code::NO_DEVICE, "{output}");
    let results = cli::one_value(&output)?;
    ensure!(
        results[0]["id"] == one.id && results[0]["done"] == "deleted",
        "{results}"
    );
    ensure!(results[1]["device"] == "nobody", "{results}");
    ensure!(results[1]["error"]["kind"] == "no-such-device", "{results}");
    ensure!(
        results[2]["id"] == two.id && results[2]["done"] == "deleted",
        "{results}"
    );
    one.forget();
    two.forget();
    cli::nothing_left(crate::wait::secs(5))
}

/// `--all` means every device of ours, and must be explicit (L32).
fn all_of_ours() -> Result<()> {
    ensure!(ublkctl_json(&["delete", "--all"])? == serde_json::json!([]));
    let devices = [Spec::mem("16M").add()?, Spec::null("1G").add()?];
    let stopped = ublkctl_json(&["stop", "--all"])?;
    ensure!(
        stopped.as_array().is_some_and(|all| all.len() == 2),
        "{stopped}"
    );
    for device in &devices {
        ensure!(json::text(&device.query()?, "state")? == "dead");
    }
    ensure!(ublkctl_json(&["stop", "--all"])? == serde_json::json!([]));
    let deleted = ublkctl_json(&["delete", "--all"])?;
    ensure!(
        deleted.as_array().is_some_and(|all| all.len() == 2),
        "{deleted}"
    );
    devices.into_iter().for_each(cli::Device::forget);
    cli::nothing_left(crate::wait::secs(5))
}
