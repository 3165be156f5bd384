//! The handshake, from the server's greeting to an open export.

use crate::bytes::Reader;
use crate::error::ProtocolError;
use crate::framing::Framing;
use crate::wire::{
    CLISERV_MAGIC, FIXED_NEWSTYLE, IHAVEOPT, INFO_BLOCK_SIZE, INFO_EXPORT, NBDMAGIC, NO_ZEROES,
    OPT_ABORT, OPT_EXPORT_NAME, OPT_EXTENDED_HEADERS, OPT_GO, OPT_LIST, OPT_LIST_META_CONTEXT,
    OPT_SET_META_CONTEXT, OPT_STARTTLS, OPT_STRUCTURED_REPLY, OPTION_REPLY, REP_ACK, REP_ERR_UNSUP,
    REP_ERROR, REP_INFO, REP_META_CONTEXT, REP_SERVER, TransmissionFlags,
};

/// Longest option reply accepted, in bytes. The protocol limits names and texts to 4096 bytes.
const MAX_REPLY: u32 = 16 << 10;

/// Most replies accepted for one option.
const MAX_REPLIES: u32 = 1024;

/// The same for a list, and the most bytes that it may have.
const MAX_LISTED: u32 = 1 << 17;
const MAX_LIST_BYTES: u64 = 16 << 20;

/// Zero bytes after the reply to EXPORT_NAME, unless both ends negotiated NO_ZEROES.
const ZEROES: usize = 124;

/// Longest export name that the protocol allows, in bytes.
const MAX_NAME: usize = 4096;

/// The meta context that reports holes.
const ALLOCATION: &str = "base:allocation";

/// What the client requests.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Name of the export; empty for the server's default.
    pub export: String,
    /// Start TLS first, and refuse a server that does not offer it (L75).
    pub tls: bool,
    /// Request structured replies; the client falls back to simple replies if the server lacks them.
    pub structured: bool,
    /// Request extended headers; the client falls back to structured replies if the server lacks them.
    pub extended: bool,
    /// Request the meta context `base:allocation`; requires structured replies or extended headers.
    pub allocation: bool,
    /// List the export's meta contexts; requires the same.
    pub contexts: bool,
    /// List the server's exports instead of opening one ([`Step::Listed`]).
    pub list: bool,
}

/// Block size constraints of an export, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockSizes {
    /// Offsets and lengths must be multiples of this.
    pub minimum: u32,
    /// The most efficient size.
    pub preferred: u32,
    /// The longest request with data.
    pub maximum: u32,
}

impl BlockSizes {
    /// What applies if the server sends no constraints: any offset and length, 4 KiB preferred, 32 MiB at most.
    pub const DEFAULT: Self = Self {
        minimum: 1,
        preferred: 4096,
        maximum: 32 << 20,
    };

    /// Whether the sizes obey the protocol's rules.
    const fn is_valid(self) -> bool {
        let Self {
            minimum,
            preferred,
            maximum,
        } = self;
        minimum.is_power_of_two()
            && minimum <= 64 << 10
            && preferred.is_power_of_two()
            && preferred >= minimum
            && maximum >= preferred
            && (maximum == u32::MAX || maximum.is_multiple_of(minimum))
    }
}

/// An open export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Size in bytes.
    pub size: u64,
    /// What the server supports for it.
    pub flags: TransmissionFlags,
    /// As sent in reply to GO.
    pub block_sizes: Option<BlockSizes>,
    /// How requests and replies are framed.
    pub framing: Framing,
    /// The id of `base:allocation`, if it was negotiated.
    pub allocation: Option<u32>,
    /// Names of its meta contexts, if they were asked for and the server lists them.
    pub contexts: Vec<String>,
}

/// What the caller must do next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Send what [`Handshake::output`] returns, then receive more.
    Receive,
    /// Start TLS on the connection, then call [`Handshake::tls_started`]. Unused bytes that arrived before TLS started
    /// were injected by a third party: close the connection.
    StartTls,
    /// The export is open; the connection now carries requests.
    Done(Export),
    /// The server's exports. Send what [`Handshake::output`] returns, then close the connection.
    Listed(Vec<Listed>),
}

