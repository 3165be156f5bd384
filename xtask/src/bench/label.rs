//! Compares a row's description of its device with the kernel's.
//!
//! A row whose device differs from its name is not printed: its figure would mislead those who compare by name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The description of a device; `None` is not compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Label {
    /// Hw queues.
    pub queues: Option<u64>,
    /// Tags per queue.
    pub depth: Option<u64>,
    /// Data mode of a ublk device.
    pub data: Option<String>,
    /// Whether a ublk device uses batch mode.
    pub batch: Option<bool>,
    /// Whether a loop device uses direct I/O.
    pub direct: Option<bool>,
    /// A device without hw queues.
    pub bios: bool,
    /// A ublk device.
    pub ublk: bool,
    /// The data of its requests was in memory shared with the client.
    pub shm: bool,
}

/// A device as the kernel reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Seen {
    /// Its path.
    pub device: String,
    /// Hw queues, by sysfs.
    pub queues: Option<u64>,
    /// Tags of a queue, by sysfs.
    pub depth: Option<u64>,
    /// Hw queues, by the ublk driver.
    pub info_queues: Option<u64>,
    /// Depth, by the ublk driver.
    pub info_depth: Option<u64>,
    /// Data mode according to the features in effect.
    pub data: Option<String>,
    /// Batch mode according to the features in effect.
    pub batch: Option<bool>,
    /// Whether a loop device uses direct I/O.
    pub direct: Option<bool>,
    /// Logical block size.
    pub block_size: Option<u64>,
    /// Completions of each of the server's rings in a run, the busiest first.
    #[serde(default)]
    pub ring_completions: Option<Vec<u32>>,
    /// Requests inside and outside memory shared with the client, if there is such memory.
    #[serde(default)]
    pub shm: Option<SharedHits>,
    /// Processor time of the row's NBD server in the small run and in the large one, in nanoseconds.
    #[serde(default)]
    pub peer_ns: Option<[u64; 2]>,
    /// A queue's polling, if the server reports it.
    #[serde(default)]
    pub poll: Option<serde_json::Value>,
}

/// Requests counted by the server.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct SharedHits {
    /// Those whose data was in shared memory.
    pub hits: u64,
    /// The others.
    pub fallbacks: u64,
}

impl Label {
    /// A ublk device of depth 128; an empty `data` leaves the mode to the server.
    pub fn ublk(queues: u64, data: &str, batch: bool) -> Self {
        Self {
            queues: Some(queues),
            depth: Some(128),
            data: (!data.is_empty()).then(|| data.to_owned()),
            batch: Some(batch),
            ublk: true,
            ..Self::default()
        }
    }

    /// A kernel device with hw queues.
    pub fn mq(queues: u64, depth: u64) -> Self {
        Self {
            queues: Some(queues),
            depth: Some(depth),
            ..Self::default()
        }
    }

    /// A loop device.
    pub fn looped(direct: bool) -> Self {
        Self {
            direct: Some(direct),
            ..Self::mq(1, 128)
        }
    }

    /// A bio-based device.
    pub fn bios() -> Self {
        Self {
            bios: true,
            ..Self::default()
        }
    }

    /// The differences to the label.
    pub fn lies(&self, seen: &Seen) -> Vec<String> {
        let mut lies = Vec::new();
        let mut says = |what: &str, label: Option<String>, fact: Option<String>| {
            if label.is_some() && label != fact {
                let show = |value: Option<String>| value.unwrap_or_else(|| "unknown".to_owned());
                lies.push(format!(
                    "{what}: the label says {}, the kernel {}",
                    show(label),
                    show(fact)
                ));
            }
        };
        let number = |value: Option<u64>| value.map(|value| value.to_string());
        let flag = |value: Option<bool>| value.map(|value| value.to_string());
        says("hw queues", number(self.queues), number(seen.queues));
        says("depth", number(self.depth), number(seen.depth));
        if self.ublk {
            says(
                "hw queues of the driver",
                number(self.queues),
                number(seen.info_queues),
            );
            says(
                "depth of the driver",
                number(self.depth),
                number(seen.info_depth),
            );
        }
        says("data mode", self.data.clone(), seen.data.clone());
        says("batches", flag(self.batch), flag(seen.batch));
        says("direct I/O", flag(self.direct), flag(seen.direct));
        // Merged sequential requests have their data in several places, which requests in shared memory must not.
        let mostly = |shm: &SharedHits| shm.hits > 2 * shm.fallbacks;
        if self.shm && !seen.shm.as_ref().is_some_and(mostly) {
            let told = seen.shm.as_ref().map_or_else(
                || "nothing".to_owned(),
                |shm| format!("{} hits, {} misses", shm.hits, shm.fallbacks),
            );
            says(
                "shared memory",
                Some("most requests".to_owned()),
                Some(told),
            );
        }
        if self.bios && seen.queues.is_some() {
            says("hw queues", Some("none".to_owned()), number(seen.queues));
        }
        lies
    }
}

