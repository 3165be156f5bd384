//! The families of metrics: their names, help, and where their values come from.

use std::fmt;

use prometheus_client::encoding::NoLabelSet;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::{Merged, Nbd, Value, Writer, to_f64};
use crate::{Batches, Operation};
/// Powers of two, in nanoseconds, of the bounds of exported latencies: from 4 µs to 17 s.
const BOUNDS: std::ops::RangeInclusive<u32> = 12..=34;

pub(super) fn states(to: &mut Writer<'_, '_>) -> fmt::Result {
    let flag = |yes: bool| Some(Value::Whole(u64::from(yes)));
    to.gauge(
        ("ublk_server_up", None, "Whether the device's server runs"),
        |it| flag(it.device.server_up),
    )?;
    to.gauge(
        (
            "ublk_agent_up",
            None,
            "Whether the device's agent runs; without one nobody recovers it",
        ),
        |it| it.device.agent_up.and_then(flag),
    )?;
    to.gauge(
        (
            "ublk_answers",
            None,
            "Whether the server answered the question for its metrics",
        ),
        |it| flag(it.device.snapshot.is_some()),
    )?;
    to.gauge(
        (
            "ublk_failed",
            None,
            "Whether a queue of the device has failed",
        ),
        |it| flag(it.device.failed),
    )?;
    to.gauge(
        (
            "ublk_oldest_request",
            Some(Unit::Seconds),
            "For how long at least the oldest request has been unanswered; 0 if none was found by the look before",
        ),
        |it| {
            it.device.snapshot.as_ref()?;
            let oldest = it.device.oldest.unwrap_or_default();
            Some(Value::Real(oldest.as_secs_f64()))
        },
    )?;
    to.gauge(
        (
            "ublk_metrics_level",
            None,
            "What is measured: 0 off, 1 counters, 2 latencies",
        ),
        |it| Some(Value::Whole(it.device.snapshot.as_ref()?.level as u64)),
    )?;
    to.gauge(
        (
            "ublk_server_start_time",
            Some(Unit::Seconds),
            "When the server started, since 1970; it changes with each recovery and upgrade",
        ),
        |it| {
            Some(Value::Real(
                to_f64(it.device.snapshot.as_ref()?.server) / 1e9,
            ))
        },
    )
}

/// Names of the metrics of a kind of request: requests, bytes, time, and what the help calls them.
const KINDS: [(Operation, &str, &str, &str, &str); Operation::COUNT] = [
    (
        Operation::Read,
        "ublk_reads_completed",
        "ublk_read",
        "ublk_read_time",
        "READ",
    ),
    (
        Operation::Write,
        "ublk_writes_completed",
        "ublk_written",
        "ublk_write_time",
        "WRITE",
    ),
    (
        Operation::Flush,
        "ublk_flush_requests",
        "",
        "ublk_flush_requests_time",
        "FLUSH",
    ),
    (
        Operation::Discard,
        "ublk_discards_completed",
        "ublk_discarded",
        "ublk_discard_time",
        "DISCARD",
    ),
    (
        Operation::WriteZeroes,
        "ublk_write_zeroes_completed",
        "ublk_zeroed",
        "ublk_write_zeroes_time",
        "WRITE_ZEROES",
    ),
    (
        Operation::ZoneAppend,
        "ublk_zone_appends_completed",
        "ublk_appended",
        "ublk_zone_append_time",
        "ZONE_APPEND",
    ),
    (
        Operation::ZoneAction,
        "ublk_zone_actions_completed",
        "",
        "ublk_zone_action_time",
        "zone management",
    ),
];

