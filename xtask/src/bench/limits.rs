//! `bench/limits.toml`: upper limits of figures.

use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::figures::Figure;
use super::rows::Row;
use crate::paths;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Instructions per I/O.
    #[serde(default)]
    pub icount: Vec<Limit>,
    /// Several queues.
    pub scaling: Scaling,
    /// Times to the first read of a memory device.
    pub usable: TimeLimits,
    /// Times to the first read of an NBD device on a unix socket.
    pub usable_nbd: TimeLimits,
    /// Times from the return of an NBD server to the answer of a READ that waits for it.
    pub reconnect: TimeLimits,
}

/// The limits of a row.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limit {
    /// The row.
    pub row: String,
    /// Instructions of the server's text.
    pub own: Option<u32>,
    /// All instructions.
    pub total: Option<u32>,
}

/// Required scaling with several queues.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scaling {
    /// Instructions per I/O of two jobs on two queues, as a multiple of one job on one.
    pub counted: f64,
    /// Share of the requests of each of the two queues in per cent: minimum, maximum.
    pub share: (f64, f64),
    /// Rate of four jobs on two queues, as a multiple of one job on one.
    pub wall: f64,
    /// Rate of two threads on a queue with a busy backend, as a multiple of one thread.
    pub busy: f64,
    /// Rate of four jobs on four connections to an NBD server, as a multiple of one connection.
    pub connections: f64,
}

/// Most milliseconds of a time.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimeLimits {
    /// In emulation.
    pub emulated: u64,
    /// Under KVM.
    pub kvm: u64,
}

impl Limits {
    /// Reads the project's file.
    ///
    /// # Errors
    /// It is missing or malformed.
    pub fn load() -> Result<Self> {
        let path = paths::root().join("bench/limits.toml");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }

    /// The violations of limits by the figures of the selected rows.
    pub fn icount(&self, asked: &[Row], figures: &[Figure]) -> Vec<String> {
        let mut faults = Vec::new();
        for limit in &self.icount {
            if !asked.iter().any(|row| row.name == limit.row) {
                continue;
            }
            let Some(figure) = figures.iter().find(|figure| figure.name == limit.row) else {
                faults.push(format!("{}: has limits and was not measured", limit.row));
                continue;
            };
            for (what, value, most) in [
                ("own", figure.own, limit.own),
                ("total", figure.total, limit.total),
            ] {
                let Some(most) = most else { continue };
                // NaN is above every limit.
                if value.is_nan() || value > f64::from(most) {
                    faults.push(format!(
                        "{}: {what} {value:.1} is above its limit {most}",
                        limit.row
                    ));
                }
            }
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::{Limit, Limits, Scaling, TimeLimits};
    use crate::bench::figures::Figure;
    use crate::bench::rows;

    fn limits() -> Limits {
        let time = TimeLimits {
            emulated: 150,
            kvm: 20,
        };
        Limits {
            icount: vec![Limit {
                row: "null-4k-randread-qd64".into(),
                own: Some(300),
                total: Some(10_950),
            }],
            scaling: Scaling {
                counted: 1.05,
                share: (40.0, 60.0),
                wall: 1.7,
                busy: 1.4,
                connections: 1.3,
            },
            usable: time,
            usable_nbd: time,
            reconnect: time,
        }
    }

    fn figure(total: f64, own: f64) -> Figure {
        Figure::example("null-4k-randread-qd64", total, own)
    }

    /// L90 A figure above its limit is reported, and so is one that is missing or NaN.
    #[test]
    fn l90_what_is_above_its_limit_is_named() {
        let (limits, rows) = (limits(), rows::counted());
        let faults = |figures: &[Figure]| limits.icount(&rows, figures);
        assert!(faults(&[figure(10_950.0, 300.0)]).is_empty());
        let own = faults(&[figure(10_950.0, 300.1)]);
        assert!(
            own.len() == 1 && own[0].contains("null-4k-randread-qd64: own 300.1"),
            "{own:?}"
        );
        assert!(faults(&[figure(10_950.5, 1.0)])[0].contains("total"));
        assert_eq!(faults(&[figure(f64::NAN, f64::NAN)]).len(), 2);
        assert_eq!(faults(&[]).len(), 1);
        assert!(
            limits.icount(&[], &[]).is_empty(),
            "a row that was not asked for"
        );
    }
}
