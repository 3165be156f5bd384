//! Code that compiles without `unsafe` and could break memory fails instead.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ublk_backends::Memory;
use ublk_core::{DataMode, Errno, Geometry, QueueId, SharedBuffer, SharedTable, Tag};
use ublk_queue::port::DescTable;
use ublk_queue::port::{Descriptors, Port};
use ublk_queue::task::{Async, IoBuf, Local, SharedFd, TaskRequest};
use ublk_queue::{Handler, LaneContext, LaneHandle, Mapped, Operations, Request, SharedMemory};
use ublk_sim::{Config, Sim};
use uring_lite::Ring;

/// Serves a simulated device to its end, each lane with a handler from `make`.
fn serve<H: Handler>(config: &Config, mut make: impl FnMut() -> H) -> (Vec<LaneHandle>, Sim) {
    let sim = Sim::new(config.clone());
    let (result, lanes) = sim.serve(|_| make()).expect("memory");
    result.expect("served to the end");
    (lanes, sim)
}

/// One handler shared by two lanes.
struct Shared<H>(Rc<RefCell<H>>);

impl<H: Handler> Handler for Shared<H> {
    const OPERATIONS: bool = true;

    fn handle(&mut self, request: Request<'_>) {
        self.0.borrow_mut().handle(request);
    }

    fn attach(&mut self, context: &LaneContext) {
        self.0.borrow_mut().attach(context);
    }

    fn turn<P: Port>(&mut self, ring: &mut Operations<'_, P>) -> bool {
        self.0.borrow_mut().turn(ring)
    }
}

async fn at_once(_: TaskRequest) -> Result<(), Errno> {
    Ok(())
}

/// L65 An executor knows tags and buffers of one lane: requests of another lane are refused, even for tags that both
/// have.
#[test]
fn l65_an_executor_serves_one_lane_only() {
    let config = Config {
        queues: 2,
        ..Config::new(1)
    };
    let handler = Rc::new(RefCell::new(Async::new(at_once)));
    let (lanes, _) = serve(&config, || Shared(Rc::clone(&handler)));
    let counts = |lane: &LaneHandle| {
        let counters = lane.counters();
        (counters.reads + counters.writes, counters.errors)
    };
    // It was attached to the second lane last.
    let ((first, refused), (second, none)) = (counts(&lanes[0]), counts(&lanes[1]));
    assert!(first > 0 && second > 0, "{first} and {second} requests");
    assert!(refused >= first, "{refused} refused of {first}");
    assert_eq!(none, 0);
}

/// L65 A registered buffer belongs to its ring: in another ring its index would name other pages.
#[test]
fn l65_a_registered_buffer_is_refused_by_another_ring() {
    let config = Config {
        data: DataMode::ZeroCopy,
        ..Config::new(2)
    };
    let other = Local::new(4).expect("a ring").ring();
    let file = SharedFd::new(File::open("/dev/zero").expect("open"));
    let refused = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refused);
    let task = move |mut request: TaskRequest| {
        let (other, file, count) = (other.clone(), file.clone(), Arc::clone(&count));
        async move {
            let Ok(buffer) = request.take_data() else {
                return Ok(());
            };
            let (result, buffer) = other.read(&file, buffer, 0).await;
            assert_eq!(result, Err(Errno::EINVAL));
            count.fetch_add(1, Ordering::Relaxed);
            request.give_back(buffer);
            Err(Errno::EIO)
        }
    };
    serve(&config, || Async::new(task.clone()));
    assert!(refused.load(Ordering::Relaxed) > 100);
}

/// L65 A tag beyond the depth has no descriptor.
#[test]
fn l65_a_tag_beyond_the_depth_is_refused() {
    let info = ublk_sys::ublksrv_ctrl_dev_info {
        nr_hw_queues: 1,
        queue_depth: 4,
        max_io_buf_bytes: 4096,
        ..Default::default()
    };
    let geometry = Geometry::from_reply(&info).expect("good numbers");
    let zero = OwnedFd::from(File::open("/dev/zero").expect("open"));
    let table = DescTable::map(zero.as_fd(), &geometry, QueueId::ZERO).expect("mapped");
    let load = |tag| {
        let tag = Tag::new(tag).expect("below 4096");
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| table.load(tag)))
    };
    assert!(load(3).is_ok());
    for tag in [4, 5, 4095] {
        assert!(load(tag).is_err(), "tag {tag}");
    }
}

/// L65 Memory outside a device, or outside a shared file, cannot be named.
#[test]
fn l65_ranges_outside_name_no_memory() {
    let memory = Memory::new(1 << 20, 512).expect("memory");
    assert_eq!(memory.region(0, 1 << 20).len(), 1 << 20);
    for (offset, len) in [(1 << 20, 512), (0, (1 << 20) + 512), (u64::MAX - 511, 512)] {
        assert!(memory.region(offset, len).is_empty(), "{len} at {offset}");
    }
    let path = std::env::temp_dir().join(format!("soundness-{}", std::process::id()));
    let options = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .to_owned();
    let file = options.open(&path).expect("new");
    std::fs::remove_file(&path).expect("there");
    file.set_len(4096).expect("a file of ours");
    let buffer = |len| SharedBuffer::new(0, 0, len);
    assert!(SharedMemory::map(file.as_fd(), SharedTable::new(&[buffer(4096)])).is_ok());
    assert!(SharedMemory::map(file.as_fd(), SharedTable::new(&[buffer(8192)])).is_err());
}

/// L65 A part of a buffer is inside it, whatever is requested.
#[test]
fn l65_a_slice_is_cut_to_its_buffer() {
    for (from, len, bytes) in [
        (0, 200, 100),
        (90, 20, 10),
        (200, 1, 0),
        (u32::MAX, u32::MAX, 0),
    ] {
        let slice = vec![0_u8; 100].slice(from, len);
        assert_eq!(slice.place().len(), bytes);
    }
}

/// L65 A group of buffers can only be ended by its own ring: otherwise the kernel would keep writing to those of the
/// other.
#[test]
fn l65_a_group_is_ended_by_its_ring() {
    let mut rings: [Ring; 2] =
        [0; 2].map(|_| Ring::builder(4).build().expect("these tests need io_uring"));
    let groups = rings
        .each_mut()
        .map(|ring| ring.register_buf_ring(1, 8, false).expect("a group"));
    let [first, second] = groups;
    assert!(rings[0].unregister_buf_ring(second).is_err());
    // Both still exist.
    for ring in &mut rings {
        assert!(ring.register_buf_ring(1, 8, false).is_err());
    }
    assert!(rings[0].unregister_buf_ring(first).is_ok());
}
