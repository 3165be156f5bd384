//! `bench`: a measurement of a target, a sweep, or a comparison of two.

mod text;

use super::draw::Screen;
use super::opened::{Access, Opened};
use super::{failure, file_failure};
use crate::cli::{Bench, Rw, Sweep};
use crate::output::{ErrorBody, end, put};
use crate::trace::interrupts;
use crate::trace::output::Output;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use ublk_daemon::failure::{Failure, FailureKind};
use ublk_daemon::signals::Signals;
use ublk_load::{Comparison, Engine, Fill, Measured, Pattern, Plan};
use ublk_trace::picture;
use ublk_trace::picture::Run;

/// Above this share of a CPU the measuring thread is what was measured.
const OWN_CPU: f64 = 0.95;

/// Above this the rate of a target is not steady.
const UNSTEADY: f64 = 0.15;

/// What is measured, as JSON has it.
#[derive(Debug, Clone, Copy, Serialize)]
struct Point {
    rw: Rw,
    size: u32,
    depth: u32,
}

/// One measurement.
#[derive(Debug, Serialize)]
struct Outcome {
    #[serde(flatten)]
    point: Point,
    #[serde(flatten)]
    measured: Measured,
}

/// What `bench` says in JSON: one measurement or more, or a comparison.
#[derive(Debug, Serialize)]
struct Report {
    target: PathBuf,
    target_size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    compared_with: Option<PathBuf>,
    warnings: Vec<String>,
    svg: Option<PathBuf>,
    /// Why there is no picture.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorBody>,
    /// One measurement, or the points of a sweep.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    runs: Vec<Outcome>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<Compared>,
}

/// A comparison, and what was compared.
#[derive(Debug, Serialize)]
struct Compared {
    #[serde(flatten)]
    point: Point,
    #[serde(flatten)]
    found: Comparison,
}

/// Measures.
///
/// # Errors
/// A target that cannot be opened, is in use or holds data where it is written to, does not fit the requests, or fails.
pub fn run(args: &Bench, json: bool) -> Result<ExitCode, Failure> {
    let screen = Screen::of_terminal();
    let access = Access {
        write: pattern(args.rw).writes(),
        direct: (!args.buffered, !args.buffered),
    };
    let target = Opened::new(&args.target, &args.target.path, access)?;
    let other = args.compare.as_ref();
    let other = other.map(|path| Opened::new(&args.target, path, access));
    let other = other.transpose()?;
    // Before the time is spent.
    let sources = [Some(&target), other.as_ref()].into_iter().flatten();
    let sources: Vec<&Path> = sources.map(|it| it.path.as_path()).collect();
    let picture = args
        .svg
        .as_deref()
        .map(|svg| Output::create(svg, &sources))
        .transpose()?;
    let signals = interrupts()?;
    let mut report = Report {
        target: target.path.clone(),
        target_size: target.size,
        compared_with: None,
        warnings: target.notes.clone(),
        svg: args.svg.clone(),
        error: None,
        runs: Vec::new(),
        comparison: None,
    };
    match other {
        Some(other) => {
            report.warnings.extend(
                other
                    .notes
                    .iter()
                    .map(|note| format!("{}: {note}", other.path.display())),
            );
            report.comparison = Some(compare(args, (&target, &other), screen, &signals)?);
            report.compared_with = Some(other.path);
        }
        None => {
            for point in points(args) {
                if signals.came() {
                    break;
                }
                let run = measure(args, &target, point, screen, &signals);
                match run {
                    // What was measured before is worth something.
                    Err(_) if signals.came() && !report.runs.is_empty() => break,
                    run => report.runs.push(run?),
                }
            }
        }
    }
    report.judge();
    if signals.came() {
        report
            .warnings
            .push("interrupted: the figures are of the time until then".to_owned());
    }
    let drawn = picture.map_or(Ok(()), |picture| draw(picture, &report));
    // The figures are good without their picture.
    report.svg = report.svg.filter(|_| drawn.is_ok());
    report.error = drawn.as_ref().err().map(ErrorBody::from);
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    put(json, &report, || {
        screen.shown(&text::report(&report, screen))
    })?;
    Ok(end(drawn.err().as_ref()))
}

fn pattern(rw: Rw) -> Pattern {
    match rw {
        Rw::Randread => Pattern::RandomRead,
        Rw::Randwrite => Pattern::RandomWrite,
        Rw::Randrw => Pattern::RandomMix(70),
        Rw::Read => Pattern::Read,
        Rw::Write => Pattern::Write,
    }
}

/// What is measured one after the other.
fn points(args: &Bench) -> Vec<Point> {
    let point = |size, depth| Point {
        rw: args.rw,
        size,
        depth,
    };
    match args.sweep {
        None => vec![point(args.size, args.depth)],
        Some(Sweep::Depth) => (0..=8).map(|n| point(args.size, 1 << n)).collect(),
        Some(Sweep::Size) => (12..=20)
            .step_by(2)
            .map(|n| point(1 << n, args.depth))
            .collect(),
    }
}

