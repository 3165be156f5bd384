//! Devices from a configuration file: `up` and `down`, repeatedly, in the foreground and in the background.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::stop::Backing;
use crate::case::Case;
use crate::cli::{self, code, patience, ublkctl, ublkctl_json};
use crate::direct_io::Direct;
use crate::wait::{secs, until};
use crate::{json, procfs};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("config_up_and_down_again_and_again", again),
        Case::new("config_what_differs_is_left_alone", differs),
        Case::new("config_contract_a_changed_size_is_seen", changed_size),
        Case::new("config_what_is_dead_is_made_anew", dead),
        Case::new("l34_config_takes_up_what_waits", waits),
        Case::new("l30_config_in_front_leaves_and_takes_up", in_front),
        Case::new("config_mistakes_are_told_with_their_line", mistakes),
    ]
}

/// A configuration file, removed on drop.
struct Config(PathBuf);

impl Config {
    fn new(text: &str) -> Result<Self> {
        let name = format!("ublk-e2e-{}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::write(&path, text)?;
        Ok(Self(path))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    fn up(&self) -> Result<Vec<Value>> {
        lines(&ublkctl_json(&["up", self.path()])?)
    }

    fn down(&self) -> Result<Vec<Value>> {
        lines(&ublkctl_json(&["down", self.path()])?)
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn lines(value: &Value) -> Result<Vec<Value>> {
    Ok(value.as_array().context("an array")?.clone())
}

/// Names with outcomes, in order.
fn outcomes(lines: &[Value]) -> Vec<(&str, &str)> {
    lines
        .iter()
        .map(|l| {
            let text = |key: &str| l[key].as_str().unwrap_or_default();
            (text("name"), text("outcome"))
        })
        .collect()
}

fn server(id: u64) -> Result<u32> {
    let info = ublkctl_json(&["info", &id.to_string()])?;
    Ok(u32::try_from(json::number(&info, "server_pid")?)?)
}

/// A file device of 16 MiB on a file to be created.
fn of_file(backing: &Backing, more: &str) -> String {
    let path = backing.path().display();
    format!(
        "[device.zoo]\nbackend = \"file\"\npath = \"{path}\"\ncreate = true\nsize = \"16M\"\n{more}\n"
    )
}

fn again() -> Result<()> {
    let backing = Backing::new("config");
    let text = of_file(&backing, "queues = 2") + "[device.ant]\nbackend = \"mem\"\nsize = \"8M\"\n";
    let config = Config::new(&text)?;
    for round in 1..4 {
        let up = config.up()?;
        ensure!(
            outcomes(&up) == [("zoo", "added"), ("ant", "added")],
            "{up:?}"
        );
        let zoo = Path::new("/dev/ublkctl/zoo");
        ensure!(fs::canonicalize(zoo)? == Path::new(up[0]["path"].as_str().context("path")?));
        let id = json::number(&up[0], "id")?;
        let before = server(id)?;
        let direct = Direct::open(zoo)?;
        if round > 1 {
            direct
                .check_pattern(0, 65_536, round - 1)
                .context("of the round before")?;
        }
        direct.write_pattern(0, 65_536, round)?;
        drop(direct);
        let up = config.up()?;
        ensure!(
            outcomes(&up) == [("zoo", "unchanged"), ("ant", "unchanged")],
            "{up:?}"
        );
        ensure!(
            server(id)? == before,
            "another server though nothing was to be done"
        );
        ublkctl(&["down", config.path(), "ant"])?.good()?;
        let down = config.down()?;
        ensure!(
            outcomes(&down) == [("ant", "absent"), ("zoo", "deleted")],
            "{down:?}"
        );
        cli::nothing_left(secs(10))?;
    }
    let down = config.down()?;
    ensure!(
        outcomes(&down) == [("ant", "absent"), ("zoo", "absent")],
        "{down:?}"
    );
    Ok(())
}

/// A device that runs with other options keeps its server; the options are named, and the other devices are brought up.
fn differs() -> Result<()> {
    let mem = "[device.ant]\nbackend = \"mem\"\nsize = \"8M\"\n";
    let config = Config::new(mem)?;
    let id = json::number(&config.up()?[0], "id")?;
    let before = server(id)?;
    let null = "[device.nil]\nbackend = \"null\"\n";
    let other = Config::new(&format!("{mem}depth = 32\nread-only = true\n{null}"))?;
    let parts = [];
    let output = cli::fails(&["up", other.path()], code::FAILED, &parts)?;
    for part in [
        "depth is 128, configured as 32",
        "read-only is false",
        "nil: /dev/ublkb",
    ] {
        ensure!(output.stdout.contains(part), "no {part:?} in {output}");
    }
    ensure!(server(id)? == before, "it was touched");
    // Its name is enough to delete the device.
    other.down()?;
    cli::nothing_left(secs(10))
}

/// A file whose size differs from the configuration's: `check` and `up` report it, and nothing is touched.
fn changed_size() -> Result<()> {
    let backing = Backing::new("config-size");
    let config = Config::new(&of_file(&backing, ""))?;
    let id = json::number(&config.up()?[0], "id")?;
    let before = server(id)?;
    let text = of_file(&backing, "").replace("16M", "24M");
    let other = Config::new(&text)?;
    let output = ublkctl(&["up", other.path(), "--json"])?;
    ensure!(output.code() == code::FAILED, "{output}");
    let up = cli::one_value(&output)?;
    ensure!(up[0]["outcome"] == "differs", "{up}");
    let wanted = serde_json::json!([{"option": "size", "has": "16777216", "wanted": "25165824"}]);
    ensure!(up[0]["differences"] == wanted, "{up}");
    ensure!(server(id)? == before, "it was touched");
    let parts = ["16777216 bytes instead of 25165824"];
    cli::fails(&["check", other.path()], code::FAILED, &parts)?;
    other.down()?;
    cli::fails(&["up", other.path()], code::FAILED, &parts)?;
    cli::nothing_left(secs(10))
}

fn dead() -> Result<()> {
    let backing = Backing::new("config-dead");
    let config = Config::new(&of_file(&backing, ""))?;
    let id = json::number(&config.up()?[0], "id")?;
    let direct = Direct::open(Path::new("/dev/ublkctl/zoo"))?;
    direct.write_pattern(0, 4096, 5)?;
    drop(direct);
    procfs::kill(server(id)?, Signal::KILL)?;
    until("the death", patience(), || {
        let info = ublkctl_json(&["info", &id.to_string()])?;
        Ok((json::text(&info, "state")? == "dead").then_some(()))
    })?;
    let up = config.up()?;
    ensure!(outcomes(&up) == [("zoo", "added")], "{up:?}");
    Direct::open(Path::new("/dev/ublkctl/zoo"))?.check_pattern(0, 4096, 5)?;
    config.down()?;
    cli::nothing_left(secs(10))
}

/// With all processes killed, a recoverable device keeps its number and continues.
fn waits() -> Result<()> {
    let backing = Backing::new("config-waits");
    let config = Config::new(&of_file(&backing, "recovery = \"reissue\""))?;
    let id = json::number(&config.up()?[0], "id")?;
    let direct = Direct::open(Path::new("/dev/ublkctl/zoo"))?;
    direct.write_pattern(0, 4096, 6)?;
    let info = ublkctl_json(&["info", &id.to_string()])?;
    let agent = u32::try_from(json::number(&info, "agent_pid")?)?;
    procfs::kill(agent, Signal::KILL)?;
    procfs::kill(server(id)?, Signal::KILL)?;
    let up = config.up()?;
    ensure!(outcomes(&up) == [("zoo", "recovered")], "{up:?}");
    ensure!(json::number(&up[0], "id")? == id);
    direct.check_pattern(0, 4096, 6)?;
    drop(direct);
    config.down()?;
    cli::nothing_left(secs(10))
}

/// A front that serves a file device in the foreground.
struct Front {
    child: Child,
    node: PathBuf,
}

impl Front {
    fn start(config: &Config, more: &[&str]) -> Result<Self> {
        let args = [&["up", "--foreground", config.path()], more].concat();
        let mut child = cli::command(&args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let node = PathBuf::from(line.trim_end());
        ensure!(line.starts_with("/dev/ublkb"), "first line {line:?}");
        Ok(Self { child, node })
    }

    fn end(mut self, signal: Signal) -> Result<()> {
        procfs::kill(self.child.id(), signal)?;
        let status = until("the end after the signal", secs(30), || {
            Ok(self.child.try_wait()?)
        })?;
        ensure!(
            status.success() || signal == Signal::KILL,
            "it ended with {status}"
        );
        Ok(())
    }
}

/// A device in the foreground, as under a service manager: when terminated, the front leaves a recoverable device
/// behind; in any case the next front takes the device over; without `--leave` the device ends with the front.
fn in_front() -> Result<()> {
    let backing = Backing::new("config-front");
    let config = Config::new(&of_file(&backing, "recovery = \"queue\""))?;
    let front = Front::start(&config, &["--leave"])?;
    let node = front.node.clone();
    let direct = Direct::open(&node)?;
    direct.write_pattern(0, 4096, 1)?;
    // One at a time.
    let args = ["up", "--foreground", config.path()];
    cli::fails(&args, code::FAILED, &["already served"])?;
    front.end(Signal::TERM)?;
    let state = |wanted: &str| {
        until(wanted, patience(), || {
            let list = ublkctl_json(&["list"])?;
            Ok((json::text(&list, "state")? == wanted).then_some(()))
        })
    };
    state("quiesced")?;
    let front = Front::start(&config, &["--leave"])?;
    ensure!(
        front.node == node,
        "{} is another device",
        front.node.display()
    );
    direct.check_pattern(0, 4096, 1)?;
    // Its processes end with it.
    front.end(Signal::KILL)?;
    state("quiesced")?;
    let front = Front::start(&config, &[])?;
    direct.check_pattern(0, 4096, 1)?;
    drop(direct);
    front.end(Signal::TERM)?;
    cli::nothing_left(secs(10))
}

fn mistakes() -> Result<()> {
    let config = Config::new("[device.a]\nbackend = \"mem\"\nsize = \"1G\"\ncolour = 7\n")?;
    for verb in ["up", "down", "check"] {
        let parts = [".toml:4: unknown key `colour` for a mem device", "max-io"];
        cli::fails(&[verb, config.path()], code::USAGE, &parts)?;
    }
    let config = Config::new("[device.a]\nbackend = \"mem\"\nsize = 1000\n")?;
    cli::fails(
        &["check", config.path()],
        code::USAGE,
        &["a: ", "1000", "512"],
    )?;
    let args = ["up", config.path(), "b"];
    cli::fails(&args, code::USAGE, &["no [device.b]", "the file has a"])?;
    let ok = Config::new(
        "[device.a]\nbackend = \"mem\"\nsize = 4096\n[device.b]\nbackend = \"null\"\n",
    )?;
    let output = ublkctl(&["check", ok.path()])?.good()?;
    ensure!(output.stdout == "a: valid\nb: valid\n", "{output}");
    let args = ["up", "--foreground", ok.path()];
    cli::fails(&args, code::USAGE, &["serves exactly one device"])?;
    cli::nothing_left(secs(1))
}
