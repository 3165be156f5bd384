//! The command line.

/// The target to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Stores nothing; a handler is called for each request.
    Null,
    /// Stores nothing; a future for each tag.
    NullAsync,
    /// Stores nothing, in zero-copy mode.
    NullZeroCopy,
    /// Memory of this size; a future for each tag.
    Mem {
        /// Its size in bytes.
        bytes: u64,
    },
}

/// The parsed command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// The target.
    pub kind: Kind,
    /// Number of hw queues.
    pub queues: u16,
    /// Tags per queue.
    pub depth: u16,
}

impl Arguments {
    /// Parses the words after the program's name.
    ///
    /// # Errors
    /// A text with the word that is not understood.
    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut all = Self {
            kind: Kind::Null,
            queues: 1,
            depth: 128,
        };
        let mut words = words;
        match words.next().as_deref() {
            Some("null") => {}
            Some("mem") => all.kind = Kind::Mem { bytes: 256 << 20 },
            other => return Err(format!("null or mem, not {other:?}")),
        }
        while let Some(word) = words.next() {
            let mut number = || -> Result<u16, String> {
                let value = words.next().unwrap_or_default();
                let number = value.parse();
                number.map_err(|error| format!("{word} {value}: {error}"))
            };
            match (word.as_str(), all.kind) {
                ("-q", _) => all.queues = number()?,
                ("-d", _) => all.depth = number()?,
                ("--size", Kind::Mem { .. }) => {
                    all.kind = Kind::Mem {
                        bytes: u64::from(number()?) << 20,
                    };
                }
                ("--async", Kind::Null) => all.kind = Kind::NullAsync,
                ("--zero-copy", Kind::Null) => all.kind = Kind::NullZeroCopy,
                _ => return Err(format!("{word} is not understood")),
            }
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use super::{Arguments, Kind};

    fn parse(text: &str) -> Result<Arguments, String> {
        Arguments::parse(text.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn words_are_understood() {
        let all = parse("mem --size 2 -q 3 -d 4").unwrap();
        assert_eq!(all.kind, Kind::Mem { bytes: 2 << 20 });
        assert_eq!((all.queues, all.depth), (3, 4));
        assert_eq!(parse("null --async").unwrap().kind, Kind::NullAsync);
        for text in [
            "",
            "x",
            "null --size 1",
            "mem -q",
            "mem --async",
            "null -d x",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
