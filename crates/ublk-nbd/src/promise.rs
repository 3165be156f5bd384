//! What a device has promised its users, and no later export of it may lack (L74).

use nbd_client::{Export, Framing, TransmissionFlags};
use ublk_core::{DeviceParams, Limits};

/// Longest TRIM and WRITE_ZEROES: the block layer splits longer ones.
const LONGEST: u64 = 1 << 30;

/// What a device has promised apart from its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Promise {
    /// Bytes of a block.
    block: u32,
    read_only: bool,
    /// The block layer sends FLUSH.
    cached: bool,
    /// Longest TRIM and WRITE_ZEROES in bytes; 0 for none.
    longest: u64,
    /// The commands and flags that it sends.
    needs: TransmissionFlags,
}

/// Longest TRIM and WRITE_ZEROES of a device with these blocks on this export, in bytes. A server that tells of its
/// maximum may refuse more. (With extended headers that is a maximum of data alone, but a device may get its next connection
/// without them.)
pub(crate) fn longest(export: &Export, block: u32) -> u64 {
    match export.block_sizes {
        None => LONGEST,
        Some(sizes) => LONGEST.min((sizes.maximum / block * block).into()),
    }
}

/// Longest TRIM and WRITE_ZEROES that a connection takes.
fn taken(now: &Export, block: u32) -> u64 {
    match now.framing {
        Framing::Extended => LONGEST,
        _ => longest(now, block),
    }
}

impl Promise {
    /// Of a device that is made with these limits.
    pub(crate) fn of_limits(limits: &Limits) -> Self {
        let (discard, zeroes) = (limits.max_discard, limits.max_write_zeroes);
        Self {
            block: limits.logical_block_size,
            read_only: limits.read_only,
            cached: limits.volatile_cache,
            longest: discard.max(zeroes),
            needs: needs(limits.volatile_cache, limits.fua, discard, zeroes),
        }
    }

    /// Of a device that exists.
    pub(crate) fn of_params(params: &DeviceParams) -> Self {
        let (discard, zeroes) = (params.max_discard, params.max_write_zeroes);
        Self {
            block: params.logical_block_size,
            read_only: params.read_only,
            cached: params.volatile_cache,
            longest: discard.max(zeroes),
            needs: needs(params.volatile_cache, params.fua, discard, zeroes),
        }
    }

    /// Why an export cannot serve the device, which has so many bytes, requests of at most `max_io` bytes, and maybe several
    /// connections.
    pub(crate) fn broken_by(
        &self,
        now: &Export,
        (size, max_io): (u64, u64),
        several: bool,
    ) -> Option<String> {
        if now.size < size {
            return Some(format!(
                "the export has {} bytes now, the device has {size}",
                now.size
            ));
        }
        if !self.read_only && now.flags.contains(TransmissionFlags::READ_ONLY) {
            return Some("the export is read-only now".to_owned());
        }
        let minimum = now.block_sizes.map_or(1, |sizes| sizes.minimum);
        if minimum > self.block {
            return Some(format!(
                "the export has a minimum block size of {minimum} bytes now, the device has blocks of {}",
                self.block
            ));
        }
        let maximum = now.block_sizes.map_or(u32::MAX, |sizes| sizes.maximum);
        if u64::from(maximum) < max_io {
            return Some(format!(
                "the server takes requests of at most {maximum} bytes now, the device sends {max_io}"
            ));
        }
        let taken = taken(now, self.block);
        if taken < self.longest {
            return Some(format!(
                "the server takes TRIM and WRITE_ZEROES of at most {taken} bytes now, the device sends {}",
                self.longest
            ));
        }
        let names = [
            (TransmissionFlags::SEND_FLUSH, "FLUSH"),
            (TransmissionFlags::SEND_FUA, "FUA"),
            (TransmissionFlags::SEND_TRIM, "TRIM"),
            (TransmissionFlags::SEND_WRITE_ZEROES, "WRITE_ZEROES"),
        ];
        let lost = |flag| self.needs.contains(flag) && !now.flags.contains(flag);
        if let Some((_, name)) = names.into_iter().find(|(flag, _)| lost(*flag)) {
            return Some(format!("the server does not offer {name} any more"));
        }
        // The block layer would never send FLUSH, and the server would keep what it was to have written.
        if !self.read_only && !self.cached && now.flags.contains(TransmissionFlags::SEND_FLUSH) {
            return Some(
                "the server has a write cache now, which the device was made without and never flushes"
                    .to_owned(),
            );
        }
        (several && !now.flags.contains(TransmissionFlags::CAN_MULTI_CONN))
            .then(|| "the server does not allow several connections any more".to_owned())
    }
}

