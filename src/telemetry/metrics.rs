//! What is counted where it happens.
//!
//! Every label is one of a few words that stand here or in a table of the caller's: no name of a user, no
//! address and no tag of a panel becomes one. What has not happened yet is there with a zero.

use std::time::Duration;

use prometheus_client::encoding::EncodeMetric;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::names::{self, Spec};

/// Names and values of the labels of one number.
type Labels<const N: usize> = [(&'static str, &'static str); N];
type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// Seconds that a reading of a core takes.
const OF_HARVESTS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
/// Seconds that a call takes: of a look at what is known, up to a Start with very many users.
const OF_CALLS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0];

/// A few words that are all the values of a label.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$of])* $variant),*
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// As a label has it.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word),*
                }
            }
        }
    };
}

words! {
    /// How a change was made; what a core does when it makes way is in a
    /// [`Tally`](crate::xray::handover::Tally).
    Rung {
        /// The node ran exactly that already.
        Nothing = "nothing",
        /// Users were told to the core.
        Users = "users",
        /// Rules were told to the core.
        Rules = "rules",
        /// Nothing served.
        Start = "start",
    }
}

words! {
    /// Why a core is started.
    Launch {
        /// A panel wants one, and nothing serves.
        Start = "start",
        /// It is to take over from another one.
        Handover = "handover",
        /// It follows one that was stopped for it.
        Restart = "restart",
        /// The one that should have followed does not run.
        Back = "back",
        /// The one before died, or there was none when the daemon was started.
        Again = "again",
    }
}

words! {
    /// How a core ended that nobody asked to.
    Death {
        /// By itself.
        Exit = "exit",
        /// By a signal of somebody else, the kernel's among them.
        Signal = "signal",
        /// It did not answer any more and was killed.
        Hung = "hung",
        /// It was the child of an earlier daemon.
        Unknown = "unknown",
    }
}

words! {
    /// What of a core is read.
    Reading {
        /// Those who are online.
        Glance = "glance",
        /// Everything.
        Sweep = "sweep",
    }
}

words! {
    /// Why a reading failed.
    Trouble {
        /// The core does not tell.
        Core = "core",
        /// The ledger does not take it.
        Ledger = "ledger",
    }
}

words! {
    /// A port of the node's.
    Port {
        /// `SERVICE_PORT`
        Panel = "panel",
        /// `API_PORT`
        Maintenance = "maintenance",
    }
}

/// A call, by words of tables: how it came, what it calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Of how many there are.
    pub transport: &'static str,
    /// By the name that it has in the contract.
    pub method: &'static str,
    /// It lasts as long as the caller likes.
    pub streams: bool,
}

/// What has happened so far.
#[derive(Debug)]
pub struct Metrics {
    rungs: Family<Labels<1>, Counter>,
    starts: Family<Labels<2>, Counter>,
    deaths: Family<Labels<1>, Counter>,
    harvests: Histograms<1>,
    harvest_failures: Family<Labels<1>, Counter>,
    calls: Histograms<3>,
    streams: Family<Labels<3>, Counter>,
    connections: Family<Labels<1>, Gauge>,
    turned_away: Counter,
    delayed: Counter,
    users: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            rungs: Family::default(),
            starts: Family::default(),
            deaths: Family::default(),
            harvests: Family::new_with_constructor(|| Histogram::new(OF_HARVESTS)),
            harvest_failures: Family::default(),
            calls: Family::new_with_constructor(|| Histogram::new(OF_CALLS)),
            streams: Family::default(),
            connections: Family::default(),
            turned_away: Counter::default(),
            delayed: Counter::default(),
            users: Gauge::default(),
        };
        for launch in Launch::ALL {
            for result in ["ready", "failed"] {
                drop(metrics.starts.get_or_create(&started(*launch, result)));
            }
        }
        for death in Death::ALL {
            drop(metrics.deaths.get_or_create(&[("reason", death.word())]));
        }
        for reading in Reading::ALL {
            drop(
                metrics
                    .harvests
                    .get_or_create(&[("reading", reading.word())]),
            );
        }
        for trouble in Trouble::ALL {
            let labels = [("reason", trouble.word())];
            drop(metrics.harvest_failures.get_or_create(&labels));
        }
        for port in Port::ALL {
            drop(metrics.connections.get_or_create(&[("port", port.word())]));
        }
        metrics
    }
}

