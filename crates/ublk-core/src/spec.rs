//! The parameters of a new device, checked against the kernel's rules before the kernel sees them.

use crate::{DevId, Features, Geometry, IntegrityRule, Limits, params};
use ublk_sys::{ublk_params, ublksrv_ctrl_dev_info};

/// Maximum size of a tag's buffer: a byte offset into it has 25 bits in the user-copy offset. The driver itself accepts
/// more, and data would end up in the next tag's buffer.
pub const MAX_IO_BYTES: u32 = 32 << 20;

/// Maximum number of hw queues, and of tags per queue, that the driver accepts.
pub const MAX_QUEUES_OR_DEPTH: u16 = 4096;

/// The size of an I/O descriptor in bytes without [`Features::IO_DESC_SIZE`].
const DESCRIPTOR: u16 = 24;

#[cfg(feature = "serde")]
const fn usual_descriptor() -> u16 {
    DESCRIPTOR
}

/// The dev_id that requests the lowest free number (`-1` in C).
const ANY_ID: u32 = u32::MAX;

/// Maximum shift for block and I/O sizes (checked by the kernel since Linux 7.0).
const MAX_SHIFT: u32 = 28;

/// Minimum value of the maximum segment size for driver and block layer.
const MIN_SEGMENT: u32 = 4096;

/// A device to be created: the input of ADD_DEV and SET_PARAMS. Plain data; [`DeviceSpec::check`] makes it usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct DeviceSpec {
    /// The device number, or `None` for the lowest free one.
    pub id: Option<DevId>,
    /// Number of hw queues, 1 to 4096. The kernel grants at most one per CPU.
    pub queues: u16,
    /// Tags per queue, that is requests in flight: 1 to 4096.
    pub depth: u16,
    /// Size of each tag's buffer in bytes, and so of the largest request: whole pages up to 32 MiB.
    pub max_io_bytes: u32,
    /// Requested features.
    pub features: Features,
    /// Size of an I/O descriptor in bytes: 24, or with [`Features::IO_DESC_SIZE`] a multiple of 8 up to 256 (Linux 7.3).
    /// The driver fills the first 24 bytes and reserves the rest for fields of later kernels.
    #[cfg_attr(feature = "serde", serde(default = "usual_descriptor"))]
    pub descriptor_bytes: u16,
    /// A word that the kernel stores for the server (`ublksrv_flags`): a nonce that identifies the owner.
    pub server_flags: u64,
    /// The backend's limits.
    pub limits: Limits,
    /// Creates the device even if the kernel's release is known for a crash in ADD_DEV
    /// ([`Fault::AddCrashes`](crate::kernel::Fault)): for kernels that are known to be patched.
    #[cfg_attr(feature = "serde", serde(default))]
    pub trust_kernel: bool,
}

