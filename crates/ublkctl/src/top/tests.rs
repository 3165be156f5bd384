//! Screens of three sizes, and the program on a pseudo-terminal.

#[path = "../../tests/pty/mod.rs"]
mod pty;

use super::draw::draw;
use super::model::{Action, Model};
use super::{Look, show};
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use std::time::Duration;
use ublk_daemon::front::{Measured, Unanswered};
use ublk_metrics::{Level, Operation, QueueSnapshot, Snapshot};

const SECOND: Duration = Duration::from_secs(1);

/// Two queues that have read for so many seconds, the first three times as much as the second.
fn busy(id: u32, seconds: u64) -> Measured {
    let mut snapshot = Snapshot::new(Level::Latencies, 7, seconds * 1_000_000_000);
    for (qid, reads) in [(0, 3000), (1, 1000)] {
        let mut queue = QueueSnapshot::new(qid, 0);
        let op = queue.op_mut(Operation::Read);
        (op.requests, op.bytes) = (reads * seconds, reads * seconds * 4096);
        for n in 0..reads * seconds {
            op.latency.record(Duration::from_micros(40 + n % 97));
        }
        op.latency.record(Duration::from_millis(7));
        op.backend_ns = reads * seconds * 60_000;
        queue.batches.counts[2] = reads * seconds / 5;
        queue.batches.requests = reads * seconds;
        queue.busy_ns = seconds * 100_000_000 * u64::from(qid + 1);
        queue.in_flight = 4;
        snapshot.queues.push(queue);
    }
    let mut device = dead(id);
    (device.server_alive, device.agent_alive) = (true, true);
    (device.snapshot, device.unanswered) = (Some(snapshot), None);
    device
}

/// A device without a server.
fn dead(id: u32) -> Measured {
    let mut device = Measured::default();
    (device.id, device.backend) = (id, "null".to_owned());
    device.unanswered = Some(Unanswered {
        cause: format!("the server of device {id} is gone"),
        next: Some(format!("`ublkctl recover {id}` starts another")),
    });
    device
}

/// A device whose two requests are not answered.
fn stuck(id: u32, seconds: u64) -> Measured {
    let mut device = busy(id, 1);
    device.name = Some("backup".to_owned());
    if let Some(snapshot) = &mut device.snapshot {
        snapshot.level = Level::Counters;
        snapshot.elapsed_ns = seconds * 1_000_000_000;
    }
    device
}

fn all(seconds: u64) -> Vec<Measured> {
    vec![busy(0, seconds), stuck(3, seconds), dead(12)]
}

fn model(seconds: u64) -> Model {
    let mut model = Model::new(SECOND);
    for second in 1..=seconds {
        model.take(Ok(all(second)));
    }
    model
}

