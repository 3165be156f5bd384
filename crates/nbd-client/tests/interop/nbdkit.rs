//! nbdkit: plugins, and the filters that change what a server offers or does.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use std::{fs, thread};

use nbd_client::{Command, CommandFlags, ErrorCode, Framing, TransmissionFlags};

use crate::common::program::{PATIENCE, Server, Stop};
use crate::exercise::{Model, exercise, whole};
use crate::{Pair, Plan, Try, listed, open, try_all};

const SIZE: u64 = 1 << 20;
const NONE: CommandFlags = CommandFlags(0);

pub fn pairs() -> Vec<Pair> {
    let all: [(&'static str, Try); 24] = [
        ("memory", || usual(&[], "memory", &["1M"])),
        ("file", file),
        ("data", || {
            usual(
                &[],
                "data",
                &["data= \"head\" @0x80000 0x55*4096", "size=1M"],
            )
        }),
        ("pattern", pattern),
        ("sh", sh),
        ("memory, blocksize-policy", blocksize_policy),
        ("memory, delay", || {
            few(&["delay"], &["1M", "delay-read=2ms", "delay-write=2ms"])
        }),
        ("memory, error", error),
        ("memory, exitlast", exitlast),
        ("memory, extentlist", extentlist),
        ("memory, fua", || {
            flag("fua", "", TransmissionFlags::SEND_FUA, false)
        }),
        ("memory, fua=emulate", || {
            flag("fua", "fuamode=emulate", TransmissionFlags::SEND_FUA, true)
        }),
        ("memory, fua=force", || {
            flag("fua", "fuamode=force", TransmissionFlags::SEND_FUA, true)
        }),
        ("memory, multi-conn=disable", || {
            flag(
                "multi-conn",
                "multi-conn-mode=disable",
                TransmissionFlags::CAN_MULTI_CONN,
                false,
            )
        }),
        ("memory, multi-conn=emulate", multi_conn),
        ("memory, noextents", noextents),
        ("memory, nozero=none", || {
            flag(
                "nozero",
                "zeromode=none",
                TransmissionFlags::SEND_WRITE_ZEROES,
                false,
            )
        }),
        ("memory, nozero=emulate", || {
            flag(
                "nozero",
                "zeromode=emulate",
                TransmissionFlags::SEND_WRITE_ZEROES,
                true,
            )
        }),
        ("memory, pause", pause),
        ("memory, rate", rate),
        ("memory, tls-fallback", tls_fallback),
        ("file, cow", cow),
        ("file, checkwrite", checkwrite),
        ("memory, cache", || usual(&["cache"], "memory", &["1M"])),
    ];
    let pair = |(export, run)| Pair {
        server: "nbdkit",
        export,
        run,
    };
    all.into_iter().map(pair).collect()
}

fn start(filters: &[&str], plugin: &str, args: &[&str]) -> Result<Server, Stop> {
    let mut server = Server::new()?;
    let args: Vec<_> = args.iter().map(|arg| (*arg).to_owned()).collect();
    server.nbdkit(filters, plugin, &args)?;
    Ok(server)
}

fn usual(filters: &[&str], plugin: &str, args: &[&str]) -> Result<String, Stop> {
    let server = start(filters, plugin, args)?;
    listed(&server)?;
    try_all(&server, Plan::USUAL)
}

fn few(filters: &[&str], args: &[&str]) -> Result<String, Stop> {
    let server = start(filters, "memory", args)?;
    let plan = Plan {
        rounds: 60,
        ..Plan::USUAL
    };
    try_all(&server, plan)
}

fn fail<T>(what: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Fail(what.into()))
}

/// What is written is in the file.
fn file() -> Result<String, Stop> {
    let mut server = Server::new()?;
    let disk = server.disk(SIZE)?;
    server.nbdkit(&[], "file", std::slice::from_ref(&disk))?;
    let shown = try_all(&server, Plan::USUAL)?;
    let (mut client, export) = open(&server, Framing::Extended)?;
    let found = whole(&mut client, &export);
    client.disconnect();
    match fs::read(disk)? == found {
        true => Ok(shown),
        false => fail("the file has other bytes"),
    }
}

