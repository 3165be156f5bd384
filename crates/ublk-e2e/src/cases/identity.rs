//! L42 A name and a number stay with their device; and a stop that cannot write back says so at once (L22).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use rustix::process::Signal;

use super::stop::Backing;
use crate::case::Case;
use crate::cli::{self, Device, Spec, code, patience, ublkctl, ublkctl_json};
use crate::fs::Kind;
use crate::run::{self, Output};
use crate::wait::{secs, until};
use crate::{pattern, procfs, sysfs};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("l42_four_adds_of_one_name_make_one_device", four),
        Case::new("l42_a_name_left_behind_is_nobodys", left_behind),
        Case::new("l42_a_delete_that_waited_spares_the_next_device", waited),
        Case::new("l42_nodes_are_no_names", nodes),
        Case::new("l42_a_name_goes_with_the_disk", stopped),
        Case::new("l22_a_delete_right_after_the_servers_death", death),
        Case::new("l22_a_write_back_that_fails_is_the_commands_failure", full),
        Case::new("l48_a_mount_point_with_a_blank_is_written_back", blank),
    ]
}

fn link(name: &str) -> PathBuf {
    Path::new("/dev/ublkctl").join(name)
}

/// The numbers of the devices with a name.
fn named(name: &str) -> Result<Vec<u64>> {
    let list = ublkctl_json(&["list"])?;
    let all = list.as_array().context("a list")?;
    let ours = all.iter().filter(|e| e["name"] == name);
    Ok(ours.filter_map(|e| e["id"].as_u64()).collect())
}

/// The first one gets the name; one that is killed while it is being added does not keep it.
fn four() -> Result<()> {
    let args = ["add", "null", "--name", "same"];
    let adds: Vec<_> = (0..4)
        .map(|_| std::thread::spawn(move || ublkctl(&args)))
        .collect();
    let outputs: Vec<Output> = adds
        .into_iter()
        .map(|add| add.join().map_err(|_| anyhow::anyhow!("a panic"))?)
        .collect::<Result<_>>()?;
    let codes: Vec<i32> = outputs.iter().map(Output::code).collect();
    let made = codes.iter().filter(|code| **code == 0).count();
    let found = named("same")?;
    let refused = outputs.iter().filter(|o| o.code() != 0);
    for output in refused {
        cli::failed(output.clone(), code::FAILED, &["same"])?;
    }
    for id in &found {
        ublkctl(&["delete", &id.to_string()])?.good()?;
    }
    ensure!(
        made == 1 && found.len() == 1,
        "{codes:?}: devices {found:?}"
    );
    for pause in [0, 20, 60, 150] {
        let mut child = cli::command(&args).spawn()?;
        std::thread::sleep(Duration::from_millis(pause));
        child.kill()?;
        child.wait()?;
        // Its agent takes back what it created.
        until("the end of its processes", secs(40), || {
            let idle = named("same")?.is_empty() && cli::left_over().is_empty();
            let serves = ublkctl_json(&["list"])?[0]["phase"] == "live";
            Ok((idle || serves).then_some(()))
        })?;
        if !named("same")?.is_empty() {
            ublkctl(&["delete", "same"])?.good()?;
        }
        let again = ublkctl(&args)?.good()?;
        ensure!(named("same")?.len() == 1, "{again}");
        ublkctl(&["delete", "same"])?.good()?;
    }
    cli::nothing_left(secs(10))
}

/// A delete that timed out: the device is listed with its state, goes later, and its number's next device does not
/// inherit its name.
fn left_behind() -> Result<()> {
    let device = Spec::null("1G").with(&["--name", "old"]).add()?;
    let id = device.id.to_string();
    let holder = File::open(&device.path)?;
    let me = format!("process {}", std::process::id());
    cli::fails(
        &["delete", "old", "--deadline", "3"],
        code::TIMED_OUT,
        &["open for reading", &me],
    )?;
    ensure!(!link("old").is_symlink(), "its name is still there");
    let list = ublkctl_json(&["list"])?;
    ensure!(
        list[0]["id"] == device.id && list[0]["state"] == "deleting",
        "{list}"
    );
    let next = list[0]["next"].as_str().unwrap_or_default();
    ensure!(next.contains(&me), "{list}");
    ensure!(device.query()?["state"] == "deleting");
    cli::fails(&["delete", "old"], code::NO_DEVICE, &["old"])?;
    let number = device.id;
    device.forget();
    drop(holder);
    until("its end", secs(20), || {
        Ok(ublkctl_json(&["list"])?
            .as_array()
            .is_some_and(Vec::is_empty)
            .then_some(()))
    })?;
    // As an earlier version left it: a link without its device.
    let next = Spec::null("1G").with(&["--id", &id]).add()?;
    fs::create_dir_all("/dev/ublkctl")?;
    std::os::unix::fs::symlink(format!("../ublkb{number}"), link("old"))?;
    for verb in ["delete", "stop", "info"] {
        cli::fails(&[verb, "old"], code::NO_DEVICE, &["old"])?;
    }
    ensure!(next.query()?["state"] == "live");
    fs::remove_file(link("old"))?;
    let _ = fs::remove_dir("/dev/ublkctl");
    next.delete()
}