fn plan(args: &Bench, target: &Opened, point: Point, seconds: u64) -> Result<Plan, Failure> {
    if !point.size.is_multiple_of(target.block) {
        let text = format!(
            "{}: requests of {} bytes are no multiple of its block size, {}",
            target.path.display(),
            point.size,
            target.block
        );
        let hint = format!("give --size {} or a multiple of it", target.block);
        return Err(Failure::new(FailureKind::Usage, text).hint(hint));
    }
    if let Some(span) = args.span.filter(|span| *span > target.size) {
        let text = format!(
            "{}: --span {span} is more than its {} bytes",
            target.path.display(),
            target.size
        );
        return Err(Failure::new(FailureKind::Usage, text).hint("leave --span out for all of it"));
    }
    Ok(Plan {
        pattern: pattern(args.rw),
        len: point.size,
        depth: point.depth,
        region: args.span.unwrap_or(target.size),
        warm_up: args.warm_up,
        run: args.time.unwrap_or(Duration::from_secs(seconds)),
        fill: Fill::Pattern,
        seed: 0x75_62_6c_6b,
    })
}

fn engine(args: &Bench, target: &Opened, point: Point) -> Result<Engine, Failure> {
    let file = target
        .file
        .try_clone()
        .map_err(|e| file_failure(&target.path, &e))?;
    let engine = Engine::new(file, point.depth, point.size, args.target.patience());
    engine.map_err(|e| failure(&target.path, &e))
}

/// A thousandth of the progress.
const STEPS: u64 = 1000;

/// A share of [`STEPS`].
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share, from 0 to 1"
)]
fn steps(part: f64) -> u64 {
    (part * 1000.0) as u64
}

fn measure(
    args: &Bench,
    target: &Opened,
    point: Point,
    screen: Screen,
    signals: &Signals,
) -> Result<Outcome, Failure> {
    let seconds = if args.sweep.is_some() { 2 } else { 5 };
    let plan = plan(args, target, point, seconds)?;
    let mut engine = engine(args, target, point)?;
    let bar = screen.progress(&text::what(point), STEPS);
    let watch = &mut |part: f64| {
        bar.set_position(steps(part));
        !signals.came()
    };
    let measured = ublk_load::measure(&mut engine, &plan, watch);
    bar.finish_and_clear();
    let measured = measured.map_err(|e| failure(&target.path, &e))?;
    Ok(Outcome { point, measured })
}

fn compare(
    args: &Bench,
    (target, other): (&Opened, &Opened),
    screen: Screen,
    signals: &Signals,
) -> Result<Compared, Failure> {
    let point = Point {
        rw: args.rw,
        size: args.size,
        depth: args.depth,
    };
    let mut plan = plan(args, target, point, 16)?;
    // The same places on both.
    plan.region = plan.region.min(self::plan(args, other, point, 16)?.region);
    let (mut a, mut b) = (engine(args, target, point)?, engine(args, other, point)?);
    let bar = screen.progress(&text::what(point), STEPS);
    let watch = &mut |part: f64| {
        bar.set_position(steps(part));
        !signals.came()
    };
    let found = ublk_load::compare(&mut a, &mut b, &plan, watch);
    bar.finish_and_clear();
    let found = found.map_err(|e| failure(&target.path, &e))?;
    Ok(Compared { point, found })
}

impl Report {
    /// All measurements, each with its name.
    fn measurements(&self) -> Vec<(String, Point, &Measured)> {
        let runs = self
            .runs
            .iter()
            .map(|run| (text::short(run.point), run.point, &run.measured));
        let mut all: Vec<_> = runs.collect();
        if let Some(Compared { point, found }) = &self.comparison {
            let other = self.compared_with.as_deref().unwrap_or(Path::new(""));
            all.push((self.target.display().to_string(), *point, &found.a));
            all.push((other.display().to_string(), *point, &found.b));
        }
        all
    }

    /// Says of each measurement why its figures may mean something else.
    fn judge(&mut self) {
        let mut found = Vec::new();
        for (name, _, measured) in self.measurements() {
            if measured.own_cpu.is_some_and(|cpu| cpu > OWN_CPU) {
                found.push(format!(
                    "{name}: the measuring thread was busy all the time: the target may be faster"
                ));
            }
            if measured.unsteadiness > UNSTEADY {
                found.push(format!(
                    "{name}: the rate varies by {} of its mean: measure longer (--time), or find out what else runs",
                    ublk_trace::units::percent(measured.unsteadiness)
                ));
            }
        }
        self.warnings.append(&mut found);
    }
}

fn draw(file: Output, report: &Report) -> Result<(), Failure> {
    let mut measurements = report.measurements();
    let title = match (&measurements[..], &report.comparison) {
        ([(_, point, _)], _) | ([(_, point, _), ..], Some(_)) => text::what(*point),
        ([(_, point, _), ..], None) => text::kind(*point),
        ([], _) => String::new(),
    };
    if report.runs.len() > 1 {
        // What does not vary is no part of a name.
        let sizes = report
            .runs
            .iter()
            .any(|run| run.point.size != report.runs[0].point.size);
        for (name, point, _) in &mut measurements {
            *name = text::varied(*point, sizes);
        }
    }
    let runs: Vec<Run> = measurements
        .iter()
        .map(|(name, _, measured)| Run {
            name: name.clone(),
            rates: measured
                .rates
                .iter()
                .map(|rate| (rate.at, rate.iops))
                .collect(),
            curve: ublk_trace::curve(&measured.latencies),
            iops: measured.iops,
            p99: measured.latencies.value_at_quantile(0.99),
        })
        .collect();
    let title = format!("{}: {title}", report.target.display());
    let text = picture::runs(&title, &runs).map_err(|e| Failure::failed(e.to_string()))?;
    file.finish(text.as_bytes())
}
