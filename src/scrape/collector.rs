//! What can be looked up, looked up and told by its names.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, MetricEncoder,
};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::host::Process;
use crate::node::{Absent, CoreInfo, Figures, Node};
use crate::panel::reload::Current;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::Rung;
use crate::telemetry::names::{self, Kind, Spec};
use crate::usage::counter;
use crate::usage::ledger;

/// Everything that is told.
#[derive(Debug)]
pub(super) struct Collector {
    metrics: Arc<Metrics>,
    node: Node,
    certificate: Arc<Current>,
    /// When this daemon began.
    began: f64,
}

impl Collector {
    pub(super) fn new(metrics: Arc<Metrics>, node: Node, certificate: Arc<Current>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            metrics,
            node,
            certificate,
            began: now.unwrap_or_default().as_secs_f64(),
        }
    }
}

impl collector::Collector for Collector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        let figures = self.node.figures();
        writer.all(&names::BUILD, [([env!("CARGO_PKG_VERSION")], 1_u64)])?;
        writer.one(&names::START_TIME, self.began)?;
        node(&mut writer, &figures)?;
        usage(&mut writer, &figures.usage)?;
        cores(&mut writer, &figures)?;
        self.changes(&mut writer, &figures)?;
        if let Some(ends) = self
            .certificate
            .ends()
            .and_then(|ends| u64::try_from(ends).ok())
        {
            writer.one(&names::CERTIFICATE, ends)?;
        }
        for (spec, family) in self.metrics.families() {
            writer.family(spec, family)?;
        }
        process(&mut writer, &Process::now())
    }
}

impl Collector {
    /// Rungs are counted where they are taken, and the forms of a hand-over by who hands over.
    fn changes(&self, writer: &mut Writer<'_>, figures: &Figures) -> fmt::Result {
        let tally = &figures.tally;
        let rungs = Rung::ALL.iter();
        let taken = rungs.map(|rung| ([rung.word()], self.metrics.count(*rung)));
        let handed_over = [
            (["steered"], tally.steered),
            (["partly_steered"], tally.partly),
            (["plain"], tally.plain),
            (["refused"], tally.refused),
            (["restart"], tally.restarts),
        ];
        writer.all(&names::CHANGES, taken.chain(handed_over))
    }
}

fn node(writer: &mut Writer<'_>, figures: &Figures) -> fmt::Result {
    let now = match &figures.standing.core {
        Ok(_) => "serving",
        Err(Absent::Unwanted(_)) => "idle",
        Err(Absent::Comes(..)) => "down",
        Err(Absent::GaveUp(_)) => "gave_up",
    };
    let states = ["idle", "serving", "down", "gave_up"];
    let states = states.map(|name| ([name], u64::from(name == now)));
    writer.all(&names::STATE, states)?;
    writer.one(&names::SESSION, u64::from(figures.standing.controlled))?;
    if let Some(online) = figures.users_online {
        writer.one(&names::USERS_ONLINE, online as u64)?;
    }
    writer.one(&names::LOG_LINES, figures.log_lines)?;
    writer.one(&names::LOG_LINES_MISSED, figures.log_lines_missed)
}

fn usage(writer: &mut Writer<'_>, usage: &ledger::Figures) -> fmt::Result {
    let kinds = counter::Kind::ALL;
    let counted = kinds.into_iter().flat_map(|kind| {
        let bytes = usage.counted.of(kind);
        [
            ([kind.word(), "uplink"], bytes.up),
            ([kind.word(), "downlink"], bytes.down),
        ]
    });
    writer.all(&names::TRAFFIC, counted)?;
    let pending = kinds.map(|kind| ([kind.word()], usage.pending.of(kind).total()));
    writer.all(&names::PENDING, pending)?;
    let ages = kinds.map(|kind| {
        let age = usage.pending_for(kind).unwrap_or_default();
        ([kind.word()], age.as_secs_f64())
    });
    writer.all(&names::PENDING_AGE, ages)?;
    writer.one(&names::DELIVERIES_OPEN, usage.deliveries as u64)?;
    let verdicts = [
        (["arrived"], usage.verdicts.arrived),
        (["lost"], usage.verdicts.lost),
        (["unsure"], usage.verdicts.unsure),
    ];
    writer.all(&names::DELIVERIES, verdicts)?;
    writer.one(&names::EXPIRED, usage.expired)?;
    writer.one(&names::LEDGER_ERRORS, usage.errors)?;
    writer.one(&names::LEDGER_WRITABLE, u64::from(usage.writable))
}

