//! Integrity constants that `ublk_param_integrity` takes from `linux/fs.h`.

uapi_consts! {
    /// The device can verify or generate protection information.
    pub const LBMD_PI_CAP_INTEGRITY: u32 = 1 << 0;
    /// Protection information has a reference tag.
    pub const LBMD_PI_CAP_REFTAG: u32 = 1 << 1;

    /// No checksum.
    pub const LBMD_PI_CSUM_NONE: u8 = 0;
    /// Internet checksum.
    pub const LBMD_PI_CSUM_IP: u8 = 1;
    /// CRC16 of T10 DIF.
    pub const LBMD_PI_CSUM_CRC16_T10DIF: u8 = 2;
    /// CRC64 of NVMe.
    pub const LBMD_PI_CSUM_CRC64_NVME: u8 = 4;
}
