//! Devices as metrics of a `prometheus-client` registry.
//!
//! Names follow node_exporter's for disks, under the prefix `ublk_`. The number of series is bounded by devices, queues,
//! kinds of requests and errnos; no label has a value that a client of a device can choose.
//!
//! ```
//! use prometheus_client::registry::Registry;
//! use ublk_metrics::prometheus::{Collector, Device};
//! use ublk_metrics::{Level, Snapshot};
//!
//! let mut registry = Registry::default();
//! // A program that embeds the facade calls `device.metrics()` here.
//! let devices = || vec![Device::new("ublkb0", "mem", Snapshot::new(Level::Off, 1, 0))];
//! registry.register_collector(Box::new(Collector::new(devices)));
//! let mut text = String::new();
//! prometheus_client::encoding::prometheus_text::encode(&mut text, &registry)?;
//! assert!(text.contains("ublk_server_up{device=\"ublkb0\",name=\"\",backend=\"mem\"} 1"));
//! # Ok::<(), std::fmt::Error>(())
//! ```

mod families;

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::{QueueSnapshot, Snapshot};

/// A device, as its metrics tell.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Device {
    /// The kernel's name of its block device: `ublkb0`.
    pub device: String,
    /// Its own name; empty if it has none.
    pub name: String,
    /// What answers its requests.
    pub backend: String,
    /// Its server runs.
    pub server_up: bool,
    /// Its agent runs; `None` if it has none by design.
    pub agent_up: Option<bool>,
    /// A queue of it has failed.
    pub failed: bool,
    /// Age of the oldest request in hand, if any is known to be older than a look.
    pub oldest: Option<std::time::Duration>,
    /// What it has done, if the server answers.
    pub snapshot: Option<Snapshot>,
    /// Its connections to an NBD server.
    pub nbd: Option<Nbd>,
}

/// The connections of a device to an NBD server.
#[derive(Debug, Clone, Copy, Default)]
pub struct Nbd {
    /// Requests are answered by the server.
    pub up: bool,
    /// Connections now.
    pub connections: u64,
    /// Connections that were lost and made again.
    pub reconnects: u64,
    /// Requests sent again after a loss.
    pub replayed: u64,
}

impl Device {
    /// A device whose server answers.
    #[must_use]
    pub fn new(device: impl Into<String>, backend: impl Into<String>, snapshot: Snapshot) -> Self {
        Self {
            device: device.into(),
            backend: backend.into(),
            server_up: true,
            snapshot: Some(snapshot),
            ..Self::default()
        }
    }

    fn labels(&self) -> Labels {
        vec![
            ("device", self.device.clone()),
            ("name", self.name.clone()),
            ("backend", self.backend.clone()),
        ]
    }
}

type Labels = Vec<(&'static str, String)>;

/// Collects devices at each scrape.
pub struct Collector {
    devices: Box<dyn Fn() -> Vec<Device> + Send + Sync>,
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Collector")
    }
}

impl Collector {
    /// A collector of these devices, which it asks for at each scrape.
    pub fn new(devices: impl Fn() -> Vec<Device> + Send + Sync + 'static) -> Self {
        Self {
            devices: Box::new(devices),
        }
    }
}

/// A device and its queues, the threads of a queue together.
struct Merged {
    device: Device,
    queues: Vec<QueueSnapshot>,
    total: QueueSnapshot,
}

impl Merged {
    fn of(device: Device) -> Self {
        let mut queues: Vec<QueueSnapshot> = Vec::new();
        for queue in device.snapshot.iter().flat_map(|it| &it.queues) {
            match queues.iter_mut().find(|it| it.qid == queue.qid) {
                Some(to) => to.add(queue),
                None => queues.push(queue.clone()),
            }
        }
        let total = device.snapshot.as_ref().map(Snapshot::total);
        Self {
            total: total.unwrap_or_default(),
            device,
            queues,
        }
    }
}

/// Writes metrics of all devices, one after the other.
struct Writer<'a, 'e> {
    encoder: DescriptorEncoder<'e>,
    devices: &'a [Merged],
}

impl Writer<'_, '_> {
    /// A value for each device.
    fn gauge(
        &mut self,
        (name, unit, help): (&str, Option<Unit>, &str),
        value: impl Fn(&Merged) -> Option<Value>,
    ) -> fmt::Result {
        let mut metric =
            self.encoder
                .encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for device in self.devices {
            if let Some(value) = value(device) {
                let labels = device.device.labels();
                let mut one = metric.encode_family(&labels)?;
                match value {
                    Value::Whole(n) => one.encode_gauge(&n)?,
                    Value::Real(x) => one.encode_gauge(&x)?,
                }
            }
        }
        Ok(())
    }

    /// A count for each device, and for each value of a label.
    fn counters(
        &mut self,
        (name, unit, help): (&str, Option<Unit>, &str),
        values: impl Fn(&Merged) -> Vec<(Option<(&'static str, String)>, Value)>,
    ) -> fmt::Result {
        let kind = MetricType::Counter;
        let mut metric = self
            .encoder
            .encode_descriptor(name, help, unit.as_ref(), kind)?;
        let devices = self.devices.iter();
        for device in devices.filter(|it| it.device.snapshot.is_some()) {
            for (label, value) in values(device) {
                let mut labels = device.device.labels();
                labels.extend(label);
                let mut one = metric.encode_family(&labels)?;
                match value {
                    Value::Whole(n) => one.encode_counter::<NoLabelSet, _, u64>(&n, None)?,
                    Value::Real(x) => one.encode_counter::<NoLabelSet, _, u64>(&x, None)?,
                }
            }
        }
        Ok(())
    }

    /// A count for each queue.
    fn by_queue(
        &mut self,
        what: (&str, Option<Unit>, &str),
        value: impl Fn(&QueueSnapshot) -> Value,
    ) -> fmt::Result {
        let queue = |queue: &QueueSnapshot| {
            let label = ("queue", queue.qid.to_string());
            (Some(label), value(queue))
        };
        self.counters(what, |device| device.queues.iter().map(queue).collect())
    }

    /// A count for the device.
    fn total(
        &mut self,
        name: &str,
        help: &str,
        value: impl Fn(&QueueSnapshot) -> u64,
    ) -> fmt::Result {
        self.counters((name, None, help), |device| {
            vec![(None, Value::Whole(value(&device.total)))]
        })
    }
}

/// A value of a metric.
#[derive(Debug, Clone, Copy)]
enum Value {
    Whole(u64),
    Real(f64),
}

#[expect(
    clippy::cast_precision_loss,
    reason = "where Prometheus has floating point only"
)]
const fn to_f64(n: u64) -> f64 {
    n as f64
}

impl prometheus_client::collector::Collector for Collector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let devices: Vec<_> = (self.devices)().into_iter().map(Merged::of).collect();
        let mut writer = Writer {
            encoder,
            devices: &devices,
        };
        families::states(&mut writer)?;
        families::requests(&mut writer)?;
        families::errors(&mut writer)?;
        families::latencies(&mut writer)?;
        families::threads(&mut writer)?;
        families::facts(&mut writer)?;
        families::nbd(&mut writer)
    }
}

#[cfg(test)]
mod tests;
