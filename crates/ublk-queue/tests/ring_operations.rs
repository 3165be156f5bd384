//! Every operation of [`Ring`](ublk_queue::task::Ring) as a future, on the running kernel.

use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ublk_core::Errno;
use ublk_queue::task::{IoBuf, Local, LocalError, Ring, SharedFd, leaked_operations};

const LIMIT: Duration = Duration::from_secs(10);

fn run<T, F: Future<Output = T>>(make: impl FnOnce(Ring) -> F) -> T {
    let mut local = Local::new(8).expect("these tests need io_uring");
    let ring = local.ring();
    let value = local.run(LIMIT, make(ring)).expect("ready in time");
    assert!(local.finish(), "nothing is left in the kernel");
    value
}

/// Polls a future once, within a task.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::future::poll_fn(|cx| Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx))).await
}

fn sockets() -> (SharedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let one = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (other, _) = listener.accept().expect("accept");
    other.set_read_timeout(Some(LIMIT)).expect("deadline");
    (SharedFd::new(one), other)
}

#[test]
fn files() {
    let dir = std::env::temp_dir().join(format!("ublk-queue-files-{}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&dir)
        .expect("a file");
    std::fs::remove_file(&dir).expect("unlinked");
    let fd = SharedFd::new(file.try_clone().expect("dup"));
    run(async |ring| {
        let (written, buf) = ring.write(&fd, b"0123456789".to_vec(), 100).await;
        assert_eq!((written, &buf[..]), (Ok(10), &b"0123456789"[..]));
        let pieces = vec![Arc::<[u8]>::from(&b"ab"[..]), Arc::from(&b"cde"[..])];
        assert_eq!(ring.write_vectored(&fd, pieces, 110).await.0, Ok(5));
        assert_eq!(ring.fdatasync(&fd).await, Ok(()));
        assert_eq!(ring.fsync(&fd).await, Ok(()));
        let (read, buf) = ring.read(&fd, vec![0; 100], 105).await;
        assert_eq!((read, &buf[..10]), (Ok(10), &b"56789abcde"[..]));
        // A part of a buffer; the rest is untouched.
        let (read, part) = ring.read(&fd, vec![1; 10].slice(2, 3), 100).await;
        assert_eq!(
            (read, &part.into_inner()[..6]),
            (Ok(3), &[1, 1, b'0', b'1', b'2', 1][..])
        );
        let (read, bufs) = ring
            .read_vectored(&fd, vec![vec![0; 4], vec![0; 4]], 107)
            .await;
        assert_eq!(
            (read, &bufs[0][..], &bufs[1][..]),
            (Ok(8), &b"789a"[..], &b"bcde"[..])
        );
        assert_eq!(ring.fallocate(&fd, 0, 0, 1 << 20).await, Ok(()));
        // An error returns the buffer, too.
        let unreadable = SharedFd::new(File::create("/dev/null").expect("null"));
        let (read, buf) = ring.read(&unreadable, vec![9; 5], 0).await;
        assert_eq!((read, buf), (Err(Errno::new(libc::EBADF)), vec![9; 5]));
        let too_many = (0..9).map(|_| vec![0; 1]).collect();
        let (read, bufs) = ring.read_vectored(&fd, too_many, 0).await;
        assert_eq!((read, bufs.len()), (Err(Errno::EINVAL), 9));
    });
    assert_eq!(file.metadata().expect("metadata").len(), 1 << 20);
}

#[test]
fn sockets_send_and_receive() {
    let (fd, mut far) = sockets();
    run(async |ring| {
        assert_eq!(ring.send(&fd, b"plain".to_vec(), 0).await.0, Ok(5));
        let pieces = vec![Rc::<[u8]>::from(&b" pie"[..]), Rc::from(&b"ces"[..])];
        assert_eq!(ring.send_vectored(&fd, pieces, 0).await.0, Ok(7));
        let mut found = [0; 12];
        far.read_exact(&mut found).expect("read");
        assert_eq!(&found, b"plain pieces");
        far.write_all(b"one two three").expect("write");
        let (received, buf) = ring
            .recv(&fd, vec![0; 4], libc::MSG_WAITALL.cast_unsigned())
            .await;
        assert_eq!((received, &buf[..]), (Ok(4), &b"one "[..]));
        let places = vec![vec![0; 3], vec![0; 6]];
        let all = libc::MSG_WAITALL.cast_unsigned();
        let (received, bufs) = ring.recv_vectored(&fd, places, all).await;
        assert_eq!(
            (received, &bufs[0][..], &bufs[1][..]),
            (Ok(9), &b"two"[..], &b" three"[..])
        );
        assert_eq!(ring.shutdown(&fd, 1).await, Ok(()));
        assert_eq!(far.read(&mut found).expect("the end"), 0);
        drop(far);
        assert_eq!(ring.recv(&fd, vec![0; 4], 0).await.0, Ok(0));
    });
}

/// L11 A buffer that is too long for one operation is refused, not sent in part.
#[test]
fn l11_a_buffer_of_4_gib_is_refused() {
    let (fd, _far) = sockets();
    // Untouched pages take no memory.
    let huge: &'static [u8] = vec![0; 1 << 32].leak();
    run(async |ring| {
        assert_eq!(ring.send_all(&fd, huge).await.0, Err(Errno::EINVAL));
    });
}

#[test]
fn zero_copy_sends_give_the_buffer_back_with_the_notification() {
    let (fd, mut far) = sockets();
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; 20_000 + 6];
        far.read_exact(&mut all).map(|()| all)
    });
    run(async |ring| {
        let all = libc::MSG_WAITALL.cast_unsigned();
        let (sent, buf) = ring.send_zero_copy(&fd, vec![3; 20_000], all).await;
        assert_eq!((sent, buf.len()), (Ok(20_000), 20_000));
        let pieces = vec![vec![3; 4], vec![3; 2]];
        assert_eq!(
            ring.send_vectored_zero_copy(&fd, pieces, all).await.0,
            Ok(6)
        );
    });
    let all = reader.join().expect("reader").expect("all of it");
    assert!(all.iter().all(|byte| *byte == 3));
}

