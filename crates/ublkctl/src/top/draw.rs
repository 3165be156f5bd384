//! Draws a [`Model`]: a pure function of it and the size of the screen.

use super::heat;
use super::model::{Device, Model, View};
use crate::show::time;
use crate::stats::Work;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ublk_daemon::log::plain;

/// The least screen.
const LEAST: (u16, u16) = (50, 10);

/// Columns of the table: title, width, and their importance: the screen has those that fit, 0 first.
const COLUMNS: [(&str, usize, u8); 13] = [
    ("DEVICE", 9, 0),
    ("NAME", 14, 5),
    ("BACKEND", 8, 6),
    ("STATE", 12, 0),
    ("REQ/S", 9, 0),
    ("MiB/S", 9, 1),
    ("ERRORS", 6, 2),
    ("P50", 6, 3),
    ("P99", 6, 1),
    ("P99.9", 6, 5),
    ("BATCH", 5, 4),
    ("BUSY", 5, 3),
    ("FLIGHT", 6, 4),
];

/// What the keys do.
const KEYS: [(&str, &str); 8] = [
    ("up, down, k, j", "choose a device"),
    ("Enter", "show the chosen device, or all again"),
    ("Esc", "show all devices"),
    (
        "s",
        "sort by device, requests, bytes, P99, errors, busy in turn",
    ),
    ("r", "turn the order round"),
    ("p, space", "stop the picture, or let it go on"),
    ("?, h", "show the keys, or not"),
    ("q, Ctrl-C", "quit"),
];

/// A screen that is written line by line.
struct Page<'a> {
    area: Rect,
    at: u16,
    buffer: &'a mut Buffer,
    colour: bool,
}

impl Page<'_> {
    fn line(&mut self, text: &str, style: Style) {
        if self.at < self.area.height {
            let y = self.area.y + self.at;
            let width = usize::from(self.area.width);
            self.buffer
                .set_stringn(self.area.x, y, plain(text), width, style);
        }
        self.at += 1;
    }

    fn text(&mut self, text: &str) {
        self.line(text, Style::new());
    }

    fn left(&self) -> u16 {
        self.area.height.saturating_sub(self.at)
    }

    /// Something that needs attention.
    fn bad(&self) -> Style {
        match self.colour {
            true => Style::new().fg(Color::Red),
            false => Style::new().add_modifier(Modifier::BOLD),
        }
    }
}

const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);

/// Draws the whole screen.
pub fn draw(model: &Model, area: Rect, buffer: &mut Buffer, colour: bool) {
    let (width, height) = (area.width, area.height);
    let mut page = Page {
        area,
        at: 0,
        buffer,
        colour,
    };
    if width < LEAST.0 || height < LEAST.1 {
        let text = [
            format!("{width}x{height} is too small"),
            format!("top needs {}x{}", LEAST.0, LEAST.1),
            "q: quit".to_owned(),
        ];
        text.iter().for_each(|line| page.text(line));
        return;
    }
    // The last line has the keys.
    page.area.height -= 1;
    title(model, &mut page);
    match (&model.failure, model.view) {
        (_, View::Keys) => keys(&mut page),
        (Some(failure), _) => {
            let bad = page.bad();
            page.line(failure, bad);
        }
        (None, _) if !model.looked => page.text("looking at the devices ..."),
        (None, _) if model.devices.is_empty() => {
            page.text("no devices of this user");
            page.text("");
            page.text("`ublkctl list` has those of others, `ublkctl add` creates one.");
        }
        (None, View::Devices) => devices(model, &mut page),
        (None, View::Detail) => {
            if let Some((_, device)) = model.choice() {
                detail(device, &mut page);
            }
        }
    }
    page.area.height += 1;
    page.at = height - 1;
    let footer = match model.view {
        View::Devices => "q quit  up/down choose  Enter device  s sort  r reverse  p pause  ? keys",
        View::Detail => "q quit  up/down device  Enter all devices  p pause  ? keys",
        View::Keys => "q quit  ? back",
    };
    let bar = Style::new().add_modifier(Modifier::REVERSED);
    page.line(&format!("{footer:<0$}", usize::from(width)), bar);
}

fn title(model: &Model, page: &mut Page<'_>) {
    let devices = model.devices.iter();
    let requests = devices.clone().fold(0.0, |sum, it| sum + it.requests());
    let bytes = devices.fold(0.0, |sum, it| sum + it.bytes());
    let order = match model.reversed {
        true => ", reversed",
        false => "",
    };
    let mut text = format!(
        "ublkctl top: {} devices, {requests:.0} req/s, {} MiB/s, by {}{order}, every {} s",
        model.devices.len(),
        mib(bytes),
        model.sort.name(),
        model.interval.as_secs_f64(),
    );
    if model.paused {
        text.insert_str(0, "PAUSED ");
    }
    page.line(&text, HEAD);
}

