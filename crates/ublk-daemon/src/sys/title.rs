//! Sets what `ps` and `top` show of a process.
#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// The first word of a role's command line. Only command lines that begin with it are overwritten.
pub const PROGRAM: &str = "ublkctl: ";

/// Longest thread name in bytes (TASK_COMM_LEN without the NUL).
const LONGEST: usize = 15;

/// Shows the process as `ublkctl: ROLE ID`, and as `ublk-ROLE-ID` in short listings. Overwrites the memory of the
/// original arguments through `/proc/self/mem`; they are always longer than the new line.
pub fn set(role: &str, id: Option<u32>) {
    let done = line(role, id).and_then(|ours| match ours {
        true => fs::write("/proc/self/comm", short(role, id)),
        false => Ok(()),
    });
    if let Err(e) = done {
        tracing::debug!("cannot rename the process: {e}");
    }
}

fn short(role: &str, id: Option<u32>) -> String {
    let Some(id) = id else {
        return format!("ublk-{role}");
    };
    let (long, short) = (format!("ublk-{role}-{id}"), format!("{role}-{id}"));
    if long.len() <= LONGEST { long } else { short }
}

/// Overwrites the command line. Returns false if it is not one of a role.
fn line(role: &str, id: Option<u32>) -> io::Result<bool> {
    let now = fs::read("/proc/self/cmdline")?;
    if !now.starts_with(PROGRAM.as_bytes()) {
        return Ok(false);
    }
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (start, end) = arguments(&stat).ok_or(io::ErrorKind::InvalidData)?;
    let room = usize::try_from(end.saturating_sub(start)).map_err(io::Error::other)?;
    let mut text = id.map_or_else(
        || format!("{PROGRAM}{role}"),
        |id| format!("{PROGRAM}{role} {id}"),
    );
    // The last byte stays zero, so that the kernel shows only this area.
    text.truncate(room.saturating_sub(1));
    let mut bytes = text.into_bytes();
    bytes.resize(room, 0);
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    memory.write_all_at(&bytes, start).map(|()| true)
}

/// Start and end address of the command line: fields 48 and 49 of proc_pid_stat(5), counted from the state, which is
/// field 3.
fn arguments(stat: &str) -> Option<(u64, u64)> {
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split_ascii_whitespace().skip(48 - 3);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_say_the_whole_number() {
        assert_eq!(short("server", None), "ublk-server");
        assert_eq!(short("server", Some(3)), "ublk-server-3");
        assert_eq!(short("server", Some(1_048_575)), "server-1048575");
        assert_eq!(short("agent", Some(12_345)), "agent-12345");
    }

    /// The command line of a test belongs to its runner and stays unchanged.
    #[test]
    fn other_programs_keep_their_command_line() {
        let before = fs::read("/proc/self/cmdline").unwrap();
        assert!(!line("server", Some(3)).unwrap());
        assert_eq!(fs::read("/proc/self/cmdline").unwrap(), before);
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let (start, end) = arguments(&stat).unwrap();
        assert_eq!(usize::try_from(end - start).unwrap(), before.len());
    }
}
