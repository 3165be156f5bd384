//! Requests as the link carries them: small whole traces, in hexadecimal digits.

use std::fmt::Write;
use ublk_trace::Record;
use ublk_trace::format::{Header, Reader, Writer};

/// Requests in one text: the longest text fits into a message twice.
pub const REQUESTS: usize = 1024;

/// Packs at most [`REQUESTS`] requests; those that make no sense are left out.
#[must_use]
pub fn pack(requests: &[Record]) -> String {
    let mut bytes = Vec::new();
    // A vector takes whatever is written.
    if let Ok(mut writer) = Writer::new(&mut bytes, &Header::default()) {
        for request in requests.iter().take(REQUESTS) {
            let _ = writer.push(request);
        }
        let _ = writer.finish();
    }
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Unpacks requests; `None` for a text that is no whole trace.
#[must_use]
pub fn unpack(text: &str) -> Option<Vec<Record>> {
    let digits = text.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes = digits.map(byte).collect::<Option<Vec<u8>>>()?;
    let mut reader = Reader::new(&bytes[..]).ok()?;
    let mut requests = Vec::new();
    while let Some(request) = reader.next_record().ok()? {
        requests.push(request);
    }
    reader.damage().is_none().then_some(requests)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::link::MAX_MESSAGE;
    use std::num::NonZeroU16;
    use ublk_trace::{MAX_END, MAX_TIME, Op};

    /// A request that differs from those of other numbers.
    pub(crate) fn record(n: u64) -> Record {
        Record {
            time: n * 1000,
            op: Op::ALL[usize::try_from(n % 8).unwrap()],
            offset: n * 4096,
            len: 4096,
            queue: 3,
            latency: Some(n),
            error: NonZeroU16::new(u16::from(n.is_multiple_of(5))),
        }
    }

    #[test]
    fn what_is_packed_comes_out_again() {
        let requests: Vec<Record> = (0..1024).map(record).collect();
        let text = pack(&requests);
        assert_eq!(unpack(&text), Some(requests));
        assert_eq!(unpack(&pack(&[])), Some(Vec::new()));
        for wrong in ["", "0", "zz", "00ff", &text[..text.len() - 2], "é"] {
            assert_eq!(unpack(wrong), None, "{}", wrong.len());
        }
    }

    /// Requests that take as many bytes as they can.
    #[test]
    fn two_texts_fit_into_a_message() {
        let far = |n: u64| Record {
            time: if n.is_multiple_of(2) { 0 } else { MAX_TIME },
            offset: if n.is_multiple_of(2) { 0 } else { MAX_END / 2 },
            len: if n.is_multiple_of(2) { MAX_END / 2 } else { 0 },
            latency: Some(MAX_TIME - n % 2),
            queue: if n.is_multiple_of(2) { 0 } else { u16::MAX },
            ..record(n)
        };
        let text = pack(&(0..1024).map(far).collect::<Vec<_>>());
        assert!(text.len() * 3 / 2 < MAX_MESSAGE, "{}", text.len());
    }
}