#[test]
fn connections_are_made_and_accepted() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let at = listener.local_addr().expect("address");
    let listening = SharedFd::new(listener);
    // A datagram socket can be connected again.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
    let datagrams = SharedFd::new(socket);
    run(async |ring| {
        let mut accept = ring.accept(&listening);
        assert!(poll_once(&mut accept).await.is_pending());
        let client = std::thread::spawn(move || TcpStream::connect(at).expect("connect"));
        let accepted = accept.await.expect("a connection");
        let mut client = client.join().expect("client");
        client.write_all(b"hi").expect("write");
        let (received, buf) = ring.recv(&accepted, vec![0; 2], 0).await;
        assert_eq!((received, &buf[..]), (Ok(2), &b"hi"[..]));
        let stream = ring.connect_tcp(at).await.expect("connected");
        let mut accepted = std::net::TcpStream::from(
            ring.accept(&listening)
                .await
                .expect("a connection")
                .as_fd()
                .try_clone_to_owned()
                .expect("dup"),
        );
        let (sent, buf) = ring.send_all(&stream, vec![4; 100_000]).await;
        assert_eq!((sent, buf.len()), (Ok(()), 100_000));
        let mut found = vec![0; 100_000];
        accepted.read_exact(&mut found).expect("read");
        assert_eq!(found, buf);
        accepted.write_all(b"1234").expect("write");
        assert_eq!(
            ring.recv_all(&stream, vec![0; 4]).await,
            (Ok(()), b"1234".to_vec())
        );
        drop(accepted);
        let reset = Err(Errno::new(libc::ECONNRESET));
        assert_eq!(ring.recv_all(&stream, vec![0; 4]).await.0, reset);
        // Connecting a datagram socket only names its peer.
        assert_eq!(ring.connect(&datagrams, at).await, Ok(()));
        let six = "[::1]:9".parse().expect("an address");
        assert!(
            ring.connect(&datagrams, six).await.is_err(),
            "of the other family"
        );
    });
}

#[test]
fn polls_and_times() {
    let (reader, mut writer) = std::io::pipe().expect("pipe");
    let fd = SharedFd::new(std::os::fd::OwnedFd::from(reader));
    run(async |ring| {
        let readable = u32::from(libc::POLLIN.cast_unsigned());
        let mut poll = ring.poll(&fd, readable);
        assert!(poll_once(&mut poll).await.is_pending());
        let start = Instant::now();
        assert_eq!(ring.timeout(Duration::from_millis(20)).await, Ok(()));
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert!(poll_once(&mut poll).await.is_pending());
        writer.write_all(b"x").expect("write");
        assert_eq!(poll.await.map(|events| events & readable), Ok(readable));
        assert_eq!(ring.nop().await, Ok(()));
    });
}

