use super::*;
use crate::fakes;
use std::os::unix::fs::FileExt;

const MIB: u64 = 1 << 20;

struct Fixture {
    directory: tempfile::TempDir,
    path: PathBuf,
}

fn place() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    ublk_backends::Created::new(&path, 4 * MIB).unwrap().keep();
    Fixture { directory, path }
}

fn spec(path: &Path, offset: u64, length: u64) -> AddSpec {
    let backend = BackendSpec::File {
        path: path.to_owned(),
        offset,
        length: Some(length),
        buffered: false,
        discard: true,
        force: false,
        integrity_file: None,
    };
    AddSpec {
        backend,
        ..fakes::spec()
    }
}

fn record(nonce: u64, spec: AddSpec, backing: Identity) -> Record {
    let mut record = Record::new(nonce, spec);
    record.backing = vec![backing];
    record.server = ProcessId::of(std::process::id());
    record
}

fn open(path: &Path) -> File {
    File::options(path).open().unwrap()
}

/// The only file of a device.
const fn first<'a>(spec: &'a AddSpec, path: &'a Path) -> Opened<'a> {
    Opened {
        spec,
        path,
        number: 0,
        before: &[],
    }
}

fn forced(mut spec: AddSpec) -> AddSpec {
    if let BackendSpec::File { force, .. } = &mut spec.backend {
        *force = true;
    }
    spec
}

/// L41 A window that overlaps another device's is refused with that device's name if both are written to; other windows
/// are served.
#[test]
fn l41_a_window_is_served_once() {
    let place = place();
    let backing = open(&place.path).identity();
    let other = record(1, spec(&place.path, MIB, MIB), backing);
    let judged = |spec: &AddSpec, other: &Record| {
        let window = Window::all(spec)[0];
        judge(
            &[],
            spec,
            window,
            &[(other.clone(), Window::all(&other.spec)[0])],
        )
    };
    for (offset, length, fine) in [
        (0, MIB, true),
        (2 * MIB, MIB, true),
        (0, MIB + 512, false),
        (0, 4 * MIB, false),
        (2 * MIB - 512, MIB, false),
        (MIB + 512, 512, false),
    ] {
        let mut mine = spec(&place.path, offset, length);
        match judged(&mine, &other) {
            Verdict::Fine(told) => assert!(fine && told.is_empty(), "{offset}+{length}"),
            Verdict::Refused(text) => {
                assert!(!fine, "{offset}+{length}");
                assert!(text.contains("bytes 1048576 to 2097152"), "{text}");
            }
            other => panic!("{other:?}"),
        }
        assert!(
            matches!(judged(&forced(mine.clone()), &other), Verdict::Fine(told) if told.is_empty() == fine)
        );
        mine.read_only = true;
        assert!(matches!(judged(&mine, &other), Verdict::Fine(told) if told.is_empty() == fine));
        let mut reader = other.clone();
        reader.spec.read_only = true;
        mine.read_only = false;
        assert!(matches!(judged(&mine, &reader), Verdict::Fine(told) if told.is_empty() == fine));
    }
}

/// L41 A claim on a disk is a reason to refuse, a lock on a file is only reported, and a server explains its own lock.
#[test]
fn l41_claims_are_reasons() {
    let place = place();
    let mine = spec(&place.path, 0, MIB);
    let window = Window::all(&mine)[0];
    let verdict = |spec: &AddSpec, user: &User, others: &[(Record, Window)]| {
        judge(std::slice::from_ref(user), spec, window, others)
    };
    let mount = User::Mount {
        at: "/mnt".to_owned(),
    };
    let device = User::Device {
        node: "/dev/dm-0".to_owned(),
    };
    for user in [&mount, &device, &User::Swap, &User::Unknown] {
        let found = verdict(&mine, user, &[]);
        assert!(
            matches!(&found, Verdict::Refused(t) if t.contains(&user.to_string())),
            "{found:?}"
        );
        let told = verdict(&forced(mine.clone()), user, &[]);
        assert!(matches!(told, Verdict::Fine(told) if told.len() == 1));
    }
    let process = User::Process {
        pid: 7,
        name: "flock".to_owned(),
    };
    assert!(matches!(verdict(&mine, &process, &[]), Verdict::Fine(told) if told.len() == 1));
    let server = User::Server { pid: 7, node: None };
    assert!(matches!(verdict(&mine, &server, &[]), Verdict::Unclear(_)));
    let apart = record(1, spec(&place.path, MIB, MIB), open(&place.path).identity());
    let apart = (apart.clone(), Window::all(&apart.spec)[0]);
    let found = verdict(&mine, &server, std::slice::from_ref(&apart));
    assert_eq!(found, Verdict::Fine(Vec::new()));
    assert!(matches!(
        verdict(&mine, &mount, &[apart]),
        Verdict::Refused(_)
    ));
}

