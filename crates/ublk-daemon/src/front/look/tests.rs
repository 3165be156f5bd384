use super::*;
use crate::fakes;
use ublk_core::Features;

/// L04 The shown mode is the one that the kernel granted, for our devices and for foreign ones; the requested one is
/// shown beside it.
#[test]
fn l04_info_and_list_show_the_granted_mode() {
    let asked = Mode::new(DataMode::UserCopy).batched(true);
    let mut spec = fakes::spec();
    spec.mode = asked;
    let record = Record::new(1, spec);
    let granted = fakes::geometry(1, asked.features().without(Features::BATCH_IO));
    let info = render_info(&granted, Vec::new(), Some(&record));
    let json = serde_json::to_value(&info).unwrap();
    assert_eq!(
        (&json["data"], &json["batch"]),
        (&"user-copy".into(), &false.into())
    );
    let names = serde_json::json!(["USER_COPY", "BATCH_IO"]);
    assert_eq!(json["features"]["asked"], names);
    assert_eq!(
        info.features.granted,
        ["URING_CMD_COMP_IN_TASK", "CMD_IOCTL_ENCODE", "USER_COPY"]
    );
    for data in DataMode::ALL {
        let geometry = fakes::geometry(2, data.features());
        let json = serde_json::to_value(entry(&geometry, None)).unwrap();
        assert_eq!(json["data"], data.name());
        assert_eq!(
            render_info(&geometry, Vec::new(), None).features.asked,
            None
        );
    }
}

/// The options of a device are shown beside the kernel's data; for a foreign device they are unknown.
#[test]
fn info_and_list_name_backing_and_serving() {
    let mut spec = fakes::spec();
    spec.backend = BackendSpec::File {
        path: "/srv/disk.img".into(),
        offset: 4096,
        length: Some(8192),
        buffered: false,
        discard: true,
        force: false,
        integrity_file: None,
    };
    spec.supervise = true;
    spec.serving.options.threads_per_queue = 3;
    spec.serving.shm = Some("/dev/shm/x".into());
    let record = Record::new(1, spec);
    let geometry = fakes::geometry(1, Features::NONE);
    let json = serde_json::to_value(entry(&geometry, Some(&record))).unwrap();
    let backing = serde_json::json!({
        "path": "/srv/disk.img", "offset": 4096, "length": 8192, "moving_to": null
    });
    assert_eq!(json["backing"], backing);
    assert_eq!(
        (&json["supervised"], &json["threads"]),
        (&true.into(), &3.into())
    );
    assert_eq!(json["shared_memory"], "/dev/shm/x");
    assert_eq!(json["polling"], "off");
    let json = serde_json::to_value(entry(&geometry, None)).unwrap();
    for key in [
        "backing",
        "supervised",
        "threads",
        "shared_memory",
        "polling",
    ] {
        assert!(json[key].is_null(), "{key}: {json}");
    }
}