fn drawn(model: &Model, width: u16, height: u16) -> String {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    draw(model, area, &mut buffer, false);
    let line = |y| {
        let cells = (0..width).map(|x| buffer[(x, y)].symbol());
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    (0..height).map(line).collect()
}

/// Compares a screen with the stored one. With UBLKCTL_STORE_SCREENS set it stores it instead.
fn is(name: &str, screen: &str) {
    let path = format!("{}/src/top/screens/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UBLKCTL_STORE_SCREENS").is_some() {
        std::fs::write(&path, screen).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        screen, stored,
        "{path} differs: UBLKCTL_STORE_SCREENS=1 stores this one\n{screen}"
    );
}

#[test]
fn screens_of_three_sizes() {
    let mut model = model(13);
    is("devices-80x24", &drawn(&model, 80, 24));
    is("devices-200x60", &drawn(&model, 200, 60));
    is("devices-20x5", &drawn(&model, 20, 5));
    model.act(Action::Detail);
    is("detail-80x24", &drawn(&model, 80, 24));
    is("detail-200x60", &drawn(&model, 200, 60));
    model.act(Action::Keys);
    is("keys-80x24", &drawn(&model, 80, 24));
    // No size panics.
    for (width, height) in [(0, 0), (1, 1), (50, 10), (51, 11), (500, 12), (60, 300)] {
        drawn(&model, width, height);
        model.act(Action::Detail);
        drawn(&model, width, height);
    }
}

#[test]
fn nothing_to_see_is_said() {
    let mut model = Model::new(SECOND);
    assert!(drawn(&model, 80, 24).contains("looking at the devices"));
    model.take(Ok(Vec::new()));
    assert!(drawn(&model, 80, 24).contains("no devices of this user"));
    let failure = ublk_daemon::failure::Failure::failed("no record").hint("do this");
    model.take(Err(failure));
    assert!(drawn(&model, 80, 24).contains("no record: do this"));
}

#[test]
fn devices_are_sorted_and_chosen() {
    let mut model = model(13);
    let order =
        |model: &Model| -> Vec<u32> { model.devices.iter().map(|it| it.report.id).collect() };
    assert_eq!((order(&model), model.chosen), (vec![0, 3, 12], Some(0)));
    model.act(Action::Reverse);
    assert_eq!((order(&model), model.chosen), (vec![12, 3, 0], Some(0)));
    model.act(Action::Move(-1));
    assert_eq!(model.chosen, Some(3));
    model.act(Action::Sort);
    assert_eq!(order(&model), [12, 3, 0], "the busiest is the last");
    model.act(Action::Move(100));
    assert_eq!(model.chosen, Some(0));
    model.act(Action::Detail);
    // A device that is deleted is not shown any more, nor a picture of it.
    model.take(Ok(vec![dead(12)]));
    assert_eq!(model.chosen, Some(12));
    assert!(drawn(&model, 80, 24).contains("no server"));
    // A stopped picture stays.
    model.act(Action::Pause);
    model.take(Ok(Vec::new()));
    assert_eq!(order(&model), [12]);
    assert!(drawn(&model, 80, 24).starts_with("PAUSED"));
    assert!(!model.act(Action::Quit));
}

/// Rates are of the interval, not since the start of the server, from the first screen on.
#[test]
fn the_first_look_has_no_rates() {
    let mut model = model(1);
    assert!(model.devices[0].requests() < 1.0);
    model.take(Ok(all(2)));
    assert!((model.devices[0].requests() - 4000.0).abs() < 1.0);
}

/// What a terminal would obey in a name is not written.
#[test]
fn names_cannot_command_the_terminal() {
    let mut model = Model::new(SECOND);
    let mut device = busy(0, 1);
    device.name = Some("a\x1b[2Jb".to_owned());
    model.take(Ok(vec![device]));
    assert!(!drawn(&model, 200, 60).contains('\x1b'));
}

/// The program that the tests below start: this one, with devices that do not exist.
#[test]
#[ignore = "runs on the terminal of other tests"]
fn on_a_terminal() {
    let mut seconds = 0;
    let panics = std::env::var_os("UBLKCTL_TEST_PANIC").is_some();
    let look = move || -> Look {
        seconds += 1;
        assert!(!panics || seconds < 5, "a look that panics");
        Ok(all(seconds))
    };
    show(look, Duration::from_millis(100)).unwrap();
}

fn started(columns: u16, rows: u16, variable: Option<&str>) -> Option<pty::Session> {
    let program = std::env::current_exe().unwrap();
    pty::start(program.to_str().unwrap(), columns, rows, |command| {
        command.args([
            "--ignored",
            "--exact",
            "--nocapture",
            "top::tests::on_a_terminal",
        ]);
        variable.map(|name| command.env(name, "1"));
    })
}

#[test]
fn keys_choose_what_is_shown() {
    let Some(mut session) = started(80, 24, None) else {
        return;
    };
    let screen = session.until("stalled");
    assert!(
        screen.contains("ublkb12") && screen.contains("3 devices"),
        "{screen}"
    );
    session.press("\r");
    session.until("QUEUE  SHARE");
    session.press("\x1b[B");
    session.until("ublkb3 (backup)");
    session.press("?");
    session.until("turn the order round");
    session.press("?s");
    session.until("by requests");
    session.resize(20, 5);
    session.until("20x5 is too small");
    session.resize(120, 40);
    session.until("BACKEND");
    assert!(session.written().contains("\x1b[38;5;"), "colours are used");
    session.press("q");
    assert!(session.end().success());
    session.is_restored();
}

#[test]
fn a_terminal_without_colour_gets_none() {
    let Some(mut session) = started(80, 24, Some("NO_COLOR")) else {
        return;
    };
    session.until("stalled");
    session.press("\x03");
    assert!(session.end().success());
    session.is_restored();
    assert!(!session.written().contains("\x1b[38;5;"));
}

#[test]
fn a_panic_is_read_on_the_first_screen() {
    let Some(mut session) = started(80, 24, Some("UBLKCTL_TEST_PANIC")) else {
        return;
    };
    assert!(!session.end().success());
    session.is_restored();
    session.until("a look that panics");
}

#[test]
fn signals_end_it_and_the_terminal_is_restored() {
    for signal in ["TERM", "INT", "HUP"] {
        let Some(mut session) = started(80, 24, None) else {
            return;
        };
        session.until("ublkb12");
        session.signal(signal);
        session.end();
        session.is_restored();
    }
}
