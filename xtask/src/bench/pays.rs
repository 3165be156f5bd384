//! The size from which zero copy pays off.

use super::figures::Figure;
use super::rows::sizes;

const COPY: &str = "file_ext4_copy";
const ZERO_COPY: &str = "file_ext4_zero_copy";

/// A line for reading and one for writing, if both targets were counted at every size.
pub fn found(figures: &[Figure]) -> Vec<String> {
    ["read", "write"]
        .into_iter()
        .filter_map(|mode| line(figures, mode))
        .collect()
}

fn line(figures: &[Figure], mode: &str) -> Option<String> {
    let total = |target: &str, size: u64| {
        let name = format!("{target}-size-{size}k-{mode}");
        let figure = figures.iter().find(|figure| figure.name == name)?;
        Some(figure.alike)
    };
    let mut ratios = Vec::new();
    for size in sizes() {
        ratios.push((size, total(ZERO_COPY, size)? / total(COPY, size)?));
    }
    // The smallest size from which on it never costs more.
    let dear = ratios.iter().rposition(|(_, ratio)| *ratio >= 1.0);
    let from = ratios.get(dear.map_or(0, |index| index + 1));
    let verdict = from.map_or("pays at no size".to_owned(), |(size, _)| {
        format!("pays from {size}k")
    });
    let all: Vec<_> = ratios
        .iter()
        .map(|(size, ratio)| format!("{size}k {ratio:.2}"))
        .collect();
    Some(format!(
        "zero copy, {mode} on ext4 over a ram disk: {verdict} (instructions as a multiple of copy \
         mode: {})",
        all.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::{COPY, ZERO_COPY, found};
    use crate::bench::figures::Figure;
    use crate::bench::rows::sizes;

    fn figures(zero_copy: impl Fn(u64) -> f64) -> Vec<Figure> {
        let mut all = Vec::new();
        for size in sizes() {
            for (target, total) in [(COPY, 100.0), (ZERO_COPY, zero_copy(size))] {
                let name = format!("{target}-size-{size}k-read");
                all.push(Figure::example(&name, total, 1.0));
            }
        }
        all
    }

    #[test]
    fn the_size_is_the_first_after_the_last_that_does_not_pay() {
        // Cheaper at 4k, more expensive at 8k, cheaper from 16k on.
        let lines = found(&figures(|size| if size == 8 { 101.0 } else { 99.0 }));
        assert!(
            lines.len() == 1 && lines[0].contains("pays from 16k"),
            "{lines:?}"
        );
        assert!(found(&figures(|_| 99.0))[0].contains("pays from 4k"));
        assert!(found(&figures(|_| 100.0))[0].contains("pays at no size"));
        assert!(found(&figures(|_| 1.0)[1..]).is_empty());
    }
}
