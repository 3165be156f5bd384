//! The options of a device's queues, in one piece: a field here, and whoever passes them on passes it.

use crate::polling::Polling;

/// How the queues of a device are served, whatever the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct ServeOptions {
    /// Threads of each queue, for a backend whose own work is more than one CPU can do; more than one needs
    /// PER_IO_DAEMON (6.16) or batch mode (7.0), and sets [`Plan::threads`](crate::Plan::threads) aside.
    #[cfg_attr(feature = "serde", serde(rename = "threads"))]
    pub threads_per_queue: u16,
    /// What a thread does before it sleeps.
    #[cfg_attr(feature = "serde", serde(rename = "poll"))]
    pub polling: Polling,
    /// Has the queues' buffers in huge pages where they are to be had and a queue needs at least one (2 MiB): fewer
    /// misses of the TLB where requests are large, but a page is taken whole by its first byte.
    #[cfg_attr(feature = "serde", serde(default))]
    pub huge_pages: bool,
}

impl ServeOptions {
    /// A thread for each queue, which sleeps at once; small pages.
    pub const DEFAULT: Self = Self {
        threads_per_queue: 1,
        polling: Polling::Off,
        huge_pages: false,
    };
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}
