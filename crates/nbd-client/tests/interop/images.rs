//! qemu-nbd with raw and qcow2 images, and nbd-server.

use std::path::Path;

use nbd_client::{
    Command, CommandFlags, ErrorCode, Framing, Options, ProtocolError, TransmissionFlags,
};

use crate::common::client::{Client, options, shake};
use crate::common::program::{Server, Stop, output};
use crate::exercise::whole;
use crate::{Pair, Plan, listed, open, try_all};

const SIZE: u64 = 1 << 20;

pub fn pairs() -> Vec<Pair> {
    let qemu = |export, run| Pair {
        server: "qemu-nbd",
        export,
        run,
    };
    let nbd = |export, run| Pair {
        server: "nbd-server",
        export,
        run,
    };
    vec![
        qemu("raw", raw),
        qemu("raw, read-only", refusals),
        qemu("qcow2", qcow2),
        qemu("qcow2, snapshot", snapshot),
        nbd("file", file),
        nbd("file, read-only", read_only),
        nbd("file, copy on write", copy_on_write),
    ]
}

fn raw() -> Result<String, Stop> {
    let mut server = Server::new()?;
    let disk = server.disk(SIZE)?;
    let args = ["--format=raw", "--discard=unmap"];
    server.qemu_nbd(&args, Path::new(&disk))?;
    listed(&server)?;
    let shown = try_all(&server, Plan::USUAL)?;
    let (mut client, export) = open(&server, Framing::Extended)?;
    let found = whole(&mut client, &export);
    client.disconnect();
    match std::fs::read(disk)? == found {
        true => Ok(shown),
        false => Err(Stop::Fail("the file has other bytes".to_owned())),
    }
}

/// What it refuses is reported in its own words; a read-only export says that it is one.
fn refusals() -> Result<String, Stop> {
    let mut server = Server::new()?;
    let disk = server.disk(SIZE)?;
    server.qemu_nbd(&["--format=raw", "--read-only"], Path::new(&disk))?;
    let shown = try_all(&server, Plan::USUAL)?;
    let unknown = shake(&mut server.connect()?, options("another"));
    let tls = Options {
        tls: true,
        ..options("disk")
    };
    let tls = shake(&mut server.connect()?, tls);
    let (mut client, export) = open(&server, Framing::Extended)?;
    let mut data = [1; 512];
    let (refused, _) = client.ask(Command::Write, CommandFlags(0), 0, &mut data, 512);
    client.read(0, 512);
    client.disconnect();
    let told = unknown.as_ref().map_err(ToString::to_string);
    let right = told.is_err_and(|text| text.contains("NBD_REP_ERR_UNKNOWN"))
        && matches!(tls, Err(ProtocolError::NoTls(_)))
        && export.flags.contains(TransmissionFlags::READ_ONLY)
        // By the protocol it is EPERM; this server says EINVAL.
        && matches!(refused, Err(ErrorCode::EPERM | ErrorCode::EINVAL));
    match right {
        true => Ok(format!("{shown}; WRITE, TLS and other names are refused")),
        false => Err(Stop::Fail(format!("{unknown:?} {tls:?} {refused:?}"))),
    }
}

fn image(server: &Server) -> Result<std::path::PathBuf, Stop> {
    let path = server.file("disk.qcow2");
    let words = [
        "create",
        "-q",
        "-f",
        "qcow2",
        &path.display().to_string(),
        "1M",
    ];
    output("qemu-img", &words)?;
    Ok(path)
}

fn qcow2() -> Result<String, Stop> {
    let mut server = Server::new()?;
    let image = image(&server)?;
    let args = ["--format=qcow2", "--discard=unmap", "--detect-zeroes=unmap"];
    server.qemu_nbd(&args, &image)?;
    try_all(&server, Plan::USUAL)
}

fn fill(client: &mut Client, byte: u8) -> Result<(), Stop> {
    let none = CommandFlags::default();
    for at in (0..SIZE).step_by(1 << 16) {
        let mut data = vec![byte; 1 << 16];
        let (result, _) = client.ask(Command::Write, none, at, &mut data, 1 << 16);
        result.map_err(|code| Stop::Fail(code.to_string()))?;
    }
    Ok(())
}

/// What an image held when its snapshot was taken is in the snapshot, and what came later is not.
fn snapshot() -> Result<String, Stop> {
    let mut server = Server::new()?;
    let image = image(&server)?;
    server.qemu_nbd(&["--format=qcow2"], &image)?;
    let (mut client, _) = open(&server, Framing::Extended)?;
    fill(&mut client, 0xa1)?;
    client.disconnect();
    server.stop();
    output(
        "qemu-img",
        &["snapshot", "-c", "before", &image.display().to_string()],
    )?;
    server.qemu_nbd(&["--format=qcow2", "--discard=unmap"], &image)?;
    let (mut client, _) = open(&server, Framing::Extended)?;
    fill(&mut client, 0xb2)?;
    client.disconnect();
    let shown = try_all(&server, Plan::USUAL)?;
    server.stop();
    let args = ["--format=qcow2", "--read-only", "--load-snapshot=before"];
    server.qemu_nbd(&args, &image)?;
    let (mut client, export) = open(&server, Framing::Extended)?;
    let found = whole(&mut client, &export);
    client.disconnect();
    match found == vec![0xa1; found.len()] {
        true => Ok(format!("{shown}; the snapshot is as it was")),
        false => Err(Stop::Fail("the snapshot has changed".to_owned())),
    }
}

/// OPT_INFO of nbd-server 3.24 says 0 bytes, which nbdinfo believes; GO, and so our client, has the size.
const PLAN: Plan = Plan {
    has_info: false,
    ..Plan::USUAL
};

fn nbd_server(lines: &str) -> Result<(Server, String), Stop> {
    let mut server = Server::new()?;
    let disk = server.disk(SIZE)?;
    server.nbd_server(&format!("exportname = {disk}\n{lines}"))?;
    Ok((server, disk))
}

fn file() -> Result<String, Stop> {
    let (server, _) = nbd_server("flush = true\nfua = true\ntrim = true")?;
    listed(&server)?;
    try_all(&server, PLAN)
}

fn read_only() -> Result<String, Stop> {
    let (server, _) = nbd_server("readonly = true")?;
    try_all(&server, PLAN)
}

/// What is written is the connection's own, and the file stays as it is.
fn copy_on_write() -> Result<String, Stop> {
    let (server, disk) = nbd_server("copyonwrite = true\nflush = true")?;
    let (mut client, export) = open(&server, Framing::Extended)?;
    fill(&mut client, 0x3c)?;
    let found = whole(&mut client, &export);
    client.disconnect();
    let same = found == vec![0x3c; found.len()];
    let kept = std::fs::read(disk)?.iter().all(|byte| *byte == 0);
    match same && kept {
        true => Ok("16 WRITE, 16 READ; the file is as it was".to_owned()),
        false => Err(Stop::Fail(format!("reads {same}, file {kept}"))),
    }
}
