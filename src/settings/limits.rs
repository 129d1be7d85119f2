//! How much a stranger, and a panel, may take.

use std::time::Duration;

use super::parse::{self, Reader};
use super::source::Source;

/// What one port takes at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a message, of a reply, and of a body over REST (`MAX_MESSAGE_SIZE`).
    pub message: usize,
    /// Connections at a time (`MAX_CONNECTIONS`).
    pub connections: usize,
    /// How many of them from one address (`MAX_CONNECTIONS_PER_ADDRESS`).
    pub connections_per_address: usize,
    /// Calls at a time on one connection (`MAX_STREAMS`).
    pub streams: u32,
    /// Bytes of the head of a request (`MAX_HEADER_SIZE`).
    pub header: u32,
    /// For the TLS handshake (`HANDSHAKE_TIMEOUT`).
    pub handshake_timeout: Duration,
    /// For somebody on a new connection to show a key (`ADMISSION_TIMEOUT`).
    pub admission_timeout: Duration,
    /// For the head of a request over HTTP/1.1, and between two of them (`HEADER_TIMEOUT`).
    pub header_timeout: Duration,
    /// For a body over REST (`BODY_TIMEOUT`).
    pub body_timeout: Duration,
    /// For a connection without a call (`IDLE_TIMEOUT`).
    pub idle_timeout: Duration,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

impl Limits {
    pub(super) fn read(reader: &mut Reader<'_, impl Source>) -> Self {
        // A Start with 100,000 users is about 30 MiB, and clients send up to 64.
        let message = reader.size("MAX_MESSAGE_SIZE", 64 * MIB, MIB, 1024 * MIB);
        let header = reader.size("MAX_HEADER_SIZE", 64 * KIB, 8 * KIB, MIB);
        Self {
            message: usize::try_from(message).unwrap_or(usize::MAX),
            connections: reader.count("MAX_CONNECTIONS", 1024, 65_536),
            connections_per_address: reader.count("MAX_CONNECTIONS_PER_ADDRESS", 128, 65_536),
            streams: u32::try_from(reader.count("MAX_STREAMS", 256, 10_000)).unwrap_or(256),
            header: u32::try_from(header).unwrap_or(u32::MAX),
            handshake_timeout: reader.duration("HANDSHAKE_TIMEOUT", 10 * SECOND, SECOND, HOUR),
            admission_timeout: reader.duration("ADMISSION_TIMEOUT", 30 * SECOND, SECOND, HOUR),
            header_timeout: reader.duration("HEADER_TIMEOUT", 75 * SECOND, SECOND, HOUR),
            body_timeout: reader.duration("BODY_TIMEOUT", 120 * SECOND, SECOND, HOUR),
            idle_timeout: reader.duration("IDLE_TIMEOUT", HOUR, SECOND, 24 * HOUR),
        }
    }
}

impl<S: Source> Reader<'_, S> {
    /// A span of time between two others.
    pub(super) fn duration(
        &mut self,
        name: &str,
        default: Duration,
        least: Duration,
        most: Duration,
    ) -> Duration {
        let (from, to) = (parse::spelled(least), parse::spelled(most));
        let allowed =
            format!("from {from} to {to}, such as 30s, 5m or 1h; a bare number is seconds");
        self.parsed(name, &allowed, |text| {
            parse::duration(text).filter(|value| (least..=most).contains(value))
        })
        .unwrap_or(default)
    }

    /// A number of bytes between two others.
    fn size(&mut self, name: &str, default: u64, least: u64, most: u64) -> u64 {
        let allowed = format!(
            "from {} to {} KiB, such as 512KiB or 64MiB; a bare number is bytes",
            least / KIB,
            most / KIB
        );
        self.parsed(name, &allowed, |text| {
            parse::size(text).filter(|value| (least..=most).contains(value))
        })
        .unwrap_or(default)
    }
}