/// An entry of a server's export list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name; empty for the default export.
    pub name: String,
    /// The server's description.
    pub description: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    StartTls,
    Tls,
    Extended,
    Structured,
    Contexts,
    Meta,
    Go,
    ExportName,
    List,
    Listed,
    Done,
}

/// The state of a handshake.
#[derive(Debug)]
pub struct Handshake {
    options: Options,
    state: State,
    output: Vec<u8>,
    no_zeroes: bool,
    framing: Framing,
    contexts: Vec<String>,
    allocation: Option<u32>,
    export: Option<(u64, TransmissionFlags)>,
    block_sizes: Option<BlockSizes>,
    /// Replies so far to the current option.
    replies: u32,
    reply_bytes: u64,
    exports: Vec<Listed>,
}

impl Handshake {
    /// Starts in the state that waits for the server's greeting.
    ///
    /// # Errors
    /// The export's name is longer than the protocol allows.
    pub fn new(options: Options) -> Result<Self, ProtocolError> {
        if options.export.len() > MAX_NAME {
            let reason = format!("the name of the export is longer than {MAX_NAME} bytes");
            return Err(ProtocolError::Refused {
                option: "NBD_OPT_GO",
                reason,
            });
        }
        Ok(Self {
            options,
            state: State::Greeting,
            output: Vec::new(),
            no_zeroes: false,
            framing: Framing::Simple,
            contexts: Vec::new(),
            allocation: None,
            export: None,
            block_sizes: None,
            replies: 0,
            reply_bytes: 0,
            exports: Vec::new(),
        })
    }

