//! The panels of a picture.

use super::DrawError;
use super::axes::{self, Area, Axes};
use crate::analysis::{Column, OpSummary, SizeClass, Timeline, class_begin};
use crate::record::Op;
use crate::units::{self, to_f64};
use plotters::prelude::*;

/// The colour of an operation, told apart by those who do not see red or green as well.
pub(super) const fn colour(op: Op) -> RGBColor {
    match op {
        Op::Read => RGBColor(0, 114, 178),
        Op::Write => RGBColor(213, 94, 0),
        Op::Flush => RGBColor(0, 158, 115),
        Op::Discard => RGBColor(204, 121, 167),
        Op::WriteZeroes => RGBColor(230, 159, 0),
        Op::ZoneAppend => RGBColor(86, 180, 233),
        Op::Zone | Op::Other => RGBColor(110, 110, 110),
    }
}

/// A line of a panel: its name, its colour, and its height in each interval.
type Line<'a> = (&'a str, RGBColor, &'a dyn Fn(&Column) -> f64);

/// The size of an axis's unit for its largest value, and what a number of units is called.
type Scale = fn(f64) -> (f64, axes::Named);

/// Figures over time as steps.
fn over_time(
    area: &Area<'_>,
    title: &str,
    timeline: &Timeline,
    (scale, lines): (Scale, &[Line<'_>]),
) -> Result<(), DrawError> {
    let used = |line: &&Line<'_>| timeline.columns.iter().any(|c| line.2(c) > 0.0);
    let lines: Vec<_> = lines.iter().filter(used).collect();
    if lines.is_empty() {
        return axes::nothing(area, title);
    }
    let heights = lines.iter().flat_map(|l| timeline.columns.iter().map(l.2));
    // Room for the legend.
    let top = heights.fold(0.0, f64::max) * 1.3;
    let (unit, label) = scale(top);
    let mut chart = Axes::new(title, axes::time_range(timeline), 0.0..top / unit);
    chart.x_label = &|x| axes::time(*x);
    chart.y_label = &label;
    let mut chart = chart.build(area)?;
    let interval = to_f64(timeline.interval);
    for (name, colour, height) in lines {
        let steps = timeline.columns.iter().flat_map(|column| {
            let (begin, height) = (to_f64(column.at), height(column) / unit);
            [(begin, height), (begin + interval, height)]
        });
        let colour = *colour;
        let series = AreaSeries::new(steps, 0.0, colour.mix(0.15)).border_style(colour);
        chart
            .draw_series(series)?
            .label(*name)
            .legend(axes::key(colour));
    }
    axes::legend(&mut chart)
}

/// Requests per second.
pub(super) fn rates(area: &Area<'_>, timeline: &Timeline) -> Result<(), DrawError> {
    let second = to_f64(timeline.interval.max(1)) / 1e9;
    let lines: [Line<'_>; 3] = [
        ("read", colour(Op::Read), &|c| to_f64(c.reads) / second),
        ("write", colour(Op::Write), &|c| to_f64(c.writes) / second),
        ("other", colour(Op::Flush), &|c| to_f64(c.others) / second),
    ];
    over_time(
        area,
        "Requests per second",
        timeline,
        (axes::counts, &lines),
    )
}

/// Bytes per second.
pub(super) fn bytes(area: &Area<'_>, timeline: &Timeline) -> Result<(), DrawError> {
    let second = to_f64(timeline.interval.max(1)) / 1e9;
    let lines: [Line<'_>; 2] = [
        ("read", colour(Op::Read), &|c| to_f64(c.read_bytes) / second),
        ("write", colour(Op::Write), &|c| {
            to_f64(c.write_bytes) / second
        }),
    ];
    over_time(area, "Bytes per second", timeline, (axes::binary, &lines))
}

/// Requests in flight.
pub(super) fn depth(area: &Area<'_>, timeline: &Timeline) -> Result<(), DrawError> {
    let lines: [Line<'_>; 1] = [("in flight", colour(Op::ZoneAppend), &|c| c.depth)];
    over_time(
        area,
        "Requests in flight (mean of an interval)",
        timeline,
        (axes::counts, &lines),
    )
}

/// A map of counts: how dark a cell is, by how many there are, on a logarithmic scale.
fn shade(count: u32, most: u32) -> RGBColor {
    let part = f64::from(count).ln_1p() / f64::from(most.max(1)).ln_1p();
    // From pale to dark blue.
    let mix = |from: f64, to: f64| axes::to_u8(from + (to - from) * (0.15 + 0.85 * part));
    RGBColor(mix(222.0, 8.0), mix(235.0, 48.0), mix(247.0, 107.0))
}

/// The cells of a map: in each interval, what is counted in each row.
fn cells<'a>(
    timeline: &'a Timeline,
    rows: impl Fn(&'a Column) -> &'a [u32] + Copy + 'a,
    row_range: impl Fn(usize) -> (f64, f64) + Copy + 'a,
) -> impl Iterator<Item = Rectangle<(f64, f64)>> + 'a {
    let all = timeline.columns.iter().flat_map(rows);
    let most = all.copied().max().unwrap_or(0);
    let interval = to_f64(timeline.interval);
    timeline.columns.iter().flat_map(move |column| {
        let begin = to_f64(column.at);
        let filled = rows(column).iter().enumerate().filter(|(_, n)| **n > 0);
        filled.map(move |(row, count)| {
            let (low, high) = row_range(row);
            let corners = [(begin, low), (begin + interval, high)];
            Rectangle::new(corners, shade(*count, most).filled())
        })
    })
}

/// A line of a percentile: its name, its colour, its height in an interval.
type Percentile = (&'static str, RGBColor, fn(&Column) -> Option<u64>);

/// Latencies over time: a map, with the median and the 99th percentile.
pub(super) fn latency(area: &Area<'_>, timeline: &Timeline) -> Result<(), DrawError> {
    let title = "Latency (dark: many requests)";
    let classes = timeline
        .columns
        .iter()
        .flat_map(|c| c.latencies.iter().enumerate());
    let used = classes.filter(|(_, n)| **n > 0).map(|(class, _)| class);
    let Some((low, high)) = bounds(used) else {
        return axes::nothing(area, title);
    };
    let log = |ns: u64| to_f64(ns.max(1)).log10();
    let range = |class: usize| (log(class_begin(class)), log(class_begin(class + 1)));
    let mut chart = Axes::new(
        title,
        axes::time_range(timeline),
        range(low).0..range(high).1,
    );
    chart.x_label = &|x| axes::time(*x);
    chart.y_label = &|y| units::time(axes::to_u64(10_f64.powf(*y)));
    let mut chart = chart.build(area)?;
    chart.draw_series(cells(timeline, |c| &c.latencies, range))?;
    let middle = to_f64(timeline.interval) / 2.0;
    let lines: [Percentile; 2] = [
        ("p50", RGBColor(0, 120, 60), |c| c.p50),
        ("p99", RGBColor(200, 30, 30), |c| c.p99),
    ];
    for (name, colour, value) in lines {
        let point = |c: &Column| value(c).map(|ns| (to_f64(c.at) + middle, log(ns)));
        let points = timeline.columns.iter().filter_map(point);
        let series = LineSeries::new(points, colour.stroke_width(2));
        chart
            .draw_series(series)?
            .label(name)
            .legend(axes::key(colour));
    }
    axes::legend(&mut chart)
}

/// Addresses of reads and writes over time.
pub(super) fn addresses(area: &Area<'_>, timeline: &Timeline) -> Result<(), DrawError> {
    let title = "Address of reads and writes (dark: many requests)";
    let rows = timeline
        .columns
        .iter()
        .flat_map(|c| c.addresses.iter().enumerate());
    let used = rows.filter(|(_, n)| **n > 0).map(|(row, _)| row);
    let Some((_, high)) = bounds(used) else {
        return axes::nothing(area, title);
    };
    let row = to_f64(timeline.row);
    let at = |n: usize| to_f64(u64::try_from(n).unwrap_or(0)) * row;
    let (unit, label) = axes::binary(at(high + 1));
    let range = move |n: usize| (at(n) / unit, at(n + 1) / unit);
    let mut chart = Axes::new(title, axes::time_range(timeline), 0.0..range(high).1);
    chart.x_label = &|x| axes::time(*x);
    chart.y_label = &label;
    let mut chart = chart.build(area)?;
    chart.draw_series(cells(timeline, |c| &c.addresses, range))?;
    Ok(())
}

/// The smallest and the largest.
fn bounds(values: impl Iterator<Item = usize>) -> Option<(usize, usize)> {
    values.fold(None, |found, n| match found {
        None => Some((n, n)),
        Some((low, high)) => Some((n.min(low), n.max(high))),
    })
}

/// Latencies by percentile; each step to the right is the next nine.
pub(super) fn percentiles(area: &Area<'_>, ops: &[OpSummary]) -> Result<(), DrawError> {
    let curves: Vec<_> = ops
        .iter()
        .map(|op| (op.op.name(), colour(op.op), &op.curve[..]))
        .collect();
    axes::percentiles(area, "Latency by percentile", &curves)
}

/// Bars of an operation: where beside the middle of the class, and how high.
type Bar = (Op, f64, fn(&SizeClass) -> u64);

/// Requests by size.
pub(super) fn sizes(area: &Area<'_>, sizes: &[SizeClass]) -> Result<(), DrawError> {
    let title = "Requests by size (up to)";
    let exponents = || sizes.iter().map(|s| s.up_to.trailing_zeros());
    let (Some(low), Some(high)) = (exponents().min(), exponents().max()) else {
        return axes::nothing(area, title);
    };
    let (low, high) = (f64::from(low), f64::from(high));
    let most = sizes.iter().map(|s| s.reads.max(s.writes)).max();
    let top = to_f64(most.unwrap_or(1)) * 1.3;
    let mut chart = Axes::new(title, low - 0.5..high + 0.5, 0.0..top);
    chart.x_label = &|x| match x.fract().abs() < 0.01 {
        true => units::bytes_f64(x.exp2()),
        false => String::new(),
    };
    chart.y_label = &|y| units::count(*y);
    let mut chart = chart.build(area)?;
    let bars: [Bar; 2] = [
        (Op::Read, -0.4, |s| s.reads),
        (Op::Write, 0.0, |s| s.writes),
    ];
    for (op, at, count) in bars {
        let colour = colour(op);
        let bar = |s: &SizeClass| {
            let x = f64::from(s.up_to.trailing_zeros()) + at;
            Rectangle::new([(x, 0.0), (x + 0.4, to_f64(count(s)))], colour.filled())
        };
        let series = chart.draw_series(sizes.iter().map(bar))?;
        series.label(op.name()).legend(axes::key(colour));
    }
    axes::legend(&mut chart)
}

/// The operations in figures.
pub(super) fn operations(area: &Area<'_>, ops: &[OpSummary]) -> Result<(), DrawError> {
    let area = area.titled("Operations", ("sans-serif", 17).into_font())?;
    let total: u64 = ops.iter().map(|op| op.requests).sum();
    let columns = [20, 150, 240, 310, 400, 490];
    let mut rows = vec![["", "requests", "share", "sequential", "p50", "p99"].map(str::to_owned)];
    rows.extend(ops.iter().map(|op| {
        let latency = |value: fn(&crate::Distribution) -> u64| {
            op.latency
                .as_ref()
                .map_or_else(|| "–".to_owned(), |l| units::time(value(l)))
        };
        [
            op.op.name().to_owned(),
            op.requests.to_string(),
            units::percent(to_f64(op.requests) / to_f64(total.max(1))),
            op.size
                .map_or_else(|| "–".to_owned(), |_| units::percent(op.sequential)),
            latency(|l| l.p50),
            latency(|l| l.p99),
        ]
    }));
    for (row, y) in rows.iter().zip((20..).step_by(30)) {
        for (cell, x) in row.iter().zip(columns) {
            area.draw_text(cell, &("sans-serif", 15).into_text_style(&area), (x, y))?;
        }
    }
    Ok(())
}
