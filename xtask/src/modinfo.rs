//! Determines a module's dependencies from the modules themselves.
//!
//! Packages contain no `modules.dep` (depmod makes it on installation), so the source is the `.modinfo` strings in each
//! module (include/linux/module.h): `depends=a,b` and `softdep=pre: c`.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

/// A module's own declarations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModInfo {
    /// Modules that must be loaded before it.
    pub depends: Vec<String>,
    /// Modules that should be loaded before it, if they exist.
    pub soft: Vec<String>,
}

/// The name of a module: that of its file, without suffixes, with underscores.
pub fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let stem = file
        .split(".ko")
        .next()
        .filter(|stem| stem.len() < file.len())?;
    Some(stem.replace('-', "_"))
}

impl ModInfo {
    /// Reads the strings from the bytes of an (uncompressed) module.
    pub fn of(module: &[u8]) -> Self {
        let mut info = Self::default();
        for string in module.split(|byte| *byte == 0) {
            let Ok(string) = std::str::from_utf8(string) else {
                continue;
            };
            if let Some(list) = string.strip_prefix("depends=") {
                let names = list.split(',').filter(|name| !name.is_empty());
                info.depends
                    .extend(names.map(|name| name.replace('-', "_")));
            } else if let Some(rule) = string.strip_prefix("softdep=pre: ") {
                let names = rule.split("post:").next().unwrap_or("").split_whitespace();
                info.soft.extend(names.map(|name| name.replace('-', "_")));
            }
        }
        info
    }
}

/// Sorts `wanted` modules and all their dependencies in load order.
///
/// `find` returns a module's declarations, `None` if there is no such file. A built-in module needs nothing. A soft
/// dependency that does not exist is left out.
///
/// # Errors
/// A wanted or required module is neither found nor built in.
pub fn order(
    wanted: &[String],
    find: &mut dyn FnMut(&str) -> Result<Option<ModInfo>>,
    builtin: &BTreeSet<String>,
) -> Result<Vec<String>> {
    let mut done = Vec::new();
    for name in wanted {
        visit(name, find, builtin, &mut done, 0)?;
    }
    Ok(done)
}

fn visit(
    name: &str,
    find: &mut dyn FnMut(&str) -> Result<Option<ModInfo>>,
    builtin: &BTreeSet<String>,
    done: &mut Vec<String>,
    depth: usize,
) -> Result<()> {
    if done.iter().any(|other| other == name) || builtin.contains(name) {
        return Ok(());
    }
    let Some(info) = find(name)? else {
        bail!("this kernel has no module {name}, neither loadable nor built in");
    };
    if depth > 32 {
        bail!("circular dependency of modules at {name}");
    }
    for soft in &info.soft {
        // The hardware variants of a cipher or checksum refuse to load if the processor lacks them; the generic one
        // always loads.
        for candidate in [soft.clone(), format!("{soft}_generic")] {
            if find(&candidate)?.is_some() {
                visit(&candidate, find, builtin, done, depth + 1)?;
            }
        }
    }
    for needed in &info.depends {
        visit(needed, find, builtin, done, depth + 1)?;
    }
    done.push(name.to_owned());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use anyhow::Result;

    use super::{ModInfo, name_of, order};

    fn find(name: &str) -> Result<Option<ModInfo>> {
        let text = match name {
            "ext4" => "depends=jbd2,mb-cache\0softdep=pre: crc32c\0",
            "jbd2" => "\0depends=\0",
            "mb_cache" | "crc32c_generic" => "depends=\0",
            "a" => "depends=b\0",
            "b" => "depends=a\0",
            _ => return Ok(None),
        };
        Ok(Some(ModInfo::of(text.as_bytes())))
    }

    #[test]
    fn what_is_needed_comes_first() {
        let wanted = ["ext4".into(), "loop".into()];
        let order = order(&wanted, &mut find, &["loop".into()].into());
        assert_eq!(
            order.unwrap(),
            ["crc32c_generic", "jbd2", "mb_cache", "ext4"]
        );
    }

    #[test]
    fn a_module_that_is_nowhere_is_named() {
        let error = order(&["ublk_drv".into()], &mut find, &BTreeSet::new()).unwrap_err();
        assert!(error.to_string().contains("ublk_drv"), "{error}");
    }

    #[test]
    fn a_circle_is_an_error() {
        assert!(order(&["a".into()], &mut find, &BTreeSet::new()).is_err());
    }

    #[test]
    fn names_come_from_files() {
        assert_eq!(name_of("/a/virtio-rng.ko.xz").unwrap(), "virtio_rng");
        assert_eq!(name_of("/a/ext4.ko").unwrap(), "ext4");
        assert_eq!(name_of("/a/config"), None);
    }
}
