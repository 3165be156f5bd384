//! TLS with the servers that this host has: nbdkit and qemu-nbd.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::pki::Authority;
use common::serve;
use ublk_nbd::{ConnectError, Nbd, NbdOptions, OpenError};
use ublk_sim::Config;

/// A server process, killed on drop.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server; `None` if this host does not have it.
fn start(program: &str, args: &[String]) -> Option<Process> {
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match child {
        Ok(child) => Some(Process(child)),
        Err(_) => {
            eprintln!("SKIP: no {program} on this host");
            None
        }
    }
}

/// An authority whose directory holds the files of a server and a client.
fn authority() -> Authority {
    let authority = Authority::new();
    let server = authority.pair("localhost", |_| {});
    authority.file("server-cert.pem", &server.certificate);
    authority.file("server-key.pem", &server.key);
    authority.client(&authority.pair("client", |_| {}));
    authority
}

/// Runs the simulated device on the server, which requires a client certificate.
fn serves(authority: &Authority, socket: &Path) {
    let uri = |certificates: &Path| {
        let (socket, directory) = (socket.display(), certificates.display());
        format!("nbds+unix:///?socket={socket}&tls-certificates={directory}")
    };
    let options = |certificates: &Path| {
        let mut options = NbdOptions::new(uri(certificates).parse().expect("a URI"));
        options.connect_timeout = Duration::from_secs(20);
        options
    };
    let by = Instant::now() + Duration::from_secs(30);
    let nbd = Nbd::open(&options(authority.directory()), by).expect("a server");
    let config = Config {
        patience: Duration::from_secs(60),
        ..Config::new(1)
    };
    serve(&nbd, &config).assert_clean(1000);
    assert_eq!(nbd.status().reconnects, 0);
    assert!(nbd.status().tls.is_some());
    drop(nbd);
    let stranger = Authority::new();
    let refused = Nbd::open(&options(stranger.directory()), Instant::now());
    match refused {
        Err(OpenError::Connect(e @ ConnectError::Tls { .. })) => {
            assert!(e.to_string().contains("UnknownIssuer"), "{e}");
        }
        other => panic!("{other:?}"),
    }
    let mut without = options(authority.directory());
    without.uri = format!("nbds+unix:///?socket={}", socket.display())
        .parse()
        .expect("a URI");
    without.tls.ca = Some(authority.directory().join("ca-cert.pem"));
    match Nbd::open(&without, Instant::now()) {
        Err(OpenError::Connect(e)) => {
            let hint = e.hint().expect("advice");
            assert!(hint.contains("--tls-cert"), "{e}: {hint}");
        }
        other => panic!("{other:?}"),
    }
}

fn socket(authority: &Authority) -> PathBuf {
    authority.directory().join("socket")
}

#[test]
fn nbdkit_serves_over_tls() {
    let authority = authority();
    let (directory, socket) = (authority.directory().display(), socket(&authority));
    let args = [
        "-f".to_owned(),
        "--exit-with-parent".to_owned(),
        "-U".to_owned(),
        socket.display().to_string(),
        "--tls=require".to_owned(),
        "--tls-verify-peer".to_owned(),
        format!("--tls-certificates={directory}"),
        "memory".to_owned(),
        "1M".to_owned(),
    ];
    if let Some(_server) = start("nbdkit", &args) {
        serves(&authority, &socket);
    }
}

#[test]
fn qemu_nbd_serves_over_tls() {
    let authority = authority();
    let (directory, socket) = (authority.directory().display(), socket(&authority));
    let disk = authority.directory().join("disk");
    let file = std::fs::File::create(&disk).expect("a file");
    file.set_len(1 << 20).expect("a size");
    let args = [
        "--persistent".to_owned(),
        "--format=raw".to_owned(),
        "--shared=4".to_owned(),
        // What is trimmed must read as zeroes, as the simulated client expects it.
        "--discard=unmap".to_owned(),
        "--object".to_owned(),
        format!("tls-creds-x509,id=tls,endpoint=server,dir={directory},verify-peer=on"),
        "--tls-creds=tls".to_owned(),
        format!("--socket={}", socket.display()),
        disk.display().to_string(),
    ];
    if let Some(_server) = start("qemu-nbd", &args) {
        serves(&authority, &socket);
    }
}
