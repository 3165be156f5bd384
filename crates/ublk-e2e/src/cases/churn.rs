//! Devices created and deleted concurrently: some kernels lose control commands then.

use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};

use crate::case::{self, Case};
use crate::cli::{self, code, ublkctl};
use crate::run::Output;
use crate::wait::secs;

pub fn cases() -> Vec<Case> {
    vec![Case::new(
        "l84_contract_many_creators_at_once_never_hang",
        many_creators,
    )]
}

/// Number of creators, and their rounds in the usual run and in a soak.
const CREATORS: usize = 8;
const ROUNDS: (usize, usize) = (4, 100);

/// Deadline of a command in seconds, and how much later its caller must be free.
const DEADLINE: u64 = 20;
const GRACE: u64 = 15;

/// L84 No command exceeds its deadline, each failure has a name and a hint, and a retry works.
fn many_creators() -> Result<()> {
    let rounds = case::rounds(ROUNDS.0, ROUNDS.1);
    let threads: Vec<_> = (0..CREATORS)
        .map(|n| {
            std::thread::spawn(move || creator(rounds).with_context(|| format!("creator {n}")))
        })
        .collect();
    let mut retries = 0;
    for thread in threads {
        retries += thread.join().map_err(|_| anyhow!("a creator panicked"))??;
    }
    case::measured(format!(
        "{CREATORS} creators, {rounds} rounds each: {retries} commands had to be said again"
    ));
    cli::nothing_left(secs(30))
}

/// Returns how often a command had to be retried.
fn creator(rounds: usize) -> Result<usize> {
    let deadline = DEADLINE.to_string();
    let mut retries = 0;
    for round in 0..rounds {
        let args = ["add", "null", "--size", "1G", "--deadline", &deadline];
        let (output, again) = persistent(&args).with_context(|| format!("round {round}"))?;
        let node = output.stdout.trim_end().to_owned();
        ensure!(node.starts_with("/dev/ublkb"), "{output}");
        let args = ["delete", &node, "--deadline", &deadline];
        let (_, more) = persistent(&args).with_context(|| format!("round {round}"))?;
        retries += usize::from(again) + usize::from(more);
    }
    Ok(retries)
}

/// Runs a command that must succeed the first time or the second, and never take longer than its deadline; true if it
/// was the second.
fn persistent(args: &[&str]) -> Result<(Output, bool)> {
    let first = timely(args)?;
    if first.status.success() {
        return Ok((first, false));
    }
    let named = matches!(first.code(), code::FAILED | code::TIMED_OUT);
    ensure!(
        named && first.stderr.contains("hint:"),
        "a failure without a name or a hint: {first}"
    );
    let second = timely(args)?;
    // The first attempt may have succeeded after all.
    let gone = args[0] == "delete" && second.code() == code::NO_DEVICE;
    ensure!(
        gone || second.status.success(),
        "{second}, and before {first}"
    );
    Ok((second, true))
}

fn timely(args: &[&str]) -> Result<Output> {
    let start = Instant::now();
    let output = ublkctl(args)?;
    let took = start.elapsed();
    ensure!(took < secs(DEADLINE + GRACE), "{took:?} for {output}");
    Ok(output)
}
