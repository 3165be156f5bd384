//! The configuration file: TOML whose tables are converted to arguments of `add`.
//!
//! A device in a file thus has the same options as on the command line, with the same names and rules. Errors name
//! their line.

use crate::cli::{Backend, Cli, Command, MemberPath};
use crate::device::wanted;
use clap::error::{ContextKind, ContextValue};
use clap::{CommandFactory, Parser};
use std::any::TypeId;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};
use ublk_daemon::failure::{Failure, FailureKind};
use ublk_daemon::front::Wanted;
use ublk_daemon::names;

/// The longest file in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Options of `add` that a file does not have: those of the front, and the name, which is the table's.
const NOT_KEYS: [&str; 6] = ["foreground", "deadline", "json", "help", "version", "name"];

/// A device of a file.
#[derive(Debug)]
pub struct Entry {
    /// Its name, which is the table's.
    pub name: String,
    /// The table's line.
    pub line: usize,
    /// The device.
    pub wanted: Wanted,
}

/// Reads a file. The devices are in file order.
///
/// # Errors
/// The file cannot be read; the first mistake in it, as a usage failure with its line.
pub fn read(path: &Path) -> Result<Vec<Entry>, Failure> {
    let failed = |why: String| Failure::failed(format!("{}: {why}", path.display()));
    let text = text_of(path)?;
    let absolute = std::path::absolute(path).map_err(|e| failed(e.to_string()))?;
    let directory = absolute.parent().unwrap_or(Path::new("/"));
    parse(&text, directory).map_err(|mistake| {
        let line = line_of(text.as_bytes(), mistake.at);
        let text = format!("{}:{line}: {}", path.display(), mistake.text);
        let mut failure = Failure::new(FailureKind::Usage, text);
        failure.hint = mistake.hint;
        failure
    })
}