impl DeviceSpec {
    /// A device with these limits and defaults: any number, one queue of 128 tags, requests up to 1 MiB, no features
    /// except ZONED and INTEGRITY where the limits need them, no nonce.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self {
            id: None,
            queues: 1,
            depth: 128,
            max_io_bytes: 1 << 20,
            features: Self::of_limits(&limits, Features::NONE),
            descriptor_bytes: DESCRIPTOR,
            server_flags: 0,
            limits,
            trust_kernel: false,
        }
    }

    /// Requests descriptors of this many bytes, and the feature that they need. A kernel before 7.3 does not grant it.
    #[must_use]
    pub const fn descriptor_bytes(mut self, bytes: u16) -> Self {
        self.descriptor_bytes = bytes;
        if bytes != DESCRIPTOR {
            self.features = self.features.with(Features::IO_DESC_SIZE);
        }
        self
    }

    /// Requests a device number instead of the lowest free one.
    #[must_use]
    pub const fn id(mut self, id: DevId) -> Self {
        self.id = Some(id);
        self
    }

    /// Sets the number of hw queues.
    #[must_use]
    pub const fn queues(mut self, queues: u16) -> Self {
        self.queues = queues;
        self
    }

    /// Sets the number of tags per queue.
    #[must_use]
    pub const fn depth(mut self, depth: u16) -> Self {
        self.depth = depth;
        self
    }

    /// Sets the size of the largest request in bytes.
    #[must_use]
    pub const fn max_io_bytes(mut self, bytes: u32) -> Self {
        self.max_io_bytes = bytes;
        self
    }

    /// Sets the requested features, replacing earlier ones; ZONED and INTEGRITY stay set if the limits need them.
    #[must_use]
    pub const fn features(mut self, features: Features) -> Self {
        self.features = Self::of_limits(&self.limits, features);
        self
    }

    /// Adds the features that these limits need.
    const fn of_limits(limits: &Limits, mut features: Features) -> Features {
        if limits.zones.is_some() {
            features = features.with(Features::ZONED);
        }
        if limits.integrity.is_some() {
            features = features.with(Features::INTEGRITY);
        }
        features
    }

    /// Sets the server's word, a nonce.
    #[must_use]
    pub const fn server_flags(mut self, word: u64) -> Self {
        self.server_flags = word;
        self
    }

    /// Creates the device even if the kernel's release is known for a crash in ADD_DEV.
    #[must_use]
    pub const fn trust_kernel(mut self, trust: bool) -> Self {
        self.trust_kernel = trust;
        self
    }

    /// Checks everything that the kernel would refuse, and what old kernels accept but serve wrongly. `page_size` is
    /// the machine's (`sysconf(_SC_PAGESIZE)`), in bytes.
    ///
    /// # Errors
    /// The first broken rule, with the value, the rule, and what to do.
    pub fn check(self, page_size: u32) -> Result<CheckedSpec, SpecError> {
        let count = |what, value: u16| {
            if (1..=MAX_QUEUES_OR_DEPTH).contains(&value) {
                Ok(())
            } else {
                Err(SpecError::Count { what, value })
            }
        };
        count("depth", self.depth)?;
        count("queues", self.queues)?;
        check_max_io(self.max_io_bytes, page_size)?;
        check_limits(&self.limits, page_size)?;
        check_zones(&self.limits)?;
        check_integrity(&self.limits)?;
        check_features(self.features)?;
        let wide = self.features.contains(Features::IO_DESC_SIZE);
        let bytes = self.descriptor_bytes;
        if !(DESCRIPTOR..=256).contains(&bytes)
            || !bytes.is_multiple_of(8)
            || (bytes != DESCRIPTOR && !wide)
        {
            return Err(SpecError::DescriptorSize { bytes });
        }
        if self.limits.zones.is_some() != self.features.contains(Features::ZONED) {
            return Err(SpecError::Undeclared);
        }
        if self.limits.integrity.is_some() != self.features.contains(Features::INTEGRITY) {
            return Err(SpecError::UndeclaredIntegrity);
        }
        Ok(CheckedSpec {
            spec: self,
            page_size,
        })
    }
}

fn check_max_io(bytes: u32, page_size: u32) -> Result<(), SpecError> {
    if bytes < page_size || bytes > MAX_IO_BYTES || !bytes.is_multiple_of(page_size) {
        return Err(SpecError::MaxIo { bytes, page_size });
    }
    Ok(())
}

