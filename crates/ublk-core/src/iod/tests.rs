use super::*;

const BOUNDS: IoBounds = IoBounds {
    size: 1 << 20,
    max_io_bytes: 64 << 10,
};

fn desc(op_flags: u32, start_sector: u64, nr_sectors: u32) -> IoDesc {
    IoDesc {
        op_flags,
        nr_sectors,
        start_sector,
        addr: 0,
    }
}

/// L02 Sectors of a descriptor are 512 bytes on a device of any block size.
#[test]
fn l02_descriptor_counts_512_byte_sectors() {
    let io = desc(0, 8, 16).decode(&BOUNDS).expect("inside the device");
    assert_eq!((io.op, io.offset, io.len), (Op::Read, 4096, 8192));
}

/// L03 Data larger than the buffer behind a tag is refused.
#[test]
fn l03_more_data_than_the_tags_buffer_is_refused() {
    assert!(desc(1, 0, 128).decode(&BOUNDS).is_ok());
    assert_eq!(desc(1, 0, 129).decode(&BOUNDS), Err(Errno::EIO));
    // A discard carries no data, so the buffer does not bound it.
    assert!(desc(3, 0, 2048).decode(&BOUNDS).is_ok());
}

/// L12 Flags are absolute bits, not shifted ones.
#[test]
fn l12_flags_are_absolute_bits() {
    let io = desc(1 | IoFlags::FUA, 0, 8).decode(&BOUNDS).expect("valid");
    assert!(io.flags.fua() && !io.flags.no_unmap());
    let io = desc(5 | IoFlags::NOUNMAP, 0, 8)
        .decode(&BOUNDS)
        .expect("valid");
    assert!(io.flags.no_unmap() && !io.flags.fua());
}

/// L12 The bits are those of the driver's header.
#[test]
fn l12_flags_are_the_drivers() {
    use ublk_sys as sys;
    let failfast = sys::UBLK_IO_F_FAILFAST_DEV
        | sys::UBLK_IO_F_FAILFAST_TRANSPORT
        | sys::UBLK_IO_F_FAILFAST_DRIVER;
    assert_eq!(IoFlags::FAILFAST, failfast);
    assert_eq!(IoFlags::META, sys::UBLK_IO_F_META);
    assert_eq!(IoFlags::SWAP, sys::UBLK_IO_F_SWAP);
    assert_eq!(IoFlags::FUA, sys::UBLK_IO_F_FUA);
    assert_eq!(IoFlags::NOUNMAP, sys::UBLK_IO_F_NOUNMAP);
    let flags = IoFlags(sys::UBLK_IO_F_FAILFAST_TRANSPORT | sys::UBLK_IO_F_META);
    assert!(flags.failfast() && flags.meta() && !flags.swap());
    assert!(IoFlags(sys::UBLK_IO_F_SWAP).swap());
}

/// L13 Ranges near and past the end never wrap.
#[test]
fn l13_ranges_past_the_end_do_not_wrap() {
    assert!(desc(0, 2047, 1).decode(&BOUNDS).is_ok());
    assert_eq!(desc(0, 2047, 2).decode(&BOUNDS), Err(Errno::EIO));
    assert_eq!(desc(0, u64::MAX, 1).decode(&BOUNDS), Err(Errno::EIO));
    assert_eq!(desc(0, (1 << 55) + 1, 8).decode(&BOUNDS), Err(Errno::EIO));
    let huge = IoBounds {
        size: u64::MAX - 511,
        max_io_bytes: 64 << 10,
    };
    let last = u64::MAX / 512 - 1;
    assert!(desc(0, last, 1).decode(&huge).is_ok());
    assert!(desc(0, last, 2).decode(&huge).is_err());
}

