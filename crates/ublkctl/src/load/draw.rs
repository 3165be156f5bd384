//! Drawing in a terminal: progress, and histograms that fit its width.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fmt::Write;
use std::io;
use std::io::IsTerminal;
use ublk_load::Measured;
use ublk_trace::units;

/// The width where there is no terminal.
const WIDTH: usize = 80;

/// The most rows of a histogram.
const ROWS: usize = 14;

/// Where the output goes.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    /// Columns of standard output.
    pub width: usize,
    /// Whether progress can be drawn on standard error.
    progress: bool,
    /// Whether the terminal shows more than ASCII.
    unicode: bool,
}

impl Screen {
    /// That of this process.
    pub fn of_terminal() -> Self {
        let columns = |size: rustix::termios::Winsize| usize::from(size.ws_col);
        let size = |stream: &dyn Fn() -> Option<usize>| stream().filter(|columns| *columns > 0);
        let out = size(&|| {
            rustix::termios::tcgetwinsize(io::stdout())
                .ok()
                .map(columns)
        });
        let error = size(&|| {
            rustix::termios::tcgetwinsize(io::stderr())
                .ok()
                .map(columns)
        });
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()));
        let utf8 = |locale: &str| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        };
        Self {
            width: out.unwrap_or(WIDTH),
            // A bar in less than half a line says nothing.
            progress: io::stderr().is_terminal() && error.unwrap_or(WIDTH) >= 40,
            unicode: locale.as_deref().is_none_or(utf8),
        }
    }

    /// A progress bar on standard error, which shows nothing where that is no terminal, or a tiny one.
    pub fn progress(self, words: &str, whole: u64) -> ProgressBar {
        let target = match self.progress {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(Some(whole), target);
        let style = ProgressStyle::with_template("{msg} [{wide_bar}] {percent:>3} % {eta:>4}");
        bar.set_style(
            style
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .progress_chars("=> "),
        );
        bar.set_message(words.to_owned());
        bar
    }

    /// A text as this terminal can show it.
    pub fn shown(self, text: &str) -> String {
        if self.unicode {
            return text.to_owned();
        }
        let ascii = |c: char| match c {
            'µ' => 'u',
            '█' => '#',
            '–' => '-',
            c if c.is_ascii() => c,
            _ => '?',
        };
        text.chars().map(ascii).collect()
    }

    /// The latencies of a measurement as bars, a row for each factor of two.
    pub fn histogram(self, measured: &Measured) -> String {
        let rows = rows(measured);
        let most = rows.iter().map(|row| row.2).max().unwrap_or(0).max(1);
        let total = units::to_f64(measured.latencies.len().max(1));
        let mut text = String::new();
        // The range of a row, and its share: fixed widths. A narrow terminal has no room for bars.
        let bars = self.width.saturating_sub(32).min(60);
        for (low, high, count) in rows {
            let share = units::percent(units::to_f64(count) / total);
            let (low, high) = (units::time(low), units::time(high));
            if bars < 8 {
                let _ = writeln!(text, "<{high:>7} {share:>7}");
                continue;
            }
            let part = units::to_f64(count) / units::to_f64(most);
            let length = cells(part, bars);
            let bar = "█".repeat(length);
            let line = format!("{low:>8} – {high:>8}  {share:>7}  {bar}");
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

/// How many cells of a bar are full; one that is not empty has at least one.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a line"
)]
fn cells(part: f64, width: usize) -> usize {
    (part * width as f64).ceil() as usize
}

/// Classes of latencies: from, to, and how many. Rows at the ends that hold little are taken together.
fn rows(measured: &Measured) -> Vec<(u64, u64, u64)> {
    let mut counts = [0_u64; 64];
    for value in measured.latencies.iter_recorded() {
        let class = usize::try_from(value.value_iterated_to().max(1).ilog2()).unwrap_or(0);
        if let Some(count) = counts.get_mut(class) {
            *count += value.count_since_last_iteration();
        }
    }
    let used = counts.iter().zip(0_u32..).filter(|(count, _)| **count > 0);
    let used: Vec<u32> = used.map(|(_, class)| class).collect();
    let (Some(first), Some(last)) = (used.first().copied(), used.last().copied()) else {
        return Vec::new();
    };
    let count = |class: u32| {
        counts
            .get(usize::try_from(class).unwrap_or(64))
            .copied()
            .unwrap_or(0)
    };
    let mut rows: Vec<_> = (first..=last)
        .map(|class| (1 << class, 2 << class, count(class)))
        .collect();
    while rows.len() > ROWS {
        let low_is_less = rows.first().map(|r| r.2) < rows.last().map(|r| r.2);
        let gone = if low_is_less {
            rows.remove(0)
        } else {
            rows.pop().unwrap_or_default()
        };
        let end = if low_is_less {
            rows.first_mut()
        } else {
            rows.last_mut()
        };
        if let Some(end) = end {
            *end = (end.0.min(gone.0), end.1.max(gone.1), end.2 + gone.2);
        }
    }
    rows
}
