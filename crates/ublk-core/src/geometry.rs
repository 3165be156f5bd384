//! The device as the kernel created it, which may differ from the request.

use crate::{DevId, DevState, Features};
use ublk_sys::ublksrv_ctrl_dev_info;

/// Queues, depth, sizes and flags of a device, from the kernel's reply to ADD_DEV or GET_DEV_INFO.
///
/// The driver limits the queue count to the number of CPUs, rounds the buffer size down to pages and drops features. So
/// everything after ADD_DEV uses this value and never the request (L04), and it can only be made from a reply.
///
/// # Invariants
/// 1 to 4096 queues and tags each, a buffer size that is not 0, a device id that the driver could assign, a descriptor
/// size of 24 to 256 bytes in multiples of 8.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "wire::Wire", into = "wire::Wire")
)]
pub struct Geometry {
    dev_id: DevId,
    queues: u16,
    depth: u16,
    max_io_bytes: u32,
    io_desc_size: u16,
    features: Features,
    state: DevState,
    server_pid: Option<u32>,
    server_flags: u64,
    owner_uid: u32,
    owner_gid: u32,
}

/// A reply that no known driver gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's device info has {field} {value}, outside {min} to {max}")]
#[non_exhaustive]
pub struct BadReply {
    /// The name of the field in `ublksrv_ctrl_dev_info`.
    pub field: &'static str,
    /// Its value.
    pub value: u64,
    /// The smallest valid value.
    pub min: u64,
    /// The largest valid value.
    pub max: u64,
}

impl Geometry {
    /// Reads the kernel's reply to ADD_DEV, GET_DEV_INFO or GET_DEV_INFO2.
    ///
    /// # Errors
    /// [`BadReply`] if a field is outside the driver's own range.
    pub fn from_reply(info: &ublksrv_ctrl_dev_info) -> Result<Self, BadReply> {
        let range = |field, value: u64, min: u64, max: u64| {
            if (min..=max).contains(&value) {
                Ok(())
            } else {
                Err(BadReply {
                    field,
                    value,
                    min,
                    max,
                })
            }
        };
        range("dev_id", info.dev_id.into(), 0, DevId::MAX.into())?;
        range("nr_hw_queues", info.nr_hw_queues.into(), 1, 4096)?;
        range("queue_depth", info.queue_depth.into(), 1, 4096)?;
        range(
            "max_io_buf_bytes",
            info.max_io_buf_bytes.into(),
            1,
            u32::MAX.into(),
        )?;
        let features = Features::from_bits(info.flags);
        // Old kernels echo the field unchanged; it is valid only with the flag.
        let io_desc_size = if features.contains(Features::IO_DESC_SIZE) {
            let size = info.io_desc_size;
            range("io_desc_size", size.into(), 24, 256)?;
            range("io_desc_size modulo 8", u64::from(size % 8), 0, 0)?;
            size
        } else {
            24
        };
        let dev_id = DevId::new(info.dev_id).map_err(|e| BadReply {
            field: "dev_id",
            value: e.value,
            min: 0,
            max: e.max,
        })?;
        Ok(Self {
            dev_id,
            queues: info.nr_hw_queues,
            depth: info.queue_depth,
            max_io_bytes: info.max_io_buf_bytes,
            io_desc_size,
            features,
            state: DevState::from_raw(info.state),
            server_pid: u32::try_from(info.ublksrv_pid).ok().filter(|&p| p != 0),
            server_flags: info.ublksrv_flags,
            owner_uid: info.owner_uid,
            owner_gid: info.owner_gid,
        })
    }

    /// The device number.
    #[must_use]
    pub const fn dev_id(&self) -> DevId {
        self.dev_id
    }

    /// Number of hw queues: at most one per possible CPU, whatever was requested.
    #[must_use]
    pub const fn queues(&self) -> u16 {
        self.queues
    }

    /// Number of tags per queue.
    #[must_use]
    pub const fn depth(&self) -> u16 {
        self.depth
    }

    /// Size of each tag's buffer in bytes: no request is larger (L03).
    #[must_use]
    pub const fn max_io_bytes(&self) -> u32 {
        self.max_io_bytes
    }

    /// Distance between I/O descriptors in bytes: 24 unless the device has [`Features::IO_DESC_SIZE`].
    #[must_use]
    pub const fn io_desc_size(&self) -> u16 {
        self.io_desc_size
    }

    /// The features in effect.
    #[must_use]
    pub const fn features(&self) -> Features {
        self.features
    }

    /// The state at the time of the reply.
    #[must_use]
    pub const fn state(&self) -> DevState {
        self.state
    }

    /// The process that serves the device, if any. Kernels up to 6.12 keep reporting it after its death.
    #[must_use]
    pub const fn server_pid(&self) -> Option<u32> {
        self.server_pid
    }

    /// The word that was stored with ADD_DEV (`ublksrv_flags`): a nonce that identifies the owner.
    #[must_use]
    pub const fn server_flags(&self) -> u64 {
        self.server_flags
    }

