//! Extents of a BLOCK_STATUS reply.

use crate::bytes::Reader;
use crate::error::ProtocolError;

/// Most extents accepted in one chunk.
pub(crate) const MAX_EXTENTS: usize = 1 << 16;

/// Pairs of length in bytes and flags.
pub(crate) type Extents = Vec<(u64, u64)>;

/// A chunk of extents: its bytes after the header, and whether its lengths have 64 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chunk {
    pub(crate) len: u64,
    pub(crate) wide: bool,
    pub(crate) cookie: u64,
    /// Bytes of the range that was asked about.
    pub(crate) range: u64,
}

/// Parses a meta context id and extents; `None` until they are complete.
pub(crate) fn extents(
    reader: &mut Reader<'_>,
    chunk: Chunk,
) -> Result<Option<(u32, Extents)>, ProtocolError> {
    let Chunk { cookie, wide, .. } = chunk;
    let broken = |what| Err(ProtocolError::BrokenReply { cookie, what });
    let (head, size) = if wide { (8, 16) } else { (4, 8) };
    let len = usize::try_from(chunk.len).unwrap_or(usize::MAX);
    if len < head + size || !(len - head).is_multiple_of(size) {
        return broken("extents of an impossible length");
    }
    let count = (len - head) / size;
    if count > MAX_EXTENTS {
        return broken("too many extents");
    }
    let Some(body) = reader.take(len) else {
        return Ok(None);
    };
    let mut body = Reader(body);
    let context = body.u32().unwrap_or(0);
    if wide {
        // 0 says that the length of the chunk tells.
        let told = body.u32().unwrap_or(0);
        if told != 0 && usize::try_from(told).ok() != Some(count) {
            return broken("another number of extents than it says");
        }
    }
    let mut extents = Vec::with_capacity(count);
    let mut sum = 0_u64;
    for _ in 0..count {
        let one = match wide {
            true => body.u64().zip(body.u64()),
            false => body
                .u32()
                .zip(body.u32())
                .map(|(l, f)| (l.into(), f.into())),
        };
        let (length, flags): (u64, u64) = one.unwrap_or_default();
        // Only the last one may reach beyond the request.
        if length == 0 || sum >= chunk.range {
            return broken("an extent of no bytes, or beyond the request");
        }
        sum = sum.saturating_add(length);
        extents.push((length, flags));
    }
    Ok(Some((context, extents)))
}
