//! A C program that prints how the compiler sees the headers.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::sample::Sample;
use crate::{cmd, paths};

/// The names to ask C about: those that the headers have.
#[derive(Debug, Default)]
pub struct Questions {
    /// Constants.
    pub constants: Vec<&'static str>,
    /// Structs.
    pub structs: Vec<&'static str>,
    /// Fields, and whether C can measure them.
    pub fields: Vec<(&'static str, &'static str, bool)>,
    /// Calls of the header's inline functions.
    pub samples: Vec<Sample>,
}

/// C's answers.
#[derive(Debug, Default)]
pub struct Answers {
    /// Values, converted to `unsigned long long`.
    pub constants: BTreeMap<String, u64>,
    /// Size and alignment.
    pub structs: BTreeMap<String, (usize, usize)>,
    /// Offset and size, by `struct.field`.
    pub fields: BTreeMap<String, (usize, usize)>,
    /// Values of the samples, by their position.
    pub samples: BTreeMap<usize, u64>,
}

/// Compiles the program against the headers below `include` and runs it.
///
/// # Errors
/// The compiler is missing or fails, or the program prints something unexpected.
pub fn run(include: &Path, headers: &[&str], questions: &Questions) -> Result<Answers> {
    let directory = paths::target().join("layout-probe");
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    let source = directory.join("probe.c");
    fs::write(&source, program(headers, questions))?;
    let program = directory.join("probe");
    let mut compile = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    compile
        .args(["-std=gnu11", "-Wall", "-Werror", "-o"])
        .arg(&program)
        .arg(&source);
    for path in include_paths(include)? {
        compile.arg("-I").arg(path);
    }
    cmd::output(&mut compile).context(
        "the probe of the headers does not compile (gcc is needed: apt-get install gcc)",
    )?;
    answers(&cmd::output(&mut Command::new(&program))?)
}

/// The include paths, including this architecture's headers.
fn include_paths(include: &Path) -> Result<Vec<PathBuf>> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "x86",
        "aarch64" => "arm64",
        "riscv64" => "riscv",
        "loongarch64" => "loongarch",
        "s390x" => "s390",
        other => other,
    };
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let usr = include.parent().context("usr/include has a parent")?;
    // Newer packages have a separate directory, older ones use usr/include.
    let places = [usr.join("lib/linux/uapi").join(arch), include.join(triple)];
    let Some(asm) = places
        .iter()
        .find(|place| place.join("asm/types.h").exists())
    else {
        bail!("the package has no asm headers for {arch}");
    };
    Ok(vec![include.to_owned(), asm.clone()])
}

fn program(headers: &[&str], questions: &Questions) -> String {
    let mut text = String::from("#include <errno.h>\n#include <stddef.h>\n#include <stdio.h>\n");
    let mut add = |line: std::fmt::Arguments<'_>| {
        writeln!(text, "{line}").expect("a string takes everything");
    };
    for header in headers {
        add(format_args!("#include <{header}>"));
    }
    add(format_args!("int main(void)\n{{"));
    for name in &questions.constants {
        add(format_args!(
            "printf(\"C {name} %llu\\n\", (unsigned long long)({name}));"
        ));
    }
    for name in &questions.structs {
        add(format_args!(
            "printf(\"S {name} %zu %zu\\n\", sizeof(struct {name}), _Alignof(struct {name}));"
        ));
    }
    for (name, field, measured) in &questions.fields {
        let size = if *measured {
            format!("sizeof(((struct {name} *)0)->{field})")
        } else {
            "(size_t)0".to_owned()
        };
        add(format_args!(
            "printf(\"F {name}.{field} %zu %zu\\n\", offsetof(struct {name}, {field}), {size});"
        ));
    }
    for (at, sample) in questions.samples.iter().enumerate() {
        let c = sample.c;
        add(format_args!(
            "printf(\"X {at} %llu\\n\", (unsigned long long)({c}));"
        ));
    }
    add(format_args!("return 0;\n}}"));
    text
}

pub(super) fn answers(text: &str) -> Result<Answers> {
    let mut answers = Answers::default();
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["C", name, value] => {
                answers.constants.insert(name.to_owned(), value.parse()?);
            }
            ["S", name, size, align] => {
                answers
                    .structs
                    .insert(name.to_owned(), (size.parse()?, align.parse()?));
            }
            ["F", name, offset, size] => {
                answers
                    .fields
                    .insert(name.to_owned(), (offset.parse()?, size.parse()?));
            }
            ["X", at, value] => {
                answers.samples.insert(at.parse()?, value.parse()?);
            }
            _ => bail!("the probe said {line:?}"),
        }
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use super::{Questions, answers, program};

    #[test]
    fn what_is_asked_is_answered() {
        let questions = Questions {
            constants: vec!["UBLK_A"],
            structs: vec!["s"],
            fields: vec![("s", "f", true), ("s", "tail", false)],
            samples: Vec::new(),
        };
        let text = program(&["linux/x.h"], &questions);
        assert_eq!(text.matches("printf").count(), 4);
        assert!(text.contains("#include <linux/x.h>"));
        let answers = answers("C UBLK_A 18446744073709551597\nS s 8 4\nF s.f 4 2\n").unwrap();
        assert_eq!(answers.constants["UBLK_A"], 19_u64.wrapping_neg());
        assert_eq!(answers.structs["s"], (8, 4));
        assert_eq!(answers.fields["s.f"], (4, 2));
        assert!(super::answers("segmentation fault").is_err());
    }
}