/// Reads the text of a file. Refuses pipes, so that it never blocks.
fn text_of(path: &Path) -> Result<String, Failure> {
    let name = path.display();
    let usage = |why: &str| {
        let failure = Failure::new(FailureKind::Usage, format!("{name}: {why}"));
        failure.hint("name the file that describes the devices (docs/operations.md)")
    };
    let failed = |e: std::io::Error| match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => usage("no such file"),
        _ if e.raw_os_error() == Some(libc::ELOOP) => usage("too many levels of symbolic links"),
        ErrorKind::PermissionDenied => {
            Failure::new(FailureKind::NoPermission, format!("{name}: {e}"))
                .hint("run as a user who may read the file")
        }
        _ => Failure::failed(format!("{name}: {e}"))
            .hint("check the kernel log for disk errors (`dmesg`)"),
    };
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = opened.map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    let other = match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_fifo() => Some("a pipe"),
        () => Some("a device or a socket"),
    };
    if let Some(other) = other {
        return Err(usage(&format!("it is {other}, not a regular file")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(usage(&format!("it is longer than {MAX_FILE} bytes")));
    }
    String::from_utf8(bytes).map_err(|e| {
        let good = e.utf8_error().valid_up_to();
        let line = line_of(e.as_bytes(), good);
        let text = format!("{name}:{line}: it is not UTF-8");
        Failure::new(FailureKind::Usage, text).hint("write it as UTF-8 text")
    })
}

/// The line of a position, from 1.
fn line_of(text: &[u8], at: usize) -> usize {
    1 + text.iter().take(at).filter(|b| **b == b'\n').count()
}

/// An error and its position in the text.
#[derive(Debug)]
struct Mistake {
    at: usize,
    text: String,
    hint: Option<String>,
}

impl Mistake {
    fn new(at: usize, text: impl Into<String>) -> Self {
        Self {
            at,
            text: text.into(),
            hint: None,
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Parses the devices of a text; relative paths are relative to `directory`.
fn parse(text: &str, directory: &Path) -> Result<Vec<Entry>, Mistake> {
    let document = DeTable::parse(text)
        .map_err(|e| Mistake::new(e.span().map_or(0, |s| s.start), e.message()))?;
    let mut devices = Vec::new();
    for (key, value) in document.get_ref() {
        let at = key.span().start;
        if key.get_ref() != "device" {
            let text = format!("unknown key `{}`", key.get_ref());
            return Err(Mistake::new(at, text).hint("write a table [device.NAME] for each device"));
        }
        let tables = value.get_ref().as_table().ok_or_else(|| {
            let text = "`device` is not a table of tables";
            Mistake::new(at, text).hint("write a table [device.NAME] for each device")
        })?;
        for (name, table) in tables {
            let at = name.span().start;
            let name = name.get_ref().as_ref();
            names::check(name).map_err(|f| Mistake {
                at,
                text: f.text,
                hint: f.hint,
            })?;
            let table = table
                .get_ref()
                .as_table()
                .ok_or_else(|| Mistake::new(at, format!("`device.{name}` is not a table")))?;
            let wanted = device(name, at, table, directory)?;
            let name = name.to_owned();
            let line = line_of(text.as_bytes(), at);
            devices.push((at, Entry { name, line, wanted }));
        }
    }
    if devices.is_empty() {
        return Err(
            Mistake::new(0, "no device").hint("write a table [device.NAME] for each device")
        );
    }
    // A TOML table is unordered; restore the order of the text.
    devices.sort_by_key(|(at, _)| *at);
    Ok(devices.into_iter().map(|(_, entry)| entry).collect())
}

/// An argument of `add` and its origin in the text.
struct Origin {
    option: String,
    at: usize,
}

/// Parses the device of one table.
fn device(name: &str, at: usize, table: &DeTable<'_>, directory: &Path) -> Result<Wanted, Mistake> {
    let cli = Cli::command();
    let add = cli.find_subcommand("add");
    let add = add.ok_or_else(|| Mistake::new(at, "no such command"))?;
    let backends: Vec<&str> = add.get_subcommands().map(clap::Command::get_name).collect();
    let choose = || format!("one of {}", backends.join(", "));
    let key = table.iter().find(|(key, _)| key.get_ref() == "backend");
    let (backend, backend_at) = match key.map(|(key, value)| (key.span().start, value.get_ref())) {
        Some((at, DeValue::String(word))) => (word.as_ref(), at),
        Some((at, _)) => {
            return Err(Mistake::new(at, "`backend` is not a string").hint(choose()));
        }
        None => {
            return Err(Mistake::new(at, format!("{name} has no `backend`")).hint(choose()));
        }
    };
    let command = add.find_subcommand(backend).ok_or_else(|| {
        Mistake::new(backend_at, format!("unknown backend `{backend}`")).hint(choose())
    })?;
    let mut args = ["ublkctl", "add", backend].map(String::from).to_vec();
    args.extend(["--name".to_owned(), name.to_owned()]);
    let (mut positional, mut origins) = (Vec::new(), Vec::new());
    let mut reuse = false;
    for (key, value) in table {
        let (option, at) = (key.get_ref().as_ref(), key.span().start);
        if option == "backend" {
            continue;
        }
        let known = |a: &&clap::Arg| {
            let long = a.get_long().unwrap_or_else(|| a.get_id().as_str());
            long == option
        };
        let argument = command.get_arguments().find(known);
        let argument = argument.filter(|_| !NOT_KEYS.contains(&option));
        let argument = argument.ok_or_else(|| unknown(option, at, command, backend))?;
        reuse |= option == "create";
        origins.push(Origin {
            option: option.to_owned(),
            at,
        });
        if takes_several(argument) {
            positional.extend(values_of(argument, option, at, value.get_ref(), directory)?);
            continue;
        }
        let Some(value) = value_of(argument, option, at, value.get_ref(), directory)? else {
            if matches!(value.get_ref(), DeValue::Boolean(true)) {
                args.push(format!("--{option}"));
            }
            continue;
        };
        if argument.is_positional() {
            positional.push(value);
        } else {
            args.push(format!("--{option}={value}"));
        }
    }
    args.push("--".to_owned());
    args.extend(positional);
    let cli = Cli::try_parse_from(args).map_err(|e| refused(&e, name, at, &origins))?;
    let Command::Add { backend } = cli.command else {
        return Err(Mistake::new(at, "no device"));
    };
    finished(&backend, reuse).map_err(|f| Mistake {
        at,
        text: format!("{name}: {}", f.text),
        hint: f.hint,
    })
}

/// Whether an argument is a list.
fn takes_several(argument: &clap::Arg) -> bool {
    argument.is_positional() && matches!(argument.get_action(), clap::ArgAction::Append)
}

/// The values of a list as words.
fn values_of(
    argument: &clap::Arg,
    option: &str,
    at: usize,
    value: &DeValue<'_>,
    directory: &Path,
) -> Result<Vec<String>, Mistake> {
    let list = value.as_array();
    let list =
        list.ok_or_else(|| Mistake::new(at, format!("{option}: give a list in brackets")))?;
    let word = |value: &toml::Spanned<DeValue<'_>>| {
        let word = value_of(argument, option, at, value.get_ref(), directory)?;
        word.ok_or_else(|| Mistake::new(at, format!("{option}: give strings in quotes")))
    };
    list.iter().map(word).collect()
}

/// The value of a key as a word; `None` for a flag, which has none.
fn value_of(
    argument: &clap::Arg,
    option: &str,
    at: usize,
    value: &DeValue<'_>,
    directory: &Path,
) -> Result<Option<String>, Mistake> {
    let takes_value = argument.get_action().takes_values();
    let kind = argument.get_value_parser().type_id();
    let is_path = kind == TypeId::of::<PathBuf>() || kind == TypeId::of::<MemberPath>();
    let wrong = |text: &str| Mistake::new(at, format!("{option}: {text}"));
    let value = match (value, takes_value) {
        (DeValue::Boolean(_), false) => return Ok(None),
        (_, false) => return Err(wrong("give true or false")),
        (DeValue::String(text), true) => text.to_string(),
        (_, true) if is_path => return Err(wrong("give a path, in quotes")),
        (DeValue::Integer(number), true) if number.radix() == 10 => number.as_str().to_owned(),
        (_, true) => return Err(wrong("give a string or a whole number")),
    };
    if !is_path {
        return Ok(Some(value));
    }
    let path = directory.join(&value);
    let text = path.to_str().map(str::to_owned);
    text.map(Some).ok_or_else(|| wrong("not UTF-8"))
}

fn finished(backend: &Backend, reuse: bool) -> Result<Wanted, Failure> {
    let mut wanted = wanted(backend)?;
    wanted.reuse = reuse;
    Ok(wanted)
}

fn unknown(option: &str, at: usize, command: &clap::Command, backend: &str) -> Mistake {
    let keys: Vec<&str> = command
        .get_arguments()
        .map(|a| a.get_long().unwrap_or_else(|| a.get_id().as_str()))
        .filter(|word| !NOT_KEYS.contains(word))
        .collect();
    let text = format!("unknown key `{option}` for a {backend} device");
    Mistake::new(at, text).hint(format!("valid keys: backend, {}", keys.join(", ")))
}

/// Maps an error of the command line parser to the key that caused it.
fn refused(error: &clap::Error, name: &str, at: usize, origins: &[Origin]) -> Mistake {
    let about = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(text)) => text.clone(),
        Some(ContextValue::Strings(all)) => all.join(" "),
        _ => String::new(),
    };
    // `--size <SIZE>` or `<PATH>`.
    let word = about.split([' ', '=']).next().unwrap_or_default();
    let word = word
        .trim_start_matches("--")
        .trim_matches(['<', '>'])
        .to_lowercase();
    let found = origins.iter().find(|o| o.option == word);
    let at = found.map_or(at, |o| o.at);
    let text = error.render().to_string();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .take_while(|l| !l.starts_with("Usage:") && !l.starts_with("For more"))
        .collect();
    let text = lines.join(" ");
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    Mistake::new(at, format!("{name}: {text}"))
}

#[cfg(test)]
mod tests;
