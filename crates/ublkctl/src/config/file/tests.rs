use super::*;
use ublk_core::{DataMode, Recovery};
use ublk_daemon::spec::BackendSpec;

fn path_of(entry: &Entry) -> &Path {
    match &entry.wanted.spec.backend {
        BackendSpec::File { path, .. } => path,
        other => panic!("{other:?}"),
    }
}

const ALL: &str = r#"
# two devices, the second before the first by its letter
[device.zoo]
backend = "file"
path = "disk.img"       # that of the file's directory
create = true
size = "1G"
queues = 4
depth = 32
max-io = "1M"
data = "user-copy"
batch = "off"
threads = 2
poll = "adaptive:50"
recovery = "reissue"
supervise = true
read-only = false
log = "/var/log/zoo.log"
id = 9

[device.ant]
backend = "mem"
size = 1_048_576
block-size = 4096
"#;

fn wrong(text: &str) -> (usize, String) {
    let mistake = parse(text, Path::new("/etc/ublkctl")).unwrap_err();
    let line = 1 + text[..mistake.at].matches('\n').count();
    let hint = mistake.hint.unwrap_or_default();
    (line, format!("{}; {hint}", mistake.text))
}

#[test]
fn a_file_says_what_the_command_line_says() {
    let all = parse(ALL, Path::new("/etc/ublkctl")).unwrap();
    let names: Vec<&str> = all.iter().map(|e| e.name.as_str()).collect();
    assert_eq!(names, ["zoo", "ant"], "in the order of the text");
    let (zoo, ant) = (&all[0].wanted, &all[1].wanted);
    assert_eq!(path_of(&all[0]), Path::new("/etc/ublkctl/disk.img"));
    assert_eq!((zoo.create, zoo.reuse), (Some(1 << 30), true));
    assert_eq!(zoo.log.as_deref(), Some(Path::new("/var/log/zoo.log")));
    let spec = &zoo.spec;
    assert_eq!((spec.queues, spec.depth, spec.id), (4, 32, Some(9)));
    assert_eq!(
        (spec.max_io_bytes, spec.mode.data),
        (1 << 20, DataMode::UserCopy)
    );
    assert_eq!((spec.recovery, spec.supervise), (Recovery::Reissue, true));
    assert!(!spec.read_only);
    assert_eq!(spec.name.as_deref(), Some("zoo"));
    assert_eq!(
        (
            spec.serving.options.threads_per_queue,
            spec.serving.options.polling.to_string()
        ),
        (2, "adaptive:50".to_owned())
    );
    assert_eq!(ant.spec.backend, BackendSpec::Mem { size: 1 << 20 });
    assert_eq!((ant.spec.block_size, ant.create), (4096, None));
}

/// Each mistake is reported with its line, its text, and the valid alternatives.
#[test]
fn mistakes_are_told_with_their_line() {
    let device = |line: &str| format!("[device.a]\nbackend = \"mem\"\nsize = \"1G\"\n{line}\n");
    for (text, line, part) in [
        (
            device("color = \"red\""),
            4,
            "unknown key `color` for a mem device; valid keys: backend,",
        ),
        (device("path = \"x\""), 4, "unknown key `path`"),
        (device("foreground = true"), 4, "unknown key `foreground`"),
        (device("name = \"b\""), 4, "unknown key `name`"),
        (device("queues = 0"), 4, "0"),
        (device("queues = 0x4"), 4, "whole number"),
        (device("queues = [1]"), 4, "whole number"),
        (device("data = \"teleport\""), 4, "teleport"),
        (device("read-only = \"yes\""), 4, "true or false"),
        (device("supervise = 1"), 4, "true or false"),
        (device("block-size = \"4 potatoes\""), 4, "potatoes"),
        (device("size = \"2G\""), 4, "duplicate"),
        (device("x = "), 4, ""),
        (String::new(), 1, "no device; write a table"),
        ("\n[devices.a]\n".to_owned(), 2, "unknown key `devices`"),
        ("[device]\na = 1\n".to_owned(), 2, "not a table"),
        ("device = 1\n".to_owned(), 1, "not a table"),
        (
            "[device.\"a/b\"]\n".to_owned(),
            1,
            "not a valid device name",
        ),
        ("[device.7]\n".to_owned(), 1, "not a valid device name"),
        (
            "\n[device.a]\nsize = 1\n".to_owned(),
            2,
            "no `backend`; one of null, mem, fault, file, linear, stripe, nbd",
        ),
        (
            "[device.a]\nbackend = \"tape\"\n".to_owned(),
            2,
            "unknown backend `tape`",
        ),
        ("[device.a]\nbackend = 1\n".to_owned(), 2, "not a string"),
        ("\n[device.a]\nbackend = \"mem\"\n".to_owned(), 2, "--size"),
        (
            "[device.a]\nbackend = \"file\"\npath = \"x\"\nsize = 4096\n".to_owned(),
            1,
            "--create",
        ),
    ] {
        let (at, told) = wrong(&text);
        assert!(told.contains(part), "{text}: {told}");
        assert_eq!(at, line, "{text}: {told}");
    }
}