fn check_limits(limits: &Limits, page_size: u32) -> Result<(), SpecError> {
    let block = limits.logical_block_size;
    if !block.is_power_of_two() || block < 512 || block > page_size {
        return Err(SpecError::BlockSize { block, page_size });
    }
    let physical = limits.physical_block_size;
    if !physical.is_power_of_two() || physical < block || physical > 1 << MAX_SHIFT {
        return Err(SpecError::PhysicalBlockSize { physical, block });
    }
    let optimal = limits.optimal_io_size;
    if optimal != 0
        && (!optimal.is_power_of_two() || optimal < physical || optimal > 1 << MAX_SHIFT)
    {
        return Err(SpecError::OptimalIo { optimal, physical });
    }
    let size = limits.size;
    if size == 0 {
        return Err(SpecError::SizeZero { block });
    }
    if size > i64::MAX.unsigned_abs() {
        return Err(SpecError::SizeTooLarge { size });
    }
    if !size.is_multiple_of(block.into()) {
        let down = size - size % u64::from(block);
        return Err(SpecError::SizeNotBlocks { size, block, down });
    }
    let granularity = limits.discard_granularity;
    if granularity != 0 && (!granularity.is_power_of_two() || granularity < block) {
        return Err(SpecError::DiscardGranularity { granularity, block });
    }
    let least = u64::from(granularity.max(block));
    if limits.max_discard != 0 && limits.max_discard < least {
        return Err(SpecError::DiscardTooSmall {
            max: limits.max_discard,
            least,
        });
    }
    if limits.max_write_zeroes != 0 && limits.max_write_zeroes < u64::from(block) {
        return Err(SpecError::WriteZeroesTooSmall {
            max: limits.max_write_zeroes,
            block,
        });
    }
    if limits.fua && !limits.volatile_cache {
        return Err(SpecError::FuaWithoutCache);
    }
    let alignment = limits.dma_alignment;
    if alignment != 0 && (!alignment.is_power_of_two() || alignment > page_size) {
        return Err(SpecError::DmaAlignment {
            alignment,
            page_size,
        });
    }
    let bytes = limits.max_segment_size;
    if bytes != 0 && bytes < MIN_SEGMENT.max(page_size) {
        return Err(SpecError::SegmentSize {
            bytes,
            least: MIN_SEGMENT.max(page_size),
        });
    }
    check_boundaries(limits)
}

/// Checks the boundaries at which requests and their memory are split.
fn check_boundaries(limits: &Limits) -> Result<(), SpecError> {
    let block = limits.logical_block_size;
    let refused = |name, bytes: u64, rule| Err(SpecError::Boundary { name, bytes, rule });
    let minimum = limits.minimum_io_size;
    if minimum != 0 && (!minimum.is_power_of_two() || minimum < block || minimum > 1 << 28) {
        let rule = "a power of two from the logical block size up to 256 MiB";
        return refused("minimum I/O size", minimum.into(), rule);
    }
    let chunk = limits.chunk_size;
    if !chunk.is_multiple_of(block) {
        return refused("chunk size", chunk.into(), "whole logical blocks");
    }
    let boundary = limits.segment_boundary;
    if boundary != 0 && (!boundary.is_power_of_two() || boundary < MIN_SEGMENT.into()) {
        let rule = "a power of two from 4096 on";
        return refused("segment boundary", boundary, rule);
    }
    let boundary = limits.virtual_boundary;
    if boundary != 0 && (!boundary.is_power_of_two() || limits.max_segment_size != 0) {
        let rule = "a power of two, without a limit on the segment size";
        return refused("virtual boundary", boundary.into(), rule);
    }
    let alignment = limits.discard_alignment;
    let below = limits.discard_granularity.max(block);
    if !alignment.is_multiple_of(block) || (alignment != 0 && alignment >= below) {
        let rule = "whole logical blocks below the granularity of discard";
        return refused("discard alignment", alignment.into(), rule);
    }
    Ok(())
}