#[test]
fn flush_has_no_range_and_unknown_ops_are_refused() {
    let io = desc(2, u64::MAX, 0)
        .decode(&BOUNDS)
        .expect("a flush has all ones as sector");
    assert_eq!((io.op, io.len), (Op::Flush, 0));
    for op in [4, 6, 9, 16, 17, 19, 255] {
        assert_eq!(
            desc(op, 0, 1).decode(&BOUNDS),
            Err(Errno::EOPNOTSUPP),
            "op {op}"
        );
    }
}

/// L03, L13 Zone operations are inside the device and the tag's buffer, too; their numbers are the driver's.
#[test]
fn l03_l13_operations_of_zones_are_bounded() {
    use ublk_sys as sys;
    let at = |op: u8, start, n| desc(op.into(), start, n).decode(&BOUNDS);
    let io = at(sys::UBLK_IO_OP_ZONE_APPEND, 1024, 8).expect("inside");
    assert_eq!(
        (io.op, io.offset, io.len),
        (Op::ZoneAppend, 512 << 10, 4096)
    );
    assert_eq!(at(sys::UBLK_IO_OP_ZONE_APPEND, 0, 129), Err(Errno::EIO));
    assert_eq!(at(sys::UBLK_IO_OP_ZONE_APPEND, 2047, 2), Err(Errno::EIO));
    let io = at(sys::UBLK_IO_OP_REPORT_ZONES, 1024, 1024).expect("64 KiB of zones");
    assert_eq!(
        (io.op, io.offset, io.len),
        (Op::ReportZones, 512 << 10, 64 << 10)
    );
    assert_eq!(at(sys::UBLK_IO_OP_REPORT_ZONES, 0, 1025), Err(Errno::EIO));
    assert_eq!(at(sys::UBLK_IO_OP_REPORT_ZONES, 2048, 1), Err(Errno::EIO));
    for (number, op) in [
        (sys::UBLK_IO_OP_ZONE_OPEN, Op::ZoneOpen),
        (sys::UBLK_IO_OP_ZONE_CLOSE, Op::ZoneClose),
        (sys::UBLK_IO_OP_ZONE_FINISH, Op::ZoneFinish),
        (sys::UBLK_IO_OP_ZONE_RESET, Op::ZoneReset),
    ] {
        let io = at(number, 1024, 0).expect("inside");
        assert_eq!((io.op, io.offset, io.len), (op, 512 << 10, 0));
        assert!(number == op as u8 && !op.has_data());
        assert_eq!(at(number, u64::MAX, 0), Err(Errno::EIO));
    }
    let io = at(sys::UBLK_IO_OP_ZONE_RESET_ALL, 77, 0).expect("no range");
    assert_eq!((io.op, io.offset, io.len), (Op::ZoneResetAll, 0, 0));
}

/// A device that is not zoned serves everything except zone operations.
#[test]
fn an_unzoned_device_serves_the_rest() {
    for op in 0..=255 {
        let desc = desc(op, 1024, 8);
        let served = match desc.decode(&BOUNDS) {
            Ok(io) if io.op.is_of_zones() => Err(Errno::EOPNOTSUPP),
            other => other,
        };
        assert_eq!(desc.decode_unzoned(&BOUNDS), served, "operation {op}");
    }
}

#[test]
fn an_append_lands_in_whole_sectors_behind_its_zones_start() {
    let io = |op, offset| Io {
        op,
        flags: IoFlags::default(),
        offset,
        len: 4096,
    };
    let append = io(Op::ZoneAppend, 1 << 20);
    assert_eq!(append.landed((1 << 20) + 512), Ok(2049));
    assert_eq!(io(Op::ZoneAppend, 0).landed(0), Ok(0));
    assert_eq!(append.landed((1 << 20) - 512), Err(Errno::EIO));
    assert_eq!(append.landed((1 << 20) + 1), Err(Errno::EIO));
    assert_eq!(append.landed(u64::MAX - 511), Err(Errno::EIO));
    assert_eq!(io(Op::Write, 0).landed(0), Err(Errno::EOPNOTSUPP));
}