/// If another device takes the number between the check of a device and its removal, that device is spared.
fn waited() -> Result<()> {
    let device = Spec::null("1G").with(&["--name", "one"]).add()?;
    let id = device.id.to_string();
    // A command that removes a device holds this lock.
    let lock = File::create(format!("/run/ublkctl/{id}.removal.lock"))?;
    lock.lock()?;
    let waiting = ["one", id.as_str()].map(|word| {
        let args = ["delete".to_owned(), word.to_owned()];
        std::thread::spawn(move || ublkctl(&args.each_ref().map(String::as_str)))
    });
    // They have seen the device once their helpers are running.
    std::thread::sleep(secs(2));
    ublkctl(&["delete", "--force", &id])?.good()?;
    device.forget();
    let next = Spec::null("1G").with(&["--id", &id]).add()?;
    drop(lock);
    for waiting in waiting {
        let output = waiting.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        cli::failed(output, code::NO_DEVICE, &["another"])?;
    }
    ensure!(next.query()?["state"] == "live");
    next.delete()
}

fn nodes() -> Result<()> {
    let device = Spec::null("1G").add()?;
    let node = format!("ublkb{}", device.id);
    for name in [&node, "ublkc0", "ublkb0p1", "ublkb7", "7"] {
        cli::fails(&["add", "null", "--name", name], code::USAGE, &[name])?;
    }
    ensure!(ublkctl_json(&["info", &node])?["id"] == device.id);
    device.delete()
}

/// A stopped device has no link any more, but keeps its name until it is deleted.
fn stopped() -> Result<()> {
    let device = Spec::null("1G").with(&["--name", "gone"]).add()?;
    ensure!(link("gone").is_symlink());
    ublkctl(&["stop", "gone"])?.good()?;
    ensure!(!link("gone").is_symlink());
    cli::fails(&["add", "null", "--name", "gone"], code::FAILED, &["gone"])?;
    ublkctl(&["delete", "gone"])?.good()?;
    device.forget();
    cli::nothing_left(secs(10))
}

/// Dirties the cache of a device, and keeps it alive with a read-only descriptor.
fn dirty(device: &Device, len: usize) -> Result<File> {
    let writer = OpenOptions::new().write(true).open(&device.path)?;
    let reader = File::open(&device.path)?;
    let mut data = vec![0; len];
    pattern::fill(&mut data, 0, 9);
    writer.write_all_at(&data, 0)?;
    Ok(reader)
}

