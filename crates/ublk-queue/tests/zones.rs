//! The shipped engine as the server of a zoned device, on the simulated driver: appends are reported where the server
//! wrote them, with every kind of token.

mod sim;

use std::future::poll_fn;
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;

use sim::{ALL_FAULTS, run, run_driven};
use ublk_core::{
    Backend, DataMode, Errno, Limits, Op, Zone, ZoneAction, ZoneCondition, ZoneReport,
};
use ublk_queue::task::{Async, TaskRequest};
use ublk_queue::{Handler, Inline, OwnedRequest, Pool, Request, State, Zoned};
use ublk_sim::{Config, Faults};

const ZONE: usize = 128 << 10;

/// Zones in memory, and their write pointers.
struct Zones(Mutex<(Vec<u8>, Vec<usize>)>);

impl Zones {
    fn new(config: &Config) -> Arc<Self> {
        let zones = (0..config.size / ZONE).map(|zone| zone * ZONE);
        Arc::new(Self(Mutex::new((vec![0; config.size], zones.collect()))))
    }
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("small")
}

impl Backend for Zones {
    fn limits(&self) -> Limits {
        Limits::new(self.0.lock().expect("no panic").0.len() as u64)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), Errno> {
        let zones = self.0.lock().expect("no panic");
        buf.copy_from_slice(&zones.0[at(offset)..][..buf.len()]);
        Ok(())
    }

    fn report_zones(&self, offset: u64, report: &mut ZoneReport<'_>) -> Result<(), Errno> {
        let zones = self.0.lock().expect("no panic");
        for (n, pointer) in zones.1.iter().enumerate().skip(at(offset) / ZONE) {
            let condition = ZoneCondition::Closed;
            let (start, pointer) = ((n * ZONE) as u64, *pointer as u64);
            if !report.push(&Zone::sequential(start, ZONE as u64, pointer, condition)) {
                break;
            }
        }
        Ok(())
    }

    fn zone_append(&self, buf: &[u8], zone: u64) -> Result<u64, Errno> {
        let mut zones = self.0.lock().expect("no panic");
        let (data, pointers) = &mut *zones;
        let pointer = &mut pointers[at(zone) / ZONE];
        let landed = *pointer;
        if landed + buf.len() > at(zone) + ZONE {
            return Err(Errno::ENOSPC);
        }
        data[landed..][..buf.len()].copy_from_slice(buf);
        *pointer += buf.len();
        Ok(landed as u64)
    }

    fn manage_zone(&self, action: ZoneAction, zone: u64) -> Result<(), Errno> {
        assert_eq!(action, ZoneAction::Reset);
        let mut zones = self.0.lock().expect("no panic");
        zones.0[at(zone)..][..ZONE].fill(0);
        zones.1[at(zone) / ZONE] = at(zone);
        Ok(())
    }
}

