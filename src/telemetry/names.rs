//! The name of everything that is told to Prometheus: one table, which `docs/metrics.md` repeats.

use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

/// What is behind a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Never goes down as long as the daemon lives.
    Counter,
    /// Goes up and down.
    Gauge,
    /// How many of what happened took how long.
    Histogram,
}

impl Kind {
    /// Its name in the documentation, and in both text formats.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug)]
pub struct Spec {
    /// Its whole name, with its unit and with `_total` for a counter.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it means, without a period.
    pub help: &'static str,
}

impl Spec {
    /// The name without `_total` and without the unit, as the encoder wants it.
    pub(crate) fn stem(&self) -> &'static str {
        let name = self.without_total();
        match self.unit() {
            Some(unit) => name
                .strip_suffix(unit.as_str())
                .and_then(|name| name.strip_suffix('_'))
                .unwrap_or(name),
            None => name,
        }
    }

    /// The unit that the name says.
    pub(crate) fn unit(&self) -> Option<Unit> {
        let name = self.without_total();
        [Unit::Seconds, Unit::Bytes].into_iter().find(|unit| {
            let stem = name.strip_suffix(unit.as_str());
            stem.is_some_and(|stem| stem.ends_with('_'))
        })
    }

    pub(crate) fn encoded_as(&self) -> MetricType {
        match self.kind {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Histogram => MetricType::Histogram,
        }
    }

    fn without_total(&self) -> &'static str {
        self.name.strip_suffix("_total").unwrap_or(self.name)
    }
}

macro_rules! metrics {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = concat!("`", $name, "`")]
            pub const $constant: Spec = Spec {
                name: $name,
                kind: Kind::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )*
        /// All of them, in the order in which they are told.
        pub const ALL: &[Spec] = &[$($constant),*];
    };
}