/// Each 8 bytes are their own offset; writes of the same bytes are accepted, and there are no others.
fn pattern() -> Result<String, Stop> {
    let server = start(&[], "pattern", &["1M", "--readonly"])?;
    let shown = try_all(&server, Plan::USUAL)?;
    let (mut client, export) = open(&server, Framing::Extended)?;
    let found = whole(&mut client, &export);
    let right = found
        .chunks(8)
        .zip((0_u64..).step_by(8))
        .all(|(bytes, at)| bytes == at.to_be_bytes());
    let (result, _) = client.ask(Command::Write, NONE, 0, &mut [1; 512], 512);
    match (right, result) {
        (true, Err(ErrorCode::EPERM)) => Ok(format!("{shown}; a WRITE is refused")),
        other => fail(format!("{other:?}")),
    }
}

/// A server written in shell, over a file.
fn sh() -> Result<String, Stop> {
    let mut server = Server::new()?;
    let disk = server.disk(SIZE)?;
    let script = format!(
        r#"f='{disk}'
case "$1" in
    get_size) stat -c %s "$f" ;;
    can_write|can_flush|can_trim|can_zero) exit 0 ;;
    can_fua|can_cache) echo none ;;
    can_multi_conn) exit 3 ;;
    pread) dd if="$f" iflag=skip_bytes,count_bytes skip="$4" count="$3" status=none ;;
    pwrite) dd of="$f" oflag=seek_bytes seek="$4" conv=notrunc status=none ;;
    zero|trim) dd if=/dev/zero of="$f" iflag=count_bytes oflag=seek_bytes count="$3" seek="$4" conv=notrunc status=none ;;
    flush) sync "$f" ;;
    *) exit 2 ;;
esac
"#
    );
    let path = server.file("script");
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    server.nbdkit(&[], "sh", &[path.display().to_string()])?;
    let plan = Plan {
        rounds: 60,
        ..Plan::USUAL
    };
    try_all(&server, plan)
}

/// Blocks of 4 KiB and requests of 256 KiB at most: obeyed, all is well; beyond them, EINVAL.
fn blocksize_policy() -> Result<String, Stop> {
    let args = [
        "1M",
        "blocksize-minimum=4096",
        "blocksize-preferred=64K",
        "blocksize-maximum=256K",
        "blocksize-error-policy=error",
    ];
    let server = start(&["blocksize-policy"], "memory", &args)?;
    let shown = try_all(&server, Plan::USUAL)?;
    let (mut client, export) = open(&server, Framing::Extended)?;
    let sizes = export
        .block_sizes
        .map(|s| (s.minimum, s.preferred, s.maximum));
    if sizes != Some((4096, 65536, 256 << 10)) {
        return fail(format!("{sizes:?}"));
    }
    for (offset, len) in [(512, 4096), (0, 512), (0, 512 << 10)] {
        let mut data = vec![0; 512 << 10];
        let (result, _) = client.ask(Command::Read, NONE, offset, &mut data, len);
        if result != Err(ErrorCode::EINVAL) {
            return fail(format!("{offset}+{len}: {result:?}"));
        }
    }
    client.disconnect();
    Ok(format!("{shown}; others are refused"))
}

/// One request in five fails, and leaves the export and the connection as they are.
fn error() -> Result<String, Stop> {
    let server = start(&["error"], "memory", &["1M", "error=EIO", "error-rate=20%"])?;
    let (mut client, export) = open(&server, Framing::Extended)?;
    let mut counts = Vec::new();
    for (seed, framing) in [(1, Framing::Structured), (2, Framing::Simple)] {
        let (mut own, now) = open(&server, framing)?;
        // What cannot be read at once is read again.
        let mut model = Model::zeroes(now.size);
        if seed == 2 {
            let (result, _) = retried(&mut client, Command::WriteZeroes, &mut [], 1 << 20);
            result.map_err(|code| Stop::Fail(code.to_string()))?;
        }
        counts.push(exercise(&mut own, &now, &mut model, (seed, 300), true)?);
        own.disconnect();
    }
    client.disconnect();
    let refused: u32 = counts.iter().map(|c| c.refused).sum();
    match (export.size, refused) {
        (SIZE, 40..) => Ok(format!("{refused} of 600 requests failed with EIO, alone")),
        other => fail(format!("{other:?}")),
    }
}

/// Asks again until it succeeds.
fn retried(
    client: &mut crate::common::client::Client,
    command: Command,
    data: &mut [u8],
    len: u32,
) -> crate::common::client::Answer {
    for _ in 0..100 {
        let answer = client.ask(command, NONE, 0, data, len);
        if answer.0.is_ok() {
            return answer;
        }
    }
    client.ask(command, NONE, 0, data, len)
}

