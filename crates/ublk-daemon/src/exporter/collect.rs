//! The metrics of all devices as text, not made more often than they are fresh.

use super::http::Format;
use crate::front::{Measured, measured};
use crate::problems::age;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use ublk_metrics::prometheus::{Collector, Device, Nbd};

/// The devices of this user. Those that cannot be looked at are none, and the log says why.
pub(super) fn devices() -> Vec<Device> {
    match measured(&[], true) {
        Ok(all) => all.into_iter().map(device).collect(),
        Err(failure) => {
            tracing::warn!("{failure}");
            Vec::new()
        }
    }
}

fn device(it: Measured) -> Device {
    let mut device = Device::default();
    device.device = format!("ublkb{}", it.id);
    device.name = it.name.unwrap_or_default();
    device.backend = it.backend;
    device.server_up = it.server_alive;
    device.agent_up = Some(it.agent_alive);
    device.snapshot = it.snapshot;
    if let Some(health) = it.health {
        device.failed = health.state == "failed";
        device.oldest = health.queues.iter().filter_map(age).max();
        device.nbd = health.nbd.map(|nbd| Nbd {
            up: nbd.state == "up",
            connections: u64::from(nbd.connections),
            reconnects: nbd.reconnects,
            replayed: nbd.replayed,
        });
    }
    device
}

/// Both formats of one look at the devices.
#[derive(Debug)]
struct Look {
    at: Instant,
    prometheus: Arc<str>,
    open: Arc<str>,
}

/// The last look, and how to take the next.
pub(super) struct Cache {
    last: Mutex<Option<Look>>,
    fresh: Duration,
    devices: fn() -> Vec<Device>,
}

impl Cache {
    pub(super) fn new(fresh: Duration, devices: fn() -> Vec<Device>) -> Self {
        Self {
            last: Mutex::new(None),
            fresh,
            devices,
        }
    }

    /// The metrics in this format. Whoever comes while somebody looks waits for that look.
    pub(super) fn text(&self, format: Format) -> Arc<str> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let look = match last.take() {
            Some(look) if look.at.elapsed() < self.fresh => look,
            _ => self.look(),
        };
        let text = Arc::clone(match format {
            Format::Prometheus => &look.prometheus,
            Format::OpenMetrics => &look.open,
        });
        *last = Some(look);
        text
    }

    fn look(&self) -> Look {
        let devices = (self.devices)();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Collector::new(move || devices.clone())));
        let (mut prometheus, mut open) = (String::new(), String::new());
        // Writing to a string does not fail.
        let _ = prometheus_text::encode(&mut prometheus, &registry);
        let _ = text::encode(&mut open, &registry);
        Look {
            at: Instant::now(),
            prometheus: prometheus.into(),
            open: open.into(),
        }
    }
}
