use super::*;
use crate::{Checksum, Integrity, Zones};

const PAGE: u32 = 4096;
const GIB: u64 = 1 << 30;

fn spec() -> DeviceSpec {
    DeviceSpec::new(Limits::new(GIB))
}

fn limits(change: impl FnOnce(&mut Limits)) -> Result<CheckedSpec, SpecError> {
    let mut spec = spec();
    change(&mut spec.limits);
    spec.check(PAGE)
}

fn refused(result: Result<CheckedSpec, SpecError>) -> String {
    result.expect_err("refused").to_string()
}

#[test]
fn defaults_pass_and_become_the_request() {
    let info = spec().server_flags(7).check(PAGE).unwrap().dev_info();
    assert_eq!((info.nr_hw_queues, info.queue_depth), (1, 128));
    assert_eq!((info.max_io_buf_bytes, info.io_desc_size), (1_048_576, 24));
    assert_eq!((info.dev_id, info.ublksrv_flags), (u32::MAX, 7));
    let id = DevId::new(5).unwrap();
    assert_eq!(spec().id(id).check(PAGE).unwrap().dev_info().dev_id, 5);
}

#[test]
fn depth_and_queues_are_1_to_4096() {
    for good in [1, 4096] {
        assert!(spec().depth(good).queues(good).check(PAGE).is_ok());
    }
    for bad in [0, 4097, u16::MAX] {
        let message = refused(spec().depth(bad).check(PAGE));
        assert!(message.starts_with(&format!("depth {bad} is outside 1 to 4096")));
        let message = refused(spec().queues(bad).check(PAGE));
        assert!(message.starts_with(&format!("queues {bad} is outside 1 to 4096")));
    }
}

/// L03 No buffer is larger than an offset can express, or smaller than a page.
#[test]
fn l03_largest_io_is_a_page_to_32_mib() {
    for good in [PAGE, 512 << 10, MAX_IO_BYTES] {
        assert!(spec().max_io_bytes(good).check(PAGE).is_ok(), "{good}");
    }
    for bad in [0, 512, PAGE - 1, PAGE + 512, MAX_IO_BYTES + PAGE, u32::MAX] {
        let message = refused(spec().max_io_bytes(bad).check(PAGE));
        assert!(message.contains(&format!("largest I/O {bad}")), "{message}");
    }
    assert!(spec().max_io_bytes(PAGE).check(65536).is_err());
}

/// L13 Zero, odd and excessive sizes are refused; the largest valid one is accepted.
#[test]
fn l13_sizes() {
    assert!(refused(limits(|l| l.size = 0)).contains("size 0"));
    assert!(refused(limits(|l| l.size = 1 << 63)).contains("8 EiB"));
    assert!(refused(limits(|l| l.size = u64::MAX)).contains("18446744073709551615"));
    let message = refused(limits(|l| l.size = 1000));
    assert!(message.contains("1000 is not a multiple of the block size 512"));
    assert!(message.contains("to 512,"), "{message}");
    assert!(limits(|l| *l = Limits::new(512 * 9).block_size(4096)).is_err());
    let largest = i64::MAX as u64 - 511;
    let checked = limits(|l| l.size = largest).unwrap();
    let params = checked.params(&geometry(&checked, 524_288)).unwrap();
    assert_eq!(params.basic.dev_sectors, largest / 512);
}

#[test]
fn block_sizes() {
    for good in [512, 1024, 2048, 4096] {
        assert!(limits(|l| *l = l.block_size(good)).is_ok(), "{good}");
    }
    for bad in [0, 1, 256, 513, 1536, 8192, 1 << 31] {
        let message = refused(limits(|l| l.logical_block_size = bad));
        assert!(message.starts_with(&format!("logical block size {bad} is not")));
    }
    let big = DeviceSpec::new(Limits::new(GIB).block_size(65536)).max_io_bytes(65536);
    assert!(big.check(65536).is_ok());
    for bad in [0, 256, 4097, 1 << 29] {
        let message = refused(limits(|l| l.physical_block_size = bad));
        assert!(message.starts_with(&format!("physical block size {bad}")));
    }
    assert!(limits(|l| l.physical_block_size = 1 << 28).is_ok());
    for bad in [1, 512, 5000, 1 << 29] {
        let message = refused(limits(|l| l.optimal_io_size = bad));
        assert!(message.starts_with(&format!("optimal I/O size {bad}")));
    }
    assert!(limits(|l| l.optimal_io_size = 1 << 20).is_ok());
}

