//! The real things that tests, the demo and the benchmark work with: the node as a process, Xray as
//! its client, a panel that calls, a server to talk to. Each cleans up after itself.

#![allow(dead_code, unused_imports, reason = "each of the three uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    missing_docs,
    missing_debug_implementations,
    unreachable_pub,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "a harness fails loudly"
)]

pub mod distance;
pub mod netns;
pub mod node;
pub mod origin;
pub mod panel;
pub mod ports;
pub mod release;
pub mod rest;
pub mod scrape;
pub mod script;
pub mod socks;
pub mod storm;
pub mod streams;
pub mod tricky;
pub mod usage;
pub mod users;
pub mod vless;
pub mod xray;

pub use self::distance::Distance;
pub use self::node::NodeProcess;
pub use self::origin::Origin;
pub use self::panel::Panel;
pub use self::storm::{Load, Storm};
pub use self::streams::{Echo, Streams};
pub use self::xray::XrayClient;

use std::time::{Duration, Instant};

/// How often something is repeated, in the short form of a test and in the long one.
pub fn times(short: usize, long: usize) -> usize {
    if std::env::var_os("RAYNODE_SOAK").is_some() {
        long
    } else {
        short
    }
}

/// Asks until there is an answer.
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut ask: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
