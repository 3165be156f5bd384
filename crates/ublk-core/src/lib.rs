//! Pure and safe ublk logic, without I/O and without a clock.
//!
//! The control plane (`ublk-ctrl`) and the data plane (`ublk-queue`) exchange only types of this crate: the
//! [`Geometry`] from the kernel's reply, tied to its device by an [`OpenDevice`], the [`CpuMask`] of a queue, and the
//! [`Limits`] that a backend declares. The protocol of a tag is here too, as a state machine ([`TagState`]) that turns
//! one input into at most one action.
//!
//! There is no unsafe code, except for the declaration of [`OpenDevice::new`].
#![deny(unsafe_code)]

pub mod backend;
mod by_name;
pub mod cpumask;
mod deadline;
pub mod device;
pub mod errno;
pub mod features;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod geometry;
pub mod ids;
pub mod integrity;
pub mod iod;
pub mod kernel;
pub mod limits;
pub mod mode;
pub mod params;
pub mod recovery;
pub mod shmem;
pub mod spec;
pub mod state;
pub mod tag;
pub mod zone;

pub use backend::Backend;
pub use cpumask::CpuMask;
pub use deadline::deadline_in;
pub use device::OpenDevice;
pub use errno::Errno;
pub use features::{FeatureInfo, Features, Missing, require_features};
pub use geometry::{BadReply, Geometry};
pub use ids::{DevId, QueueId, SECTOR_SIZE, Sectors, Tag};
pub use integrity::{Checksum, Integrity, IntegrityRule};
pub use iod::{IoDesc, IoFlags, Op};
pub use limits::Limits;
pub use mode::{DataMode, Mode};
pub use params::DeviceParams;
pub use recovery::{Misfit, Recovery};
pub use shmem::{SharedBuffer, SharedTable};
pub use spec::{CheckedSpec, DeviceSpec, MAX_IO_BYTES, SpecError};
pub use state::DevState;
pub use tag::{Action, Answer, Input, TagState};
pub use zone::{Zone, ZoneAction, ZoneCondition, ZoneKind, ZoneReport, Zones};