/// The server dies while `delete` writes back, or right before: reported at once, with the remedy; a forced delete
/// continues.
fn death() -> Result<()> {
    let spec = Spec::null("1G").queues(2).with(&["--recovery", "queue"]);
    let soon = patience() + secs(10);
    for force in [false, true] {
        let device = spec.add()?;
        let id = device.id.to_string();
        let server = device.server_now()?;
        let reader = dirty(&device, 16 << 20)?;
        procfs::stop(server)?;
        let mut args = vec!["stop", "--deadline", "60", &id];
        if force {
            args.push("--force");
        }
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        let stop = std::thread::spawn(move || {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            ublkctl(&args)
        });
        until("a write-back in flight", secs(10), || {
            let text = sysfs::text(device.id, "inflight")?;
            Ok(text.split_whitespace().any(|n| n != "0").then_some(()))
        })?;
        procfs::kill(server, Signal::KILL)?;
        let begun = Instant::now();
        let output = stop.join().map_err(|_| anyhow::anyhow!("a panic"))??;
        ensure!(begun.elapsed() < soon, "{:?}: {output}", begun.elapsed());
        let parts: &[&str] = match force {
            false => &["is dead", "nothing was stopped", "ublkctl recover"],
            true => &["is dead", "is stopped", "some data"],
        };
        cli::failed(output, code::FAILED, parts)?;
        let state = device.query()?["state"].clone();
        ensure!((state == "dead") == force, "{state}");
        drop(reader);
        device.forget();
        let deleted = ublkctl(&["delete", "--force", &id])?;
        match force {
            true => drop(deleted.good()?),
            // Its dirty data has no server to go to, and the command says so.
            false => drop(cli::failed(
                deleted,
                code::FAILED,
                &["is deleted", "no server to go to"],
            )?),
        }
    }
    for _ in 0..3 {
        let device = spec.add()?;
        let id = device.id.to_string();
        let reader = dirty(&device, 16 << 20)?;
        procfs::kill(device.server_now()?, Signal::KILL)?;
        let begun = Instant::now();
        let output = ublkctl(&["delete", &id, "--deadline", "60"])?;
        ensure!(begun.elapsed() < soon, "{:?}: {output}", begun.elapsed());
        cli::failed(output, code::FAILED, &["server", "ublkctl recover"])?;
        // Its program runs before the last descriptor is closed, which waits for the stop: closed between fork and
        // exec, the child's descriptor would be the last one, and the child would wait for itself.
        let mut delete = cli::command(&["delete", "--force", &id]);
        // What it says of the dirty data.
        let mut delete = delete.stderr(std::process::Stdio::null()).spawn()?;
        let closer = std::thread::spawn(move || drop(reader));
        until("the end of the delete", secs(60), || Ok(delete.try_wait()?))?;
        closer.join().map_err(|_| anyhow::anyhow!("a panic"))?;
        device.forget();
    }
    cli::nothing_left(patience() + secs(10))?;
    procfs::nothing_stuck(patience())
}

/// The backing store has no space for the dirty data.
fn full() -> Result<()> {
    let at = std::env::temp_dir().join("small");
    fs::create_dir_all(&at)?;
    mount("none", &at, "tmpfs", MountFlags::empty(), Some(c"size=4m"))?;
    let image = at.join("image");
    File::create(&image)?.set_len(64 << 20)?;
    for policy in ["none", "reissue"] {
        let device = Spec::file(&image)
            .with(&["--buffered", "--recovery", policy])
            .add()?;
        let id = device.id.to_string();
        let reader = dirty(&device, 16 << 20)?;
        cli::fails(
            &["stop", &id],
            code::FAILED,
            &["write-back failed", "nothing was stopped"],
        )?;
        ensure!(device.query()?["state"] == "live");
        drop(reader);
        // The kernel reports it once: a second attempt, with or without space, must not claim success.
        mount_remount(&at, MountFlags::empty(), c"size=200m")?;
        let mut ways = vec![vec!["delete", &id], vec!["stop", &id]];
        if sysfs::kernel() >= (7, 0) {
            ways.push(vec!["stop", "--if-unused", &id]);
        }
        for args in &ways {
            cli::fails(args, code::FAILED, &["not fully written back", "earlier"])
                .with_context(|| args.join(" "))?;
        }
        ensure!(device.query()?["state"] == "live");
        mount_remount(&at, MountFlags::empty(), c"size=4m")?;
        let reader = dirty(&device, 16 << 20)?;
        cli::fails(
            &["stop", "--force", &id],
            code::FAILED,
            &["is stopped", "some data was not written back"],
        )?;
        drop(reader);
        device.wait_state("dead", secs(5))?;
        device.delete()?;
        File::create(&image)?.set_len(64 << 20)?;
    }
    unmount(&at, UnmountFlags::empty())?;
    fs::remove_dir(&at)?;
    Ok(())
}

/// mountinfo writes a blank as `\040`.
fn blank() -> Result<()> {
    let backing = Backing::new("blank");
    let device = backing.spec("64M", &["--recovery", "reissue"]).add()?;
    Kind::Ext4.make(&device)?;
    let at = std::env::temp_dir().join("my disk");
    fs::create_dir_all(&at)?;
    mount(&device.path, &at, "ext4", MountFlags::empty(), None)?;
    fs::write(at.join("file"), b"written back")?;
    let id = device.id.to_string();
    let said = format!("mounted at {}", at.display());
    cli::fails(&["stop", &id], code::FAILED, &[&said])?;
    ublkctl(&["stop", "--force", &id])?.good()?;
    unmount(&at, UnmountFlags::empty())?;
    device.delete()?;
    let again = Spec::file(backing.path()).add()?;
    run::good(
        "mount",
        &["-t", "ext4", again.node(), &at.to_string_lossy()],
    )?;
    let found = fs::read(at.join("file"));
    unmount(&at, UnmountFlags::empty())?;
    fs::remove_dir(&at)?;
    ensure!(found.context("the file")? == b"written back");
    again.delete()
}
