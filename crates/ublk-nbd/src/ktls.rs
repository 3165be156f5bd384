//! Kernel TLS (Documentation/networking/tls.rst): send and receive calls encrypt and decrypt records.
//!
//! The kernel gets one generation of keys. It returns a record that is not application data only to a receive that asks for
//! the record type; other receives fail with EIO. [`control`] then receives and interprets the record.
#![expect(
    unsafe_code,
    reason = "socket options and control messages without a safe wrapper"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustls::{AlertDescription, ConnectionTrafficSecrets, ExtractedSecrets, ProtocolVersion};
use zeroize::Zeroizing;

/// `TLS_TX`, `TLS_RX` (linux/tls.h).
const TLS_TX: libc::c_int = 1;
const TLS_RX: libc::c_int = 2;
/// `TLS_SET_RECORD_TYPE`, `TLS_GET_RECORD_TYPE`.
const SET_RECORD_TYPE: libc::c_int = 1;
const GET_RECORD_TYPE: libc::c_int = 2;
/// `TLS_CIPHER_AES_GCM_128`, `TLS_CIPHER_AES_GCM_256`, `TLS_CIPHER_CHACHA20_POLY1305`.
const AES_GCM_128: u16 = 51;
const AES_GCM_256: u16 = 52;
const CHACHA20_POLY1305: u16 = 54;

/// Record types (RFC 8446, B.1) and handshake message types (B.3).
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;

fn set(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).unwrap_or(0);
    let fd = socket.as_raw_fd();
    // SAFETY: the descriptor is open, and the kernel reads `len` bytes, all of `value`, during the call.
    match unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Prepares a connected TCP socket. Returns false, and changes nothing, if the kernel has no TLS. The kernel loads the
/// module if the caller has CAP_NET_ADMIN.
pub(crate) fn attach(socket: &impl AsFd) -> bool {
    set(socket.as_fd(), libc::SOL_TCP, libc::TCP_ULP, b"tls").is_ok()
}

/// Gives the session's keys to the kernel. Everything before the next record must have been sent and received.
///
/// # Errors
/// The kernel lacks the cipher. The connection is then unusable.
pub(crate) fn start(
    socket: &impl AsFd,
    version: Option<ProtocolVersion>,
    secrets: &ExtractedSecrets,
) -> io::Result<()> {
    let version = version.ok_or(io::ErrorKind::Unsupported)?;
    for (name, (sequence, keys)) in [(TLS_TX, &secrets.tx), (TLS_RX, &secrets.rx)] {
        let info = crypto_info(version, *sequence, keys).ok_or(io::ErrorKind::Unsupported)?;
        set(socket.as_fd(), libc::SOL_TLS, name, &info)?;
    }
    Ok(())
}

/// `struct tls12_crypto_info_*`: version, cipher, IV, key, salt, sequence number of the next record.
fn crypto_info(
    version: ProtocolVersion,
    sequence: u64,
    keys: &ConnectionTrafficSecrets,
) -> Option<Zeroizing<Vec<u8>>> {
    use ConnectionTrafficSecrets::{Aes128Gcm, Aes256Gcm, Chacha20Poly1305};
    let (cipher, key, iv) = match keys {
        Aes128Gcm { key, iv } => (AES_GCM_128, key, iv),
        Aes256Gcm { key, iv } => (AES_GCM_256, key, iv),
        Chacha20Poly1305 { key, iv } => (CHACHA20_POLY1305, key, iv),
        _ => return None,
    };
    let (salt, iv) = match cipher {
        CHACHA20_POLY1305 => iv.as_ref().split_at(0),
        _ => iv.as_ref().split_at(4),
    };
    let mut iv = iv.to_vec();
    if version == ProtocolVersion::TLSv1_2 && cipher != CHACHA20_POLY1305 {
        // The nonce is explicit here. The kernel increments it for each record, starting with this value; rustls has used
        // this value XORed with the sequence numbers so far. Flipping the highest bit prevents that a nonce repeats.
        *iv.first_mut()? ^= 0x80;
    }
    // Reserve all of it: a vector that grows leaves copies of the key behind.
    let mut info = Zeroizing::new(Vec::with_capacity(64));
    info.extend(u16::from(version).to_ne_bytes());
    info.extend(cipher.to_ne_bytes());
    info.extend(iv);
    info.extend(key.as_ref());
    info.extend(salt);
    info.extend(sequence.to_be_bytes());
    Some(info)
}

/// A record that is not application data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Control {
    /// Session tickets, which this client ignores because it resumes no session.
    Ticket,
    /// The session ended or cannot continue, with the reason.
    End(String),
}

/// Receives the record because of which a receive failed with EIO. `None` if there is none, so the error is a different one.
pub(crate) fn control(socket: BorrowedFd<'_>) -> Option<Control> {
    let mut data = [0_u8; 4096];
    let mut ancillary = Ancillary([0; 64]);
    let mut piece = libc::iovec {
        iov_base: data.as_mut_ptr().cast(),
        iov_len: data.len(),
    };
    // SAFETY: a C struct of integers and pointers, all of which may be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.0.as_mut_ptr().cast();
    message.msg_controllen = ancillary.0.len();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the descriptor is open; the message names arrays of this function by their lengths.
    let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let received = usize::try_from(received).ok()?;
    let kind = ancillary.record_type(message.msg_controllen)?;
    Some(meaning(kind, data.get(..received)?))
}

/// Room for a control message, aligned like its header.
#[repr(align(8))]
struct Ancillary([u8; 64]);

/// Size of `struct cmsghdr`: length, level, type.
const HEADER: usize = size_of::<libc::cmsghdr>();