/// Checks the rules for zones of the driver, and of the block layer when the device starts.
fn check_zones(limits: &Limits) -> Result<(), SpecError> {
    let Some(zones) = limits.zones else {
        return Ok(());
    };
    let block = u64::from(limits.logical_block_size);
    let refused = |name, value, rule| Err(SpecError::Zones { name, value, rule });
    if !zones.size.is_power_of_two() || zones.size < block || zones.size / 512 > 1 << 31 {
        let rule = "a power of two from the logical block size to 1 TiB";
        return refused("zone size", zones.size, rule);
    }
    if limits.chunk_size != 0 {
        return refused(
            "chunk size",
            limits.chunk_size.into(),
            "0: zones are the chunks",
        );
    }
    let append = u64::from(zones.max_append);
    if append < block || append > zones.size || !append.is_multiple_of(block) {
        let rule = "whole logical blocks, not 0 and not above the zone size";
        return refused("largest append", append, rule);
    }
    // The driver rounds down: a shorter last zone does not count.
    let count = limits.size / zones.size;
    if u64::from(zones.max_open.max(zones.max_active)) > count {
        let most = zones.max_open.max(zones.max_active);
        let rule = "at most the number of whole zones, or 0 for no limit";
        return refused("open or active zones at once", most.into(), rule);
    }
    if zones.max_active != 0 && zones.max_open > zones.max_active {
        let rule = "at most the number of active zones";
        return refused("open zones at once", zones.max_open.into(), rule);
    }
    Ok(())
}

/// Checks the rules for metadata, which the driver does not check on a zoned device.
fn check_integrity(limits: &Limits) -> Result<(), SpecError> {
    let Some(integrity) = &limits.integrity else {
        return Ok(());
    };
    if limits.zones.is_some() {
        return Err(SpecError::IntegrityWithZones);
    }
    integrity.check(limits.logical_block_size)?;
    Ok(())
}

/// Combinations that the driver refuses with EINVAL, or accepts and ignores.
fn check_features(asked: Features) -> Result<(), SpecError> {
    type F = Features;
    let needs: [(F, F, &str); 5] = [
        (F::USER_RECOVERY_REISSUE, F::USER_RECOVERY, "USER_RECOVERY"),
        (F::USER_RECOVERY_FAIL_IO, F::USER_RECOVERY, "USER_RECOVERY"),
        (F::QUIESCE, F::USER_RECOVERY, "USER_RECOVERY"),
        (F::INTEGRITY, F::USER_COPY, "USER_COPY"),
        (
            F::ZONED,
            F::USER_COPY | F::SUPPORT_ZERO_COPY,
            "USER_COPY or SUPPORT_ZERO_COPY",
        ),
    ];
    for (feature, any_of, needs) in needs {
        if asked.contains(feature) && !asked.intersects(any_of) {
            return Err(SpecError::FeatureNeeds { feature, needs });
        }
    }
    let excludes = [
        (F::USER_RECOVERY_FAIL_IO, F::USER_RECOVERY_REISSUE),
        (F::UNPRIVILEGED_DEV, F::SUPPORT_ZERO_COPY),
        (F::UNPRIVILEGED_DEV, F::USER_COPY),
        (F::UNPRIVILEGED_DEV, F::AUTO_BUF_REG),
        // The driver does not refuse it but drops the flag: the device would differ from the request.
        (F::UNPRIVILEGED_DEV, F::USER_RECOVERY),
        (F::NEED_GET_DATA, F::USER_COPY),
        (F::NEED_GET_DATA, F::SUPPORT_ZERO_COPY),
        (F::NEED_GET_DATA, F::AUTO_BUF_REG),
        (F::NEED_GET_DATA, F::BATCH_IO),
    ];
    for (one, other) in excludes {
        if asked.contains(one) && asked.contains(other) {
            return Err(SpecError::FeaturesExclude { one, other });
        }
    }
    Ok(())
}

/// A [`DeviceSpec`] that passed all checks: the only input of ADD_DEV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "wire::Wire", into = "wire::Wire")
)]
pub struct CheckedSpec {
    spec: DeviceSpec,
    page_size: u32,
}

impl CheckedSpec {
    /// The checked parameters.
    #[must_use]
    pub const fn spec(&self) -> &DeviceSpec {
        &self.spec
    }

    /// The page size it was checked for.
    #[must_use]
    pub const fn page_size(&self) -> u32 {
        self.page_size
    }