metrics! {
    BUILD: Gauge "raynode_build_info" ["version"]
        "Always 1; the version of the daemon";
    START_TIME: Gauge "raynode_start_time_seconds" []
        "When this daemon began, Unix time; a daemon that took the place of another began then";
    STATE: Gauge "raynode_state" ["state"]
        "1 for what the node is doing, 0 for the rest: idle, serving, down (its core died and comes back), gave_up (it died too often and waits for a panel)";
    SESSION: Gauge "raynode_session" []
        "1 while a panel has control";
    USERS: Gauge "raynode_users" []
        "Users that are served, or are to be served when the core is back";
    USERS_ONLINE: Gauge "raynode_users_online" []
        "Users that are connected, by the last harvest; absent where the core does not tell";
    TRAFFIC: Counter "raynode_traffic_bytes_total" ["kind", "direction"]
        "Bytes that cores have counted, as far as harvests have read them";
    PENDING: Gauge "raynode_usage_pending_bytes" ["kind"]
        "Bytes that are counted and in no delivery: no panel has collected them yet";
    PENDING_AGE: Gauge "raynode_usage_pending_age_seconds" ["kind"]
        "How long the oldest of them has been pending, in time during which the node ran; 0 where nothing is";
    DELIVERIES_OPEN: Gauge "raynode_usage_deliveries_open" []
        "Reports on their way, and batches without a receipt";
    DELIVERIES: Counter "raynode_usage_deliveries_total" ["verdict"]
        "Deliveries of usage that were judged: arrived, lost (pending again), unsure (USAGE_UNSURE decides)";
    EXPIRED: Counter "raynode_usage_expired_bytes_total" []
        "Bytes that were dropped because nobody collected them within USAGE_RETENTION";
    LEDGER_ERRORS: Counter "raynode_ledger_errors_total" []
        "How often the usage ledger could not be opened or written";
    LEDGER_WRITABLE: Gauge "raynode_ledger_writable" []
        "1 while the disk takes the usage ledger; otherwise reports are refused";
    HARVEST: Histogram "raynode_harvest_duration_seconds" ["reading"]
        "How long it took to read a core and to have it on disk: glance or sweep";
    HARVEST_FAILURES: Counter "raynode_harvest_failures_total" ["reason"]
        "Harvests that failed, because of the core or of the ledger; the core counts on";
    CORES: Gauge "raynode_cores" ["role"]
        "Cores that are alive: serving or draining";
    CORE_INFO: Gauge "raynode_core_info" ["role", "version"]
        "Always 1; the version of a core that is alive";
    CORE_UPTIME: Gauge "raynode_core_uptime_seconds" ["role"]
        "How long a core has had its role, the longest where there are several";
    CORE_MEMORY: Gauge "raynode_core_memory_bytes" ["role"]
        "Resident memory of the cores";
    CORE_FILES: Gauge "raynode_core_open_files" ["role"]
        "Files and connections that the cores have open, also those to where users go";
    CORE_CONNECTIONS: Gauge "raynode_core_connections" ["role"]
        "Connections of clients to the cores; sessions over UDP are none";
    CORE_STARTS: Counter "raynode_core_starts_total" ["reason", "result"]
        "Cores that were started: start (nothing served), handover, restart (without a hand-over), back (the new one did not run), again (it had died, or the daemon was started)";
    CORE_DEATHS: Counter "raynode_core_deaths_total" ["reason"]
        "Cores that ended without being asked to: exit, signal, hung (killed because it did not answer), unknown";
    CORE_FAILURES: Gauge "raynode_core_failures" []
        "How often the core has failed in a row; 0 once it has run for a minute";
    LOG_LINES: Counter "raynode_core_log_lines_total" []
        "Lines of the core's log that were read";
    LOG_LINES_MISSED: Counter "raynode_core_log_lines_missed_total" []
        "Lines that a viewer of the log never got because it read too slowly, for each viewer";
    CHANGES: Counter "raynode_changes_total" ["rung"]
        "How changes were made: nothing, users, rules, start (nothing served), a hand-over (steered, partly_steered, plain), restart; refused is a hand-over that did not come off";
    RPC: Histogram "raynode_rpc_duration_seconds" ["transport", "method", "code"]
        "How long calls with one request and one reply took, up to their answer";
    STREAMS: Counter "raynode_streams_total" ["transport", "method", "code"]
        "Calls that last as long as their caller likes: logs when they began, streams of users when they ended";
    CONNECTIONS: Gauge "raynode_connections" ["port"]
        "Connections that panels and strangers have open to the node";
    AUTHENTICATION_FAILURES: Counter "raynode_authentication_failures_total" []
        "Calls that were turned away without a right key, session or certificate";
    AUTHENTICATION_DELAYED: Counter "raynode_authentication_delayed_total" []
        "Those of them that had to wait for their answer because there were too many from one address";
    CERTIFICATE: Gauge "raynode_certificate_expiry_timestamp_seconds" []
        "When the certificate that new connections get ends, Unix time";
    PROCESS_CPU: Counter "process_cpu_seconds_total" []
        "Processor time of the daemon, in user and system mode";
    PROCESS_MEMORY: Gauge "process_resident_memory_bytes" []
        "Resident memory of the daemon";
    PROCESS_VIRTUAL_MEMORY: Gauge "process_virtual_memory_bytes" []
        "Virtual memory of the daemon";
    PROCESS_FILES: Gauge "process_open_fds" []
        "Files that the daemon has open";
    PROCESS_MAX_FILES: Gauge "process_max_fds" []
        "Files that the daemon may have open";
    PROCESS_START_TIME: Gauge "process_start_time_seconds" []
        "When the daemon's process began, Unix time";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_they_are() {
        for spec in ALL {
            let name = spec.name;
            assert!(
                name.starts_with("raynode_") || name.starts_with("process_"),
                "{name}"
            );
            assert_eq!(
                name.ends_with("_total"),
                spec.kind == Kind::Counter,
                "{name}"
            );
            if spec.kind == Kind::Histogram {
                assert!(spec.unit().is_some(), "{name}");
            }
            assert!(!spec.help.ends_with('.') && !spec.help.contains(['\n', '\\']));
            assert_eq!(ALL.iter().filter(|one| one.name == name).count(), 1);
        }
    }

    #[test]
    fn a_name_is_taken_apart_for_the_encoder() {
        let parts = |spec: &Spec| {
            (
                spec.stem(),
                spec.unit().map(|unit| unit.as_str().to_owned()),
            )
        };
        assert_eq!(
            parts(&TRAFFIC),
            ("raynode_traffic", Some("bytes".to_owned()))
        );
        assert_eq!(
            parts(&PROCESS_CPU),
            ("process_cpu", Some("seconds".to_owned()))
        );
        assert_eq!(parts(&CORE_DEATHS), ("raynode_core_deaths", None));
        assert_eq!(parts(&USERS), ("raynode_users", None));
    }

    /// A row of the table for each metric, word for word.
    #[test]
    fn the_documentation_has_every_metric() {
        let page = include_str!("../../docs/metrics.md");
        let rows: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("| `raynode_") || line.starts_with("| `process_"))
            .collect();
        let wanted: Vec<String> = ALL.iter().map(row).collect();
        assert_eq!(
            rows,
            wanted,
            "docs/metrics.md should have\n{}",
            wanted.join("\n")
        );
    }

    fn row(spec: &Spec) -> String {
        let labels: Vec<String> = spec
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let unit = spec.unit();
        let unit = unit.as_ref().map_or("", Unit::as_str);
        let cell = |text: &str| match text {
            "" => " ".to_owned(),
            text => format!(" {text} "),
        };
        format!(
            "| `{}` | {} |{}|{}| {} |",
            spec.name,
            spec.kind.name(),
            cell(&labels.join(", ")),
            cell(unit),
            spec.help
        )
    }
}