/// L12 Discard limits and granularity agree with each other and with the block size.
#[test]
fn l12_discard_rules() {
    assert!(limits(|l| *l = l.discard(GIB, 0)).is_ok());
    assert!(limits(|l| *l = l.discard(u64::MAX, 1 << 20)).is_ok());
    for bad in [1, 256, 513, 1000] {
        let message = refused(limits(|l| *l = l.discard(GIB, bad)));
        assert!(message.starts_with(&format!("discard granularity {bad}")));
    }
    let message = refused(limits(|l| *l = l.discard(4096, 8192)));
    assert!(message.contains("limit 4096 is below its granularity 8192"));
    assert!(refused(limits(|l| *l = l.discard(100, 0))).contains("granularity 512"));
    let message = refused(limits(|l| *l = l.block_size(4096).write_zeroes(512)));
    assert!(message.contains("512 is below one block of 4096"));
    assert!(refused(limits(|l| *l = l.volatile_cache(false).fua(true))).contains("FUA"));
    assert!(limits(|l| *l = l.fua(true)).is_ok());
}

/// Zones are checked against the rules of driver and block layer, and set the feature.
#[test]
fn zones_are_checked() {
    const MIB: u64 = 1 << 20;
    let zoned = |zones| {
        let limits = Limits::new(64 * MIB).block_size(4096).zones(zones);
        DeviceSpec::new(limits).features(Features::USER_COPY)
    };
    let good = Zones::new(MIB, 65536);
    let checked = zoned(good.at_once(3, 4)).check(PAGE).unwrap();
    assert!(checked.spec().features.contains(Features::ZONED));
    assert!(zoned(good.at_once(64, 0)).check(PAGE).is_ok());
    for (zones, what) in [
        (Zones::new(MIB + 4096, 4096), "zone size 1052672"),
        (Zones::new(2048, 2048), "zone size 2048"),
        (Zones::new(MIB, 0), "largest append 0"),
        (Zones::new(MIB, 512), "largest append 512"),
        (Zones::new(65536, 131_072), "largest append 131072"),
        (good.at_once(65, 0), "at once 65"),
        (good.at_once(5, 4), "open zones at once 5"),
    ] {
        let message = refused(zoned(zones).check(PAGE));
        assert!(message.contains(what), "{message}");
    }
    let mut both = zoned(good);
    both.limits.chunk_size = 65536;
    assert!(refused(both.check(PAGE)).contains("chunk size 65536"));
    // A mode in which the driver copies data cannot report the position of an append.
    let copied = zoned(good).features(Features::NONE);
    assert!(refused(copied.check(PAGE)).contains("needs USER_COPY"));
    let mut without = zoned(good);
    without.features = Features::USER_COPY;
    assert!(refused(without.check(PAGE)).contains("both or neither"));
}

/// Metadata sets the feature and is sent; what the driver does not check together with zones is refused.
#[test]
fn metadata_is_checked() {
    let limits = |integrity| Limits::new(1 << 20).block_size(4096).integrity(integrity);
    let crc16 = Integrity::new(Checksum::Crc16, 8);
    let copied = |limits| DeviceSpec::new(limits).features(Features::USER_COPY);
    let checked = copied(limits(crc16)).check(PAGE).unwrap();
    assert!(checked.spec().features.contains(Features::INTEGRITY));
    let sent = crate::params::encode(&limits(crc16), 65536);
    assert_eq!((sent.types, sent.integrity.interval_exp), (1 | 1 << 6, 12));
    let message = refused(DeviceSpec::new(limits(crc16)).check(PAGE));
    assert!(message.contains("needs USER_COPY"), "{message}");
    let message = refused(copied(limits(Integrity::new(Checksum::Ip, 4))).check(PAGE));
    assert!(message.contains("integrity metadata 4"), "{message}");
    let zones = Zones::new(65536, 65536);
    let message = refused(copied(limits(crc16).zones(zones)).check(PAGE));
    assert!(message.contains("zoned device has no"), "{message}");
    let mut without = copied(limits(crc16));
    without.features = Features::USER_COPY;
    assert!(refused(without.check(PAGE)).contains("declare metadata"));
}