    /// The input of ADD_DEV.
    #[must_use]
    pub fn dev_info(&self) -> ublksrv_ctrl_dev_info {
        let spec = &self.spec;
        ublksrv_ctrl_dev_info {
            nr_hw_queues: spec.queues,
            queue_depth: spec.depth,
            io_desc_size: spec.descriptor_bytes,
            max_io_buf_bytes: spec.max_io_bytes,
            dev_id: spec.id.map_or(ANY_ID, DevId::get),
            flags: spec.features.bits(),
            ublksrv_flags: spec.server_flags,
            ..Default::default()
        }
    }

    /// The input of SET_PARAMS, for the device that the kernel created (L04): the largest request is the kernel's, not
    /// the requested one.
    ///
    /// # Errors
    /// [`SpecError::MaxIo`] if the kernel's buffer size is outside the rules.
    pub fn params(&self, geometry: &Geometry) -> Result<ublk_params, SpecError> {
        check_max_io(geometry.max_io_bytes(), self.page_size)?;
        let limits = &self.spec.limits;
        let mut params = params::encode(limits, geometry.max_io_bytes());
        // Otherwise the driver copies, and clients with less aligned memory are served.
        let registered = Features::SUPPORT_ZERO_COPY | Features::AUTO_BUF_REG;
        if limits.memory_in_every_mode || geometry.features().intersects(registered) {
            params::encode_memory(limits, &mut params);
        }
        Ok(params)
    }

    /// Requested features that the kernel did not grant. It drops some silently: UNPRIVILEGED_DEV for a privileged
    /// caller, recovery for an unprivileged one.
    #[must_use]
    pub const fn refused(&self, geometry: &Geometry) -> Features {
        self.spec.features.without(geometry.features())
    }
}

