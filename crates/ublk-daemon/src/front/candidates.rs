//! Names and numbers of devices, for shell completions.

use crate::state::Store;
use std::collections::BTreeMap;
use std::path::Path;
use ublk_ctrl::nodes::Nodes;

/// A name or number of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its number or its name.
    pub value: String,
    /// What it is, in a few words.
    pub about: String,
}

/// Numbers and names of existing devices, from sysfs and this user's records, without asking the driver, because a shell
/// waits for the result.
#[must_use]
pub fn candidates() -> Vec<Candidate> {
    candidates_of(Path::new("/"), Store::of_user().ok().as_ref())
}

fn candidates_of(root: &Path, store: Option<&Store>) -> Vec<Candidate> {
    let ids = Nodes::under(root).list_devices().unwrap_or_default();
    let mut devices: BTreeMap<u32, String> =
        ids.iter().map(|id| (id.get(), String::new())).collect();
    // If sysfs is not visible, only the records can be offered.
    let seen = root.join("sys/class/ublk-char").is_dir();
    let mut names = Vec::new();
    for record in store.into_iter().flat_map(Store::records) {
        let Some(id) = record.id.filter(|id| !seen || devices.contains_key(id)) else {
            continue;
        };
        devices.insert(id, record.spec.backend.name().to_owned());
        names.extend(record.spec.name.map(|name| Candidate {
            value: name,
            about: format!("device {id}, {}", record.spec.backend.name()),
        }));
    }
    let numbers = devices.into_iter().map(|(id, backend)| Candidate {
        value: id.to_string(),
        about: backend,
    });
    names.sort_by(|a, b| a.value.cmp(&b.value));
    numbers.chain(names).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes;
    use crate::state::Record;

    #[test]
    fn devices_that_are_there_are_offered_by_number_and_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::at(dir.path().join("run"));
        store.prepare().unwrap();
        for (id, name) in [(3, "data"), (4, "gone")] {
            let mut spec = fakes::spec();
            spec.name = Some(name.to_owned());
            let mut record = Record::new(id, spec);
            record.id = u32::try_from(id).ok();
            store.write(&record).unwrap();
        }
        let candidates = |root: &Path| -> Vec<String> {
            candidates_of(root, Some(&store))
                .into_iter()
                .map(|w| w.value)
                .collect()
        };
        assert_eq!(candidates(dir.path()), ["3", "4", "data", "gone"]);
        for n in [3, 12] {
            std::fs::create_dir_all(dir.path().join(format!("sys/class/ublk-char/ublkc{n}")))
                .unwrap();
        }
        assert_eq!(candidates(dir.path()), ["3", "12", "data"]);
        assert_eq!(candidates_of(dir.path(), None).len(), 2);
    }
}