pub(super) fn requests(to: &mut Writer<'_, '_>) -> fmt::Result {
    for (op, requests, bytes, time, words) in KINDS {
        let help = format!("{words} requests taken from the driver, those of ublk_io_now included");
        to.by_queue((requests, None, &help), |queue| {
            Value::Whole(queue.op(op).map_or(0, |op| op.requests))
        })?;
        if !bytes.is_empty() {
            let help = format!("Bytes of {words} requests");
            to.by_queue((bytes, Some(Unit::Bytes), &help), |queue| {
                Value::Whole(queue.op(op).map_or(0, |op| op.bytes))
            })?;
        }
        let help = format!("Time that {words} requests took in the server; with level latencies");
        to.by_queue((time, Some(Unit::Seconds), &help), |queue| {
            let sum = queue.op(op).map(|op| op.latency.sum());
            Value::Real(sum.unwrap_or_default().as_secs_f64())
        })?;
    }
    let kind = MetricType::Gauge;
    let help = "Requests that the server has taken and not answered";
    let mut metric = to
        .encoder
        .encode_descriptor("ublk_io_now", help, None, kind)?;
    for device in to.devices {
        for queue in &device.queues {
            let mut labels = device.device.labels();
            labels.push(("queue", queue.qid.to_string()));
            let mut one = metric.encode_family(&labels)?;
            one.encode_gauge(&queue.in_flight)?;
        }
    }
    Ok(())
}

pub(super) fn errors(to: &mut Writer<'_, '_>) -> fmt::Result {
    to.counters(
        (
            "ublk_errors",
            None,
            "Requests answered with an errno, by operation",
        ),
        |device| {
            let ops = device.total.ops.iter();
            ops.map(|op| {
                let label = ("op", op.op.name().to_owned());
                (Some(label), Value::Whole(op.errors))
            })
            .collect()
        },
    )?;
    to.counters(
        (
            "ublk_errnos",
            None,
            "Requests answered with an errno, by its number; 0 is one beyond those of Linux",
        ),
        |device| {
            let errnos = device.total.errnos.iter();
            errnos
                .map(|(errno, n)| (Some(("errno", errno.to_string())), Value::Whole(*n)))
                .collect()
        },
    )
}