/// A driver rule that a [`DeviceSpec`] breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each field is named in the variant's message")]
pub enum SpecError {
    /// Depth or queues outside 1 to 4096.
    #[error(
        "{what} {value} is outside 1 to 4096; choose one within (128 is a good depth, one queue per CPU a good count)"
    )]
    Count { what: &'static str, value: u16 },
    /// The largest request is not a multiple of the page size from one page to 32 MiB.
    #[error(
        "largest I/O {bytes} is not a multiple of the page size {page_size} from {page_size} to 33554432 (32 MiB); \
         1 MiB is a good value"
    )]
    MaxIo { bytes: u32, page_size: u32 },
    /// The logical block size is not a power of two from 512 to the page size.
    #[error(
        "logical block size {block} is not a power of two from 512 to the page size {page_size}; use 512 or 4096"
    )]
    BlockSize { block: u32, page_size: u32 },
    /// The physical block size is not a power of two from the logical block size to 256 MiB.
    #[error(
        "physical block size {physical} is not a power of two from the logical block size {block} to 256 MiB; \
         use {block} or 4096"
    )]
    PhysicalBlockSize { physical: u32, block: u32 },
    /// The optimal I/O size is not a power of two from the physical block size to 256 MiB.
    #[error(
        "optimal I/O size {optimal} is not 0 or a power of two from the physical block size {physical} to 256 MiB; \
         use 0 for none"
    )]
    OptimalIo { optimal: u32, physical: u32 },
    /// The size of descriptors is not supported, or requested without the feature.
    #[error(
        "descriptors of {bytes} bytes are not supported: the size is a multiple of 8 from 24 to 256, and 24 without the feature \
         UBLK_F_IO_DESC_SIZE; use 24"
    )]
    DescriptorSize { bytes: u16 },
    /// The size is zero.
    #[error("size 0 is not valid; give at least one block of {block} bytes")]
    SizeZero { block: u32 },
    /// The size exceeds the range of a file offset.
    #[error(
        "size {size} is beyond the largest block device, 9223372036854775807 bytes (8 EiB); give a smaller size"
    )]
    SizeTooLarge { size: u64 },
    /// The size is not a multiple of the block size.
    #[error(
        "size {size} is not a multiple of the block size {block}; round it, for example to {down}, or use a smaller block size"
    )]
    SizeNotBlocks { size: u64, block: u32, down: u64 },
    /// The discard granularity is not a power of two, or below the block size.
    #[error(
        "discard granularity {granularity} is not a power of two of at least the block size {block}; use 0 for one block"
    )]
    DiscardGranularity { granularity: u32, block: u32 },
    /// The discard limit is below its granularity.
    #[error(
        "discard limit {max} is below its granularity {least}; raise it, or set it to 0 for no discard"
    )]
    DiscardTooSmall { max: u64, least: u64 },
    /// The write-zeroes limit is below one block.
    #[error(
        "write-zeroes limit {max} is below one block of {block}; raise it, or set it to 0 for none"
    )]
    WriteZeroesTooSmall { max: u64, block: u32 },
    /// FUA is declared without a volatile cache.
    #[error(
        "FUA is honoured only with a volatile write cache; declare the cache too, or leave FUA out"
    )]
    FuaWithoutCache,
    /// The memory alignment is not a power of two, or above a page.
    #[error(
        "memory alignment {alignment} is not 0 or a power of two up to the page size {page_size}; use 0 for the block layer's own"
    )]
    DmaAlignment { alignment: u32, page_size: u32 },
    /// The maximum segment size is less than a page.
    #[error("longest segment {bytes} is below {least} bytes; raise it, or use 0 for no limit")]
    SegmentSize { bytes: u32, least: u32 },
    /// An invalid boundary for requests or their memory.
    #[error("{name} {bytes} is not valid: it must be {rule}; use 0 for none")]
    Boundary {
        name: &'static str,
        bytes: u64,
        rule: &'static str,
    },
    /// A feature needs another.
    #[error("feature {feature} needs {needs}; request both, or neither")]
    FeatureNeeds {
        feature: Features,
        needs: &'static str,
    },
    /// Two features exclude each other.
    #[error("features {one} and {other} exclude each other; leave one out")]
    FeaturesExclude { one: Features, other: Features },
    /// The zones are not valid for a zoned device.
    #[error("{name} {value} is not valid: it must be {rule}")]
    Zones {
        name: &'static str,
        value: u64,
        rule: &'static str,
    },
    /// ZONED is requested for limits without zones, or the other way round.
    #[error(
        "the feature UBLK_F_ZONED requires limits that declare zones, and such limits require the feature; give both or neither"
    )]
    Undeclared,
    /// The metadata is not valid for a device with integrity.
    #[error(transparent)]
    Integrity(#[from] IntegrityRule),
    /// A zoned device with metadata, whose parameters the driver would store unchecked.
    #[error("a zoned device has no integrity metadata; leave out one of them")]
    IntegrityWithZones,
    /// INTEGRITY is requested for limits without metadata, or the other way round.
    #[error(
        "the feature UBLK_F_INTEGRITY requires limits that declare metadata, and such limits require the feature; give both or neither"
    )]
    UndeclaredIntegrity,
}

/// The serialised form of a checked spec, checked again when it is read back.
#[cfg(feature = "serde")]
mod wire {
    use super::{CheckedSpec, DeviceSpec, SpecError};

    #[derive(serde::Serialize, serde::Deserialize)]
    pub(super) struct Wire {
        spec: DeviceSpec,
        page_size: u32,
    }

    impl From<CheckedSpec> for Wire {
        fn from(checked: CheckedSpec) -> Self {
            Self {
                spec: checked.spec,
                page_size: checked.page_size,
            }
        }
    }

    impl TryFrom<Wire> for CheckedSpec {
        type Error = SpecError;

        fn try_from(wire: Wire) -> Result<Self, SpecError> {
            wire.spec.check(wire.page_size)
        }
    }
}

#[cfg(test)]
mod tests;
