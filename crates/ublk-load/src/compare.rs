//! Two targets in one run: first one with itself, for the noise, then both in turns.

use crate::bench::{Measured, Places, Plan, run};
use crate::engine::Engine;
use crate::error::Error;
use serde::Serialize;
use std::time::Duration;

/// The pairs of slices of each part.
const PAIRS: u32 = 4;

/// What a comparison found.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The first target, over all of its slices in turns with the second one.
    pub a: Measured,
    /// The second target.
    pub b: Measured,
    /// The largest difference between two slices of the first target that followed each other, as a share of its rate.
    pub noise: f64,
    /// How many more requests per second the second target answered than the first, as a share of the first one's rate: 0.1
    /// is 10 % more.
    pub difference: f64,
    /// The same for each pair of slices.
    pub differences: Vec<f64>,
    /// Whether the difference is larger than the noise, and in the same direction in each pair.
    pub significant: bool,
}

/// Compares two targets: the plan's time is divided into slices, half of them for the noise. Both must have room for the
/// plan's depth and length; `watch` hears how much of the time is over, and returns false to end it.
///
/// # Errors
/// As [`measure`](crate::measure); [`Error::Ended`] if `watch` ends it.
pub fn compare(
    a: &mut Engine,
    b: &mut Engine,
    plan: &Plan,
    watch: &mut dyn FnMut(f64) -> bool,
) -> Result<Comparison, Error> {
    let slices = 4 * PAIRS;
    let slice = Plan {
        // A target that was idle during the other's slice warms up again.
        warm_up: plan.warm_up / slices,
        run: (plan.run / slices).max(Duration::from_millis(100)),
        ..*plan
    };
    let mut places = [Places::new(plan)?, Places::new(plan)?];
    let mut count = 0_u32;
    let mut next = |which: usize| -> Result<Measured, Error> {
        let begin = f64::from(count) / f64::from(slices);
        let engine = if which == 0 { &mut *a } else { &mut *b };
        let mut goes_on = true;
        let heard = &mut |part: f64| {
            goes_on = watch(begin + part / f64::from(slices));
            goes_on
        };
        let place = places.get_mut(which).ok_or(Error::Plan(String::new()))?;
        let measured = run(engine, &slice, place, heard);
        let drained = engine.drain(&mut Vec::new());
        count += 1;
        let measured = measured?;
        drained?;
        // Half a comparison is none.
        goes_on.then_some(measured).ok_or(Error::Ended)
    };
    let mut noise = 0.0_f64;
    for _ in 0..PAIRS {
        let (one, other) = (next(0)?, next(0)?);
        noise = noise.max(relative(&one, &other).abs());
    }
    let (mut all_a, mut all_b) = (Measured::nothing(), Measured::nothing());
    let mut differences = Vec::new();
    for pair in 0..PAIRS {
        // Whatever drifts in one direction is in favour of each of them in turn.
        let (one, other) = if pair % 2 == 0 {
            let one = next(0)?;
            (one, next(1)?)
        } else {
            let other = next(1)?;
            (next(0)?, other)
        };
        differences.push(relative(&one, &other));
        all_a.add(&one);
        all_b.add(&other);
    }
    let difference = relative(&all_a, &all_b);
    let alike = |d: &f64| d.is_sign_positive() == difference.is_sign_positive();
    Ok(Comparison {
        a: all_a,
        b: all_b,
        noise,
        difference,
        significant: difference.abs() > noise && differences.iter().all(alike),
        differences,
    })
}

/// How much higher the second rate is, as a share of the first.
fn relative(one: &Measured, other: &Measured) -> f64 {
    if one.iops > 0.0 {
        other.iops / one.iops - 1.0
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Pattern;
    use crate::pattern::Fill;

    /// A target with itself has slices of both, and a noise.
    #[test]
    fn a_comparison_has_both_sides() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let engine = || Engine::new(file.try_clone().unwrap(), 2, 4096, Duration::from_secs(20));
        let plan = Plan {
            pattern: Pattern::RandomRead,
            len: 4096,
            depth: 2,
            region: 1 << 20,
            warm_up: Duration::from_millis(80),
            run: Duration::from_millis(400),
            fill: Fill::Pattern,
            seed: 1,
        };
        let (mut a, mut b) = (engine().unwrap(), engine().unwrap());
        let found = compare(&mut a, &mut b, &plan, &mut |_| true).unwrap();
        assert_eq!(
            (found.a.elapsed, found.b.elapsed),
            (400_000_000, 400_000_000)
        );
        assert_eq!(found.differences.len(), 4);
        assert!(found.noise > 0.0 && found.a.requests > 10 && found.b.requests > 10);
        let rates = found.b.iops / found.a.iops - 1.0;
        assert_eq!(found.difference, rates, "it is that of the rates shown");
        let alike = |d: &f64| d.is_sign_positive() == rates.is_sign_positive();
        let beyond = rates.abs() > found.noise && found.differences.iter().all(alike);
        assert_eq!(found.significant, beyond);
    }
}
