//! Kernel releases, and known bugs of the ublk driver in them.
//!
//! To find out what a kernel supports, ask it (GET_FEATURES); the release does not tell. Bugs cannot be asked for: a
//! command that crashes the kernel has no reply. So the few bugs that cost data or the machine are listed here by
//! release.
#![forbid(unsafe_code)]

use core::fmt;

/// A kernel release as `uname -r` reports it: upstream's, or a distribution's with its own counter.
///
/// ```
/// use ublk_core::kernel::{Fault, Release};
///
/// let release = Release::parse("6.18.5-200.fc43.x86_64").unwrap();
/// assert!(release.has(Fault::AddCrashes));
/// assert!(!Release::parse("6.18.6+deb14-amd64").unwrap().has(Fault::AddCrashes));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    text: String,
    version: (u32, u32, u32),
    /// The number of the release candidate; `None` for a release.
    candidate: Option<u32>,
    ubuntu: Option<Ubuntu>,
}

/// Ubuntu's counter: its kernels of a series are all `X.Y.0`, whatever they contain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ubuntu {
    abi: u32,
    flavour: Flavour,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavour {
    /// `generic`, and all flavours built from it with the same counter.
    Generic,
    Aws,
    Azure,
    /// A cloud or board flavour with its own counter.
    Other,
}

impl Flavour {
    fn of(word: &str) -> Option<Self> {
        Some(match word {
            "generic" | "lowlatency" | "realtime" => Self::Generic,
            "aws" => Self::Aws,
            "azure" => Self::Azure,
            "gcp" | "gke" | "gkeop" | "ibm" | "kvm" | "nvidia" | "oem" | "oracle" | "raspi"
            | "fips" | "xilinx" | "intel" | "bluefield" => Self::Other,
            _ => return None,
        })
    }
}

/// A bug of the ublk driver that is identified by kernel release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Fault {
    /// ADD_DEV dereferences a null pointer and never returns (6.18.4, 6.18.5; Ubuntu's 6.17.0-24 to -40 and the cloud
    /// kernels made from them).
    AddCrashes,
    /// A batch device keeps failing I/O after QUIESCE, so a live upgrade fails requests (7.0 to 7.2.6, 7.3-rc1, rc2).
    BatchHandOver,
    /// Control commands get lost when devices are created concurrently (seen on 6.18.40, 7.0.0 and 7.0.14).
    LostCommands,
    /// UBSAN reports a false array index out of bounds when buffers are registered (6.19 to 7.2).
    UbsanReport,
}

impl Fault {
    /// All bugs.
    pub const ALL: [Self; 4] = [
        Self::AddCrashes,
        Self::BatchHandOver,
        Self::LostCommands,
        Self::UbsanReport,
    ];

    /// The symptom.
    #[must_use]
    pub const fn what(self) -> &'static str {
        match self {
            Self::AddCrashes => "ADD_DEV crashes and never ends",
            Self::BatchHandOver => {
                "a device in batch mode keeps failing I/O after it was held for a new server"
            }
            Self::LostCommands => {
                "control commands get lost when several devices are created at once"
            }
            Self::UbsanReport => {
                "UBSAN may falsely report an index out of bounds when buffers are registered"
            }
        }
    }

    /// The remedy.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::AddCrashes => {
                "use Linux 6.18.6 or newer, or the distribution's next kernel; \
                 where this kernel is known to be patched, say so (`add --trust-kernel`)"
            }
            Self::BatchHandOver => {
                "give devices that are to be upgraded no batch commands (`add --batch off`); \
                 from Linux 7.2.7 on only what comes while one is held fails"
            }
            Self::LostCommands => {
                "a lost command ends at its deadline: repeat it; create devices one after the other"
            }
            Self::UbsanReport => "use Linux 7.3, or set kernel.panic_on_warn to 0",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())
    }
}

