//! Runs other programs; a failure shows the whole command.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The command as typed in a shell.
pub fn line(command: &Command) -> String {
    let mut args = Vec::new();
    if let Some(directory) = command.get_current_dir() {
        args.push(format!("cd {} &&", quote(&directory.to_string_lossy())));
    }
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            let value = quote(&value.to_string_lossy());
            args.push(format!("{}={value}", name.to_string_lossy()));
        }
    }
    args.push(quote(&command.get_program().to_string_lossy()));
    args.extend(
        command
            .get_args()
            .map(|argument| quote(&argument.to_string_lossy())),
    );
    args.join(" ")
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+@%^~".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Runs a command on our own terminal.
///
/// # Errors
/// It cannot be started, or its status is not 0.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start: {}", line(command)))?;
    if !status.success() {
        bail!("{status}: {}", line(command));
    }
    Ok(())
}

/// Runs a command and returns its standard output as text.
///
/// # Errors
/// It cannot be started, or its status is not 0: the error then has both outputs.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start: {}", line(command)))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}\n{text}{errors}", output.status, line(command));
    }
    Ok(text)
}

/// Runs a command, shows its standard output as it comes and passes each line to `each`. True if it ended with status
/// 0.
///
/// # Errors
/// It cannot be started.
pub fn watch(command: &mut Command, mut each: impl FnMut(&str)) -> Result<bool> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start: {}", line(command)))?;
    let stdout = child.stdout.take().context("piped above")?;
    for text in BufReader::new(stdout).split(b'\n') {
        let text = text?;
        let text = String::from_utf8_lossy(&text);
        println!("{text}");
        each(&text);
    }
    let status = child.wait()?;
    if !status.success() {
        println!("{status}: {}", line(command));
    }
    Ok(status.success())
}

/// `cargo` in the checkout.
pub fn cargo() -> Command {
    cargo_in(super::paths::root())
}

/// `cargo` in a directory.
pub fn cargo_in(directory: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(directory);
    command
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{line, output, run};

    #[test]
    fn the_whole_command_is_told() {
        let mut command = Command::new("false");
        command.args(["a b", "it's", ""]).env("X", "1 2");
        assert_eq!(line(&command), r"X='1 2' false 'a b' 'it'\''s' ''");
        let error = run(&mut command).unwrap_err().to_string();
        assert!(error.contains("false 'a b'"), "{error}");
    }

    #[test]
    fn output_of_a_failure_is_kept() {
        let error = output(Command::new("ls").arg("/no/such/file")).unwrap_err();
        assert!(error.to_string().contains("No such file"), "{error}");
        assert_eq!(output(Command::new("echo").arg("x")).unwrap(), "x\n");
    }
}
