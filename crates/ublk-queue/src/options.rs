//! The options of a device's queues in one struct, which plan, builder and state records embed.

use ublk_metrics::Level;

use crate::polling::Polling;

/// How the queues of a device are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ServeOptions {
    /// Threads per queue, for backends whose work exceeds one CPU. More than one needs PER_IO_DAEMON (6.16) or batch
    /// mode (7.0), and overrides [`Plan::threads`](crate::Plan::threads).
    #[cfg_attr(feature = "serde", serde(rename = "threads"))]
    pub threads_per_queue: u16,
    /// What a thread does before it sleeps: poll or not.
    #[cfg_attr(feature = "serde", serde(rename = "poll"))]
    pub polling: Polling,
    /// Allocates the queues' buffers in huge pages if some are available and a queue needs at least one (2 MiB). Large
    /// requests then miss the TLB less often, but the first byte touched takes a whole page.
    #[cfg_attr(feature = "serde", serde(default))]
    pub huge_pages: bool,
    /// What is measured from the start; [`Server::measure`](crate::Server::measure) changes it.
    #[cfg_attr(feature = "serde", serde(default))]
    pub metrics: Level,
}

impl ServeOptions {
    /// One thread per queue, no polling, small pages, nothing measured.
    pub const DEFAULT: Self = Self {
        threads_per_queue: 1,
        polling: Polling::Off,
        huge_pages: false,
        metrics: Level::Off,
    };
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}
