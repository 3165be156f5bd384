//! Compares our tables with C's answers.

use super::header::Header;
use super::probe::{Answers, Questions};
use super::{Ours, Struct};

/// Differences and remarks.
#[derive(Debug, Default)]
pub struct Report {
    /// Differences.
    pub failures: Vec<String>,
    /// Differences explained by the header's age.
    pub warnings: Vec<String>,
}

/// Those of our names that the headers have, for a program that compiles.
pub fn present(ours: &Ours, header: &Header) -> Questions {
    let mut questions = Questions::default();
    for (name, _) in &ours.constants {
        if header.has(name) {
            questions.constants.push(name);
        }
    }
    for row in &ours.structs {
        if !header.has_struct(row.name) {
            continue;
        }
        questions.structs.push(row.name);
        for field in &row.fields {
            if header.has_field(row.name, field.name) {
                questions
                    .fields
                    .push((row.name, field.name, field.size != 0));
            }
        }
    }
    questions
}

/// Compares everything.
///
/// A name of the first header that we lack is a failure if the header is not newer than `followed`; a name of ours that
/// the headers lack is one if they are not older.
pub fn compare(
    ours: &Ours,
    header: &Header,
    asked: &Questions,
    theirs: &Answers,
    series: (u32, u32),
    followed: (u32, u32),
) -> Report {
    let mut report = Report::default();
    let answered = (
        theirs.constants.len(),
        theirs.structs.len(),
        theirs.fields.len(),
    );
    let questions = (
        asked.constants.len(),
        asked.structs.len(),
        asked.fields.len(),
    );
    if answered != questions {
        let text = format!("asked for {questions:?} rows, the probe answered {answered:?}");
        report.failures.push(text);
    }
    for (at, sample) in asked.samples.iter().enumerate() {
        let c = theirs.samples.get(&at).copied();
        if c != Some(sample.ours) {
            let c = c.map_or_else(|| "no answer".to_owned(), |c| format!("{c:#x}"));
            let text = format!("{} is {:#x}, in C {c}", sample.c, sample.ours);
            report.failures.push(text);
        }
    }
    lacking(&mut report, ours, header, series > followed);
    for (name, value) in &ours.constants {
        match theirs.constants.get(*name) {
            Some(c) if c == value => {}
            Some(c) => report
                .failures
                .push(format!("{name} is {value:#x}, in C {c:#x}")),
            None => report.gone(name, series < followed),
        }
    }
    for row in &ours.structs {
        compare_struct(&mut report, row, theirs, series < followed);
    }
    report
}

impl Report {
    /// Reports a name of ours that the headers lack.
    fn gone(&mut self, name: &str, older: bool) {
        if older {
            self.warnings.push(format!(
                "{name} is not in these older headers, not compared"
            ));
        } else {
            self.failures.push(format!("{name} is not in the headers"));
        }
    }
}

/// Reports names of the header that we lack.
fn lacking(report: &mut Report, ours: &Ours, header: &Header, newer: bool) {
    let constants = header.constants.iter();
    let constants = constants.filter(|name| !ours.constants.iter().any(|row| row.0 == **name));
    let structs = header.structs.iter();
    let structs = structs.filter(|name| !ours.structs.iter().any(|row| row.name == **name));
    for name in constants.chain(structs) {
        if newer {
            report
                .warnings
                .push(format!("{name} is new in these headers, ublk-sys lacks it"));
        } else {
            report.failures.push(format!("ublk-sys lacks {name}"));
        }
    }
}

fn compare_struct(report: &mut Report, row: &Struct, theirs: &Answers, older: bool) {
    let Some(&c) = theirs.structs.get(row.name) else {
        return report.gone(row.name, older);
    };
    if c != (row.size, row.align) {
        let text = format!(
            "{} has size {} and alignment {}, in C {} and {}",
            row.name, row.size, row.align, c.0, c.1
        );
        // A struct that grew later is no difference if its older part matches.
        if older && c.0 < row.size && c.1 == row.align {
            report.warnings.push(text);
        } else {
            report.failures.push(text);
        }
    }
    for field in &row.fields {
        let name = format!("{}.{}", row.name, field.name);
        match theirs.fields.get(&name) {
            Some(c) if *c == (field.offset, field.size) => {}
            Some(c) => report.failures.push(format!(
                "{name} is {} bytes at {}, in C {} at {}",
                field.size, field.offset, c.1, c.0
            )),
            None => report.gone(&name, older),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Field;

    fn ours() -> Ours {
        let fields = vec![Field {
            name: "f",
            offset: 4,
            size: 2,
        }];
        let row = Struct {
            name: "ublk_s",
            size: 8,
            align: 4,
            fields,
        };
        Ours {
            constants: vec![("UBLK_A", 1)],
            structs: vec![row],
        }
    }

    fn check(header: &str, answers: &str, series: (u32, u32)) -> (Vec<String>, Vec<String>) {
        let ours = ours();
        let header = Header::for_test(header);
        let theirs = crate::layout::probe::answers(answers).unwrap();
        let asked = present(&ours, &header);
        let report = compare(&ours, &header, &asked, &theirs, series, (7, 3));
        (report.failures, report.warnings)
    }

    const HEADER: &str = "#define UBLK_A 1\nstruct ublk_s { int e; short f; };\n";
    const ANSWERS: &str = "C UBLK_A 1\nS ublk_s 8 4\nF ublk_s.f 4 2\n";

    #[test]
    fn equal_is_silent() {
        assert_eq!(check(HEADER, ANSWERS, (7, 3)), (vec![], vec![]));
    }

    #[test]
    fn each_difference_fails() {
        for (from, to) in [
            ("UBLK_A 1", "UBLK_A 2"),
            ("8 4", "8 8"),
            ("8 4", "12 4"),
            ("4 2", "2 2"),
        ] {
            let (failures, _) = check(HEADER, &ANSWERS.replace(from, to), (7, 3));
            assert_eq!(failures.len(), 1, "{from} to {to}");
        }
        let cut = "C UBLK_A 1\nS ublk_s 8 4\n";
        assert!(!check(HEADER, cut, (7, 3)).0.is_empty(), "a missing answer");
    }

    #[test]
    fn a_name_we_lack_fails_unless_the_header_is_newer() {
        let more = format!("{HEADER}#define UBLK_NEW 3\nstruct ublk_new {{ int x; }};\n");
        assert_eq!(check(&more, ANSWERS, (7, 3)).0.len(), 2);
        assert_eq!(check(&more, ANSWERS, (6, 12)).0.len(), 2);
        let (failures, warnings) = check(&more, ANSWERS, (7, 4));
        assert!(failures.is_empty());
        assert!(warnings[0].contains("UBLK_NEW") && warnings[1].contains("ublk_new"));
    }

    #[test]
    fn a_name_they_lack_fails_unless_the_header_is_older() {
        let less = "struct ublk_s { int e; };\n";
        let answers = "S ublk_s 4 4\n";
        assert_eq!(check(less, answers, (7, 3)).0.len(), 3);
        let (failures, warnings) = check(less, answers, (6, 12));
        assert!(failures.is_empty(), "{failures:?}");
        assert_eq!(warnings.len(), 3);
    }
}
