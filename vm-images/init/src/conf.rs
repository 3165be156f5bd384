//! Parses the host's instructions: the file `/guest.conf`, one `key value` per line.
//!
//! | key | value |
//! |---|---|
//! | `module` | path of a module file, then its parameters; loaded in this order |
//! | `set` | a path and a value to write to it; a missing path is skipped |
//! | `env` | `NAME=VALUE` for the program |
//! | `exec` | one argument of the program, in order; the first one is its path |
//! | `nonce` | a word that identifies the verdict of this run |
//! | `console` | `yes`: the program gets the console, not the result channel |
//! | `watchdog` | seconds after which blocked tasks are dumped on the console |

use anyhow::{Context, Result, bail};

/// The parsed file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Conf {
    /// Module files with their parameters.
    pub modules: Vec<(String, String)>,
    /// Files to write, with their contents.
    pub sets: Vec<(String, String)>,
    /// Environment of the program.
    pub env: Vec<(String, String)>,
    /// The program and its arguments.
    pub exec: Vec<String>,
    /// Marks the verdict line.
    pub nonce: String,
    /// Whether the program gets the console.
    pub console: bool,
    /// Seconds until blocked tasks are dumped.
    pub watchdog: Option<u64>,
}

impl Conf {
    /// Parses the text of the file.
    ///
    /// # Errors
    /// An unknown key, a missing or malformed value, no program, no nonce.
    pub fn parse(text: &str) -> Result<Self> {
        let mut conf = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (key, value) = line
                .split_once(' ')
                .with_context(|| format!("line without a value: {line:?}"))?;
            match key {
                "module" => conf.modules.push(pair(value, ' ')),
                "set" => conf.sets.push(pair(value, ' ')),
                "env" => conf.env.push(pair(value, '=')),
                "exec" => conf.exec.push(value.to_owned()),
                "nonce" => conf.nonce = value.to_owned(),
                "console" => conf.console = value == "yes",
                "watchdog" => conf.watchdog = Some(value.parse().context("watchdog")?),
                _ => bail!("unknown key {key:?}"),
            }
        }
        if conf.exec.is_empty() {
            bail!("no program to run");
        }
        if conf.nonce.is_empty() {
            bail!("no nonce");
        }
        Ok(conf)
    }
}

fn pair(value: &str, separator: char) -> (String, String) {
    let (first, rest) = value.split_once(separator).unwrap_or((value, ""));
    (first.to_owned(), rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::Conf;

    #[test]
    fn a_full_file_is_understood() {
        let conf = Conf::parse(
            "module /m/a.ko x=1 y=2\nset /proc/a 60\nenv A=b=c\nexec /bin/true\nexec a b\n\
             nonce n1\nconsole yes\nwatchdog 7\n",
        )
        .unwrap();
        assert_eq!(conf.modules, [("/m/a.ko".into(), "x=1 y=2".into())]);
        assert_eq!(conf.sets, [("/proc/a".into(), "60".into())]);
        assert_eq!(conf.env, [("A".into(), "b=c".into())]);
        assert_eq!(conf.exec, ["/bin/true", "a b"]);
        assert_eq!(conf.nonce, "n1");
        assert!(conf.console);
        assert_eq!(conf.watchdog, Some(7));
    }

    #[test]
    fn what_is_missing_or_unknown_is_an_error() {
        for text in [
            "nonce n",
            "exec /bin/true",
            "mistake x\nexec a\nnonce n",
            "exec",
        ] {
            assert!(Conf::parse(text).is_err(), "{text:?}");
        }
    }
}
