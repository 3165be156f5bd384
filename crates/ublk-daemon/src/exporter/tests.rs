use super::*;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use ublk_metrics::prometheus::Device;
use ublk_metrics::{Level, Snapshot};

/// An exporter on a thread of the test; it ends with `end`.
struct Running {
    address: String,
    end: UnixStream,
    thread: std::thread::JoinHandle<()>,
}

static LOOKS: AtomicUsize = AtomicUsize::new(0);

fn some() -> Vec<Device> {
    LOOKS.fetch_add(1, Ordering::Relaxed);
    let snapshot = || Snapshot::new(Level::Off, 1, 1);
    // More than a socket's buffers hold.
    let device = |n| Device::new(format!("ublkb{n}"), "null", snapshot());
    (0..2000).map(device).collect()
}

fn start() -> Running {
    let listen = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::open(Some(&listen)).unwrap();
    let address = listener.name();
    let (end, theirs) = UnixStream::pair().unwrap();
    let signals = Signals::fake(theirs);
    let cache = Cache::new(Duration::from_secs(3600), some);
    let thread = std::thread::spawn(move || serve(&listener, &signals, cache).unwrap());
    Running {
        address,
        end,
        thread,
    }
}

impl Running {
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        let limit = Some(Duration::from_secs(30));
        stream.set_read_timeout(limit).unwrap();
        stream
    }

    fn say(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut reply = Vec::new();
        // A server that closes with something unread resets the connection; what it said counts.
        let _ = stream.read_to_end(&mut reply);
        String::from_utf8_lossy(&reply).into_owned()
    }

    fn finish(mut self) {
        self.end.write_all(b"x").unwrap();
        self.thread.join().unwrap();
    }
}

#[test]
fn scrapes_are_answered_in_both_formats() {
    let exporter = start();
    let plain = exporter.say(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(plain.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4"));
    assert!(plain.contains("\nublk_server_up{device=\"ublkb1999\","));
    let open = exporter.say(
        b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=1.0.0\r\n\r\n",
    );
    assert!(open.contains("Content-Type: application/openmetrics-text"));
    assert!(open.ends_with("# EOF\n"));
    let head = exporter.say(b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"));
    assert!(
        exporter
            .say(b"GET / HTTP/1.1\r\n\r\n")
            .starts_with("HTTP/1.1 404")
    );
    exporter.finish();
}

/// Garbage is refused, a request without an end too; a client that says nothing, or does not read, costs a thread for a
/// limited time, and others are answered meanwhile.
#[test]
fn hostile_clients_do_not_keep_others_from_being_answered() {
    let exporter = start();
    assert!(
        exporter
            .say(b"\x16\x03\x01\x00\xff\r\n\r\n")
            .starts_with("HTTP/1.1 400")
    );
    assert!(
        exporter
            .say(b"BREW /pot HTTP/1.1\r\n\r\n")
            .starts_with("HTTP/1.1 405")
    );
    let endless = vec![b'x'; 20_000];
    assert!(exporter.say(&endless).starts_with("HTTP/1.1 431"));
    let silent = exporter.connect();
    let mut deaf = exporter.connect();
    deaf.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
    let half = exporter.connect();
    half.shutdown(Shutdown::Write).unwrap();
    let begun = Instant::now();
    let reply = exporter.say(b"GET /metrics HTTP/1.1\r\n\r\n");
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert!(begun.elapsed() < ASK + READ);
    drop((silent, deaf, half));
    exporter.finish();
}

/// Of a thousand clients at once each is answered or told to come back, and they cost one look at the devices.
#[test]
fn a_thousand_scrapers_cost_one_look() {
    let exporter = start();
    let looks = LOOKS.load(Ordering::Relaxed);
    let mut clients: Vec<TcpStream> = Vec::new();
    for _ in 0..1000 {
        let mut client = exporter.connect();
        // One that was told to come back already has closed.
        let _ = client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
        clients.push(client);
    }
    let (mut answered, mut refused) = (0, 0);
    for mut client in clients {
        let mut first = [0; 12];
        match client.read_exact(&mut first) {
            Ok(()) if first.ends_with(b"200") => answered += 1,
            // A connection that was closed with its request unread is reset.
            _ => refused += 1,
        }
    }
    assert!(answered >= 1, "{refused} were refused");
    assert!(
        exporter
            .say(b"GET /metrics HTTP/1.1\r\n\r\n")
            .starts_with("HTTP/1.1 200")
    );
    // Other tests look, too, once each.
    assert!(LOOKS.load(Ordering::Relaxed) <= looks + 3);
    exporter.finish();
}

#[test]
fn addresses_that_cannot_be_had_are_explained() {
    let taken = start();
    let again: Listen = taken.address.parse().unwrap();
    let failure = Listener::open(Some(&again)).unwrap_err();
    assert!(failure.text.contains(&taken.address), "{failure:?}");
    assert!(failure.hint.unwrap().contains("another exporter"));
    taken.finish();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let unix: Listen = format!("unix:{}", path.display()).parse().unwrap();
    assert_eq!(unix.to_string(), format!("unix:{}", path.display()));
    let first = Listener::open(Some(&unix)).unwrap();
    let second = Listener::open(Some(&unix)).unwrap_err();
    assert!(second.hint.unwrap().contains("another exporter"));
    drop(first);
    assert!(!path.exists(), "it is removed at the end");
    // A socket whose listener was killed is replaced; a file is not.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    drop(Listener::open(Some(&unix)).unwrap());
    std::fs::write(&path, "data").unwrap();
    let file = Listener::open(Some(&unix)).unwrap_err();
    assert!(
        file.text.contains("something else than a socket"),
        "{file:?}"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
    // What somebody else has put into its place stays at the end.
    std::fs::remove_file(&path).unwrap();
    let served = Listener::open(Some(&unix)).unwrap();
    std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    std::fs::write(&path, "data").unwrap();
    drop(served);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "data");
    let missing: Listen = "unix:/no/such/directory/socket".parse().unwrap();
    let failure = Listener::open(Some(&missing)).unwrap_err();
    assert!(failure.hint.unwrap().contains("directory"));
    for wrong in ["", "9618", "unix:relative", "localhost"] {
        assert!(wrong.parse::<Listen>().is_err(), "{wrong}");
    }
    assert_eq!(
        ":9618".parse(),
        Ok(Listen::Tcp("[::]:9618".parse().unwrap()))
    );
}
