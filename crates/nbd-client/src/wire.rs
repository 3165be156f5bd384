//! Protocol constants, named as in doc/proto.md of the NBD project.

/// First word of a server: "NBDMAGIC".
pub(crate) const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of a newstyle server, and the first of every option: "IHAVEOPT".
pub(crate) const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Second word of an oldstyle server.
pub(crate) const CLISERV_MAGIC: u64 = 0x0000_4202_8186_1253;
/// First word of an option's reply.
pub(crate) const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;

/// `NBD_FLAG_FIXED_NEWSTYLE`, and `NBD_FLAG_C_FIXED_NEWSTYLE`.
pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
/// `NBD_FLAG_NO_ZEROES`, and `NBD_FLAG_C_NO_ZEROES`.
pub(crate) const NO_ZEROES: u16 = 1 << 1;

pub(crate) const OPT_EXPORT_NAME: u32 = 1;
pub(crate) const OPT_ABORT: u32 = 2;
pub(crate) const OPT_LIST: u32 = 3;
pub(crate) const OPT_STARTTLS: u32 = 5;
pub(crate) const OPT_GO: u32 = 7;
pub(crate) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(crate) const OPT_LIST_META_CONTEXT: u32 = 9;
pub(crate) const OPT_SET_META_CONTEXT: u32 = 10;
pub(crate) const OPT_EXTENDED_HEADERS: u32 = 11;

pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
/// Set in the type of an option reply that is an error.
pub(crate) const REP_ERROR: u32 = 1 << 31;
pub(crate) const REP_ERR_UNSUP: u32 = REP_ERROR | 1;

pub(crate) const INFO_EXPORT: u16 = 0;
pub(crate) const INFO_BLOCK_SIZE: u16 = 3;

pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(crate) const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
pub(crate) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(crate) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
pub(crate) const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// `NBD_REPLY_FLAG_DONE`: the last chunk of a reply.
pub(crate) const REPLY_DONE: u16 = 1 << 0;

pub(crate) const CHUNK_NONE: u16 = 0;
pub(crate) const CHUNK_OFFSET_DATA: u16 = 1;
pub(crate) const CHUNK_OFFSET_HOLE: u16 = 2;
pub(crate) const CHUNK_BLOCK_STATUS: u16 = 5;
/// With lengths of 64 bits.
pub(crate) const CHUNK_BLOCK_STATUS_EXT: u16 = 6;
/// Set in the type of a chunk that is an error.
pub(crate) const CHUNK_ERROR: u16 = 1 << 15;
pub(crate) const CHUNK_ERROR_OFFSET: u16 = CHUNK_ERROR | 2;

/// Transmission flags of an export (`NBD_FLAG_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransmissionFlags(pub u16);

impl TransmissionFlags {
    /// `NBD_FLAG_HAS_FLAGS`: the other flags are valid.
    pub const HAS_FLAGS: Self = Self(1 << 0);
    /// `NBD_FLAG_READ_ONLY`.
    pub const READ_ONLY: Self = Self(1 << 1);
    /// `NBD_FLAG_SEND_FLUSH`: FLUSH is supported.
    pub const SEND_FLUSH: Self = Self(1 << 2);
    /// `NBD_FLAG_SEND_FUA`: FUA is supported.
    pub const SEND_FUA: Self = Self(1 << 3);
    /// `NBD_FLAG_ROTATIONAL`.
    pub const ROTATIONAL: Self = Self(1 << 4);
    /// `NBD_FLAG_SEND_TRIM`: TRIM is supported.
    pub const SEND_TRIM: Self = Self(1 << 5);
    /// `NBD_FLAG_SEND_WRITE_ZEROES`: WRITE_ZEROES is supported.
    pub const SEND_WRITE_ZEROES: Self = Self(1 << 6);
    /// `NBD_FLAG_SEND_DF`: unfragmented replies are supported.
    pub const SEND_DF: Self = Self(1 << 7);
    /// `NBD_FLAG_CAN_MULTI_CONN`: flushed writes are visible on all connections.
    pub const CAN_MULTI_CONN: Self = Self(1 << 8);
    /// `NBD_FLAG_SEND_CACHE`: CACHE is supported.
    pub const SEND_CACHE: Self = Self(1 << 10);
    /// `NBD_FLAG_SEND_FAST_ZERO`: the FAST_ZERO command flag is supported.
    pub const SEND_FAST_ZERO: Self = Self(1 << 11);
    /// `NBD_FLAG_BLOCK_STAT_PAYLOAD`: BLOCK_STATUS may be asked for some of the contexts; only with extended headers.
    pub const BLOCK_STATUS_PAYLOAD: Self = Self(1 << 12);

    /// Whether all of `other` are set; always false without HAS_FLAGS.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & Self::HAS_FLAGS.0 != 0 && self.0 & other.0 == other.0
    }
}
