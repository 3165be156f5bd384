//! `--compare OLD.json`: regressions since an earlier run.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::report::Report;

/// An increase beyond this is a regression.
const PERCENT: f64 = 3.0;

/// An earlier run.
#[derive(Debug)]
pub struct Old {
    value: Value,
    name: String,
}

impl Old {
    /// Reads the JSON that an earlier run wrote.
    ///
    /// # Errors
    /// It cannot be read or parsed.
    pub fn load(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).with_context(|| name.clone())?;
        let value: Value = serde_json::from_str(&text).with_context(|| name.clone())?;
        if !value["rows"].is_array() {
            bail!("{name}: not a result of vm-benchmark: it has no rows");
        }
        Ok(Self { value, name })
    }

    /// The regressions since then, row by row, and a line with the number of rows compared.
    ///
    /// # Errors
    /// The runs cannot be compared: another kernel, QEMU, fio or accelerator, or no row in common.
    pub fn regressions(&self, new: &Report) -> Result<(Vec<String>, String)> {
        let new = new.json(&[]);
        for what in ["kernel", "qemu", "fio"] {
            self.same(&new, what)?;
        }
        let (mut worse, mut compared) = (Vec::new(), 0);
        let mut both = |list: &str, values: &[(&str, bool)]| -> Result<()> {
            let empty = Vec::new();
            let rows = |value: &Value| value[list].as_array().unwrap_or(&empty).clone();
            let old = rows(&self.value);
            for row in rows(&new) {
                let Some(before) = old.iter().find(|old| old["name"] == row["name"]) else {
                    continue;
                };
                compared += 1;
                for (value, more_is_worse) in values {
                    let number = |of: &Value| of[*value].as_f64();
                    if let (Some(before), Some(after)) = (number(before), number(&row))
                        && let Some(percent) = worse_by(before, after, *more_is_worse)
                    {
                        let name = row["name"].as_str().unwrap_or_default();
                        worse.push(format!(
                            "{name}: {value} was {before:.1}, is {after:.1}: {percent:.1} % worse \
                             than in {}",
                            self.name
                        ));
                    }
                }
            }
            Ok(())
        };
        both("rows", &[("total", true), ("own", true)])?;
        if new["wall"].as_array().is_some_and(|rows| !rows.is_empty()) {
            self.same(&new, "accelerator")?;
            both("wall", &[("iops", false), ("cpu_ns", true)])?;
        }
        if compared == 0 {
            bail!("{}: no row of this run is in it", self.name);
        }
        let sum = format!(
            "compared with {}: {compared} rows, {} worse by more than {PERCENT} %",
            self.name,
            worse.len()
        );
        Ok((worse, sum))
    }

    fn same(&self, new: &Value, what: &str) -> Result<()> {
        if self.value[what] != new[what] {
            bail!(
                "{}: {what} was {}, is {}: such figures are not comparable",
                self.name,
                self.value[what],
                new[what]
            );
        }
        Ok(())
    }
}

/// By how many per cent a value is worse, if that exceeds [`PERCENT`].
fn worse_by(before: f64, after: f64, more_is_worse: bool) -> Option<f64> {
    let (low, high) = if more_is_worse {
        (before, after)
    } else {
        (after, before)
    };
    let percent = (high / low - 1.0) * 100.0;
    // An increase from zero has no ratio, but is a regression. So is NaN.
    let worse = percent.is_nan() && high != low || percent > PERCENT;
    worse.then_some(percent)
}

#[cfg(test)]
mod tests {
    use super::{Old, worse_by};
    use crate::bench::report::Report;
    use serde_json::json;

    fn old(total: f64, own: f64) -> Old {
        let rows = json!([{ "name": "brd-4k-randread-qd1", "total": total, "own": own }]);
        let value = json!({ "kernel": "k", "qemu": "q", "fio": "f", "rows": rows });
        Old {
            value,
            name: "old.json".into(),
        }
    }

    /// L90 More than 3 % worse is reported, less is not, better is not.
    #[test]
    fn l90_what_became_worse_is_named() {
        let new = Report::example(1031.0, 100.0);
        let (worse, sum) = old(1000.0, 100.0).regressions(&new).unwrap();
        assert_eq!(worse.len(), 1, "{sum}");
        assert!(worse[0].starts_with("brd-4k-randread-qd1: total was 1000.0, is 1031.0: 3.1 %"));
        for (total, own) in [(1030.0, 100.0), (1500.0, 200.0), (1031.0, 99.0)] {
            assert!(old(total, own).regressions(&new).unwrap().0.is_empty());
        }
        let (worse, _) = old(1031.0, 90.0).regressions(&new).unwrap();
        assert!(worse.len() == 1 && worse[0].contains("own"), "{worse:?}");
    }

    /// L92 Figures of another kernel, or without a row in common, are not compared.
    #[test]
    fn l92_what_is_not_comparable_is_refused() {
        let new = Report::example(1.0, 1.0);
        let mut other = old(1.0, 1.0);
        other.value["kernel"] = json!("another");
        assert!(other.regressions(&new).is_err());
        let mut other = old(1.0, 1.0);
        other.value["rows"][0]["name"] = json!("no such row");
        assert!(other.regressions(&new).is_err());
    }

    #[test]
    fn directions_differ() {
        assert!(worse_by(100.0, 90.0, false).is_some());
        assert!(worse_by(100.0, 110.0, false).is_none());
        assert!(worse_by(0.0, 0.0, true).is_none());
        assert!(worse_by(0.0, 5.0, true).is_some());
    }
}