impl Release {
    /// Parses a release such as `6.12.117+deb13-amd64`, `6.17.0-24-generic`, `6.18.5-200.fc43.x86_64`,
    /// `6.12.0-55.el10.x86_64` or `7.3.0-rc2`; `None` if it does not begin with a version.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (version, rest) = text.split_at(end);
        let mut numbers = version.split('.');
        let mut number = || numbers.next().map(str::parse::<u32>);
        let major = number()?.ok()?;
        let minor = number()?.ok()?;
        // "7.3.fc44" and "7.3-rc1" have no patch level.
        let patch = number().and_then(Result::ok).unwrap_or(0);
        Some(Self {
            text: text.to_owned(),
            version: (major, minor, patch),
            candidate: candidate(rest),
            ubuntu: (patch == 0).then(|| ubuntu(rest)).flatten(),
        })
    }

    /// Major, minor and patch level: `(6, 12, 117)`.
    #[must_use]
    pub const fn version(&self) -> (u32, u32, u32) {
        self.version
    }

    /// Whether this release has a bug.
    #[must_use]
    pub fn has(&self, fault: Fault) -> bool {
        let (major, minor, patch) = self.version;
        let series = (major, minor);
        match fault {
            Fault::AddCrashes => match self.ubuntu {
                Some(Ubuntu { abi, flavour }) if series == (6, 17) => match flavour {
                    Flavour::Generic => (24..=40).contains(&abi),
                    Flavour::Aws => abi == 1019,
                    Flavour::Azure => (1015..=1020).contains(&abi),
                    Flavour::Other => false,
                },
                Some(_) => false,
                None => series == (6, 18) && matches!(patch, 4 | 5),
            },
            Fault::BatchHandOver => match series {
                (7, 0 | 1) => true,
                (7, 2) => patch < 7,
                (7, 3) => patch == 0 && self.candidate.is_some_and(|rc| rc < 3),
                _ => false,
            },
            Fault::LostCommands => series == (7, 0) || (series == (6, 18) && patch >= 40),
            Fault::UbsanReport => ((6, 19)..(7, 3)).contains(&series),
        }
    }

    /// The bugs of this release.
    pub fn faults(&self) -> impl Iterator<Item = Fault> + '_ {
        Fault::ALL.into_iter().filter(|fault| self.has(*fault))
    }
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The number in `-rc2`, `~rc2`, `.rc2.` (Fedora) or `rc2-generic` (Ubuntu's mainline builds).
fn candidate(rest: &str) -> Option<u32> {
    let (before, after) = rest.split_once("rc")?;
    // A word such as "arch" does not count.
    let begins = before
        .chars()
        .last()
        .is_none_or(|c| !c.is_ascii_alphabetic());
    let digits = after.bytes().take_while(u8::is_ascii_digit).count();
    after[..digits].parse().ok().filter(|_| begins)
}

/// Parses `-24-generic`, `-1019-aws` or `-1015-azure-fde`.
fn ubuntu(rest: &str) -> Option<Ubuntu> {
    let (abi, flavour) = rest.strip_prefix('-')?.split_once('-')?;
    let flavour = Flavour::of(flavour.split('-').next()?)?;
    let abi = abi.parse().ok()?;
    Some(Ubuntu { abi, flavour })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(text: &str) -> Release {
        Release::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn releases_of_distributions_are_read() {
        for (text, version, candidate) in [
            ("6.12.117+deb13-amd64", (6, 12, 117), None),
            ("6.1.0-18-cloud-amd64", (6, 1, 0), None),
            ("7.3.4+deb13-amd64", (7, 3, 4), None),
            ("7.3~rc2+deb14-amd64", (7, 3, 0), Some(2)),
            ("6.17.0-24-generic", (6, 17, 0), None),
            ("6.17.0-1019-aws", (6, 17, 0), None),
            ("7.3.0-070300rc2-generic", (7, 3, 0), Some(2)),
            ("6.18.5-200.fc43.x86_64", (6, 18, 5), None),
            ("7.3.0-0.rc1.260904g1234.fc45.x86_64", (7, 3, 0), Some(1)),
            ("5.14.0-570.12.1.el9_6.x86_64", (5, 14, 0), None),
            ("6.12.0-55.el10.x86_64", (6, 12, 0), None),
            ("6.18.4-arch1-1", (6, 18, 4), None),
            ("6.4.0-150600.23.7-default", (6, 4, 0), None),
            ("6.6.87.2-microsoft-standard-WSL2", (6, 6, 87), None),
            ("6.1.141-155.222.amzn2023.x86_64", (6, 1, 141), None),
            ("7.3.0-rc3", (7, 3, 0), Some(3)),
            ("7.3-rc1+", (7, 3, 0), Some(1)),
            ("7.3", (7, 3, 0), None),
            ("7.3.0-rc2-next-20260911\n", (7, 3, 0), Some(2)),
        ] {
            let read = release(text);
            assert_eq!(
                (read.version(), read.candidate),
                (version, candidate),
                "{text}"
            );
            assert_eq!(read.to_string(), text.trim());
        }
        for text in ["", "linux", "6", "-6.1", "v6.12", "6.x", "99999999999.1"] {
            assert_eq!(Release::parse(text), None, "{text}");
        }
    }

    /// L84 Each bug covers exactly its first to its last release.
    #[test]
    fn l84_faults_begin_and_end_where_they_do() {
        let table: [(Fault, &[&str], &[&str]); 4] = [
            (
                Fault::AddCrashes,
                &[
                    "6.18.4",
                    "6.18.5+deb14-amd64",
                    "6.18.5-200.fc43.x86_64",
                    "6.18.4-arch1-1",
                    "6.17.0-24-generic",
                    "6.17.0-30-generic-64k",
                    "6.17.0-40-generic",
                    "6.17.0-1019-aws",
                    "6.17.0-1015-azure",
                    "6.17.0-1020-azure-fde",
                ],
                &[
                    "6.18.3",
                    "6.18.6",
                    "6.18.45",
                    "6.17.13+deb13-amd64",
                    "6.17.0-24.fc43.x86_64",
                    "6.17.0-24-amd64",
                    "6.17.0-23-generic",
                    "6.17.0-41-generic",
                    "6.17.0-1018-aws",
                    "6.17.0-1020-aws",
                    "6.17.0-1014-azure",
                    "6.17.0-1021-azure",
                    "6.17.0-1019-gcp",
                    "6.14.0-30-generic",
                    "6.12.117",
                ],
            ),
            (
                Fault::BatchHandOver,
                &[
                    "7.0.0",
                    "7.0.14-generic",
                    "7.1.9",
                    "7.2.6",
                    "7.3.0-rc1",
                    "7.3-rc2",
                ],
                &[
                    "6.19.3",
                    "7.2.7",
                    "7.2.12+deb13-amd64",
                    "7.3.0-rc3",
                    "7.3.0",
                    "7.3.4",
                    "7.4.0-rc1",
                ],
            ),
            (
                Fault::LostCommands,
                &["6.18.40", "7.0.0", "7.0.14", "7.0.0-14-generic"],
                &["6.17.13", "6.18.0", "6.18.15", "7.1.0", "7.3.4", "6.12.117"],
            ),
            (
                Fault::UbsanReport,
                &["6.19.0", "7.0.14", "7.2.12+deb13-amd64"],
                &["6.18.40", "7.3.0-rc1", "7.3.4"],
            ),
        ];
        for (fault, having, clean) in table {
            for text in having {
                assert!(release(text).has(fault), "{text} has {fault:?}");
            }
            for text in clean {
                assert!(!release(text).has(fault), "{text} has no {fault:?}");
            }
        }
        let all: Vec<Fault> = release("7.0.14").faults().collect();
        let wanted = [
            Fault::BatchHandOver,
            Fault::LostCommands,
            Fault::UbsanReport,
        ];
        assert_eq!(all, wanted);
    }

    #[test]
    fn every_fault_says_what_to_do() {
        for fault in Fault::ALL {
            assert!(!fault.what().contains('\n') && !fault.remedy().is_empty());
        }
    }
}
