use super::*;
use clap::CommandFactory;
use clap::error::ErrorKind;
use std::path::Path;
use ublk_core::Mode;

fn refused(args: &[&str]) -> ErrorKind {
    Cli::try_parse_from([&["ublkctl"], args].concat())
        .unwrap_err()
        .kind()
}

#[test]
fn definitions_are_sound() {
    Cli::command().debug_assert();
}

/// L32 A missing id is a usage error: no command that stops or deletes has a default.
#[test]
fn l32_a_missing_id_is_a_usage_error() {
    assert_eq!(refused(&["down"]), ErrorKind::MissingRequiredArgument);
    for command in [
        "info", "stop", "delete", "recover", "quiesce", "upgrade", "resize",
    ] {
        assert_eq!(refused(&[command]), ErrorKind::MissingRequiredArgument);
        assert_eq!(refused(&[command, ""]), ErrorKind::ValueValidation);
    }
}

#[test]
fn counts_outside_the_drivers_are_usage_errors() {
    for args in [
        ["add", "mem", "--size", "1G", "-d", "0"],
        ["add", "mem", "--size", "1G", "-d", "4097"],
        ["add", "mem", "--size", "1G", "-q", "4097"],
        ["add", "mem", "--size", "1G", "-q", "0"],
        ["add", "mem", "--size", "banana", "-q", "1"],
    ] {
        assert_eq!(refused(&args), ErrorKind::ValueValidation, "{args:?}");
    }
    assert_eq!(refused(&["add", "mem"]), ErrorKind::MissingRequiredArgument);
}

/// `ls` and `rm` are aliases; several devices and `--all` are accepted where they make sense, and never both.
#[test]
fn several_devices_and_aliases_are_taken() {
    let takes = |args: &str| Cli::try_parse_from(args.split(' ')).is_ok();
    for args in [
        "ublkctl ls",
        "ublkctl list 0 data /dev/ublkb3p1",
        "ublkctl rm 0 1 data",
        "ublkctl stop --all",
        "ublkctl delete --all --force",
        "ublkctl recover 1 2",
        "ublkctl recover --all",
        "ublkctl info 0 1",
        "ublkctl upgrade 0 1",
    ] {
        assert!(takes(args), "{args}");
    }
    for command in ["stop", "delete", "recover"] {
        assert_eq!(
            refused(&[command, "0", "--all"]),
            ErrorKind::ArgumentConflict
        );
    }
}

/// The values of `--data` and `--batch` are those of the core, plus `auto`: copy without batches.
#[test]
fn modes_are_named_as_in_the_core() {
    let mode = |data: &str, batch: &str| {
        let args = ["ublkctl", "add", "null", "--data", data, "--batch", batch];
        let cli = Cli::try_parse_from(args).unwrap();
        let Command::Add {
            backend: Backend::Null { add, .. },
        } = cli.command
        else {
            panic!("another command");
        };
        add.mode()
    };
    assert_eq!(mode("auto", "auto"), Mode::default());
    for data in ublk_core::DataMode::ALL {
        for (word, batch) in [("on", true), ("off", false), ("auto", false)] {
            assert_eq!(mode(data.name(), word), Mode::new(data).batched(batch));
        }
    }
}

/// Creating a file requires a size, and a size is accepted only for a file that is created.
#[test]
fn creation_and_size_go_together() {
    let add = |args: &[&str]| {
        let args = [&["ublkctl", "add", "file", "disk.img"], args].concat();
        Cli::try_parse_from(args).map(|_| ()).map_err(|e| e.kind())
    };
    assert_eq!(add(&[]), Ok(()));
    assert_eq!(add(&["--create", "--size", "1G"]), Ok(()));
    assert_eq!(
        add(&["--offset", "1M", "--length", "1M", "--read-only"]),
        Ok(())
    );
    for args in [&["--create"][..], &["--size", "1G"]] {
        assert_eq!(
            add(args),
            Err(ErrorKind::MissingRequiredArgument),
            "{args:?}"
        );
    }
    for word in ["--offset=1M", "--length=1M", "--read-only"] {
        let args = ["--create", "--size", "1G", word];
        assert_eq!(add(&args), Err(ErrorKind::ArgumentConflict), "{word}");
    }
    assert_eq!(
        refused(&["add", "file"]),
        ErrorKind::MissingRequiredArgument
    );
}

#[test]
fn the_flags_of_add_are_the_habits_of_the_field() {
    let args = "ublkctl add mem --size 1G -n 3 -q 4 -d 64 --block-size 4K --max-io 1M \
                 --data copy --batch off --read-only --json";
    let cli = Cli::try_parse_from(args.split_whitespace()).unwrap();
    assert!(cli.json);
    let Command::Add {
        backend: Backend::Mem { add, size },
    } = cli.command
    else {
        panic!("another command");
    };
    assert_eq!(
        (size, add.id, add.queues, add.depth),
        (1 << 30, Some(3), 4, 64)
    );
    assert_eq!((add.block_size, add.max_io), (Some(4096), 1 << 20));
    assert!(add.read_only && !add.foreground);
}

/// A member is a path, and a window where sizes follow; colons may be part of a name.
#[test]
fn members_have_windows() {
    let directory = tempfile::tempdir().unwrap();
    let odd = directory.path().join("pci-0000:00");
    std::fs::write(&odd, "").unwrap();
    let odd = odd.to_str().unwrap();
    for (text, path, offset, length) in [
        ("disk.img", "disk.img", 0, None),
        ("disk.img:1M", "disk.img", 1 << 20, None),
        ("disk.img:4096:1G", "disk.img", 4096, Some(1 << 30)),
        ("a:b", "a:b", 0, None),
        ("a:b:1M:2M", "a:b", 1 << 20, Some(2 << 20)),
        ("1M", "1M", 0, None),
        ("a:1M:x", "a:1M:x", 0, None),
        (odd, odd, 0, None),
    ] {
        let member: MemberPath = text.parse().unwrap();
        let wanted = (Path::new(path), offset, length);
        assert_eq!(
            (&*member.path, member.offset, member.length),
            wanted,
            "{text}"
        );
    }
    assert!(":1M:2M".parse::<MemberPath>().is_err());
    assert_eq!(
        refused(&["add", "linear"]),
        ErrorKind::MissingRequiredArgument
    );
}
