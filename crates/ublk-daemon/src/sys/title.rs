//! What `ps` and `top` show of a process.
#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// The first word of a role's command line. Only such a line is ever written over.
pub const PROGRAM: &str = "ublkctl: ";

/// The longest name of a thread in bytes (TASK_COMM_LEN less its end).
const LONGEST: usize = 15;

/// Has the process shown as `ublkctl: ROLE ID`, and as `ublk-ROLE-ID` where only a short name is shown. The rooms of
/// the words that it was started with are written over, by way of `/proc/self/mem`; they are longer than any such line.
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

/// Whether the line is one of ours.
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
    // Its last byte stays zero: the kernel then shows the whole room and nothing beyond.
    text.truncate(room.saturating_sub(1));
    let mut bytes = text.into_bytes();
    bytes.resize(room, 0);
    let memory = OpenOptions::new().write(true).open("/proc/self/mem")?;
    memory.write_all_at(&bytes, start).map(|()| true)
}

/// Where the words of the command line begin and end in memory: fields 48 and 49 of proc_pid_stat(5), counted from the
/// state, which is the third.
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

    /// The words of a test are somebody else's: they stay.
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