/// Ready when it is polled again.
async fn later() {
    let mut again = false;
    poll_fn(|cx| match std::mem::replace(&mut again, true) {
        true => Poll::Ready(()),
        false => {
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    })
    .await;
}

fn config(seed: u64) -> Config {
    Config {
        data: DataMode::UserCopy,
        batch: seed % 2 == 1,
        queues: 1 + (seed % 3) as u16,
        zone_size: ZONE,
        faults: if seed.is_multiple_of(4) {
            Faults::default()
        } else {
            ALL_FAULTS
        },
        ..Config::new(seed)
    }
}

/// Carries out a request.
fn serve(zones: &Zones, mut request: OwnedRequest) {
    let zone = request.offset();
    let result = match request.op() {
        Op::ZoneAppend => {
            let landed = request
                .data()
                .and_then(|data| zones.zone_append(data, zone));
            match landed {
                Ok(at) => return request.complete_append(at),
                Err(errno) => Err(errno),
            }
        }
        Op::ReportZones => request
            .data_mut()
            .and_then(|data| zones.report_zones(zone, &mut ZoneReport::new(data))),
        Op::ZoneReset => zones.manage_zone(ZoneAction::Reset, zone),
        Op::Read => request
            .data_mut()
            .and_then(|data| zones.read_at(data, zone)),
        _ => Err(Errno::EOPNOTSUPP),
    };
    request.complete(result);
}

/// An append's position goes with its commit and with no other, per tag and in batches, however often a commit has to
/// be pushed.
#[test]
fn appends_land_where_the_backend_says() {
    for seed in 0..40 {
        let config = config(seed);
        let zones = Zones::new(&config);
        let make = || Zoned(Inline::new(Arc::clone(&zones)));
        run(config.clone(), make).assert_clean(1000);
        let zones = Zones::new(&config);
        let make = || Zoned(Inline::new(Arc::clone(&zones)));
        run_driven(config, make).assert_clean(1000);
    }
}

/// The same from the threads of a pool.
#[test]
fn appends_land_from_a_pool() {
    for seed in 0..12 {
        let config = config(seed);
        let pool = Pool::start(&Zones::new(&config), 3, 64).expect("threads");
        run(config, || Zoned(pool.handler())).assert_clean(1000);
    }
}

/// The same for kept tokens: on the queue's thread, and on another.
#[test]
fn appends_land_from_tokens_that_are_held() {
    for seed in 0..12 {
        let config = config(seed);
        let zones = Zones::new(&config);
        let (requests, taken) = mpsc::channel::<OwnedRequest>();
        let theirs = Arc::clone(&zones);
        let other = std::thread::spawn(move || taken.iter().for_each(|r| serve(&theirs, r)));
        let make = || {
            let (requests, zones) = (requests.clone(), Arc::clone(&zones));
            let mut count = 0u32;
            Zoned(move |request: Request<'_>| {
                count += 1;
                match count % 3 {
                    0 => drop(requests.send(request.keep().detach())),
                    1 if request.op() == Op::ZoneAppend => {
                        let mut request = request.keep();
                        let zone = request.offset();
                        let landed = request
                            .data()
                            .and_then(|data| zones.zone_append(data, zone));
                        request.complete_append(landed.expect("room"));
                    }
                    _ => serve(&zones, request.detach()),
                }
            })
        };
        run(config, make).assert_clean(1000);
        drop(requests);
        other.join().expect("no panic");
    }
}

/// The same for futures, answered at once and later.
#[test]
fn appends_land_from_futures() {
    for seed in 0..12 {
        let config = config(seed);
        let zones = Zones::new(&config);
        let answer = async |zones: Arc<Zones>, mut request: TaskRequest| {
            if request.tag().get().is_multiple_of(2) {
                later().await;
            }
            let zone = request.offset();
            match request.op() {
                Op::ZoneAppend => {
                    let at = zones.zone_append(request.data()?, zone)?;
                    request.landed(at)
                }
                Op::ReportZones => {
                    zones.report_zones(zone, &mut ZoneReport::new(request.data_mut()?))
                }
                Op::ZoneReset => zones.manage_zone(ZoneAction::Reset, zone),
                _ => zones.read_at(request.data_mut()?, zone),
            }
        };
        let make = || {
            let zones = Arc::clone(&zones);
            Zoned(Async::new(move |request| {
                answer(Arc::clone(&zones), request)
            }))
        };
        run(config, make).assert_clean(1000);
    }
}

/// L11 An append that succeeds without a position is an error: the client would look for its data at sector 0. So is
/// one with an impossible position.
#[test]
fn l11_an_append_without_a_place_is_an_error() {
    for seed in 0..4 {
        let run = run(config(seed), || {
            Zoned(|request: Request<'_>| match request.op() {
                Op::ZoneAppend if request.tag().get() % 2 == 0 => request.complete(Ok(())),
                Op::ZoneAppend => {
                    let at = request.offset() + 7;
                    request.complete_append(at);
                }
                Op::Read | Op::ReportZones => request.complete(Err(Errno::EIO)),
                _ => request.complete(Ok(())),
            })
        });
        assert_eq!(run.report.violations, Vec::<String>::new());
        assert!(run.report.failed > 100 && run.lanes[0].counters().zone_appends > 10);
        assert!(run.lanes.iter().all(|lane| lane.state() == State::Empty));
    }
}

/// A handler without zone support gets no lane of a zoned device, and no zoned device gets a lane in which the driver
/// copies.
#[test]
fn zones_are_for_handlers_that_ask_for_them() {
    const { assert!(!<Inline<Zones> as Handler>::ZONES && Zoned::<Inline<Zones>>::ZONES) };
    for (data, zoned) in [(DataMode::UserCopy, false), (DataMode::Copy, true)] {
        let config = Config { data, ..config(0) };
        let refused = sim::lane(&config, zoned);
        assert_eq!(refused, Err(Errno::EOPNOTSUPP), "{data}");
    }
}