fn needs(cached: bool, fua: bool, discard: u64, zeroes: u64) -> TransmissionFlags {
    let all = [
        (cached, TransmissionFlags::SEND_FLUSH),
        (fua, TransmissionFlags::SEND_FUA),
        (discard > 0, TransmissionFlags::SEND_TRIM),
        (zeroes > 0, TransmissionFlags::SEND_WRITE_ZEROES),
    ];
    let some = all.into_iter().filter(|(needed, _)| *needed);
    let none = TransmissionFlags::HAS_FLAGS.0;
    TransmissionFlags(some.fold(none, |sum, (_, flag)| sum | flag.0))
}

#[cfg(test)]
mod tests {
    use nbd_client::BlockSizes;

    use super::*;

    /// Of any flags, in all of those below.
    const SOME: u16 = 1;
    const FLUSH: u16 = 1 << 2;
    const FUA: u16 = 1 << 3;
    const TRIM: u16 = 1 << 5;
    const ZEROES: u16 = 1 << 6;
    const ALL: u16 = SOME | FLUSH | FUA | TRIM | ZEROES;

    fn export(flags: u16, maximum: u32) -> Export {
        let sizes = BlockSizes {
            minimum: 1,
            preferred: 4096,
            maximum,
        };
        Export {
            size: 1 << 30,
            flags: TransmissionFlags(flags),
            framing: Framing::Simple,
            block_sizes: Some(sizes),
            allocation: None,
            contexts: Vec::new(),
        }
    }

    fn promise(cached: bool) -> Promise {
        let mut limits = Limits::new(1 << 30);
        limits.volatile_cache = cached;
        limits.fua = cached;
        limits.max_discard = 32 << 20;
        limits.max_write_zeroes = 32 << 20;
        Promise::of_limits(&limits)
    }

    /// L74 What the block layer sends must be there, and a cache that it never flushes must not.
    #[test]
    fn l74_a_promise_is_kept_or_broken() {
        let broken = |promise: Promise, flags: u16, maximum: u32| {
            let device = (1 << 30, 1 << 20);
            let why = promise.broken_by(&export(flags, maximum), device, false);
            why.unwrap_or_default()
        };
        let with = |flags| broken(promise(true), flags, 32 << 20);
        assert_eq!(with(ALL), "");
        for (flag, name) in [
            (FLUSH, "FLUSH"),
            (FUA, "FUA"),
            (TRIM, "TRIM"),
            (ZEROES, "WRITE_ZEROES"),
        ] {
            let why = with(ALL & !flag);
            assert!(why.contains(name), "{name}: {why}");
        }
        assert!(with(ALL | 2).contains("read-only"));
        assert!(broken(promise(true), ALL, 16 << 20).contains("TRIM"));
        // Its maximum is then one of data.
        let mut extended = export(ALL, 16 << 20);
        extended.framing = Framing::Extended;
        let device = (1 << 30, 1 << 20);
        assert_eq!(promise(true).broken_by(&extended, device, false), None);
        assert!(broken(promise(true), ALL, 64 << 10).contains("at most 65536"));
        assert_eq!(broken(promise(false), SOME | TRIM | ZEROES, 32 << 20), "");
        assert!(broken(promise(false), ALL, 32 << 20).contains("write cache"));
    }
}
