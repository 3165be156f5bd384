//! The front against agents and helpers that die or hang.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use ublk_core::DevId;
use ublk_ctrl::{Controller, Error};
use ublk_daemon::failure::{Failure, FailureKind};
use ublk_daemon::front::{self, Stop, Wanted};
use ublk_daemon::helper::Helper;
use ublk_daemon::link::message::Lifetime;
use ublk_daemon::spec::{AddSpec, BackendSpec};

fn script(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("program");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn add(program: &Path, size: u64, deadline: Duration) -> Failure {
    front::add(
        program,
        spec(BackendSpec::Mem { size }),
        Lifetime::Own,
        None,
        deadline,
    )
    .map(|(added, _)| added)
    .expect_err("no agent, no device")
}

fn spec(backend: BackendSpec) -> AddSpec {
    AddSpec {
        backend,
        id: None,
        queues: 1,
        depth: 1,
        block_size: 512,
        max_io_bytes: 512 << 10,
        read_only: false,
        mode: ublk_core::Mode::default(),
        auto: None,
        recovery: ublk_core::Recovery::None,
        parameters: Box::default(),
        serving: ublk_daemon::spec::Serving::default(),
        name: None,
        scheduler: Default::default(),
        supervise: false,
        unprivileged: false,
        trust_kernel: false,
    }
}

/// Answers the handshake of an NBD client: an export of 1 MiB, without options.
fn handshake(mut client: &UnixStream) -> std::io::Result<()> {
    const GO: u32 = 7;
    client.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    client.read_exact(&mut [0; 4])?;
    loop {
        let mut head = [0; 16];
        client.read_exact(&mut head)?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().unwrap());
        client.read_exact(&mut vec![0; word(12) as usize])?;
        let mut reply = |kind: u32, body: &[u8]| {
            let mut bytes = 0x3_e889_0455_65a9_u64.to_be_bytes().to_vec();
            bytes.extend(&head[8..12]);
            bytes.extend(kind.to_be_bytes());
            bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
            client.write_all(&[&bytes, body].concat())
        };
        if word(8) != GO {
            reply(0x8000_0001, &[])?;
            continue;
        }
        let mut export = vec![0, 0];
        export.extend((1_u64 << 20).to_be_bytes());
        export.extend([0, 1]);
        reply(3, &export)?;
        return reply(1, &[]);
    }
}

/// The front opens a backend once, for all that it wants to know: an NBD server sees one connection, which is closed
/// before the agent is started.
#[test]
fn a_backend_is_opened_once_in_the_front() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("nbd");
    let listener = UnixListener::bind(&socket).unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&connections);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            seen.fetch_add(1, Ordering::SeqCst);
            let _ = handshake(&client.unwrap());
        }
    });
    let backend = BackendSpec::Nbd {
        moving_to: None,
        uri: format!("nbd+unix:///?socket={}", socket.display()),
        length: None,
        retry: Default::default(),
        request_timeout: 30,
        wait_for_server: 0,
        tls: Box::default(),
    };
    let wanted = Wanted {
        spec: AddSpec {
            block_size: 0,
            ..spec(backend)
        },
        create: None,
        reuse: false,
        log: None,
    };
    front::vet(&wanted).unwrap();
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let program = Path::new("/nonexistent/program");
    let made = front::make(program, &wanted, Lifetime::Own, Duration::from_secs(10));
    let failure = made.map(drop).expect_err("no agent");
    assert!(
        failure.text.contains("cannot start the agent"),
        "{failure:?}"
    );
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

/// L33 The exit code of an agent that dies at once is reported, and at once.
#[test]
fn l33_an_agent_that_dies_is_told_with_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let program = script(dir.path(), "exit 7");
    let failure = add(&program, 1 << 20, Duration::from_secs(60));
    assert_eq!(failure.kind, FailureKind::Failed);
    assert!(failure.text.contains("exit status: 7"), "{failure:?}");
    let program = script(dir.path(), "kill -KILL $$");
    let failure = add(&program, 1 << 20, Duration::from_secs(60));
    assert!(failure.text.contains("SIGKILL"), "{failure:?}");
    assert!(begun.elapsed() < Duration::from_secs(30));
}

/// L33 If an agent hangs, the front returns at its deadline and names the process left behind.
#[test]
fn l33_an_agent_that_hangs_is_left_at_the_deadline() {
    let dir = tempfile::tempdir().unwrap();
    // It exits when the front has closed the link.
    let program = script(dir.path(), "exec cat >/dev/null");
    let begun = Instant::now();
    let failure = add(&program, 1 << 20, Duration::from_millis(200));
    assert_eq!(failure.kind, FailureKind::TimedOut);
    assert!(failure.text.contains("agent process"), "{failure:?}");
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn bad_devices_are_refused_before_anything_is_started() {
    let program = Path::new("/nonexistent/program");
    for size in [0, 100, u64::MAX] {
        let failure = add(program, size, Duration::from_secs(1));
        assert_eq!(failure.kind, FailureKind::Usage, "{size}");
    }
    let failure = add(program, 512, Duration::from_secs(1));
    assert_eq!(failure.kind, FailureKind::Failed);
}

/// L27 A helper that hangs does not block its caller: the error says that it is left behind.
#[test]
fn l27_a_helper_that_hangs_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let program = script(dir.path(), "exec cat >/dev/null");
    let id = DevId::new(3).unwrap();
    let failure = front::stop(&program, id, Stop::Safe, Duration::from_millis(100)).unwrap_err();
    assert_eq!(failure.kind, FailureKind::TimedOut);
    assert!(failure.text.contains("helper process"), "{failure:?}");
}

/// L29 A helper may be moved and dropped on any thread; dropping it does not block.
#[test]
fn l29_a_helper_is_dropped_on_another_thread() {
    let dir = tempfile::tempdir().unwrap();
    let program = script(dir.path(), "exec cat >/dev/null");
    let mut helper = Helper::start(&program).unwrap();
    std::thread::spawn(move || {
        let id = DevId::new(1).unwrap();
        let error = helper.info(id, Duration::from_millis(10)).unwrap_err();
        assert!(matches!(
            error,
            Error::TimedOut {
                abandoned: true,
                ..
            }
        ));
        let begun = Instant::now();
        drop(helper);
        assert!(begun.elapsed() < Duration::from_millis(500));
    })
    .join()
    .unwrap();
}

#[test]
fn a_helper_that_dies_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut helper = Helper::start(&script(dir.path(), "exit 5")).unwrap();
    let error = helper.features(Duration::from_secs(30)).unwrap_err();
    assert!(error.to_string().contains("exit status: 5"), "{error}");
}

/// L27 A process that reads our output to its end is not blocked by an agent that hangs, because the agent holds none
/// of the caller's files. The test calls itself through a pipe.
#[test]
fn l27_an_agent_left_behind_holds_no_file_of_the_caller() {
    const ASKED: &str = "UBLK_TEST_FRONT_PROGRAM";
    if let Some(program) = std::env::var_os(ASKED) {
        let failure = add(Path::new(&program), 1 << 20, Duration::from_millis(100));
        assert_eq!(failure.kind, FailureKind::TimedOut);
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // It lives much longer than its front.
    let program = script(dir.path(), "exec sleep 20");
    let begun = Instant::now();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "l27_an_agent_left_behind_holds_no_file_of_the_caller",
        ])
        .env(ASKED, &program)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}
