//! Measurements as a picture: rates over time, latencies, and for several also rate and latency side by side.

use super::axes::{self, Area, Axes};
use super::{DrawError, shortened};
use crate::units::{self, to_f64};
use plotters::prelude::*;

/// Width and height in pixels.
const SIZE: (u32, u32) = (1240, 800);

/// Colours of runs, in turns.
const COLOURS: [RGBColor; 10] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(110, 110, 110),
    RGBColor(0, 0, 0),
    RGBColor(128, 60, 20),
    RGBColor(90, 60, 160),
];

/// A measurement.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Run {
    /// Its name in the legend.
    pub name: String,
    /// Requests per second over time: seconds, rate.
    pub rates: Vec<(f64, f64)>,
    /// Latencies by percentile, as [`curve`](crate::curve) returns them.
    pub curve: Vec<(f64, u64)>,
    /// Requests per second.
    pub iops: f64,
    /// The 99th percentile of the latencies in nanoseconds.
    pub p99: u64,
}

/// Draws measurements as an SVG document.
///
/// # Errors
/// [`DrawError`]; there is no known cause.
pub fn runs(title: &str, runs: &[Run]) -> Result<String, DrawError> {
    let mut text = String::new();
    {
        // A single run has nothing to be compared with.
        let height = if runs.len() > 1 { SIZE.1 } else { SIZE.1 / 2 };
        let root = SVGBackend::with_string(&mut text, (SIZE.0, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let style = ("sans-serif", 22).into_font().color(&BLACK);
        let root = root.titled(&shortened(title), style)?;
        let rows = if runs.len() > 1 { 2 } else { 1 };
        let areas = root.margin(4, 4, 8, 8).split_evenly((rows, 2));
        let names: Vec<String> = runs.iter().map(|run| shortened(&run.name)).collect();
        let named = || runs.iter().zip(&names).zip(COLOURS.iter().cycle());
        if let [over_time, latency, rest @ ..] = &areas[..] {
            draw_rates(
                over_time,
                named().map(|((run, name), colour)| (run, name.as_str(), *colour)),
            )?;
            let curves: Vec<axes::Curve<'_>> = named()
                .map(|((run, name), colour)| (name.as_str(), *colour, &run.curve[..]))
                .collect();
            axes::percentiles(latency, "Latency by percentile", &curves)?;
            if let [rates, p99] = rest {
                let iops = runs.iter().map(|run| run.iops);
                bars(rates, "Requests per second", &names, iops, axes::counts)?;
                let tail = runs.iter().map(|run| to_f64(run.p99));
                bars(p99, "99th percentile of latency", &names, tail, times)?;
            }
        }
        root.present()?;
    }
    Ok(text)
}

fn times(_: f64) -> (f64, axes::Named) {
    (1.0, Box::new(|ns| axes::time(*ns)))
}

fn draw_rates<'a>(
    area: &Area<'_>,
    runs: impl Iterator<Item = (&'a Run, &'a str, RGBColor)> + Clone,
) -> Result<(), DrawError> {
    let title = "Requests per second over time";
    let points = || runs.clone().flat_map(|(run, ..)| run.rates.iter().copied());
    let end = points().map(|(at, _)| at).fold(0.0, f64::max);
    let top = points().map(|(_, rate)| rate).fold(0.0, f64::max);
    if end <= 0.0 || top <= 0.0 {
        return axes::nothing(area, title);
    }
    let mut chart = Axes::new(title, 0.0..end, 0.0..top * 1.4);
    chart.x_label = &|x| axes::time(*x * 1e9);
    chart.y_label = &|y| units::count(*y);
    let mut chart = chart.build(area)?;
    for (run, name, colour) in runs {
        let series = LineSeries::new(run.rates.iter().copied(), colour.stroke_width(2));
        chart
            .draw_series(series)?
            .label(name)
            .legend(axes::key(colour));
    }
    axes::legend(&mut chart)
}

/// A bar for each run, with its name below.
fn bars(
    area: &Area<'_>,
    title: &str,
    names: &[String],
    values: impl Iterator<Item = f64> + Clone,
    scale: fn(f64) -> (f64, axes::Named),
) -> Result<(), DrawError> {
    let top = values.clone().fold(0.0, f64::max);
    if names.is_empty() || top <= 0.0 {
        return axes::nothing(area, title);
    }
    let (unit, label) = scale(top);
    let count = to_f64(u64::try_from(names.len()).unwrap_or(1));
    let mut chart = Axes::new(title, -0.5..count - 0.5, 0.0..top / unit * 1.15);
    chart.x_label = &|_| String::new();
    chart.y_label = &label;
    let mut chart = chart.build(area)?;
    let places = (0_u32..).map(f64::from);
    let each = values
        .clone()
        .zip(COLOURS.iter().cycle())
        .zip(places.clone());
    chart.draw_series(each.map(|((value, colour), at)| {
        let corners = [(at - 0.35, 0.0), (at + 0.35, value / unit)];
        Rectangle::new(corners, colour.filled())
    }))?;
    let style = || ("sans-serif", 12).into_font().color(&BLACK);
    chart.draw_series(values.zip(places.clone()).map(|(value, at)| {
        let text = label(&if unit > 1.0 { value / unit } else { value });
        Text::new(text, (at - 0.3, value / unit + top / unit * 0.06), style())
    }))?;
    // Names below the axis, each in its share of the width.
    let width = f64::from(area.dim_in_pixel().0.saturating_sub(110)) / count;
    let most = usize::from(axes::to_u8(width / 6.0)).max(4);
    let (_, height) = area.dim_in_pixel();
    let y = i32::try_from(height).unwrap_or(0) - 26;
    for (name, at) in names.iter().zip(places) {
        let x = i32::try_from(axes::to_u64(86.0 + width * at + 4.0)).unwrap_or(0);
        let skip = name.chars().count().saturating_sub(most);
        let name: String = name.chars().skip(skip).collect();
        area.draw_text(&name, &style().into_text_style(area), (x, y))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, factor: f64) -> Run {
        Run {
            name: name.to_owned(),
            rates: (1..50_u8)
                .map(|n| {
                    (
                        f64::from(n) / 10.0,
                        (1000.0 + f64::from(n % 7) * 20.0) * factor,
                    )
                })
                .collect(),
            curve: (0..80_u16)
                .map(|n| {
                    (
                        f64::from(n) * 0.05,
                        50_000 + u64::from(n) * u64::from(n) * 100,
                    )
                })
                .collect(),
            iops: 1060.0 * factor,
            p99: 210_000,
        }
    }

    /// One run, two, and a sweep. `UBLK_RUNS` keeps the file.
    #[test]
    fn runs_are_drawn() {
        for n in [0_u8, 1, 2, 9] {
            let all: Vec<Run> = (0..n)
                .map(|i| run(&format!("4 KiB, depth {}", 1 << i), f64::from(i + 1)))
                .collect();
            let text = super::runs("/dev/<x>", &all).unwrap();
            assert!(text.starts_with("<svg") && !text.contains("NaN"), "{n}");
            assert_eq!(text.contains("depth 1"), n > 0);
            if let Some(path) = std::env::var_os("UBLK_RUNS") {
                std::fs::write(path, text).unwrap();
            }
        }
    }
}
