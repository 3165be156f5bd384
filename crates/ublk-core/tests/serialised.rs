//! Values that cross a process boundary come back unchanged, and are checked again.
#![cfg(feature = "serde")]
#![allow(missing_docs, reason = "tests")]

use core::fmt::Debug;
use serde::{Serialize, de::DeserializeOwned};
use ublk_core::{
    CheckedSpec, CpuMask, DevId, DevState, DeviceParams, DeviceSpec, Errno, Features, Geometry,
    Limits, Missing, QueueId,
};
use ublk_sys::ublksrv_ctrl_dev_info;

fn round<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T) -> String {
    let text = serde_json::to_string(&value).expect("serialises");
    let back: T = serde_json::from_str(&text).expect("deserialises");
    assert_eq!(back, value, "{text}");
    text
}

fn checked() -> CheckedSpec {
    let limits = Limits::new(1 << 30).discard(1 << 20, 4096);
    let spec = DeviceSpec::new(limits).server_flags(u64::MAX);
    spec.check(4096).expect("a good spec")
}

#[test]
fn everything_goes_round() {
    let info = ublksrv_ctrl_dev_info {
        dev_id: 7,
        ublksrv_pid: 99,
        state: 1,
        flags: u64::MAX,
        ..checked().dev_info()
    };
    let geometry = Geometry::from_reply(&info).expect("a good reply");
    let params = checked().params(&geometry).expect("good parameters");
    round(geometry);
    round(checked());
    round(DeviceParams::decode(&params).expect("basic parameters"));
    round(Missing {
        features: Features::from_bits(u64::MAX),
    });
    round(DevState::Unknown(77));
    assert_eq!(round(Errno::EBUSY), "16");
    assert_eq!(round(DevId::new(3).expect("small")), "3");
    assert_eq!(round(QueueId::new(3).expect("small")), "3");
    assert_eq!(round(CpuMask::from_iter([0, 65])), "[1,2]");
}

#[test]
fn what_is_read_back_is_checked() {
    assert!(serde_json::from_str::<DevId>("1048576").is_err());
    let text = round(checked()).replace("\"depth\":128", "\"depth\":0");
    assert!(serde_json::from_str::<CheckedSpec>(&text).is_err());
    let info = ublksrv_ctrl_dev_info {
        dev_id: 7,
        ..checked().dev_info()
    };
    let geometry = Geometry::from_reply(&info).expect("a good reply");
    let text = round(geometry).replace("\"queues\":1", "\"queues\":0");
    assert!(serde_json::from_str::<Geometry>(&text).is_err());
    let mask: CpuMask = serde_json::from_str("[1,0,0]").expect("a mask");
    assert_eq!(mask, CpuMask::from_iter([0]));
}
