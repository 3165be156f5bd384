//! A device whose data is on a server, reached by TCP connections with a small protocol.
//!
//! `async_remote [SIZE_IN_BYTES]`, as root with the ublk driver loaded; Ctrl-C stops it. The server is a thread of this
//! program. Each request takes an idle connection of its queue, or opens one, and waits for no other request.
#![forbid(unsafe_code)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "offsets are inside the vector"
)]

use std::cell::RefCell;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, RwLock};

use ublk::core::Op;
use ublk::queue::task::{Async, Ring, SharedFd, TaskRequest};
use ublk::{Builder, Errno, Limits};

/// A request: operation, offset, length, eight bytes each; a write's data follows. The reply: one byte, 0 for success;
/// a read's data follows.
const QUESTION: usize = 24;
const READ: u64 = 0;
const WRITE: u64 = 1;

/// A connection, and memory for requests and replies.
struct Connection {
    fd: SharedFd,
    memory: Vec<u8>,
}

/// The idle connections of a queue.
#[derive(Clone)]
struct Remote {
    at: SocketAddr,
    idle: Rc<RefCell<Vec<Connection>>>,
}

impl Remote {
    async fn connection(&self, ring: &Ring) -> Result<Connection, Errno> {
        let idle = self.idle.borrow_mut().pop();
        match idle {
            Some(connection) => Ok(connection),
            None => Ok(Connection {
                fd: ring.connect_tcp(self.at).await?,
                memory: Vec::with_capacity(QUESTION),
            }),
        }
    }

    async fn serve(self, mut request: TaskRequest) -> Result<(), Errno> {
        let ring = request.ring();
        let word = match request.op() {
            Op::Read => READ,
            Op::Write => WRITE,
            // The server keeps everything in memory.
            _ => return Ok(()),
        };
        let Connection { fd, mut memory } = self.connection(&ring).await?;
        memory.clear();
        for word in [word, request.offset(), request.len()] {
            memory.extend_from_slice(&word.to_le_bytes());
        }
        // The request's own buffer goes to the kernel and comes back; no byte is copied here.
        let mut data = request.take_data()?;
        let mut done;
        (done, memory) = ring.send_all(&fd, memory).await;
        done?;
        if request.op() == Op::Write {
            (done, data) = ring.send_all(&fd, data).await;
            done?;
        }
        memory.truncate(1);
        (done, memory) = ring.recv_all(&fd, memory).await;
        done?;
        if memory != [0] {
            return Err(Errno::EIO);
        }
        if request.op() == Op::Read {
            (done, data) = ring.recv_all(&fd, data).await;
            done?;
        }
        drop(data);
        // Reuse a connection only after success: after an error the state of its stream is unknown.
        self.idle.borrow_mut().push(Connection { fd, memory });
        Ok(())
    }
}

/// The server: answers the requests of one connection until it closes.
fn answer(mut connection: TcpStream, disk: &RwLock<Vec<u8>>) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut question = [0; QUESTION];
    loop {
        connection.read_exact(&mut question)?;
        let word = |n: usize| {
            question[n * 8..][..8]
                .try_into()
                .map_or(0, u64::from_le_bytes)
        };
        let (from, len) = (word(1) as usize, word(2) as usize);
        let range = from..from + len;
        if word(0) == READ {
            let mut reply = vec![0];
            reply.extend_from_slice(&disk.read().unwrap()[range]);
            connection.write_all(&reply)?;
        } else {
            let mut data = vec![0; len];
            connection.read_exact(&mut data)?;
            disk.write().unwrap()[range].copy_from_slice(&data);
            connection.write_all(&[0])?;
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let size: u64 = std::env::args()
        .nth(1)
        .map_or(Ok(64 << 20), |arg| arg.parse())?;
    let disk = Arc::new(RwLock::new(vec![0; size as usize]));
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let at = listener.local_addr()?;
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let disk = Arc::clone(&disk);
            // The thread ends with its connection.
            std::thread::spawn(move || answer(connection, &disk));
        }
    });
    let limits = Limits::new(size).volatile_cache(false);
    Builder::handlers(limits, move |_queue| {
        let (at, idle) = (at, Rc::default());
        let remote = Remote { at, idle };
        Async::new(move |request| remote.clone().serve(request))
    })
    .depth(16)
    .run(|device| println!("{}", device.path().display()))?;
    Ok(())
}