fn keys(page: &mut Page<'_>) {
    for (key, what) in KEYS {
        page.text(&format!("  {key:15} {what}"));
    }
}

fn mib(bytes: f64) -> String {
    const MIB: f64 = (1 << 20) as f64;
    format!("{:.1}", bytes / MIB)
}

/// The columns that fit, in their order.
fn fitting(width: usize) -> Vec<usize> {
    let mut chosen: Vec<usize> = Vec::new();
    let mut used = 0;
    for importance in 0..=6 {
        for (at, (_, wide, of)) in COLUMNS.iter().enumerate() {
            if *of == importance && used + wide <= width {
                used += wide + 1;
                chosen.push(at);
            }
        }
    }
    chosen.sort_unstable();
    chosen
}

fn row(cells: &[String], columns: &[usize]) -> String {
    let cell = |at: &usize| {
        let width = COLUMNS[*at].1;
        let text = plain(cells.get(*at).map_or("", String::as_str));
        let text: String = text.chars().take(width).collect();
        match *at < 4 {
            true => format!("{text:width$}"),
            false => format!("{text:>width$}"),
        }
    };
    columns.iter().map(cell).collect::<Vec<_>>().join(" ")
}

fn cells(device: &Device) -> [String; COLUMNS.len()] {
    let report = &device.report;
    let unknown = || "-".to_owned();
    let latency = |share| device.percentile(share).map_or_else(unknown, time);
    let numbers = report.cause.is_none();
    let number = |text: String| if numbers { text } else { unknown() };
    [
        format!("ublkb{}", report.id),
        report.name.clone().unwrap_or_default(),
        report.backend.clone(),
        device.state.clone(),
        number(format!("{:.0}", device.requests())),
        number(mib(device.bytes())),
        number(device.errors().to_string()),
        latency(0.5),
        latency(0.99),
        latency(0.999),
        report
            .total
            .batch_mean
            .map_or_else(unknown, |it| format!("{it:.1}")),
        report.total.busy.map_or_else(unknown, percent),
        number(report.total.in_flight.to_string()),
    ]
}

fn percent(part: f64) -> String {
    format!("{:.0}%", part * 100.0)
}

fn devices(model: &Model, page: &mut Page<'_>) {
    let columns = fitting(usize::from(page.area.width));
    let titles = COLUMNS.map(|(title, ..)| title.to_owned());
    page.line(&row(&titles, &columns), HEAD);
    // The chosen device's next step and heat map have what the table leaves, and at least a third.
    let third = page.area.height / 3;
    let room = usize::from(page.left().saturating_sub(third.max(4))).max(1);
    let chosen = model.choice().map_or(0, |(at, _)| at);
    let first = (chosen + 1).saturating_sub(room);
    for (at, device) in model.devices.iter().enumerate().skip(first).take(room) {
        let mut style = match device.state.as_str() {
            "live" => Style::new(),
            _ => page.bad(),
        };
        if at == chosen {
            style = style.add_modifier(Modifier::REVERSED);
        }
        let width = usize::from(page.area.width);
        page.line(&format!("{:width$}", row(&cells(device), &columns)), style);
    }
    let hidden = model.devices.len().saturating_sub(room);
    match hidden {
        0 => page.text(""),
        n => page.text(&format!("({n} more: up, down)")),
    }
    if let Some((_, device)) = model.choice() {
        next_step(device, page);
        heat_map(device, page);
    }
}

fn next_step(device: &Device, page: &mut Page<'_>) {
    if let Some(next) = &device.next {
        let bad = page.bad();
        page.line(&format!("ublkb{}: {next}", device.report.id), bad);
    }
}

fn detail(device: &Device, page: &mut Page<'_>) {
    let report = &device.report;
    let name = report.name.as_deref().map(|it| format!(" ({it})"));
    page.line(
        &format!(
            "ublkb{}{}  {}  {}  in flight {}",
            report.id,
            name.unwrap_or_default(),
            report.backend,
            device.state,
            report.total.in_flight
        ),
        HEAD,
    );
    next_step(device, page);
    if report.cause.is_some() {
        return;
    }
    operations(&report.total, page);
    queues(device, page);
    batches(device, page);
    let facts: Vec<String> = crate::show::of_mode(&report.total).collect();
    if !facts.is_empty() {
        page.text(&format!("in this interval: {}", facts.join(", ")));
    }
    heat_map(device, page);
}

