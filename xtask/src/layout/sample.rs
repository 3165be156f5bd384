//! Words that the header packs with inline functions: our values and C's for the same input.

use ublk_sys::offset::UserCopy;
use ublk_sys::ublk_auto_buf_reg;
use ublk_sys::word::ShmemAddr;

use super::header::Header;

/// One call and our result.
#[derive(Debug)]
pub struct Sample {
    /// A word that the headers must contain.
    pub needs: &'static str,
    /// The C expression.
    pub c: &'static str,
    /// Our value.
    pub ours: u64,
}

/// The samples that these headers can answer; each field has a distinct value.
pub fn samples(header: &Header) -> Vec<Sample> {
    let mut samples = Vec::new();
    let mut add = |needs, c, ours| samples.push(Sample { needs, c, ours });
    let reg = ublk_auto_buf_reg {
        index: 0x1234,
        flags: 0x56,
        reserved0: 0x78,
        reserved1: 0x9abc_def0,
    };
    add(
        "ublk_auto_buf_reg_to_sqe_addr",
        "ublk_auto_buf_reg_to_sqe_addr(&(struct ublk_auto_buf_reg){\
         .index = 0x1234, .flags = 0x56, .reserved0 = 0x78, .reserved1 = 0x9abcdef0})",
        reg.to_sqe_addr(),
    );
    let back = ublk_auto_buf_reg::from_sqe_addr(0xfedc_ba98_7654_3210);
    add(
        "ublk_sqe_addr_to_auto_buf_reg",
        "ublk_sqe_addr_to_auto_buf_reg(0xfedcba9876543210ULL).index",
        back.index.into(),
    );
    add(
        "ublk_sqe_addr_to_auto_buf_reg",
        "ublk_sqe_addr_to_auto_buf_reg(0xfedcba9876543210ULL).flags",
        back.flags.into(),
    );
    let place = ShmemAddr {
        index: 0xfedc,
        offset: 0x9876_5432,
    };
    add(
        "ublk_shmem_zc_addr",
        "ublk_shmem_zc_addr(0xfedc, 0x98765432)",
        place.encode(),
    );
    if let Ok(place) = ShmemAddr::decode(0xfedc_9876_5432) {
        let index = "ublk_shmem_zc_index(0xfedc98765432ULL)";
        add("ublk_shmem_zc_index", index, place.index.into());
        let offset = "ublk_shmem_zc_offset(0xfedc98765432ULL)";
        add("ublk_shmem_zc_offset", offset, place.offset.into());
    }
    let iod = ublk_sys::ublksrv_io_desc {
        op_flags: 0x0123_4567,
        ..ublk_sys::ublksrv_io_desc::ZERO
    };
    let op = "ublksrv_get_op(&(struct ublksrv_io_desc){.op_flags = 0x01234567})";
    add("ublksrv_get_op", op, iod.op().into());
    // Ours keeps the flags in their positions, like the constants (L12); C shifts them down.
    let flags = "ublksrv_get_flags(&(struct ublksrv_io_desc){.op_flags = 0x01234567}) << 8";
    add("ublksrv_get_flags", flags, iod.flags().into());
    let place = UserCopy {
        qid: 0xabc,
        tag: 0x1234,
        byte: 0x00ab_cdef,
        integrity: false,
    };
    if let Ok(position) = place.encode() {
        let c = "UBLKSRV_IO_BUF_OFFSET + (0xabcULL << UBLK_QID_OFF) + (0x1234ULL << UBLK_TAG_OFF) \
                 + (0xabcdefULL << UBLK_IO_BUF_OFF)";
        add("UBLK_QID_OFF", c, position);
    }
    samples.retain(|sample| header.has(sample.needs));
    samples
}