impl Ancillary {
    /// The record type in a received control message of `len` bytes.
    fn record_type(&self, len: usize) -> Option<u8> {
        let written = self.0.get(..len)?;
        let (_, rest) = written.split_first_chunk::<{ size_of::<usize>() }>()?;
        let (level, rest) = rest.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let is = i32::from_ne_bytes(*level) == libc::SOL_TLS
            && i32::from_ne_bytes(*kind) == GET_RECORD_TYPE;
        rest.first().copied().filter(|_| is)
    }

    /// A control message that sets the type of the record to send, and its length.
    fn of(kind: u8) -> (Self, usize) {
        let len = HEADER + 1;
        let mut bytes = len.to_ne_bytes().to_vec();
        bytes.extend(libc::SOL_TLS.to_ne_bytes());
        bytes.extend(SET_RECORD_TYPE.to_ne_bytes());
        bytes.push(kind);
        let mut all = [0; 64];
        all.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        (Self(all), len)
    }
}

fn meaning(kind: u8, data: &[u8]) -> Control {
    let end = |text: String| Control::End(text);
    match (kind, data) {
        (ALERT, [_, 0, ..]) => end("the server closes the TLS session".to_owned()),
        (ALERT, [_, alert, ..]) => {
            let alert = AlertDescription::from(*alert);
            end(format!("the server ends the TLS session: {alert:?}"))
        }
        (HANDSHAKE, data) if tickets_only(data) => Control::Ticket,
        (HANDSHAKE, [KEY_UPDATE, ..]) => {
            end("the server changes its TLS keys, which takes a new session here".to_owned())
        }
        _ => end(format!(
            "a TLS record of type {kind} that has no place here"
        )),
    }
}

fn tickets_only(mut data: &[u8]) -> bool {
    let mut found = false;
    while let [NEW_SESSION_TICKET, a, b, c, rest @ ..] = data {
        let len = u32::from_be_bytes([0, *a, *b, *c]);
        let Some(rest) = usize::try_from(len).ok().and_then(|len| rest.get(len..)) else {
            return false;
        };
        (data, found) = (rest, true);
    }
    found && data.is_empty()
}

/// Sends a close_notify alert, if the socket accepts it at once.
pub(crate) fn close_notify(socket: BorrowedFd<'_>) {
    let mut alert = [1_u8, 0];
    let (mut ancillary, len) = Ancillary::of(ALERT);
    let mut piece = libc::iovec {
        iov_base: alert.as_mut_ptr().cast(),
        iov_len: alert.len(),
    };
    // SAFETY: a C struct of integers and pointers, all of which may be zero.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut piece;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.0.as_mut_ptr().cast();
    message.msg_controllen = len;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the descriptor is open; the message names arrays of this function by their lengths.
    let _ = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::cipher::{AeadKey, Iv};

    fn gcm() -> ConnectionTrafficSecrets {
        ConnectionTrafficSecrets::Aes256Gcm {
            key: AeadKey::from([7; 32]),
            iv: Iv::new([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
        }
    }

    /// The layout is that of linux/tls.h, and the nonce of TLS 1.2 differs from all that rustls used.
    #[test]
    fn keys_are_laid_out_as_the_kernel_takes_them() {
        let info = crypto_info(ProtocolVersion::TLSv1_3, 3, &gcm()).expect("known");
        let mut expected = vec![4, 3, 52, 0, 5, 6, 7, 8, 9, 10, 11, 12];
        expected.extend([7; 32]);
        expected.extend([1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 3]);
        assert_eq!(*info, expected);
        assert_eq!(info.len(), size_of::<libc::tls12_crypto_info_aes_gcm_256>());
        let info = crypto_info(ProtocolVersion::TLSv1_2, 3, &gcm()).expect("known");
        expected[0] = 3;
        expected[4] ^= 0x80;
        assert_eq!(*info, expected);
        let chacha = ConnectionTrafficSecrets::Chacha20Poly1305 {
            key: AeadKey::from([7; 32]),
            iv: Iv::new([9; 12]),
        };
        let info = crypto_info(ProtocolVersion::TLSv1_2, 1, &chacha).expect("known");
        let mut expected = vec![3, 3, 54, 0];
        expected.extend([9; 12]);
        expected.extend([7; 32]);
        expected.extend([0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(*info, expected);
        let size = size_of::<libc::tls12_crypto_info_chacha20_poly1305>();
        assert_eq!(info.len(), size);
    }

    #[test]
    fn records_that_are_no_data_have_a_meaning() {
        let text = |kind, data: &[u8]| match meaning(kind, data) {
            Control::End(text) => text,
            Control::Ticket => "ticket".to_owned(),
        };
        assert!(text(21, &[1, 0]).contains("closes"));
        assert!(text(21, &[2, 20]).contains("BadRecordMac"));
        assert!(text(22, &[24, 0, 0, 1, 0]).contains("keys"));
        assert_eq!(text(22, &[4, 0, 0, 2, 1, 1, 4, 0, 0, 0]), "ticket");
        for data in [&[4, 0, 0, 2, 1][..], &[4, 0, 0, 0, 24, 0, 0, 1, 0], &[]] {
            assert_ne!(text(22, data), "ticket", "{data:?}");
        }
    }

    #[test]
    fn a_type_is_read_where_the_kernel_writes_it() {
        let (mut sent, len) = Ancillary::of(21);
        assert_eq!(
            sent.record_type(len),
            None,
            "a type to send is no type received"
        );
        sent.0[12] = 2;
        assert_eq!(sent.record_type(len), Some(21));
        assert_eq!(sent.record_type(len - 1), None);
        assert_eq!(sent.record_type(65), None);
    }
}