fn operations(work: &Work, page: &mut Page<'_>) {
    const WAIT: usize = 4;
    let narrow = page.area.width < 84;
    let line = |cells: [&str; 10]| {
        let [op, rest @ ..] = cells;
        let rest = rest.iter().enumerate();
        let rest = rest.filter(|(at, _)| !narrow || *at != WAIT);
        let rest: Vec<String> = rest.map(|(_, it)| format!("{it:>7}")).collect();
        format!("{op:12} {}", rest.join(" "))
    };
    let titles = [
        "OP", "REQ/S", "MiB/S", "ERRORS", "MEAN", "WAIT", "P50", "P99", "P99.9", "MAX",
    ];
    page.line(&line(titles), HEAD);
    if work.ops.is_empty() {
        page.text("idle");
    }
    for op in &work.ops {
        let latency = op.latency_ns.as_ref();
        let of = |it: Option<u64>| it.map_or_else(|| "-".to_owned(), time);
        let texts = [
            format!("{:.0}", op.requests_per_second),
            mib(op.bytes_per_second),
            op.errors.to_string(),
            of(latency.map(|it| it.mean)),
            of(latency.map(|it| it.waiting)),
            of(latency.map(|it| it.p50)),
            of(latency.map(|it| it.p99)),
            of(latency.map(|it| it.p999)),
            of(latency.map(|it| it.max)),
        ];
        let [a, b, c, d, e, f, g, h, i] = texts.each_ref().map(String::as_str);
        page.text(&line([op.op.name(), a, b, c, d, e, f, g, h, i]));
    }
}

/// A bar of the share of all requests that each queue had.
fn queues(device: &Device, page: &mut Page<'_>) {
    let all = device.requests();
    let room = usize::from(page.left() / 3).max(1);
    page.line(
        "QUEUE  SHARE                         REQ/S  BATCH   BUSY  FLIGHT",
        HEAD,
    );
    for queue in device.report.queues.iter().take(room) {
        let ops = queue.work.ops.iter();
        let requests = ops.fold(0.0, |sum, op| sum + op.requests_per_second);
        let share = if all > 0.0 { requests / all } else { 0.0 };
        let name = match queue.thread {
            0 => queue.qid.to_string(),
            thread => format!("{}.{thread}", queue.qid),
        };
        let unknown = || "-".to_owned();
        page.text(&format!(
            "{name:6} {:20} {:>4} {requests:>9.0} {:>6} {:>6} {:>7}",
            bar(share, 20),
            percent(share),
            queue
                .work
                .batch_mean
                .map_or_else(unknown, |it| format!("{it:.1}")),
            queue.work.busy.map_or_else(unknown, percent),
            queue.work.in_flight,
        ));
    }
    match device.report.queues.len().saturating_sub(room) {
        0 => {}
        n => page.text(&format!(
            "({n} more: `ublkctl stats {} --queues`)",
            device.report.id
        )),
    }
}

fn bar(share: f64, width: u16) -> String {
    let filled = (share.clamp(0.0, 1.0) * f64::from(width)).round();
    (0..width)
        .take_while(|n| f64::from(*n) < filled)
        .map(|_| '#')
        .collect()
}

/// The share of wake-ups that found so many requests.
#[expect(clippy::cast_precision_loss, reason = "shares for people")]
fn batches(device: &Device, page: &mut Page<'_>) {
    let batches = &device.total.batches;
    let count = batches.count();
    if count == 0 {
        return;
    }
    let used = batches.counts.iter().enumerate().filter(|(_, n)| **n > 0);
    let part = |(power, n): (usize, &u64)| {
        let share = percent(*n as f64 / count as f64);
        match power {
            0 => format!("1: {share}"),
            power => format!("{}-{}: {share}", 1_u64 << power, (2_u64 << power) - 1),
        }
    };
    let parts: Vec<String> = used.map(part).collect();
    page.text(&format!("batch sizes  {}", parts.join("  ")));
}

/// Latencies over time, on the rest of the page.
fn heat_map(device: &Device, page: &mut Page<'_>) {
    /// Width of a latency and its blank.
    const LABEL: u16 = 8;
    if page.left() < 2 {
        return;
    }
    let id = device.report.id;
    page.line(
        &format!("LATENCY of ublkb{id} over time, the present at the right"),
        HEAD,
    );
    if !device.has_latencies() {
        if device.report.cause.is_none() {
            page.text(&format!("not measured: `ublkctl metrics {id} latencies`"));
        }
        return;
    }
    let width = page.area.width.saturating_sub(LABEL);
    let rows = heat::map(&device.past, usize::from(width), usize::from(page.left()));
    if rows.is_empty() {
        page.text("no requests yet");
    }
    for row in rows {
        let y = page.area.y + page.at;
        page.text(&format!("{:>7}", time(row.from)));
        let right = page.area.x + page.area.width;
        for (x, shade) in (0..right).rev().zip(row.cells.iter().rev()) {
            if let (Some(shade), Some(cell)) = (shade, page.buffer.cell_mut((x, y))) {
                cell.set_char(heat::character(*shade));
                if page.colour {
                    let hot = heat::is_hot(*shade);
                    cell.set_fg(if hot { Color::Yellow } else { Color::Cyan });
                }
            }
        }
    }
}
