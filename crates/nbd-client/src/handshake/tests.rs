use super::*;
use crate::wire::CLISERV_MAGIC;

/// A scripted server: its replies to each option, in order.
struct Script {
    flags: u16,
    replies: Vec<(u32, Vec<Vec<u8>>)>,
}

fn option_reply(option: u32, kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_REPLY.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
    bytes.extend(body);
    bytes
}

fn ack(option: u32) -> Vec<u8> {
    option_reply(option, REP_ACK, &[])
}

fn export_info(size: u64, flags: u16) -> Vec<u8> {
    let mut body = INFO_EXPORT.to_be_bytes().to_vec();
    body.extend(size.to_be_bytes());
    body.extend(flags.to_be_bytes());
    option_reply(OPT_GO, REP_INFO, &body)
}

fn block_info(sizes: [u32; 3]) -> Vec<u8> {
    let mut body = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
    sizes
        .iter()
        .for_each(|size| body.extend(size.to_be_bytes()));
    option_reply(OPT_GO, REP_INFO, &body)
}

fn greeting(flags: u16) -> Vec<u8> {
    let mut bytes = NBDMAGIC.to_be_bytes().to_vec();
    bytes.extend(IHAVEOPT.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes
}

/// Parses the options that the client sent.
fn options(sent: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let mut reader = Reader(sent);
    let mut options = Vec::new();
    while let Some(magic) = reader.u64() {
        assert_eq!(magic, IHAVEOPT);
        let option = reader.u32().unwrap();
        let len = reader.u32().unwrap();
        let data = reader.take(usize::try_from(len).unwrap()).unwrap();
        options.push((option, data.to_vec()));
    }
    options
}

/// Runs a handshake to its end, delivering `step` bytes at a time.
fn play(wanted: &Options, script: Script, step: usize) -> Result<Export, ProtocolError> {
    let mut handshake = Handshake::new(wanted.clone())?;
    let mut to_client = greeting(script.flags);
    let mut replies = script.replies.into_iter();
    let mut first = true;
    let mut held = Vec::new();
    loop {
        if !to_client.is_empty() {
            held.extend(to_client.drain(..step.min(to_client.len())));
        }
        let (used, next) = handshake.receive(&held)?;
        held.drain(..used);
        match next {
            Step::Done(export) => {
                assert!(held.is_empty() && to_client.is_empty());
                return Ok(export);
            }
            Step::StartTls => {
                assert!(handshake.output().is_empty() && held.is_empty());
                handshake.tls_started();
            }
            Step::Receive => {}
            Step::Listed(exports) => panic!("{exports:?}"),
        }
        let mut sent = handshake.output();
        if !sent.is_empty() && std::mem::take(&mut first) {
            sent.drain(..4);
        }
        for (option, _) in options(&sent) {
            let (expected, said) = replies.next().expect("no option more");
            assert_eq!(option, expected);
            to_client.extend(said.concat());
        }
        assert!(used > 0 || !to_client.is_empty(), "stuck at {handshake:?}");
    }
}

fn wanted() -> Options {
    Options {
        export: "disk".to_owned(),
        structured: true,
        allocation: true,
        ..Options::default()
    }
}

fn meta(number: u32, name: &str) -> Vec<u8> {
    let mut body = number.to_be_bytes().to_vec();
    body.extend(name.as_bytes());
    option_reply(OPT_SET_META_CONTEXT, REP_META_CONTEXT, &body)
}

/// Every requested feature is negotiated, for any chunk size; TLS comes first.
#[test]
fn a_modern_server_gives_all() {
    for step in [1, 2, 5, 19, 1000] {
        let wanted = Options {
            tls: true,
            ..wanted()
        };
        let script = Script {
            flags: FIXED_NEWSTYLE | NO_ZEROES,
            replies: vec![
                (OPT_STARTTLS, vec![ack(OPT_STARTTLS)]),
                (OPT_STRUCTURED_REPLY, vec![ack(OPT_STRUCTURED_REPLY)]),
                (
                    OPT_SET_META_CONTEXT,
                    vec![meta(9, ALLOCATION), ack(OPT_SET_META_CONTEXT)],
                ),
                (
                    OPT_GO,
                    vec![
                        option_reply(OPT_GO, REP_INFO, &[0, 1, b'n']),
                        export_info(1 << 30, 0x45),
                        block_info([512, 4096, 1 << 20]),
                        ack(OPT_GO),
                    ],
                ),
            ],
        };
        let export = play(&wanted, script, step).unwrap();
        assert_eq!((export.size, export.flags.0), (1 << 30, 0x45));
        assert!(export.flags.contains(TransmissionFlags::SEND_FLUSH));
        assert!(!export.flags.contains(TransmissionFlags::READ_ONLY));
        let sizes = export.block_sizes.unwrap();
        assert_eq!((sizes.minimum, sizes.maximum), (512, 1 << 20));
        assert_eq!(
            (export.framing, export.allocation),
            (Framing::Structured, Some(9))
        );
    }
}

/// A server that only knows EXPORT_NAME is served, with or without its zero padding.
#[test]
fn an_old_server_is_done_with_what_it_has() {
    for (flags, zeroes) in [(FIXED_NEWSTYLE, ZEROES), (FIXED_NEWSTYLE | NO_ZEROES, 0)] {
        let unsup = |option| option_reply(option, REP_ERR_UNSUP, b"never heard of it");
        let mut last = 4096_u64.to_be_bytes().to_vec();
        last.extend(3_u16.to_be_bytes());
        last.extend(vec![0; zeroes]);
        let script = Script {
            flags,
            replies: vec![
                (OPT_STRUCTURED_REPLY, vec![unsup(OPT_STRUCTURED_REPLY)]),
                (OPT_GO, vec![unsup(OPT_GO)]),
                (OPT_EXPORT_NAME, vec![last]),
            ],
        };
        let export = play(&wanted(), script, 7).unwrap();
        assert_eq!((export.size, export.framing), (4096, Framing::Simple));
        assert!(export.flags.contains(TransmissionFlags::READ_ONLY));
        assert_eq!((export.block_sizes, export.allocation), (None, None));
    }
}

/// Extended headers are asked for before structured replies, which they imply; a server without them gets the usual
/// question. Contexts are listed where they are wanted, and done without where the server does not list them.
#[test]
fn extended_headers_are_never_required() {
    let everything = Options {
        extended: true,
        contexts: true,
        ..wanted()
    };
    let listed = |name: &str| {
        let body = [&[0; 4], name.as_bytes()].concat();
        option_reply(OPT_LIST_META_CONTEXT, REP_META_CONTEXT, &body)
    };
    let rest = |contexts: Vec<Vec<u8>>| {
        vec![
            (OPT_LIST_META_CONTEXT, contexts),
            (
                OPT_SET_META_CONTEXT,
                vec![meta(9, ALLOCATION), ack(OPT_SET_META_CONTEXT)],
            ),
            (OPT_GO, vec![export_info(1 << 30, 1), ack(OPT_GO)]),
        ]
    };
    let unsup = |option| vec![option_reply(option, REP_ERR_UNSUP, b"")];
    for step in [1, 7, 1000] {
        let mut replies = vec![(OPT_EXTENDED_HEADERS, vec![ack(OPT_EXTENDED_HEADERS)])];
        replies.extend(rest(vec![
            listed(ALLOCATION),
            listed("qemu:\u{1b}"),
            ack(OPT_LIST_META_CONTEXT),
        ]));
        let flags = FIXED_NEWSTYLE | NO_ZEROES;
        let export = play(&everything, Script { flags, replies }, step).unwrap();
        assert_eq!(export.framing, Framing::Extended);
        assert_eq!(export.contexts, [ALLOCATION, "qemu:\\u{1b}"]);
        let mut replies = vec![
            (OPT_EXTENDED_HEADERS, unsup(OPT_EXTENDED_HEADERS)),
            (OPT_STRUCTURED_REPLY, vec![ack(OPT_STRUCTURED_REPLY)]),
        ];
        replies.extend(rest(unsup(OPT_LIST_META_CONTEXT)));
        let export = play(&everything, Script { flags, replies }, step).unwrap();
        assert_eq!(export.framing, Framing::Structured);
        assert_eq!((export.contexts.len(), export.allocation), (0, Some(9)));
    }
    // EXPORT_NAME is no way to go on with extended headers.
    let replies = vec![
        (OPT_EXTENDED_HEADERS, vec![ack(OPT_EXTENDED_HEADERS)]),
        (OPT_GO, unsup(OPT_GO)),
    ];
    let flags = FIXED_NEWSTYLE;
    let plain = Options {
        extended: true,
        ..Options::default()
    };
    let error = play(&plain, Script { flags, replies }, 7).unwrap_err();
    assert!(error.to_string().contains("NBD_OPT_GO"), "{error}");
}

/// GO carries the length-prefixed export name and requests block sizes.
#[test]
fn go_is_as_the_protocol_has_it() {
    let mut handshake = Handshake::new(Options {
        export: "é".to_owned(),
        ..Options::default()
    })
    .unwrap();
    let (used, step) = handshake.receive(&greeting(FIXED_NEWSTYLE)).unwrap();
    assert_eq!((used, step), (18, Step::Receive));
    let sent = handshake.output();
    assert_eq!(sent[..4], [0, 0, 0, 1]);
    let go = (OPT_GO, vec![0, 0, 0, 2, 0xc3, 0xa9, 0, 1, 0, 3]);
    assert_eq!(options(&sent[4..]), [go]);
    handshake.abort();
    assert_eq!(options(&handshake.output()), [(OPT_ABORT, Vec::new())]);
    assert!(
        Handshake::new(Options {
            export: "x".repeat(MAX_NAME + 1),
            ..Options::default()
        })
        .is_err()
    );
}

/// ABORT is sent only where the server accepts an option: not in plain text where TLS must start, and not after the
/// export is open.
#[test]
fn an_abort_is_sent_where_options_are() {
    let aborted = |options: Options, said: &[Vec<u8>]| {
        let mut handshake = Handshake::new(options).unwrap();
        for bytes in said {
            handshake.receive(bytes).unwrap();
        }
        let _ = handshake.output();
        handshake.abort();
        !handshake.output().is_empty()
    };
    let tls = Options {
        tls: true,
        ..Options::default()
    };
    let (hello, go) = (greeting(FIXED_NEWSTYLE), Options::default);
    let unsup = option_reply(OPT_GO, REP_ERR_UNSUP, &[]);
    assert!(aborted(go(), std::slice::from_ref(&hello)));
    assert!(aborted(tls.clone(), std::slice::from_ref(&hello)));
    assert!(!aborted(go(), &[]));
    assert!(!aborted(tls, &[hello.clone(), ack(OPT_STARTTLS)]));
    assert!(!aborted(go(), &[hello, unsup]));
}

/// A list returns the server's names and descriptions as they are, and opens no export.
#[test]
fn a_server_lists_its_exports() {
    let list = || {
        let options = Options {
            list: true,
            ..Options::default()
        };
        let mut handshake = Handshake::new(options).unwrap();
        handshake.receive(&greeting(FIXED_NEWSTYLE)).unwrap();
        handshake.output();
        handshake
    };
    let one = option_reply(OPT_LIST, REP_SERVER, b"\0\0\0\x04diskfast \x1b");
    let default = option_reply(OPT_LIST, REP_SERVER, &[0; 4]);
    let bytes = [one, default, ack(OPT_LIST)].concat();
    let (mut handshake, mut used) = (list(), 0);
    let exports = loop {
        let (some, step) = handshake.receive(&bytes[used..]).unwrap();
        used += some;
        if let Step::Listed(exports) = step {
            break exports;
        }
    };
    let names: Vec<_> = exports.iter().map(|e| &e.name[..]).collect();
    assert_eq!(names, ["disk", ""]);
    assert_eq!(exports[0].description, "fast \u{1b}");
    assert_eq!(options(&handshake.output()), [(OPT_ABORT, Vec::new())]);
    // A long list is one, an endless list is not.
    let many = option_reply(OPT_LIST, REP_SERVER, b"\0\0\0\x04disk");
    let listed = |count: usize| {
        let (mut handshake, bytes) = (list(), many.repeat(count));
        let mut rest = &bytes[..];
        loop {
            match handshake.receive(rest) {
                Ok((used @ 1.., Step::Receive)) => rest = &rest[used..],
                other => break other,
            }
        }
    };
    assert!(listed(5000).is_ok());
    assert!(listed((1 << 17) + 1).is_err());
    let long = option_reply(OPT_LIST, REP_SERVER, &[0xff; 4]);
    assert!(list().receive(&long).is_err());
    let refused = option_reply(OPT_LIST, REP_ERROR | 2, b"no");
    assert!(list().receive(&refused).is_err());
}

/// L75 A client that demands TLS never continues without it; refusals quote the server with control characters escaped.
#[test]
fn l75_plain_text_is_refused_where_tls_is_demanded() {
    let tls = Options {
        tls: true,
        ..wanted()
    };
    let script = Script {
        flags: FIXED_NEWSTYLE,
        replies: vec![(
            OPT_STARTTLS,
            vec![option_reply(
                OPT_STARTTLS,
                REP_ERROR | 2,
                b"not \x1b[31mhere",
            )],
        )],
    };
    let error = play(&tls, script, 3).unwrap_err();
    let ProtocolError::NoTls(text) = &error else {
        panic!("{error}");
    };
    assert_eq!(text, "NBD_REP_ERR_POLICY: not \\u{1b}[31mhere");
    let script = Script {
        flags: FIXED_NEWSTYLE,
        replies: vec![(OPT_GO, vec![option_reply(OPT_GO, REP_ERROR | 6, b"")])],
    };
    let error = play(&Options::default(), script, 3).unwrap_err();
    let text = error.to_string();
    assert_eq!(text, "the server refuses NBD_OPT_GO: NBD_REP_ERR_UNKNOWN");
}

/// A protocol violation is an error at once, and no memory is allocated for the length that the server claims.
#[test]
fn a_server_that_breaks_the_protocol_is_found_out() {
    let plain = Options::default;
    let oldstyle = [NBDMAGIC.to_be_bytes(), CLISERV_MAGIC.to_be_bytes()].concat();
    for bytes in [vec![0; 18], oldstyle, greeting(0), greeting(NO_ZEROES)] {
        let mut handshake = Handshake::new(plain()).unwrap();
        assert!(handshake.receive(&bytes).is_err(), "{bytes:?}");
    }
    let mut long = ack(OPT_GO);
    long[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
    let mut other = ack(OPT_GO);
    other[0] = 1;
    let cases = [
        long,
        other,
        ack(OPT_STARTTLS),
        ack(OPT_GO),
        option_reply(OPT_GO, 77, &[]),
        option_reply(OPT_GO, REP_INFO, &[]),
        option_reply(OPT_GO, REP_INFO, &[0, 0, 1]),
        option_reply(OPT_GO, REP_META_CONTEXT, &[0; 8]),
        block_info([0, 4096, 1 << 20]),
        block_info([3, 4096, 1 << 20]),
        block_info([512, 256, 1 << 20]),
        block_info([512, 4096, 2048]),
        block_info([512, 4096, 4097]),
        block_info([1 << 17, 1 << 17, 1 << 20]),
        option_reply(OPT_GO, REP_INFO, &[0, 9]).repeat(1025),
    ];
    for (n, reply) in cases.into_iter().enumerate() {
        let mut handshake = Handshake::new(plain()).unwrap();
        handshake.receive(&greeting(FIXED_NEWSTYLE)).unwrap();
        let mut rest = &reply[..];
        let result = loop {
            match handshake.receive(rest) {
                Ok((used @ 1.., Step::Receive)) => rest = &rest[used..],
                other => break other,
            }
        };
        assert!(result.is_err(), "case {n}: {result:?}");
    }
    let mut handshake = Handshake::new(wanted()).unwrap();
    handshake.receive(&greeting(FIXED_NEWSTYLE)).unwrap();
    handshake.receive(&ack(OPT_STRUCTURED_REPLY)).unwrap();
    assert!(handshake.receive(&meta(1, "base:other")).is_err());
}

/// The default sizes are valid sizes.
#[test]
fn the_default_sizes_are_valid() {
    assert!(BlockSizes::DEFAULT.is_valid());
}
