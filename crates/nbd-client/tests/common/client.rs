//! A blocking client.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use nbd_client::{
    Command, CommandFlags, ErrorCode, Event, Export, Framing, Handshake, Listed, Options,
    ProtocolError, Replies, Request, Step,
};

/// A connection of any kind, with a deadline for each read and write.
pub trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// Requests that are in flight at the same time, at most.
pub const DEPTH: usize = 16;

/// A connection with its requests.
pub struct Client {
    stream: Box<dyn Stream>,
    framing: Framing,
    replies: Replies,
    next: u64,
}

/// The server's answer, and the extents that it told.
pub type Answer = (Result<(), ErrorCode>, Vec<(u64, u64)>);

/// Options for an export with everything that the core can ask for.
pub fn options(export: &str) -> Options {
    Options {
        export: export.to_owned(),
        structured: true,
        extended: true,
        allocation: true,
        ..Options::default()
    }
}

/// Goes through the handshake to its end.
pub fn shake(stream: &mut dyn Stream, options: Options) -> Result<Step, ProtocolError> {
    let mut handshake = Handshake::new(options)?;
    let (mut held, mut more) = (Vec::new(), [0; 512]);
    loop {
        let (used, step) = handshake.receive(&held)?;
        held.drain(..used);
        stream.write_all(&handshake.output()).expect("sent");
        match step {
            Step::Done(_) | Step::Listed(_) => {
                assert!(held.is_empty(), "a server says nothing by itself");
                return Ok(step);
            }
            Step::Receive if used > 0 => {}
            Step::Receive => {
                let len = stream.read(&mut more).expect("in time");
                assert!(len > 0, "the server hung up");
                held.extend(&more[..len]);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// The exports of a server.
pub fn list(mut stream: impl Stream) -> Result<Vec<Listed>, ProtocolError> {
    let options = Options {
        list: true,
        ..Options::default()
    };
    match shake(&mut stream, options)? {
        Step::Listed(exports) => Ok(exports),
        other => panic!("{other:?}"),
    }
}

impl Client {
    /// Opens an export.
    pub fn open(
        mut stream: impl Stream + 'static,
        options: Options,
    ) -> Result<(Self, Export), ProtocolError> {
        let export = match shake(&mut stream, options)? {
            Step::Done(export) => export,
            other => panic!("{other:?}"),
        };
        let client = Self {
            stream: Box::new(stream),
            framing: export.framing,
            replies: Replies::new(export.framing, DEPTH),
            next: 0,
        };
        Ok((client, export))
    }

    /// Sends a request with the data of a WRITE, or receives that of a READ into it.
    pub fn ask(
        &mut self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        data: &mut [u8],
        len: u32,
    ) -> Answer {
        self.send(command, flags, offset, data, len);
        self.answer(data)
    }

    /// Sends a request and gives its cookie.
    pub fn send(
        &mut self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        data: &[u8],
        len: u32,
    ) -> u64 {
        self.next += 1;
        let request = Request {
            command,
            flags,
            cookie: self.next,
            offset,
            len: len.into(),
        };
        assert!(self.replies.expect(&request));
        self.put(&request);
        if command == Command::Write {
            self.stream.write_all(data).expect("sent");
        }
        self.next
    }

    fn put(&mut self, request: &Request) {
        let mut header = [0; Request::LONGEST];
        let len = request.encode(self.framing, &mut header);
        self.stream.write_all(&header[..len]).expect("sent");
    }

    /// Receives the answer to the only request in flight.
    pub fn answer(&mut self, data: &mut [u8]) -> Answer {
        let mut buffers = BTreeMap::from([(self.next, data)]);
        self.next_answer(&mut buffers).1
    }

    /// Receives the next answer, and the data of READs into their buffers, by their cookies. Gives the cookie of the
    /// request that it answers.
    pub fn next_answer(&mut self, buffers: &mut BTreeMap<u64, &mut [u8]>) -> (u64, Answer) {
        let (mut held, mut told) = (Vec::new(), Vec::new());
        loop {
            let (used, mut event) = self.replies.next(&held).expect("a good server");
            held.drain(..used);
            if let Some(Event::Data { cookie, at, len }) = event {
                let data = buffers.get_mut(&cookie).expect("a READ in flight");
                let (at, end) = (index(at), index(at) + index(len));
                let have = held.len().min(end - at);
                data[at..at + have].copy_from_slice(&held[..have]);
                held.drain(..have);
                let rest = &mut data[at + have..end];
                self.stream.read_exact(rest).expect("in time");
                event = self.replies.received(len).expect("a good server");
            }
            match event {
                Some(Event::Answered { cookie, result }) => {
                    assert!(held.is_empty());
                    return (cookie, (result, told));
                }
                Some(Event::Hole { cookie, at, len }) => {
                    let data = buffers.get_mut(&cookie).expect("a READ in flight");
                    data[index(at)..index(at) + index(len)].fill(0);
                }
                Some(Event::Extents { extents, .. }) => told.extend(extents),
                Some(other) => panic!("{other:?}"),
                None if used > 0 => {}
                None => {
                    let mut byte = [0];
                    self.stream.read_exact(&mut byte).expect("in time");
                    held.push(byte[0]);
                }
            }
        }
    }

    /// Reads a range, which must succeed.
    pub fn read(&mut self, offset: u64, len: u32) -> Vec<u8> {
        let mut data = vec![0xaa; index(len)];
        let none = CommandFlags::default();
        let (result, _) = self.ask(Command::Read, none, offset, &mut data, len);
        result.expect("read");
        data
    }

    /// Says goodbye and waits for the end of the connection.
    pub fn disconnect(mut self) {
        let bye = Request {
            command: Command::Disconnect,
            flags: CommandFlags::default(),
            cookie: 0,
            offset: 0,
            len: 0,
        };
        self.put(&bye);
        assert_eq!(self.stream.read(&mut [0]).expect("in time"), 0);
    }
}

/// A length of a test.
pub fn index(len: u32) -> usize {
    usize::try_from(len).expect("small")
}
