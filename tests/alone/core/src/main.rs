//! ublk-core alone: a device checked against the driver's rules, and one tag served by hand.

#![forbid(unsafe_code)]

use ublk_core::iod::IoBounds;
use ublk_core::{Action, Answer, DeviceSpec, Input, IoDesc, Limits, Op, TagState};

fn main() {
    let limits = Limits::new(1 << 30).block_size(4096).volatile_cache(false);
    let spec = DeviceSpec::new(limits)
        .queues(4)
        .depth(64)
        .check(4096)
        .expect("a sound device");
    assert_eq!(spec.dev_info().nr_hw_queues, 4);
    let bad = DeviceSpec::new(Limits::new(1000))
        .check(4096)
        .expect_err("no multiple of 512");
    assert!(bad.to_string().contains("1000"), "{bad}");

    // A tag's transitions: fetched, a write arrives, it is answered, the device stops.
    let step = |state: TagState, input| {
        let (state, action) = state.step(input);
        (state, action.expect("something to do"))
    };
    let (tag, action) = step(TagState::Idle, Input::Arm);
    assert_eq!(action, Action::Fetch);
    let (tag, action) = step(tag, Input::Cqe(0));
    assert_eq!(action, Action::Serve);
    let descriptor = IoDesc::new(1, 8, 16, 0);
    let bounds = IoBounds::new(1 << 30, 64 << 10);
    let io = descriptor.decode(&bounds).expect("inside the device");
    assert_eq!((io.op, io.offset, io.len), (Op::Write, 4096, 8192));
    let answer = Answer::full(8192);
    let (tag, action) = step(tag, Input::Answer(answer));
    assert_eq!(action, Action::Commit(answer));
    assert_eq!(answer.result(), 8192);
    let (tag, action) = step(tag, Input::Cqe(-19));
    assert_eq!((tag, action), (TagState::Gone, Action::Ended));
    println!("ublk-core: a {} of {} bytes went its way", "write", io.len);
}