#[test]
fn feature_combinations() {
    type F = Features;
    let good = [
        F::USER_RECOVERY,
        F::USER_RECOVERY | F::USER_RECOVERY_REISSUE | F::QUIESCE,
        F::USER_RECOVERY | F::USER_RECOVERY_FAIL_IO,
        F::UNPRIVILEGED_DEV | F::BATCH_IO,
        F::SUPPORT_ZERO_COPY | F::USER_COPY | F::AUTO_BUF_REG,
        F::NEED_GET_DATA,
        Features::from_bits(1 << 60),
    ];
    for features in good {
        assert!(spec().features(features).check(PAGE).is_ok(), "{features}");
    }
    let bad = [
        (F::USER_RECOVERY_REISSUE, "needs USER_RECOVERY"),
        (F::USER_RECOVERY_FAIL_IO, "needs USER_RECOVERY"),
        (F::QUIESCE, "needs USER_RECOVERY"),
        (F::INTEGRITY, "needs USER_COPY"),
        (F::ZONED, "needs USER_COPY or SUPPORT_ZERO_COPY"),
        (
            F::ZONED | F::USER_COPY,
            "requires limits that declare zones",
        ),
        (
            F::INTEGRITY | F::USER_COPY,
            "requires limits that declare metadata",
        ),
        (
            F::USER_RECOVERY | F::USER_RECOVERY_REISSUE | F::USER_RECOVERY_FAIL_IO,
            "exclude each other",
        ),
        (F::UNPRIVILEGED_DEV | F::USER_COPY, "exclude each other"),
        (F::UNPRIVILEGED_DEV | F::SUPPORT_ZERO_COPY, "exclude"),
        (F::UNPRIVILEGED_DEV | F::AUTO_BUF_REG, "exclude"),
        (F::UNPRIVILEGED_DEV | F::USER_RECOVERY, "exclude"),
        (F::NEED_GET_DATA | F::USER_COPY, "exclude each other"),
        (F::NEED_GET_DATA | F::BATCH_IO, "exclude each other"),
    ];
    for (features, what) in bad {
        let message = refused(spec().features(features).check(PAGE));
        assert!(message.contains(what), "{features}: {message}");
    }
}

fn geometry(checked: &CheckedSpec, max_io_buf_bytes: u32) -> Geometry {
    Geometry::from_reply(&ublksrv_ctrl_dev_info {
        dev_id: 0,
        max_io_buf_bytes,
        ..checked.dev_info()
    })
    .unwrap()
}

/// L04 Parameters follow the kernel's buffer size, not the requested one.
#[test]
fn l04_parameters_follow_the_reply() {
    let checked = spec().check(PAGE).unwrap();
    let params = checked.params(&geometry(&checked, 65536)).unwrap();
    assert_eq!(params.basic.max_sectors, 128);
    assert!(checked.params(&geometry(&checked, 64 << 20)).is_err());
    assert!(checked.params(&geometry(&checked, 512)).is_err());
}

#[test]
fn what_the_kernel_dropped_is_told() {
    let asked = Features::UNPRIVILEGED_DEV | Features::NEED_GET_DATA;
    let checked = spec().features(asked).check(PAGE).unwrap();
    let made = Geometry::from_reply(&ublksrv_ctrl_dev_info {
        dev_id: 0,
        flags: Features::NEED_GET_DATA.bits(),
        ..checked.dev_info()
    })
    .unwrap();
    assert_eq!(checked.refused(&made), Features::UNPRIVILEGED_DEV);
}