impl fmt::Display for Seen {
    /// `2 x 128, zero-copy, batch`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.queues, self.depth) {
            (Some(queues), Some(depth)) => write!(f, "{queues} x {depth}")?,
            _ => f.write_str("no queues")?,
        }
        if let Some(data) = &self.data {
            write!(f, ", {data}")?;
        }
        if self.batch == Some(true) {
            f.write_str(", batch")?;
        }
        if let Some(shm) = &self.shm {
            let share = shm.hits * 100 / (shm.hits + shm.fallbacks).max(1);
            write!(f, ", shared {share} %")?;
        }
        match self.direct {
            Some(true) => f.write_str(", direct"),
            Some(false) => f.write_str(", buffered"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Label, Seen};

    fn seen(json: &str) -> Seen {
        serde_json::from_str(json).unwrap()
    }

    const TWO: &str = r#"{"device": "/dev/ublkb0", "queues": 2, "depth": 128, "info_queues": 2,
        "info_depth": 128, "data": "copy", "batch": false, "block_size": 512}"#;

    /// L93 A device with another number of queues, depth or mode than its label is detected.
    #[test]
    fn l93_a_label_that_lies_is_found_out() {
        let device = seen(TWO);
        assert!(Label::ublk(2, "copy", false).lies(&device).is_empty());
        assert!(Label::ublk(2, "", false).lies(&device).is_empty());
        for label in [
            Label::ublk(4, "copy", false),
            Label::ublk(2, "zero-copy", false),
            Label::ublk(2, "copy", true),
            Label::mq(2, 64),
            Label::bios(),
            Label::looped(false),
        ] {
            assert!(!label.lies(&device).is_empty(), "{label:?}");
        }
        let mut shm = Label::ublk(2, "copy", false);
        shm.shm = true;
        assert!(shm.lies(&device)[0].contains("nothing"));
        for (fallbacks, lies) in [(3, 0), (4499, 0), (4500, 1)] {
            let with =
                format!("\"shm\": {{\"hits\": 9000, \"fallbacks\": {fallbacks}}}, \"queues\"");
            let device = seen(&TWO.replacen("\"queues\"", &with, 1));
            assert_eq!(shm.lies(&device).len(), lies, "{fallbacks}");
        }
        // The block layer only has one queue, whatever the driver says.
        let one = seen(&TWO.replacen("\"queues\": 2", "\"queues\": 1", 1));
        assert!(Label::ublk(2, "copy", false).lies(&one)[0].contains("says 2, the kernel 1"));
    }

    /// L93 A property that the kernel does not report counts as a difference.
    #[test]
    fn l93_silence_is_no_confirmation() {
        let device = seen(r#"{"device": "/dev/ublkb0"}"#);
        assert_eq!(Label::ublk(1, "copy", false).lies(&device).len(), 6);
        assert_eq!(Label::looped(true).lies(&device).len(), 3);
        assert!(Label::bios().lies(&device).is_empty());
    }

    #[test]
    fn a_device_is_told_in_few_words() {
        assert_eq!(seen(TWO).to_string(), "2 x 128, copy");
        let brd = seen(r#"{"device": "/dev/ram0"}"#);
        assert_eq!(brd.to_string(), "no queues");
    }
}
