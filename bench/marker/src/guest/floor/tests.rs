use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

use super::{Floor, Job, Places};
use crate::peer::Socket;

const SIZE: u64 = 1 << 20;

/// A server for one client: takes requests until the client goes away and answers each, the data of a reply in pieces
/// of `piece` bytes; returns commands and offsets.
fn server(mut socket: UnixStream, piece: usize, code: u32) -> JoinHandle<Vec<(u16, u64)>> {
    thread::spawn(move || {
        let mut seen = Vec::new();
        let mut header = [0; 28];
        while socket.read_exact(&mut header).is_ok() {
            let command = u16::from_be_bytes(header[6..8].try_into().unwrap());
            let offset = u64::from_be_bytes(header[16..24].try_into().unwrap());
            let len = u32::from_be_bytes(header[24..28].try_into().unwrap());
            let data = vec![7; usize::try_from(len).unwrap()];
            let mut reply = [&0x6744_6698_u32.to_be_bytes()[..], &code.to_be_bytes()].concat();
            reply.extend_from_slice(&header[8..16]);
            match command {
                1 => socket.read_exact(&mut data.clone()).unwrap(),
                _ if code == 0 => reply.extend_from_slice(&data),
                _ => {}
            }
            seen.push((command, offset));
            for part in reply.chunks(piece) {
                if socket.write_all(part).is_err() {
                    return seen;
                }
            }
        }
        seen
    })
}

/// Does work at a server, and returns the client's result and what the server has seen.
fn work(job: &str, piece: usize, code: u32) -> (anyhow::Result<u64>, Vec<(u16, u64)>) {
    let (near, far) = UnixStream::pair().unwrap();
    let server = server(far, piece, code);
    let job = Job::parse(job).unwrap();
    let mut floor = Floor::new(Socket::Unix(near), &job, SIZE).unwrap();
    let done = floor.run(9).and_then(|first| Ok(first + floor.run(4)?));
    drop(floor);
    (done, server.join().unwrap())
}

#[test]
fn each_request_is_answered_once_however_replies_arrive() {
    for depth in [1, 4, 64] {
        for piece in [5, 16, 1000, 100_000] {
            for (mode, command) in [("randread", 0), ("read", 0), ("randwrite", 1), ("write", 1)] {
                let (done, seen) = work(&format!("/x {mode} 4k {depth}"), piece, 0);
                assert_eq!(done.unwrap(), 13, "{mode} {depth} {piece}");
                assert_eq!(seen.len(), 13);
                assert!(seen.iter().all(|(of, at)| *of == command && at % 4096 == 0));
            }
        }
    }
}

/// L90 A request that fails gives no figure.
#[test]
fn l90_an_error_of_the_server_is_one() {
    let (done, _) = work("/x randread 4k 4", 100, 5);
    let error = done.unwrap_err().to_string();
    assert!(error.contains("the server answers with"), "{error}");
}

#[test]
fn blocks_follow_each_other_or_do_not() {
    let mut places = Places::new(3 * 4096 + 5, 4096, false).unwrap();
    let four = [(); 4].map(|()| places.next());
    assert_eq!(four, [0, 4096, 8192, 0]);
    let mut places = Places::new(1 << 30, 4096, true).unwrap();
    let many: std::collections::BTreeSet<_> = (0..1000).map(|_| places.next()).collect();
    assert!(many.len() > 990 && many.iter().all(|at| *at < 1 << 30));
    assert!(Places::new(4095, 4096, true).is_err());
}

#[test]
fn jobs_are_those_of_fio() {
    let job = Job::parse("10809 randwrite 64k 8").unwrap();
    assert!(job.write && job.random);
    assert_eq!((job.at.as_str(), job.block, job.depth), ("10809", 65536, 8));
    let job = Job::parse("/run/nbd.sock read 1m 4").unwrap();
    assert!(!job.write && !job.random);
    assert_eq!((job.block, job.depth), (1 << 20, 4));
    for text in [
        "/x read 4k",
        "/x trim 4k 1",
        "/x read 4 1",
        "/x read 0k 1",
        "/x read 4k 0",
        "/x read 4k 1 1",
    ] {
        assert!(Job::parse(text).is_err(), "{text:?}");
    }
}