/// Memory alignment and segments are checked, and sent only if requests are passed on to a file: otherwise they would
/// only turn clients away.
#[test]
fn memory_limits_are_sent_in_zero_copy_only() {
    for bad in [3, 513, 8192, 1 << 31] {
        let message = refused(limits(|l| l.dma_alignment = bad));
        assert!(
            message.contains(&format!("memory alignment {bad} ")),
            "{message}"
        );
    }
    let message = refused(limits(|l| l.max_segment_size = 4095));
    assert!(message.contains("longest segment 4095"), "{message}");
    for (features, sent) in [
        (Features::NONE, 0),
        (Features::USER_COPY, 0),
        (Features::SUPPORT_ZERO_COPY, 0x30),
        (Features::AUTO_BUF_REG, 0x30),
    ] {
        let mut spec = spec().features(features);
        spec.limits = spec.limits.memory(512, 8, 65536);
        let checked = spec.check(PAGE).unwrap();
        let params = checked.params(&geometry(&checked, 524_288)).unwrap();
        assert_eq!(params.types & 0x30, sent, "{features}");
    }
}

/// L12 Boundaries are checked, and sent in the driver's units: masks, sectors, bytes, shifts.
#[test]
fn l12_boundaries_are_checked_and_sent() {
    for (bad, name) in [
        (limits(|l| l.minimum_io_size = 3000), "minimum I/O size"),
        (limits(|l| l.minimum_io_size = 256), "minimum I/O size"),
        (limits(|l| l.chunk_size = 700), "chunk size"),
        (limits(|l| l.segment_boundary = 2048), "segment boundary"),
        (limits(|l| l.segment_boundary = 5000), "segment boundary"),
        (limits(|l| l.virtual_boundary = 5000), "virtual boundary"),
        (
            limits(|l| (l.virtual_boundary, l.max_segment_size) = (4096, 65536)),
            "virtual boundary",
        ),
        (limits(|l| l.discard_alignment = 100), "discard alignment"),
        (limits(|l| l.discard_alignment = 4096), "discard alignment"),
    ] {
        let message = refused(bad);
        assert!(message.starts_with(name), "{message}");
    }
    let mut spec = spec();
    spec.limits.minimum_io_size = 16384;
    spec.limits.chunk_size = 1 << 20;
    spec.limits.virtual_boundary = 4096;
    spec.limits.segment_boundary = 65536;
    spec.limits.memory_in_every_mode = true;
    spec.limits.max_discard = 1 << 20;
    spec.limits.discard_granularity = 65536;
    spec.limits.discard_alignment = 4096;
    let checked = spec.check(PAGE).unwrap();
    let params = checked.params(&geometry(&checked, 524_288)).unwrap();
    assert_eq!(params.basic.io_min_shift, 14);
    assert_eq!(params.basic.chunk_sectors, 2048);
    assert_eq!(params.basic.virt_boundary_mask, 4095);
    assert_eq!(params.discard.discard_alignment, 4096);
    assert_ne!(params.types & ublk_sys::UBLK_PARAM_TYPE_SEGMENT, 0);
    assert_eq!(params.seg.seg_boundary_mask, 65535);
}

/// Wider descriptors are requested with their feature, and only in sizes that the driver has.
#[test]
fn descriptors_have_a_size_of_the_drivers() {
    let spec = || DeviceSpec::new(Limits::new(1 << 20));
    for bytes in [24, 32, 64, 256] {
        let checked = spec().descriptor_bytes(bytes).check(4096).unwrap();
        assert_eq!(checked.dev_info().io_desc_size, bytes);
        let wide = checked.spec().features.contains(Features::IO_DESC_SIZE);
        assert_eq!(wide, bytes != 24);
    }
    for bytes in [0, 8, 28, 264, u16::MAX] {
        let refused = spec().descriptor_bytes(bytes).check(4096);
        assert_eq!(refused, Err(SpecError::DescriptorSize { bytes }));
    }
    let mut bare = spec();
    bare.descriptor_bytes = 64;
    assert!(bare.check(4096).is_err(), "without the feature");
}