/// L41 Records also count while their device is being created; those of ended devices do not.
#[test]
fn l41_a_device_in_the_making_counts() {
    let place = place();
    let store = Store::at(place.directory.path().join("run"));
    let mine = spec(&place.path, 0, MIB);
    let serve = |opening: &Opening| {
        let of = first(&mine, &place.path);
        opened(of, opening, Some(&store), || Ok(open(&place.path))).map(drop)
    };
    assert_eq!(serve(&Opening::default()), Ok(()));
    let mut other = record(9, mine.clone(), open(&place.path).identity());
    store.write(&other).unwrap();
    let failure = serve(&Opening::default()).unwrap_err();
    assert!(
        failure.text.contains("disk.img: bytes 0 to 1048576"),
        "{failure:?}"
    );
    assert!(failure.hint.is_some_and(|hint| hint.contains("--force")));
    let own = Opening {
        nonce: Some(9),
        ..Opening::default()
    };
    assert_eq!(serve(&own), Ok(()));
    other.agent = None;
    store.write(&other).unwrap();
    assert_eq!(serve(&Opening::default()), Ok(()));
}

/// L43 Another file at the path is refused with both names. The renamed file is found through its server's descriptor,
/// including its lock. With the override the path counts.
#[test]
fn l43_a_renamed_file_is_served_on() {
    let place = place();
    let server = open(&place.path);
    server.as_fd();
    let was = server.identity();
    let record = record(1, spec(&place.path, 0, MIB), was);
    let new = place.directory.path().join("new.img");
    std::fs::write(&new, vec![9; 1 << 20]).unwrap();
    let old = place.directory.path().join("old.img");
    let at_path = |opening: &Opening| {
        let of = first(&record.spec, &place.path);
        opened(of, opening, None, || Ok(open(&place.path))).map(drop)
    };
    // As it should be: the descriptor is the server's own.
    let (opening, passed) = next_opening(&record, &[], false);
    assert_eq!(opening.backing, [was]);
    assert_eq!(opening.predecessor, Some(std::process::id()));
    let passed = passed.into_iter().next();
    let passed = passed.expect("our own process may be looked into");
    assert_eq!(at_path(&opening), Ok(()));
    std::fs::rename(&place.path, &old).unwrap();
    std::fs::rename(&new, &place.path).unwrap();
    let failure = at_path(&opening).unwrap_err();
    let is = open(&place.path).identity();
    for part in [was.to_string(), is.to_string()] {
        assert!(failure.text.contains(&part), "{failure:?}");
    }
    assert!(
        failure
            .hint
            .is_some_and(|hint| hint.contains("--accept-backing"))
    );
    // The same file, under its lock, whatever its name.
    let next = File::options(&place.path).open_passed(passed).unwrap();
    assert_eq!(next.identity(), was);
    assert!(next.users().is_empty(), "{:?}", next.users());
    ublk_core::Backend::write_at(&next, &[7; 4096], 0, true).unwrap();
    let mut back = [0; 4096];
    let raw = std::fs::File::open(&old).unwrap();
    raw.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(back, [7; 4096]);
    drop(server);
    let third = std::fs::File::open(&old).unwrap();
    assert!(third.try_lock().is_err(), "the lock went on");
    // What the agent keeps is asked for first, and the override takes the path.
    let kept = [OwnedFd::from(std::fs::File::open(&old).unwrap())];
    assert_eq!(next_opening(&record, &kept, false).1.len(), 1);
    let (opening, passed) = next_opening(&record, &kept, true);
    assert!(opening.backing.is_empty() && passed.is_empty());
    assert_eq!(at_path(&opening), Ok(()));
}