    /// Takes the bytes to send now.
    pub fn output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.output)
    }

    /// Continues after TLS was started: option negotiation begins.
    pub fn tls_started(&mut self) {
        if self.state == State::Tls {
            self.ask_for_framing();
        }
    }

    /// Aborts the negotiation. Send what [`output`](Self::output) then returns before closing the connection. Queues
    /// nothing where the protocol allows no option: before the greeting, where TLS must start, and after EXPORT_NAME
    /// was sent or the export was opened.
    pub fn abort(&mut self) {
        use State::{Contexts, Extended, Go, List, Meta, StartTls, Structured};
        if matches!(
            self.state,
            StartTls | Extended | Structured | Contexts | Meta | Go | List
        ) {
            self.option(OPT_ABORT, &[]);
        }
    }

    /// Consumes received bytes. Returns how many bytes were used and what to do next; 0 bytes with [`Step::Receive`]
    /// means that more bytes are needed.
    ///
    /// # Errors
    /// The peer is not an NBD server, or refused a required option; the error quotes the server.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<(usize, Step), ProtocolError> {
        let used = match self.state {
            State::Greeting => self.greeting(bytes)?,
            State::ExportName => self.export_name(bytes)?,
            State::Tls | State::Listed | State::Done => 0,
            _ => self.reply(bytes)?,
        };
        let step = match self.state {
            State::Tls => Step::StartTls,
            State::Listed => Step::Listed(std::mem::take(&mut self.exports)),
            State::Done => Step::Done(self.done()?),
            _ => Step::Receive,
        };
        Ok((used, step))
    }

    fn done(&mut self) -> Result<Export, ProtocolError> {
        let Some((size, flags)) = self.export else {
            return Err(ProtocolError::Broken("GO without NBD_INFO_EXPORT"));
        };
        Ok(Export {
            size,
            flags,
            block_sizes: self.block_sizes,
            framing: self.framing,
            allocation: self.allocation,
            contexts: std::mem::take(&mut self.contexts),
        })
    }

    fn greeting(&mut self, bytes: &[u8]) -> Result<usize, ProtocolError> {
        let mut reader = Reader(bytes);
        let Some(first) = reader.u64() else {
            return Ok(0);
        };
        if first != NBDMAGIC {
            return Err(ProtocolError::NoServer("its first word is not NBDMAGIC"));
        }
        let second = reader.u64();
        if second == Some(CLISERV_MAGIC) {
            return Err(ProtocolError::NoServer("it speaks the oldstyle of 2012"));
        }
        let (Some(second), Some(flags)) = (second, reader.u16()) else {
            return Ok(0);
        };
        if second != IHAVEOPT {
            return Err(ProtocolError::NoServer("its greeting is another"));
        }
        if flags & FIXED_NEWSTYLE == 0 {
            return Err(ProtocolError::NoServer("it has no fixed newstyle"));
        }
        self.no_zeroes = flags & NO_ZEROES != 0;
        let flags = FIXED_NEWSTYLE | (flags & NO_ZEROES);
        self.output.extend(u32::from(flags).to_be_bytes());
        match self.options.tls {
            true => {
                self.option(OPT_STARTTLS, &[]);
                self.state = State::StartTls;
            }
            false => self.ask_for_framing(),
        }
        Ok(bytes.len() - reader.0.len())
    }

    fn option(&mut self, option: u32, data: &[u8]) {
        (self.replies, self.reply_bytes) = (0, 0);
        self.output.extend(IHAVEOPT.to_be_bytes());
        self.output.extend(option.to_be_bytes());
        let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
        self.output.extend(len.to_be_bytes());
        self.output.extend(data);
    }

    /// The export's name, prefixed with its length.
    fn name(&self) -> Vec<u8> {
        let len = u32::try_from(self.options.export.len()).unwrap_or(0);
        let mut data = len.to_be_bytes().to_vec();
        data.extend(self.options.export.as_bytes());
        data
    }

    fn ask_for_framing(&mut self) {
        if self.options.list {
            self.option(OPT_LIST, &[]);
            self.state = State::List;
            return;
        }
        if !self.options.extended {
            return self.ask_for_structured();
        }
        self.option(OPT_EXTENDED_HEADERS, &[]);
        self.state = State::Extended;
    }

    fn ask_for_structured(&mut self) {
        if !self.options.structured {
            return self.go();
        }
        self.option(OPT_STRUCTURED_REPLY, &[]);
        self.state = State::Structured;
    }

    fn ask_for_contexts(&mut self) {
        if !(self.options.contexts && self.framing.has_chunks()) {
            return self.ask_for_meta();
        }
        // No query: all of them.
        let mut data = self.name();
        data.extend(0_u32.to_be_bytes());
        self.option(OPT_LIST_META_CONTEXT, &data);
        self.state = State::Contexts;
    }

    fn ask_for_meta(&mut self) {
        if !(self.options.allocation && self.framing.has_chunks()) {
            return self.go();
        }
        let mut data = self.name();
        data.extend(1_u32.to_be_bytes());
        let len = u32::try_from(ALLOCATION.len()).unwrap_or(0);
        data.extend(len.to_be_bytes());
        data.extend(ALLOCATION.as_bytes());
        self.option(OPT_SET_META_CONTEXT, &data);
        self.state = State::Meta;
    }

    fn go(&mut self) {
        let mut data = self.name();
        data.extend(1_u16.to_be_bytes());
        data.extend(INFO_BLOCK_SIZE.to_be_bytes());
        self.option(OPT_GO, &data);
        self.state = State::Go;
    }

    /// Number and name of the current option.
    const fn asked(&self) -> (u32, &'static str) {
        match self.state {
            State::StartTls => (OPT_STARTTLS, "NBD_OPT_STARTTLS"),
            State::Extended => (OPT_EXTENDED_HEADERS, "NBD_OPT_EXTENDED_HEADERS"),
            State::Structured => (OPT_STRUCTURED_REPLY, "NBD_OPT_STRUCTURED_REPLY"),
            State::Contexts => (OPT_LIST_META_CONTEXT, "NBD_OPT_LIST_META_CONTEXT"),
            State::Meta => (OPT_SET_META_CONTEXT, "NBD_OPT_SET_META_CONTEXT"),
            State::List => (OPT_LIST, "NBD_OPT_LIST"),
            _ => (OPT_GO, "NBD_OPT_GO"),
        }
    }

    fn reply(&mut self, bytes: &[u8]) -> Result<usize, ProtocolError> {
        let mut reader = Reader(bytes);
        let head = (reader.u64(), reader.u32(), reader.u32(), reader.u32());
        let (Some(magic), Some(option), Some(kind), Some(len)) = head else {
            return Ok(0);
        };
        let (asked, name) = self.asked();
        if magic != OPTION_REPLY {
            return Err(ProtocolError::Broken("a reply with another magic number"));
        }
        if option != asked {
            return Err(ProtocolError::Broken("a reply to another option"));
        }
        if len > MAX_REPLY {
            return Err(ProtocolError::Broken("a reply that is too long"));
        }
        let Some(body) = reader.take(usize::try_from(len).unwrap_or(usize::MAX)) else {
            return Ok(0);
        };
        self.replies += 1;
        self.reply_bytes += u64::from(len);
        let is_list = matches!(option, OPT_LIST | OPT_LIST_META_CONTEXT);
        if !is_list && self.replies > MAX_REPLIES {
            return Err(ProtocolError::Broken("replies without end"));
        }
        if self.replies > MAX_LISTED || self.reply_bytes > MAX_LIST_BYTES {
            return Err(ProtocolError::Broken(
                "a list of more than 131,072 entries or 16 MiB",
            ));
        }
        match kind {
            kind if kind & REP_ERROR != 0 => self.refused(kind, name, body)?,
            REP_ACK => self.acknowledged(),
            REP_INFO if self.state == State::Go => self.info(body)?,
            REP_SERVER if self.state == State::List => self.listed(body)?,
            REP_META_CONTEXT if self.state == State::Meta => self.context(body)?,
            REP_META_CONTEXT if self.state == State::Contexts => self.listed_context(body)?,
            _ => return Err(ProtocolError::Broken("a reply that answers no such option")),
        }
        Ok(bytes.len() - reader.0.len())
    }

    fn acknowledged(&mut self) {
        match self.state {
            State::StartTls => self.state = State::Tls,
            State::Extended => {
                self.framing = Framing::Extended;
                self.ask_for_contexts();
            }
            State::Structured => {
                self.framing = Framing::Structured;
                self.ask_for_contexts();
            }
            State::Contexts => self.ask_for_meta(),
            State::Meta => self.go(),
            State::List => {
                self.option(OPT_ABORT, &[]);
                self.state = State::Listed;
            }
            _ => self.state = State::Done,
        }
    }

    fn refused(
        &mut self,
        kind: u32,
        option: &'static str,
        text: &[u8],
    ) -> Result<(), ProtocolError> {
        let reason = reason(kind, text);
        match self.state {
            State::StartTls => return Err(ProtocolError::NoTls(reason)),
            // These options are optional: continue without them.
            State::Extended => self.ask_for_structured(),
            State::Contexts => self.ask_for_meta(),
            State::Structured | State::Meta => self.go(),
            // Extended headers rule EXPORT_NAME out.
            State::Go if kind == REP_ERR_UNSUP && self.framing != Framing::Extended => {
                let name = self.options.export.clone();
                self.option(OPT_EXPORT_NAME, name.as_bytes());
                self.state = State::ExportName;
            }
            _ => return Err(ProtocolError::Refused { option, reason }),
        }
        Ok(())
    }

    fn info(&mut self, body: &[u8]) -> Result<(), ProtocolError> {
        let mut reader = Reader(body);
        match reader.u16() {
            Some(INFO_EXPORT) => {
                let (Some(size), Some(flags), []) = (reader.u64(), reader.u16(), reader.0) else {
                    return Err(ProtocolError::Broken("NBD_INFO_EXPORT of another length"));
                };
                self.export = Some((size, TransmissionFlags(flags)));
            }
            Some(INFO_BLOCK_SIZE) => {
                let sizes = (reader.u32(), reader.u32(), reader.u32());
                let (Some(minimum), Some(preferred), Some(maximum)) = sizes else {
                    return Err(ProtocolError::Broken(
                        "NBD_INFO_BLOCK_SIZE of another length",
                    ));
                };
                let sizes = BlockSizes {
                    minimum,
                    preferred,
                    maximum,
                };
                if !reader.0.is_empty() {
                    return Err(ProtocolError::Broken(
                        "NBD_INFO_BLOCK_SIZE of another length",
                    ));
                }
                if !sizes.is_valid() {
                    return Err(ProtocolError::BlockSizes(minimum, preferred, maximum));
                }
                self.block_sizes = Some(sizes);
            }
            // The protocol requires clients to ignore information they did not request.
            Some(_) => {}
            None => return Err(ProtocolError::Broken("an information without its kind")),
        }
        Ok(())
    }

    fn listed(&mut self, body: &[u8]) -> Result<(), ProtocolError> {
        let mut reader = Reader(body);
        let len = reader.u32().and_then(|len| usize::try_from(len).ok());
        let Some(name) = len.and_then(|len| reader.take(len)) else {
            return Err(ProtocolError::Broken("a name longer than its reply"));
        };
        self.exports.push(Listed {
            name: String::from_utf8_lossy(name).into_owned(),
            description: String::from_utf8_lossy(reader.0).into_owned(),
        });
        Ok(())
    }

    fn listed_context(&mut self, body: &[u8]) -> Result<(), ProtocolError> {
        let mut reader = Reader(body);
        if reader.u32().is_none() || reader.0.is_empty() {
            return Err(ProtocolError::Broken("a meta context without a name"));
        }
        self.contexts.push(printable(reader.0));
        Ok(())
    }

    fn context(&mut self, body: &[u8]) -> Result<(), ProtocolError> {
        let mut reader = Reader(body);
        let number = reader.u32();
        match number.filter(|_| reader.0 == ALLOCATION.as_bytes()) {
            Some(number) if self.allocation.is_none() => self.allocation = Some(number),
            _ => {
                return Err(ProtocolError::Broken(
                    "a meta context that nobody asked for",
                ));
            }
        }
        Ok(())
    }

    fn export_name(&mut self, bytes: &[u8]) -> Result<usize, ProtocolError> {
        let mut reader = Reader(bytes);
        let (Some(size), Some(flags)) = (reader.u64(), reader.u16()) else {
            return Ok(0);
        };
        if !self.no_zeroes && reader.take(ZEROES).is_none() {
            return Ok(0);
        }
        self.export = Some((size, TransmissionFlags(flags)));
        self.state = State::Done;
        Ok(bytes.len() - reader.0.len())
    }
}

/// Formats an option's error: its name and the server's text, with control characters escaped.
fn reason(kind: u32, text: &[u8]) -> String {
    let name = match kind & !REP_ERROR {
        1 => "NBD_REP_ERR_UNSUP",
        2 => "NBD_REP_ERR_POLICY",
        3 => "NBD_REP_ERR_INVALID",
        4 => "NBD_REP_ERR_PLATFORM",
        5 => "NBD_REP_ERR_TLS_REQD",
        6 => "NBD_REP_ERR_UNKNOWN",
        7 => "NBD_REP_ERR_SHUTDOWN",
        8 => "NBD_REP_ERR_BLOCK_SIZE_REQD",
        9 => "NBD_REP_ERR_TOO_BIG",
        10 => "NBD_REP_ERR_EXT_HEADER_REQD",
        _ => "an error that the protocol does not know",
    };
    let text = printable(text);
    match text.is_empty() {
        true => name.to_owned(),
        false => format!("{name}: {text}"),
    }
}

/// Server text with control characters escaped.
fn printable(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .chars()
        .flat_map(|c| match c.is_control() {
            true => c.escape_default().collect::<Vec<_>>(),
            false => vec![c],
        })
        .collect()
}

#[cfg(test)]
mod tests;
