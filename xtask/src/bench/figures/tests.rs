use super::{figure, snapshots};
use crate::bench::rows::{self, Row};

const MARKS: &str = "mark 4 vcpu 0 kernel 100 server 10 other 1 user-copy 0 page-copy 0\n\
                     mark 5 vcpu 0 kernel 1100 server 110 other 11 user-copy 50 page-copy 300\n\
                     mark 6 vcpu 0 kernel 2000 server 200 other 20 user-copy 50 page-copy 300\n\
                     mark 7 vcpu 0 kernel 43000 server 1300 other 30 user-copy 10100 page-copy 30600\n\
                     exit kernel 50000 server 2000 other 40 user-copy 1 page-copy 2\n";

const SEEN: &str = r#"{"device": "/dev/ram0"}"#;

fn lines(name: &str, row: &str) -> Vec<String> {
    vec![format!("@seen {name} {SEEN}"), format!("@row {name} {row}")]
}

fn brd() -> Row {
    let mut rows = rows::counted().into_iter();
    rows.find(|row| row.target.name == "brd").unwrap()
}

#[test]
fn a_figure_is_the_difference_of_two_runs() {
    let (marks, row) = (snapshots(MARKS).unwrap(), brd());
    let lines = lines(&row.name, "/dev/x 4 20 10020 1000 11000");
    let figure = figure(&row, &lines, &marks).unwrap();
    assert_eq!((figure.kernel, figure.own, figure.other), (4.0, 0.1, 0.0));
    assert_eq!((figure.total, figure.switches), (4.1, 1.0));
    assert_eq!((figure.copied, (figure.alike * 10.0).round()), (16.0, 21.0));
}

/// L90 Runs that fio cut short, or markers that were not seen, give no figures.
#[test]
fn l90_half_a_measurement_is_an_error() {
    let (marks, row) = (snapshots(MARKS).unwrap(), brd());
    for line in [
        "/dev/x 4 20 10020 1000 10999",
        "/dev/x 4 20 10020 11000 1000",
        "/dev/x 5 20 10020 1000 11000",
        "/dev/x 4 20 10020 1000",
    ] {
        assert!(
            figure(&row, &lines(&row.name, line), &marks).is_err(),
            "{line}"
        );
    }
    assert!(snapshots("mark x").is_err());
    let said = [format!("@error {} no such device", row.name)];
    let error = figure(&row, &said, &marks).unwrap_err();
    assert_eq!(error.to_string(), "no such device");
}

/// L93 A row whose device has another number of queues than its label gives no figure.
#[test]
fn l93_a_device_that_is_not_what_the_row_says_has_no_figure() {
    let (marks, row) = (snapshots(MARKS).unwrap(), brd());
    let mut lines = lines(&row.name, "/dev/x 4 20 10020 1000 11000");
    lines[0] = lines[0].replace('}', ", \"queues\": 1, \"depth\": 128}");
    let error = figure(&row, &lines, &marks).unwrap_err();
    assert!(error.to_string().contains("hw queues"), "{error}");
    lines.remove(0);
    assert!(figure(&row, &lines, &marks).is_err(), "nobody looked");
}
