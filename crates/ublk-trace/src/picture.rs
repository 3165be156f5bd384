//! The figures of a trace as a picture: an SVG with eight panels.
//!
//! SVG only: text in it is text, which the viewer draws. A bitmap would need a font in this program.

mod axes;
mod panels;
mod runs;
#[cfg(test)]
mod tests;

pub use runs::{Run, runs};

use crate::analysis::Summary;
use plotters::prelude::*;

/// Width and height in pixels.
const SIZE: (u32, u32) = (1240, 1440);

/// A picture that cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[error("cannot draw the picture: {0}")]
pub struct DrawError(String);

impl<E: std::error::Error + Send + Sync> From<DrawingAreaErrorKind<E>> for DrawError {
    fn from(error: DrawingAreaErrorKind<E>) -> Self {
        Self(error.to_string())
    }
}

/// Draws the figures as an SVG document: requests and bytes over time, latency and depth over time, addresses over time,
/// sizes, and latencies by percentile.
///
/// # Errors
/// [`DrawError`]; there is no known cause.
pub fn svg(title: &str, summary: &Summary) -> Result<String, DrawError> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let style = ("sans-serif", 22).into_font().color(&BLACK);
        let root = root.titled(&shortened(title), style)?;
        let areas = root.margin(4, 4, 8, 8).split_evenly((4, 2));
        if let [
            rates,
            bytes,
            latency,
            percentiles,
            depth,
            sizes,
            addresses,
            heat,
        ] = &areas[..]
        {
            panels::rates(rates, &summary.timeline)?;
            panels::bytes(bytes, &summary.timeline)?;
            panels::latency(latency, &summary.timeline)?;
            panels::percentiles(percentiles, &summary.ops)?;
            panels::depth(depth, &summary.timeline)?;
            panels::sizes(sizes, &summary.sizes)?;
            panels::addresses(addresses, &summary.timeline)?;
            panels::operations(heat, &summary.ops)?;
        }
        root.present()?;
    }
    Ok(text)
}

/// A title that fits.
fn shortened(title: &str) -> String {
    let clean = title.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut clean: Vec<char> = clean.collect();
    if clean.len() > 100 {
        clean.truncate(99);
        clean.push('…');
    }
    clean.into_iter().collect()
}
