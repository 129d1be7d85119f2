//! The page: everything there is to tell, written when somebody asks.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::collector::Collector;
use crate::node::Node;
use crate::panel::reload::Current;
use crate::telemetry::Metrics;

/// How long somebody waits for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// For each second of writing it there are so many without, however many ask.
const SHARE: u32 = 50;
/// But one that is older is never shown.
const OLDEST: Duration = Duration::from_secs(10);

/// The door to it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Page(Arc<Writer>);

#[derive(Debug)]
struct Writer {
    registry: Registry,
    last: Mutex<Option<Written>>,
}

#[derive(Debug)]
struct Written {
    text: Arc<str>,
    good_until: Instant,
}

impl Page {
    /// What `metrics` have counted, what `node` is, and how long its certificate is good.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>, node: Node, certificate: Arc<Current>) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Collector::new(metrics, node, certificate)));
        Self(Arc::new(Writer {
            registry,
            last: Mutex::default(),
        }))
    }

    /// The page in `OpenMetrics`; `None` when it does not get done in time.
    pub(super) async fn read(&self) -> Option<Arc<str>> {
        let writer = Arc::clone(&self.0);
        // It looks at files of the kernel.
        let written = tokio::task::spawn_blocking(move || writer.write());
        match tokio::time::timeout(PATIENCE, written).await {
            Ok(Ok(text)) => text,
            Ok(Err(error)) => {
                tracing::error!(%error, "the page of metrics was not written");
                None
            }
            Err(_) => {
                tracing::warn!("the page of metrics takes too long");
                None
            }
        }
    }
}

impl Writer {
    /// One at a time: whoever asks meanwhile gets the same.
    fn write(&self) -> Option<Arc<str>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        if let Some(written) = last.as_ref()
            && began < written.good_until
        {
            return Some(Arc::clone(&written.text));
        }
        let mut text = String::new();
        encode(&mut text, &self.registry).ok()?;
        let text: Arc<str> = text.into();
        let pause = began.elapsed().saturating_mul(SHARE).min(OLDEST);
        *last = Some(Written {
            text: Arc::clone(&text),
            good_until: Instant::now() + pause,
        });
        Some(text)
    }
}