/// The server ends with its last client.
fn exitlast() -> Result<String, Stop> {
    let mut server = start(&["exitlast"], "memory", &["1M"])?;
    let ((one, _), (two, _)) = (
        open(&server, Framing::Extended)?,
        open(&server, Framing::Extended)?,
    );
    one.disconnect();
    thread::sleep(Duration::from_millis(100));
    if let Some(status) = server.ended()? {
        return fail(format!("it ended before its last client: {status}"));
    }
    two.disconnect();
    let begun = Instant::now();
    while server.ended()?.is_none() {
        if begun.elapsed() > PATIENCE {
            return fail("it goes on after its last client");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok("ends with its last client".to_owned())
}

/// Extents are as a list has them.
fn extentlist() -> Result<String, Stop> {
    let mut server = Server::new()?;
    let extents = server.file("extents");
    fs::write(
        &extents,
        "0 64K\n64K 192K hole,zero\n256K 256K\n512K 512K zero\n",
    )?;
    let words = ["1M".to_owned(), format!("extentlist={}", extents.display())];
    server.nbdkit(&["extentlist"], "memory", &words)?;
    // What is written here is no zero any more, whatever the list says: nbdcopy believes the list.
    let plan = Plan {
        others: false,
        ..Plan::USUAL
    };
    let shown = try_all(&server, plan)?;
    let (mut client, _) = open(&server, Framing::Extended)?;
    let (result, told) = client.ask(Command::BlockStatus, NONE, 0, &mut [], 1 << 20);
    client.disconnect();
    let wanted = [
        (64 << 10, 0),
        (192 << 10, 3),
        (256 << 10, 0),
        (512 << 10, 2),
    ];
    match result.is_ok() && told == wanted {
        true => Ok(format!("{shown}; extents as listed")),
        false => fail(format!("{result:?} {told:?}")),
    }
}

/// A filter that has an operation, or takes it away.
fn flag(filter: &str, mode: &str, flag: TransmissionFlags, has: bool) -> Result<String, Stop> {
    let args = ["1M", mode];
    let some = args.iter().filter(|arg| !arg.is_empty());
    let args: Vec<_> = some.copied().collect();
    let server = start(&[filter], "memory", &args)?;
    let (client, export) = open(&server, Framing::Extended)?;
    client.disconnect();
    match export.flags.contains(flag) == has {
        true => try_all(&server, Plan::USUAL),
        false => fail(format!("{:?}", export.flags)),
    }
}

/// What one connection flushed is what another one reads.
fn multi_conn() -> Result<String, Stop> {
    let server = start(
        &["multi-conn"],
        "memory",
        &["1M", "multi-conn-mode=emulate"],
    )?;
    let ((mut one, export), (mut two, _)) = (
        open(&server, Framing::Extended)?,
        open(&server, Framing::Extended)?,
    );
    if !export.flags.contains(TransmissionFlags::CAN_MULTI_CONN) {
        return fail("it has no CAN_MULTI_CONN");
    }
    for n in 0..100_u8 {
        let mut data = [n; 4096];
        let (written, _) = one.ask(Command::Write, NONE, 4096, &mut data, 4096);
        let (flushed, _) = one.ask(Command::Flush, NONE, 0, &mut [], 0);
        if written.and(flushed).is_err() || two.read(4096, 4096) != data {
            return fail(format!("round {n}"));
        }
    }
    one.disconnect();
    two.disconnect();
    Ok(try_all(&server, Plan::USUAL)? + "; a flush is seen by another connection")
}

/// Everything is data.
fn noextents() -> Result<String, Stop> {
    let server = start(&["noextents"], "memory", &["1M"])?;
    let shown = try_all(&server, Plan::USUAL)?;
    let (mut client, export) = open(&server, Framing::Extended)?;
    let told = match export.allocation {
        Some(_) => {
            client
                .ask(Command::BlockStatus, NONE, 0, &mut [], 1 << 20)
                .1
        }
        None => vec![(1 << 20, 0)],
    };
    client.disconnect();
    match told == [(1 << 20, 0)] {
        true => Ok(shown),
        false => fail(format!("{told:?}")),
    }
}

/// A server that is paused answers when it goes on, and nothing is lost.
fn pause() -> Result<String, Stop> {
    let mut server = Server::new()?;
    let control = server.file("control");
    let words = [
        "1M".to_owned(),
        format!("pause-control={}", control.display()),
    ];
    server.nbdkit(&["pause"], "memory", &words)?;
    let (mut client, export) = open(&server, Framing::Extended)?;
    let mut model = Model::of(&mut client, &export);
    let counts = exercise(&mut client, &export, &mut model, (1, 300), false)?;
    let mut control = UnixStream::connect(control)?;
    control.set_read_timeout(Some(PATIENCE))?;
    let mut say = |word: &[u8; 1], answer: u8| -> Result<(), Stop> {
        let mut byte = [0];
        control.write_all(word)?;
        control.read_exact(&mut byte)?;
        match byte[0].eq_ignore_ascii_case(&answer) {
            true => Ok(()),
            false => fail(format!("pause says {byte:?}")),
        }
    };
    say(b"p", b'P')?;
    client.send(Command::Read, NONE, 0, &[], 4096);
    let begun = Instant::now();
    let resumed = thread::scope(|scope| {
        let resumed = scope.spawn(|| {
            thread::sleep(Duration::from_millis(300));
            say(b"r", b'R')
        });
        let (result, _) = client.answer(&mut [0; 4096]);
        let resumed = resumed.join().unwrap_or_else(|_| fail("a panic"));
        result.map_err(|code| Stop::Fail(code.to_string()))?;
        resumed
    });
    resumed?;
    if begun.elapsed() < Duration::from_millis(300) {
        return fail("an answer of a paused server");
    }
    model.check(&whole(&mut client, &export))?;
    client.disconnect();
    Ok(format!("{counts}; a READ waits until the server goes on"))
}

/// 8 MiB a second: what takes longer is right all the same.
fn rate() -> Result<String, Stop> {
    let server = start(&["rate"], "memory", &["1M", "rate=64M"])?;
    let plan = Plan {
        rounds: 40,
        ..Plan::USUAL
    };
    try_all(&server, plan)
}

/// Without TLS there is only what tells that there is TLS.
fn tls_fallback() -> Result<String, Stop> {
    let mut server = Server::new()?;
    let keys = server.file("keys");
    fs::write(&keys, format!("user:{}\n", "0123456789abcdef".repeat(4)))?;
    let words = [
        "1M".to_owned(),
        "--tls=on".to_owned(),
        format!("--tls-psk={}", keys.display()),
        "tlsreadme=this export needs TLS\n".to_owned(),
    ];
    server.nbdkit(&["tls-fallback"], "memory", &words)?;
    let shown = try_all(&server, Plan::USUAL)?;
    let (mut client, export) = open(&server, Framing::Extended)?;
    let found = whole(&mut client, &export);
    client.disconnect();
    let read_only = export.flags.contains(TransmissionFlags::READ_ONLY);
    match read_only && found.starts_with(b"this export needs TLS\n") {
        true => Ok(format!("{shown}; plain text gets the fallback")),
        false => fail(format!("{export:?}")),
    }
}

/// Writes go to a layer, and the file stays as it is.
fn cow() -> Result<String, Stop> {
    let mut server = Server::new()?;
    let disk = server.disk(SIZE)?;
    fs::write(&disk, vec![0x77; 1 << 20])?;
    server.nbdkit(&["cow"], "file", std::slice::from_ref(&disk))?;
    let shown = try_all(&server, Plan::USUAL)?;
    match fs::read(disk)?.iter().all(|byte| *byte == 0x77) {
        true => Ok(format!("{shown}; the file is as it was")),
        false => fail("the file has changed"),
    }
}

/// Only what is there already may be written.
fn checkwrite() -> Result<String, Stop> {
    let mut server = Server::new()?;
    let disk = server.disk(SIZE)?;
    fs::write(&disk, vec![0x77; 1 << 20])?;
    server.nbdkit(&["checkwrite"], "file", std::slice::from_ref(&disk))?;
    let (mut client, _) = open(&server, Framing::Extended)?;
    let (same, _) = client.ask(Command::Write, NONE, 4096, &mut [0x77; 4096], 4096);
    let (other, _) = client.ask(Command::Write, NONE, 4096, &mut [0x78; 4096], 4096);
    let (zeroes, _) = client.ask(Command::WriteZeroes, NONE, 0, &mut [], 4096);
    let read = client.read(4096, 4096);
    client.disconnect();
    match (same, other, zeroes) {
        (Ok(()), Err(ErrorCode::EIO), Err(ErrorCode::EIO)) if read == vec![0x77; 4096] => {
            Ok("the same bytes are accepted, others refused with EIO".to_owned())
        }
        all => fail(format!("{all:?}")),
    }
}