/// The cores of a role together: how many there are changes, and which they are means nothing to a graph.
fn cores(writer: &mut Writer<'_>, figures: &Figures) -> fmt::Result {
    let of_role = |serves: bool| -> Vec<&CoreInfo> {
        let cores = figures.cores.iter();
        cores.filter(|core| core.serves == serves).collect()
    };
    let roles = [("serving", of_role(true)), ("draining", of_role(false))];
    let sum = |of: fn(&CoreInfo) -> u64| {
        let roles = roles.iter();
        roles.map(move |(role, cores)| ([*role], cores.iter().map(|core| of(core)).sum::<u64>()))
    };
    writer.all(&names::CORES, sum(|_| 1))?;
    let versions: BTreeSet<(bool, String)> = figures
        .cores
        .iter()
        .map(|core| (core.serves, core.version.to_string()))
        .collect();
    let versions = versions.iter().map(|(serves, version)| {
        let role = if *serves { "serving" } else { "draining" };
        ([role, version.as_str()], 1_u64)
    });
    writer.all(&names::CORE_INFO, versions)?;
    let uptimes = roles.iter().map(|(role, cores)| {
        let longest = cores.iter().map(|core| core.since.elapsed()).max();
        ([*role], longest.unwrap_or_default().as_secs_f64())
    });
    writer.all(&names::CORE_UPTIME, uptimes)?;
    writer.all(&names::CORE_MEMORY, sum(|core| core.memory))?;
    writer.all(&names::CORE_FILES, sum(|core| core.open_files))?;
    writer.all(&names::CORE_CONNECTIONS, sum(|core| core.connections))?;
    writer.one(&names::CORE_FAILURES, u64::from(figures.failures))
}

fn process(writer: &mut Writer<'_>, process: &Process) -> fmt::Result {
    if let Some(time) = process.processor.as_ref().map(Duration::as_secs_f64) {
        writer.one(&names::PROCESS_CPU, time)?;
    }
    let numbers = [
        (&names::PROCESS_MEMORY, process.memory),
        (&names::PROCESS_VIRTUAL_MEMORY, process.virtual_memory),
        (&names::PROCESS_FILES, process.files),
        (&names::PROCESS_MAX_FILES, process.max_files),
    ];
    for (spec, number) in numbers {
        if let Some(number) = number {
            writer.one(spec, number)?;
        }
    }
    if let Some(began) = process.began {
        writer.one(&names::PROCESS_START_TIME, began)?;
    }
    Ok(())
}

/// A number as it is: bytes and counts are whole, seconds are not.
trait Number: EncodeCounterValue + EncodeGaugeValue {}

impl Number for u64 {}
impl Number for f64 {}

/// Writes numbers under the names of the table.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    /// The one number of a name without labels.
    fn one(&mut self, spec: &Spec, value: impl Number) -> fmt::Result {
        self.all(spec, [([], value)])
    }

    /// The numbers of a name, each behind the values of its labels.
    fn all<'n, const N: usize, V: Number>(
        &mut self,
        spec: &Spec,
        values: impl IntoIterator<Item = ([&'n str; N], V)>,
    ) -> fmt::Result {
        let unit = spec.unit();
        let mut encoder = self.describe(spec, unit.as_ref())?;
        for (words, value) in values {
            let labels: Vec<(&str, &str)> = spec.labels.iter().copied().zip(words).collect();
            if labels.is_empty() {
                return number(spec.kind, value, encoder);
            }
            number(spec.kind, value, encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// What counts itself.
    fn family(&mut self, spec: &Spec, family: &dyn EncodeMetric) -> fmt::Result {
        let unit = spec.unit();
        family.encode(self.describe(spec, unit.as_ref())?)
    }

    fn describe<'s>(
        &'s mut self,
        spec: &Spec,
        unit: Option<&'s Unit>,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        let kind = spec.encoded_as();
        self.0.encode_descriptor(spec.stem(), spec.help, unit, kind)
    }
}

fn number(kind: Kind, value: impl Number, encoder: MetricEncoder<'_>) -> fmt::Result {
    match kind {
        Kind::Counter => ConstCounter::new(value).encode(encoder),
        Kind::Gauge => ConstGauge::new(value).encode(encoder),
        // There is no histogram of one number.
        Kind::Histogram => Err(fmt::Error),
    }
}