#[test]
fn operations_are_cancelled_and_give_their_buffers_back() {
    let (fd, _far) = sockets();
    run(async |ring| {
        let mut one = ring.recv(&fd, vec![5; 3], 0);
        assert!(poll_once(&mut one).await.is_pending());
        // It has been submitted by the time the other one completes.
        ring.nop().await.expect("nop");
        one.cancel();
        assert_eq!(one.await, (Err(Errno::ECANCELED), vec![5; 3]));
        let mut unpolled = ring.recv(&fd, vec![6; 3], 0);
        unpolled.cancel();
        assert_eq!(unpolled.await, (Err(Errno::ECANCELED), vec![6; 3]));
        let mut two = [ring.recv(&fd, vec![7; 1], 0), ring.recv(&fd, vec![7; 1], 0)];
        for op in &mut two {
            assert!(poll_once(op).await.is_pending());
        }
        ring.nop().await.expect("nop");
        assert_eq!(ring.cancel_all(&fd).await, Ok(2));
        for op in two {
            assert_eq!(op.await.0, Err(Errno::ECANCELED));
        }
    });
}

/// L56 A dropped receive takes no data into freed memory: its buffer is freed after its completion.
#[test]
fn l56_a_dropped_operation_keeps_its_buffer_until_the_kernel_is_done() {
    /// Bytes that record when they are freed.
    #[derive(Clone)]
    struct Counted(Arc<[u8]>);
    let bytes = Counted(Arc::from(vec![8; 4096]));
    let (reader, writer) = std::io::pipe().expect("pipe");
    let fd = SharedFd::new(std::os::fd::OwnedFd::from(writer));
    let mut local = Local::new(4).expect("these tests need io_uring");
    let ring = local.ring();
    let count = || Arc::strong_count(&bytes.0);
    local
        .run(LIMIT, async {
            // Fills the pipe, so that the next write blocks.
            let filled = ring.write(&fd, vec![1; 65536], u64::MAX).await.0;
            assert_eq!(filled, Ok(65536));
            let mut write = ring.write(&fd, Arc::clone(&bytes.0), u64::MAX);
            assert!(poll_once(&mut write).await.is_pending());
            ring.nop().await.expect("nop");
            assert_eq!(count(), 2);
            drop(write);
            assert_eq!(count(), 2, "the kernel has it");
        })
        .expect("in time");
    assert_eq!(count(), 2);
    assert!(local.finish(), "cancelled and reaped");
    assert_eq!(count(), 1);
    drop(reader);
}

/// More futures than slots: all get their turn, in order.
#[test]
fn an_exhausted_pool_serves_everybody_in_turn() {
    let mut local = Local::new(2).expect("these tests need io_uring");
    let ring = local.ring();
    let order = std::cell::RefCell::new(Vec::new());
    local
        .run(LIMIT, async {
            let mut all: Vec<_> = (0..20)
                .map(|n| {
                    let (ring, order) = (ring.clone(), &order);
                    Box::pin(async move {
                        ring.timeout(Duration::from_millis(1)).await.expect("time");
                        order.borrow_mut().push(n);
                    })
                })
                .collect();
            std::future::poll_fn(|cx| {
                all.retain_mut(|one| one.as_mut().poll(cx).is_pending());
                if all.is_empty() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
        })
        .expect("in time");
    let order = order.into_inner();
    assert_eq!(order.len(), 20);
    // Two at a time, so nobody is overtaken by more than one.
    for (at, n) in order.iter().enumerate() {
        assert!(at.abs_diff(*n) <= 1, "{order:?}");
    }
}

/// L55 A wake from another thread ends the ring's sleep at once.
#[test]
fn l55_a_wake_from_another_thread_is_seen_at_once() {
    let start = Instant::now();
    run(async |_ring| {
        let mut thread = None;
        let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
        std::future::poll_fn(|cx| {
            if done.load(std::sync::atomic::Ordering::Acquire) {
                return Poll::Ready(());
            }
            if thread.is_none() {
                let (waker, done) = (cx.waker().clone(), Arc::clone(&done));
                thread = Some(std::thread::spawn(move || {
                    done.store(true, std::sync::atomic::Ordering::Release);
                    waker.wake();
                }));
            }
            Poll::Pending
        })
        .await;
    });
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_future_that_is_never_ready_is_told_and_its_operations_end() {
    let (fd, _far) = sockets();
    let before = leaked_operations();
    let mut local = Local::new(4).expect("these tests need io_uring");
    let ring = local.ring();
    let ended = local.run(Duration::from_millis(50), async {
        let receive = pin!(ring.recv(&fd, vec![0; 8], 0));
        receive.await
    });
    assert!(matches!(ended, Err(LocalError::TimedOut(_))));
    drop(local);
    assert_eq!(leaked_operations(), before);
}

/// L13 The longest time limit does not overflow.
#[test]
fn l13_the_longest_limit_is_a_limit() {
    let mut local = Local::new(4).expect("these tests need io_uring");
    let ring = local.ring();
    let nop = local.run(Duration::MAX, async { ring.nop().await });
    assert!(matches!(nop, Ok(Ok(()))), "{nop:?}");
}
