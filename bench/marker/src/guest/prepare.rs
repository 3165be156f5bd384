//! Prepares what a row needs: files on file systems, more devices.
//!
//! | words | preparation |
//! |---|---|
//! | `tmpfs FILE MIB` | a file of that size, fully written, on a separate tmpfs |
//! | `ext4 DEVICE FILE MIB` | such a file on an ext4 on that device |
//! | `null_blk NAME QUEUES` | a null_blk device of that name with 128 tags per queue |
//! | `nbdkit SOCKET MIB` | an NBD server of memory, fully written, on a unix socket, a TCP port, or `card:PORT` behind a network card |

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::peer::Peer;

/// Fixed: nothing here may wait for random numbers, or differ between guests.
const UUID: &str = "12345678-1234-4234-9234-123456789abc";

/// The preparations done so far.
#[derive(Debug, Default)]
pub struct Prepared {
    done: Vec<Vec<String>>,
    /// NBD servers, each with its preparation.
    peers: Vec<(Vec<String>, Peer)>,
}

impl Prepared {
    /// Does the preparations that are missing.
    ///
    /// # Errors
    /// A preparation failed, or its words are unknown.
    pub fn need(&mut self, all: &[Vec<String>]) -> Result<()> {
        for words in all {
            if !self.done.contains(words) {
                self.make(words).with_context(|| words.join(" "))?;
                self.done.push(words.clone());
            }
        }
        Ok(())
    }

    /// The NBD server among a row's preparations.
    pub fn peer(&self, all: &[Vec<String>]) -> Option<&Peer> {
        let mut peers = self.peers.iter();
        peers
            .find(|(words, _)| all.contains(words))
            .map(|(_, peer)| peer)
    }

    /// The same, to end it and start it again.
    pub fn peer_mut(&mut self, all: &[Vec<String>]) -> Option<&mut Peer> {
        let mut peers = self.peers.iter_mut();
        peers
            .find(|(words, _)| all.contains(words))
            .map(|(_, peer)| peer)
    }

    fn make(&mut self, words: &[String]) -> Result<()> {
        if let [kind, at, size] = words
            && kind == "nbdkit"
        {
            let peer = Peer::start(at, size.parse().context("a size")?)?;
            self.peers.push((words.to_vec(), peer));
            return Ok(());
        }
        make(words)
    }
}

fn make(words: &[String]) -> Result<()> {
    let words: Vec<_> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["tmpfs", file, size] => {
            mount("tmpfs", "tmpfs", directory(file)?)?;
            write(file, size)
        }
        ["ext4", device, file, size] => {
            run(
                "/usr/bin/mkfs.ext4",
                &[
                    "-q",
                    "-F",
                    "-U",
                    UUID,
                    "-E",
                    &format!("hash_seed={UUID},lazy_itable_init=0,lazy_journal_init=0"),
                    device,
                ],
            )?;
            mount("ext4", device, directory(file)?)?;
            write(file, size)
        }
        ["null_blk", name, queues] => {
            let config = Path::new("/sys/kernel/config");
            // Its module was loaded with null_blk, after init had mounted the file systems.
            if !config.join("nullb").exists() {
                let place = "/sys/kernel/config";
                let words = ["mount", "-t", "configfs", "configfs", place];
                run("/usr/bin/busybox", &words)?;
            }
            let place = config.join("nullb").join(name);
            fs::create_dir(&place).with_context(|| place.display().to_string())?;
            for (file, value) in [
                ("submit_queues", queues),
                ("hw_queue_depth", "128"),
                ("power", "1"),
            ] {
                let path = place.join(file);
                fs::write(&path, value).with_context(|| path.display().to_string())?;
            }
            let node = Path::new("/dev").join(name);
            ensure!(node.exists(), "no {}", node.display());
            Ok(())
        }
        _ => bail!("nobody knows how to prepare that"),
    }
}

fn directory(file: &str) -> Result<&str> {
    let parent = Path::new(file).parent().and_then(Path::to_str);
    parent.context("a file in a directory")
}

fn mount(kind: &str, device: &str, place: &str) -> Result<()> {
    fs::create_dir_all(place).with_context(|| place.to_owned())?;
    run("/usr/bin/busybox", &["mount", "-t", kind, device, place])
}

/// Writes and syncs every block, so that no row pays for allocation.
fn write(path: &str, size: &str) -> Result<()> {
    let mebibytes: usize = size.parse().context("a size")?;
    let mut file = File::create_new(path).with_context(|| path.to_owned())?;
    let piece = vec![0x5a; 1 << 20];
    for _ in 0..mebibytes {
        file.write_all(&piece)?;
    }
    file.sync_all()?;
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    let output = command.output().with_context(|| program.to_owned())?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{program} {}: {} {}",
            arguments.join(" "),
            output.status,
            errors.trim()
        );
    }
    Ok(())
}