/// Whatever a value looks like, it remains a single value.
#[test]
fn values_are_never_options() {
    let text = "[device.a]\nbackend = \"file\"\npath = \"--create\"\n";
    let all = parse(text, Path::new("/srv")).unwrap();
    assert_eq!(path_of(&all[0]), Path::new("/srv/--create"));
    assert_eq!(all[0].wanted.create, None);
    let text = "[device.a]\nbackend = \"file\"\npath = 5\n";
    assert!(wrong(text).1.contains("a path, in quotes"));
    let text = "[device.a]\nbackend = \"mem\"\nsize = \"1G --read-only\"\n";
    assert_eq!(wrong(text).0, 3);
}

#[test]
fn a_mistake_is_told_with_its_file_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.toml");
    std::fs::write(&path, "[device.a]\nbackend = 1\n").unwrap();
    let failure = read(&path).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Usage);
    assert!(failure.text.contains("a.toml:2:"), "{failure}");
}

/// L45 A file that is not text is reported as such, with its line, and never blocks: a unit must not retry it forever.
#[test]
fn l45_what_is_no_configuration_is_a_mistake_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("bytes"), b"# one\n\xff\n").unwrap();
    std::fs::write(at("long"), vec![b'#'; (1 << 20) + 1]).unwrap();
    std::os::unix::fs::symlink(at("loop"), at("loop")).unwrap();
    let made = std::process::Command::new("mkfifo")
        .arg(at("pipe"))
        .status();
    assert!(made.unwrap().success());
    for (name, said) in [
        ("bytes", "bytes:2: it is not UTF-8"),
        ("long", "longer than 1048576 bytes"),
        ("pipe", "it is a pipe"),
        ("", "it is a directory"),
        ("missing", "no such file"),
        ("loop", "levels of symbolic links"),
        ("bytes/below", "no such file"),
    ] {
        let failure = read(&at(name)).expect_err("read");
        assert_eq!(failure.kind, FailureKind::Usage, "{failure:?}");
        assert!(failure.text.contains(said), "{failure:?}");
        assert!(failure.hint.is_some(), "{failure:?}");
    }
    let null = read(Path::new("/dev/null")).expect_err("read");
    assert!(null.text.contains("a device"), "{null:?}");
}

/// Members of a device are a list, whose relative paths are those of the file's directory.
#[test]
fn members_are_a_list() {
    let text = |files: &str| {
        format!("[device.wide]\nbackend = \"stripe\"\nfiles = {files}\nchunk = \"128K\"\n")
    };
    let all = text(r#"["a.img", "/srv/b.img:1M:2M"]"#);
    let all = parse(&all, Path::new("/etc/ublkctl")).unwrap();
    let BackendSpec::Stripe { files, chunk } = &all[0].wanted.spec.backend else {
        panic!("{all:?}");
    };
    let found: Vec<_> = files
        .files
        .iter()
        .map(|f| (f.path.to_str().unwrap(), f.offset, f.length))
        .collect();
    let wanted = [
        ("/etc/ublkctl/a.img", 0, None),
        ("/srv/b.img", 1 << 20, Some(2 << 20)),
    ];
    assert_eq!((found, *chunk), (wanted.to_vec(), 128 << 10));
    let (line, said) = wrong(&text(r#""a.img""#));
    assert!(
        line == 3 && said.contains("files: give a list"),
        "{line} {said}"
    );
    let (line, said) = wrong(&text("[1]"));
    assert!(line == 3 && said.contains("in quotes"), "{line} {said}");
    let (_, said) = wrong(&text("[]"));
    assert!(said.contains("FILE"), "{said}");
}
