//! What the host wants measured: a file of `key value` lines.
//!
//! | key | value |
//! |---|---|
//! | `row` | name of a row; the lines up to the next `row` or `usable` belong to it |
//! | `usable` | name of a row about the time from `add` to the first read |
//! | `server` | command of the server; it prints the device path once the device serves I/O |
//! | `device` | path of a device that is there without a server |
//! | `fio` | arguments of fio, but for `--filename` and `--number_ios`; a second line adds to them |

use anyhow::{Context, Result, bail};

/// A thing to measure.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Whether it is about the time from `add` to the first read.
    pub usable: bool,
    /// The server's command.
    pub server: Vec<String>,
    /// The device, when no server makes it.
    pub device: String,
    /// The arguments of fio.
    pub fio: Vec<String>,
}

/// Reads the text of the file.
///
/// # Errors
/// An unknown key, a line before the first row, a row without a device or work.
pub fn parse(text: &str) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (key, value) = line
            .split_once(' ')
            .with_context(|| format!("line without a value: {line:?}"))?;
        if key == "row" || key == "usable" {
            rows.push(Row {
                name: value.to_owned(),
                usable: key == "usable",
                ..Row::default()
            });
            continue;
        }
        let row = rows.last_mut().context("a line before the first row")?;
        let words = value.split_whitespace().map(str::to_owned);
        match key {
            "server" => row.server = words.collect(),
            "device" => row.device = value.to_owned(),
            "fio" => row.fio.extend(words),
            _ => bail!("unknown key {key:?}"),
        }
    }
    for row in &rows {
        if row.server.is_empty() == row.device.is_empty() {
            bail!("{}: either a server or a device", row.name);
        }
        if row.usable != row.fio.is_empty() {
            bail!("{}: no work for fio", row.name);
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn rows_have_their_lines() {
        let rows = parse(
            "row a\nserver x add --foreground\nfio --rw=read\nfio --bs=4k\n\
             row b\ndevice /dev/nullb0\nfio --rw=write\nusable c\nserver x add\n",
        )
        .unwrap();
        assert_eq!(rows[0].server, ["x", "add", "--foreground"]);
        assert_eq!(rows[0].fio, ["--rw=read", "--bs=4k"]);
        assert_eq!(rows[1].device, "/dev/nullb0");
        assert!(rows[2].usable && !rows[1].usable);
    }

    #[test]
    fn half_a_row_is_an_error() {
        for text in [
            "server x",
            "row a\nfio --x",
            "row a\nserver x",
            "row a\nserver x\ndevice y\nfio --x",
            "row a\nmistake x",
            "row",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