    /// User id of the creator.
    #[must_use]
    pub const fn owner_uid(&self) -> u32 {
        self.owner_uid
    }

    /// Group id of the creator.
    #[must_use]
    pub const fn owner_gid(&self) -> u32 {
        self.owner_gid
    }
}

/// The serialised form: named numbers, checked again when they are read back.
#[cfg(feature = "serde")]
mod wire {
    use super::{BadReply, Geometry};
    use ublk_sys::ublksrv_ctrl_dev_info;

    #[derive(serde::Serialize, serde::Deserialize)]
    pub(super) struct Wire {
        dev_id: u32,
        queues: u16,
        depth: u16,
        max_io_bytes: u32,
        io_desc_size: u16,
        features: u64,
        state: u16,
        server_pid: Option<u32>,
        server_flags: u64,
        owner_uid: u32,
        owner_gid: u32,
    }

    impl From<Geometry> for Wire {
        fn from(g: Geometry) -> Self {
            Self {
                dev_id: g.dev_id.get(),
                queues: g.queues,
                depth: g.depth,
                max_io_bytes: g.max_io_bytes,
                io_desc_size: g.io_desc_size,
                features: g.features.bits(),
                state: g.state.to_raw(),
                server_pid: g.server_pid,
                server_flags: g.server_flags,
                owner_uid: g.owner_uid,
                owner_gid: g.owner_gid,
            }
        }
    }

    impl TryFrom<Wire> for Geometry {
        type Error = BadReply;

        fn try_from(w: Wire) -> Result<Self, BadReply> {
            Self::from_reply(&ublksrv_ctrl_dev_info {
                nr_hw_queues: w.queues,
                queue_depth: w.depth,
                state: w.state,
                io_desc_size: w.io_desc_size,
                max_io_buf_bytes: w.max_io_bytes,
                dev_id: w.dev_id,
                ublksrv_pid: w.server_pid.and_then(|p| p.try_into().ok()).unwrap_or(-1),
                flags: w.features,
                ublksrv_flags: w.server_flags,
                owner_uid: w.owner_uid,
                owner_gid: w.owner_gid,
                ..Default::default()
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply() -> ublksrv_ctrl_dev_info {
        ublksrv_ctrl_dev_info {
            nr_hw_queues: 2,
            queue_depth: 128,
            max_io_buf_bytes: 524_288,
            dev_id: 3,
            ublksrv_pid: -1,
            flags: 0x42,
            ublksrv_flags: 0xabcd,
            owner_uid: 1000,
            owner_gid: 100,
            ..Default::default()
        }
    }

    /// L04 Every number is the kernel's: a device requested with 64 queues came back with 2.
    #[test]
    fn l04_the_reply_is_what_counts() {
        let g = Geometry::from_reply(&reply()).unwrap();
        assert_eq!((g.dev_id().get(), g.queues(), g.depth()), (3, 2, 128));
        assert_eq!(g.max_io_bytes(), 524_288);
        assert_eq!(g.features(), Features::from_bits(0x42));
        assert_eq!((g.state(), g.server_pid()), (DevState::Dead, None));
        assert_eq!(g.server_flags(), 0xabcd);
        assert_eq!((g.owner_uid(), g.owner_gid()), (1000, 100));
        let live = ublksrv_ctrl_dev_info {
            state: 1,
            ublksrv_pid: 4711,
            ..reply()
        };
        let g = Geometry::from_reply(&live).unwrap();
        assert_eq!((g.state(), g.server_pid()), (DevState::Live, Some(4711)));
    }

    #[test]
    fn descriptor_size_counts_only_with_its_flag() {
        let echoed = ublksrv_ctrl_dev_info {
            io_desc_size: 7,
            ..reply()
        };
        assert_eq!(Geometry::from_reply(&echoed).unwrap().io_desc_size(), 24);
        let with = |size| {
            Geometry::from_reply(&ublksrv_ctrl_dev_info {
                io_desc_size: size,
                flags: Features::IO_DESC_SIZE.bits(),
                ..reply()
            })
        };
        assert_eq!(with(64).unwrap().io_desc_size(), 64);
        assert_eq!(with(256).unwrap().io_desc_size(), 256);
        for bad in [0, 16, 25, 28, 264] {
            assert!(with(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_reply_out_of_range_is_refused() {
        type Change = fn(&mut ublksrv_ctrl_dev_info);
        let bad: [(Change, &str); 6] = [
            (|i| i.dev_id = 1 << 20, "dev_id"),
            (|i| i.nr_hw_queues = 0, "nr_hw_queues"),
            (|i| i.nr_hw_queues = 4097, "nr_hw_queues"),
            (|i| i.queue_depth = 0, "queue_depth"),
            (|i| i.queue_depth = 4097, "queue_depth"),
            (|i| i.max_io_buf_bytes = 0, "max_io_buf_bytes"),
        ];
        for (change, field) in bad {
            let mut info = reply();
            change(&mut info);
            assert_eq!(Geometry::from_reply(&info).unwrap_err().field, field);
        }
    }
}