fn started(launch: Launch, result: &'static str) -> Labels<2> {
    [("reason", launch.word()), ("result", result)]
}

impl Metrics {
    /// A change was made in this way.
    pub fn rung(&self, rung: Rung) {
        self.rungs.get_or_create(&[("rung", rung.word())]).inc();
    }

    /// A core was started, and got ready or not.
    pub fn launched(&self, launch: Launch, ready: bool) {
        let result = if ready { "ready" } else { "failed" };
        self.starts.get_or_create(&started(launch, result)).inc();
    }

    /// A core has ended that nobody asked to.
    pub fn died(&self, death: Death) {
        self.deaths.get_or_create(&[("reason", death.word())]).inc();
    }

    /// A core was read, which took so long, or could not be.
    pub fn harvested(&self, read: Result<Reading, Trouble>, took: Duration) {
        match read {
            Ok(reading) => {
                let labels = [("reading", reading.word())];
                let harvests = self.harvests.get_or_create(&labels);
                harvests.observe(took.as_secs_f64());
            }
            Err(trouble) => {
                let labels = [("reason", trouble.word())];
                self.harvest_failures.get_or_create(&labels).inc();
            }
        }
    }

    /// A call was answered, with a code of a table, after so long.
    pub fn called(&self, call: Call, code: &'static str, took: Duration) {
        let labels = [
            ("transport", call.transport),
            ("method", call.method),
            ("code", code),
        ];
        if call.streams {
            self.streams.get_or_create(&labels).inc();
        } else {
            let calls = self.calls.get_or_create(&labels);
            calls.observe(took.as_secs_f64());
        }
    }

    /// Somebody was turned away, after this wait.
    pub fn turned_away(&self, wait: Duration) {
        self.turned_away.inc();
        if !wait.is_zero() {
            self.delayed.inc();
        }
    }

    /// So many users are served.
    pub fn users(&self, count: usize) {
        self.users.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// How many users are served.
    #[must_use]
    pub fn served(&self) -> usize {
        usize::try_from(self.users.get()).unwrap_or_default()
    }

    /// The connections of a port.
    #[must_use]
    pub fn connections(&self, port: Port) -> Connections {
        Connections(
            self.connections
                .get_or_create_owned(&[("port", port.word())]),
        )
    }

    /// How often a change was made in this way.
    pub(crate) fn count(&self, rung: Rung) -> u64 {
        let counter = self.rungs.get(&[("rung", rung.word())]);
        counter.map_or(0, |counter| counter.get())
    }

    /// All that needs nothing else to be told, with its name.
    pub(crate) fn families(&self) -> [(&'static Spec, &dyn EncodeMetric); 10] {
        [
            (&names::USERS, &self.users),
            (&names::CORE_STARTS, &self.starts),
            (&names::CORE_DEATHS, &self.deaths),
            (&names::HARVEST, &self.harvests),
            (&names::HARVEST_FAILURES, &self.harvest_failures),
            (&names::RPC, &self.calls),
            (&names::STREAMS, &self.streams),
            (&names::CONNECTIONS, &self.connections),
            (&names::AUTHENTICATION_FAILURES, &self.turned_away),
            (&names::AUTHENTICATION_DELAYED, &self.delayed),
        ]
    }
}

/// Counts the connections of one port.
#[derive(Clone, Debug)]
pub struct Connections(Gauge);

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Connection(Gauge);

impl Connections {
    /// One more.
    #[must_use]
    pub fn open(&self) -> Connection {
        self.0.inc();
        Connection(self.0.clone())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.dec();
    }
}