pub(super) fn latencies(to: &mut Writer<'_, '_>) -> fmt::Result {
    to.counters(
        (
            "ublk_backend_time",
            Some(Unit::Seconds),
            "Time that requests spent in the backend, by operation; the rest of their time they waited; with level latencies",
        ),
        |device| {
            let ops = device.total.ops.iter();
            let measured = ops.filter(|op| op.latency.count() != 0);
            measured
                .map(|op| {
                    let label = ("op", op.op.name().to_owned());
                    let time = std::time::Duration::from_nanos(op.backend_ns);
                    (Some(label), Value::Real(time.as_secs_f64()))
                })
                .collect()
        },
    )?;
    let mut metric = to.encoder.encode_descriptor(
        "ublk_request_duration",
        "Time from a request's arrival in the server to the submission of its answer; with level latencies",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for device in to.devices {
        for op in device.total.ops.iter().filter(|op| op.latency.count() != 0) {
            let mut below = 0;
            let mut buckets: Vec<(f64, u64)> = Vec::new();
            for power in BOUNDS {
                let bound = std::time::Duration::from_nanos(1 << power);
                let upto = op.latency.below(bound);
                buckets.push((bound.as_secs_f64(), upto - below));
                below = upto;
            }
            let count = op.latency.count();
            buckets.push((f64::INFINITY, count - below));
            let mut labels = device.device.labels();
            labels.push(("op", op.op.name().to_owned()));
            let mut one = metric.encode_family(&labels)?;
            let sum = op.latency.sum().as_secs_f64();
            one.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
    }
    Ok(())
}

pub(super) fn threads(to: &mut Writer<'_, '_>) -> fmt::Result {
    to.by_queue(
        (
            "ublk_queue_busy",
            Some(Unit::Seconds),
            "Time that the queue's thread worked; with level latencies",
        ),
        |queue| Value::Real(std::time::Duration::from_nanos(queue.busy_ns).as_secs_f64()),
    )?;
    to.by_queue(("ublk_enters", None, "Calls of io_uring_enter"), |queue| {
        Value::Whole(queue.facts.enters)
    })?;
    let mut metric = to.encoder.encode_descriptor(
        "ublk_batch_size",
        "Requests that a queue's thread found when it woke; with level counters",
        None,
        MetricType::Histogram,
    )?;
    for device in to.devices {
        let batches = &device.total.batches;
        if batches.count() == 0 {
            continue;
        }
        let last = Batches::SIZES - 1;
        let bound = |at: usize| match at == last {
            true => f64::INFINITY,
            false => to_f64((2 << at) - 1),
        };
        let counts = batches.counts.iter().enumerate();
        let buckets: Vec<_> = counts.map(|(at, n)| (bound(at), *n)).collect();
        let labels = device.device.labels();
        let mut one = metric.encode_family(&labels)?;
        one.encode_histogram::<NoLabelSet>(
            to_f64(batches.requests),
            batches.count(),
            &buckets,
            None,
        )?;
    }
    Ok(())
}

pub(super) fn facts(to: &mut Writer<'_, '_>) -> fmt::Result {
    to.total(
        "ublk_zero_copy_requests",
        "Requests whose pages were registered as planned",
        |it| it.facts.zero_copy_hits,
    )?;
    to.total(
        "ublk_zero_copy_fallbacks",
        "Requests whose pages the driver could not register, so that the server did",
        |it| it.facts.zero_copy_fallbacks,
    )?;
    to.total(
        "ublk_get_data_rounds",
        "NEED_GET_DATA commands, each a round trip more for a WRITE",
        |it| it.facts.get_data_rounds,
    )?;
    to.total(
        "ublk_shared_memory_hits",
        "Requests whose data was in memory shared with the client",
        |it| it.facts.shared_hits,
    )?;
    to.total(
        "ublk_shared_memory_misses",
        "Requests whose data was not in that memory",
        |it| it.facts.shared_misses,
    )?;
    to.total(
        "ublk_poll_hits",
        "Polls that found work; with level counters",
        |it| it.facts.poll_hits,
    )?;
    to.total(
        "ublk_poll_misses",
        "Polls that ended in a sleep; with level counters",
        |it| it.facts.poll_misses,
    )?;
    to.total(
        "ublk_syncs",
        "Syncs of files, each for one or more FLUSH and FUA requests",
        |it| it.facts.syncs,
    )?;
    to.total("ublk_panics", "Contained panics of the backend", |it| {
        it.facts.panics
    })?;
    to.total(
        "ublk_dropped_requests",
        "Requests dropped without an answer, which failed with EIO",
        |it| it.facts.dropped,
    )?;
    to.total(
        "ublk_refused_requests",
        "Requests refused for an invalid descriptor",
        |it| it.facts.refused,
    )
}

pub(super) fn nbd(to: &mut Writer<'_, '_>) -> fmt::Result {
    to.gauge(
        ("ublk_nbd_up", None, "Whether the NBD server answers"),
        |it| Some(Value::Whole(u64::from(it.device.nbd?.up))),
    )?;
    to.gauge(
        (
            "ublk_nbd_connections",
            None,
            "Connections to the NBD server",
        ),
        |it| Some(Value::Whole(it.device.nbd?.connections)),
    )?;
    let count = |value: fn(Nbd) -> u64| {
        move |it: &Merged| {
            let nbd = it.device.nbd.into_iter();
            nbd.map(|nbd| (None, Value::Whole(value(nbd)))).collect()
        }
    };
    to.counters(
        (
            "ublk_nbd_reconnects",
            None,
            "Connections to the NBD server that were lost and made again",
        ),
        count(|nbd| nbd.reconnects),
    )?;
    to.counters(
        (
            "ublk_nbd_replayed_requests",
            None,
            "Requests sent again to the NBD server after a lost connection",
        ),
        count(|nbd| nbd.replayed),
    )
}
