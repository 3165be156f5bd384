//! What the panels of all pictures have in common.

use super::DrawError;
use crate::analysis::Timeline;
use crate::units::{self, to_f64};
use plotters::chart::SeriesLabelPosition;
use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::element::PathElement;
use plotters::prelude::*;
use std::ops::Range;

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;
type Label<'a> = &'a dyn Fn(&f64) -> String;

/// What a number on an axis is called.
pub(super) type Named = Box<dyn Fn(&f64) -> String>;

/// A scale of counts.
pub(super) fn counts(_: f64) -> (f64, Named) {
    (1.0, Box::new(|n| units::count(*n)))
}

/// A scale of bytes, so that the numbers on it are round.
pub(super) fn binary(top: f64) -> (f64, Named) {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let fits = |n: &usize| top >= 1024_f64.powf(to_f64(u64::try_from(*n).unwrap_or(0)));
    let n = (1..UNITS.len()).rev().find(fits).unwrap_or(0);
    let unit = UNITS.get(n).copied().unwrap_or_default();
    let size = 1024_f64.powf(to_f64(u64::try_from(n).unwrap_or(0)));
    let label = move |n: &f64| {
        // Multiples of 0.2 are not exact.
        let digits = format!("{n:.3}");
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        format!("{digits} {unit}")
    };
    (size, Box::new(label))
}

/// A time on an axis.
pub(super) fn time(ns: f64) -> String {
    match to_u64(ns) {
        0 => "0".to_owned(),
        ns => units::time(ns),
    }
}

/// A panel's axes.
pub(super) struct Axes<'a> {
    title: &'a str,
    x: Range<f64>,
    y: Range<f64>,
    pub x_label: Label<'a>,
    pub y_label: Label<'a>,
}

impl<'a> Axes<'a> {
    pub fn new(title: &'a str, x: Range<f64>, y: Range<f64>) -> Self {
        Self {
            title,
            x,
            y: y.start..y.end.max(y.start + f64::EPSILON),
            x_label: &f64::to_string,
            y_label: &f64::to_string,
        }
    }

    pub fn build<'b, 'c>(self, area: &'c Area<'b>) -> Result<Chart<'c, 'b>, DrawError> {
        let mut chart = ChartBuilder::on(area)
            .caption(self.title, ("sans-serif", 17))
            .margin(6)
            .margin_right(18)
            .x_label_area_size(28)
            .y_label_area_size(76)
            .build_cartesian_2d(self.x, self.y)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE.mix(0.0))
            .bold_line_style(BLACK.mix(0.1))
            .x_labels(6)
            .y_labels(6)
            .x_label_formatter(self.x_label)
            .y_label_formatter(self.y_label)
            .label_style(("sans-serif", 13))
            .draw()?;
        Ok(chart)
    }
}

/// The names of the lines.
pub(super) fn legend<'a, 'b: 'a>(chart: &mut Chart<'a, 'b>) -> Result<(), DrawError> {
    names(chart, SeriesLabelPosition::UpperRight)
}

fn names<'a, 'b: 'a>(
    chart: &mut Chart<'a, 'b>,
    position: SeriesLabelPosition,
) -> Result<(), DrawError> {
    chart
        .configure_series_labels()
        .position(position)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .label_font(("sans-serif", 13))
        .draw()?;
    Ok(())
}

/// The line before a name.
pub(super) fn key(colour: RGBColor) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(3))
}

/// A panel without figures.
pub(super) fn nothing(area: &Area<'_>, title: &str) -> Result<(), DrawError> {
    let area = area.titled(title, ("sans-serif", 17).into_font())?;
    let style = ("sans-serif", 15).into_text_style(&area);
    area.draw_text("not in the trace", &style, (90, 60))?;
    Ok(())
}

/// From the begin of a trace to its end; never empty.
pub(super) fn time_range(timeline: &Timeline) -> Range<f64> {
    let intervals = u64::try_from(timeline.columns.len()).unwrap_or(0).max(1);
    0.0..to_f64(intervals) * to_f64(timeline.interval.max(1))
}

/// A curve: its name, its colour, and for numbers of nines the value.
pub(super) type Curve<'a> = (&'a str, RGBColor, &'a [(f64, u64)]);

/// Curves of values by percentile, the next nine further to the right: names, colours, and points.
pub(super) fn percentiles(
    area: &Area<'_>,
    title: &str,
    curves: &[Curve<'_>],
) -> Result<(), DrawError> {
    let log = |ns: u64| to_f64(ns.max(1)).log10();
    let values = || curves.iter().flat_map(|c| c.2).map(|(_, ns)| log(*ns));
    let (low, high) = values().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return nothing(area, title);
    }
    let right = curves.iter().flat_map(|c| c.2).map(|(nines, _)| *nines);
    let right = right.fold(1.0, f64::max);
    let mut chart = Axes::new(
        title,
        0.0..right,
        low - 0.05..high + 0.05 + (high - low) * 0.3,
    );
    chart.x_label = &|nines| match nines.fract().abs() < 0.01 {
        true => nines_label(*nines),
        false => String::new(),
    };
    chart.y_label = &|y| units::time(to_u64(10_f64.powf(*y)));
    let mut chart = chart.build(area)?;
    for (name, colour, points) in curves.iter().filter(|c| !c.2.is_empty()) {
        let points = points.iter().map(|(nines, ns)| (*nines, log(*ns)));
        let series = LineSeries::new(points, colour.stroke_width(2));
        chart.draw_series(series)?.label(*name).legend(key(*colour));
    }
    // Percentiles rise to the right.
    names(&mut chart, SeriesLabelPosition::UpperLeft)
}

/// The percentile of so many nines: 0 %, 90 %, 99 %, 99.9 %.
fn nines_label(nines: f64) -> String {
    let digits = usize::from(to_u8(nines)).saturating_sub(2);
    format!("{:.digits$} %", 100.0 - 100.0 * 0.1_f64.powf(nines))
}

/// A coordinate as a whole number; what is out of range is the nearest.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates"
)]
pub(super) const fn to_u64(value: f64) -> u64 {
    value as u64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates"
)]
pub(super) const fn to_u8(value: f64) -> u8 {
    value as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_axes_are_short() {
        let (unit, label) = binary(1_200_000_000.0);
        assert_eq!(unit, 1_073_741_824.0);
        // What plotters makes of three steps of 0.2.
        assert_eq!(label(&(0.2 + 0.4)), "0.6 GiB");
        assert_eq!(label(&0.0), "0 GiB");
        assert_eq!(label(&250.0), "250 GiB");
        assert_eq!(
            (time(0.0), time(1e9)),
            ("0".to_owned(), "1.00 s".to_owned())
        );
    }
}
