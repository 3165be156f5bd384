//! The hidden subcommands that run a role.

use crate::agent;
use crate::embed;
use crate::helper;
use crate::link::peer::{Role, this_program};
use crate::link::{Link, LinkError};
use crate::log;
use crate::server;
use crate::signals::Signals;
use crate::state::Store;
use crate::sys::{memory, surroundings, title};

/// Runs a role whose link is standard input; returns the exit code. Resets everything inherited first, including open
/// descriptors: call it before anything is opened.
///
/// # Errors
/// [`LinkError::NotALink`] if a user called it.
pub fn run(role: Role) -> Result<i32, LinkError> {
    Link::expect_stdin()?;
    surroundings::shed();
    let link = Link::from_stdin()?;
    title::set(role.name(), None);
    log::tell_panics();
    Ok(match role {
        Role::Agent => run_agent(link),
        Role::Server => {
            log::journal::connect();
            spare_from_oom();
            let signals = Signals::take().ok();
            let store = Store::of_user().map_err(|e| tracing::warn!("{e}")).ok();
            server::run(
                link,
                &mut server::data_plane::Real::confined(),
                signals,
                store,
            )
        }
        // Detached from the terminal: control-C must not interrupt a delete half-way.
        Role::Helper => helper::run(&link, helper::control),
    })
}

/// For the roles that a device depends on. Without permission the score stays unchanged.
fn spare_from_oom() {
    if let Err(e) = memory::spare_from_oom() {
        tracing::debug!("cannot lower the OOM score of this process: {e}");
    }
}

fn run_agent(link: Link) -> i32 {
    spare_from_oom();
    // Fork first: this process still has one thread and no ring.
    let (helper, link) = match embed::fork_helper(link) {
        Ok(forked) => forked,
        Err(e) => {
            tracing::error!("cannot start a helper: {e}");
            return 1;
        }
    };
    log::journal::connect();
    let signals = Signals::take().ok();
    let store = match Store::of_user() {
        Ok(store) => store,
        Err(e) => {
            tracing::error!("{e}");
            return 1;
        }
    };
    let mut world = agent::Real::new(this_program()).helper(helper);
    agent::run(&mut world, store, link, signals)
}

/// Runs a role and exits, if this process was started as one; otherwise returns. Make it the first call of `main` in a
/// program that is its own agent, server and helper.
///
/// # Errors
/// [`LinkError::NotALink`] if a user gave a hidden subcommand.
pub fn play() -> Result<(), LinkError> {
    let mut args = std::env::args_os().skip(1);
    let role = args.next().and_then(|arg| Role::parse(arg.to_str()?));
    match role {
        Some(role) if args.next().is_none() => std::process::exit(run(role)?),
        _ => Ok(()),
    }
}
