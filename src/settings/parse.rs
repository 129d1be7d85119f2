//! From texts to values, and from bad texts to mistakes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::source::Source;
use super::{LogFormat, MemoryLimit, Mistake, Protocols};
use crate::usage::Unsure;
use crate::xray::handover::Mode;

/// Reads values one by one and collects what is wrong with them.
pub(super) struct Reader<'a, S> {
    source: &'a S,
    mistakes: Vec<Mistake>,
}

impl<'a, S: Source> Reader<'a, S> {
    pub(super) fn new(source: &'a S, mistakes: Vec<Mistake>) -> Self {
        Self { source, mistakes }
    }

    pub(super) fn into_mistakes(self) -> Vec<Mistake> {
        self.mistakes
    }

    /// The value without blanks and quotes around it; `None` for one that is not set or empty, as
    /// a line `NAME=` of a template is.
    fn text(&self, name: &str) -> Option<String> {
        let value = self.source.get(name)?;
        let text = unquoted(value.trim());
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// A value that `parse` accepts, or `None` where none is set. One that it does not accept is a
    /// mistake.
    pub(super) fn parsed<T>(
        &mut self,
        name: &str,
        allowed: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(name)?;
        let value = parse(&text);
        if value.is_none() {
            self.mistake(name, format!("{text:?}"), format!("must be {allowed}"));
        }
        value
    }

    /// The same for a value that is not shown.
    pub(super) fn secret<T>(
        &mut self,
        name: &str,
        allowed: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(name)?;
        let value = parse(&text);
        if value.is_none() {
            self.mistake(name, "(hidden)".to_owned(), format!("must be {allowed}"));
        }
        value
    }

    pub(super) fn count(&mut self, name: &str, default: usize, most: usize) -> usize {
        self.parsed(name, &format!("a whole number from 1 to {most}"), |text| {
            text.parse().ok().filter(|count| (1..=most).contains(count))
        })
        .unwrap_or(default)
    }

    /// A path; a relative one starts in the working directory.
    pub(super) fn path(&mut self, name: &str, default: impl Into<PathBuf>) -> PathBuf {
        self.parsed(name, "a path", |text| std::path::absolute(text).ok())
            .unwrap_or_else(|| default.into())
    }

    pub(super) fn optional_path(&mut self, name: &str) -> Option<PathBuf> {
        self.parsed(name, "a path", |text| std::path::absolute(text).ok())
    }

    pub(super) fn check(
        &mut self,
        name: &str,
        path: &Path,
        allowed: &str,
        is_allowed: impl FnOnce(&Path) -> bool,
    ) {
        if !is_allowed(path) {
            self.mistake(
                name,
                path.display().to_string(),
                format!("must be {allowed}"),
            );
        }
    }

    /// Two values of which neither means anything alone.
    pub(super) fn together(&mut self, one: &str, other: &str) {
        for (set, missing) in [(one, other), (other, one)] {
            if self.text(set).is_some() && self.text(missing).is_none() {
                self.missing(missing, set);
            }
        }
    }

    /// A value without which another one means nothing.
    pub(super) fn missing(&mut self, missing: &str, set: &str) {
        let allowed = format!("{set} is, and they belong together");
        self.mistake(missing, "not set".to_owned(), allowed);
    }

    fn mistake(&mut self, variable: &str, value: String, allowed: String) {
        self.mistakes.push(Mistake {
            variable: variable.to_owned(),
            value,
            allowed,
        });
    }
}

fn unquoted(text: &str) -> &str {
    ['"', '\'']
        .iter()
        .find_map(|quote| text.strip_prefix(*quote)?.strip_suffix(*quote))
        .map_or(text, str::trim)
}

/// An IPv6 address may stand in brackets.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    match bare {
        Some(text) => text.parse().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

/// Where to listen, if at all.
pub(super) enum Listen {
    Off,
    At(SocketAddr),
}

/// An address with a port, or `off`. A bare port is one of the loopback.
pub(super) fn listen(text: &str) -> Option<Listen> {
    if text.eq_ignore_ascii_case("off") {
        return Some(Listen::Off);
    }
    let bare = text
        .parse()
        .ok()
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    bare.or_else(|| text.parse().ok())
        .filter(|address| address.port() > 0)
        .map(Listen::At)
}

/// The spellings that Go's `strconv.ParseBool` takes, because the node whose `.env` is migrated
/// takes them.
pub(super) fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A number with its unit: `250ms`, `30s`, `5m`, `1h`, `31d`. A bare number is seconds.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let millis = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(millis).map(Duration::from_millis)
}

/// The shortest spelling of whole seconds that [`duration`] reads.
pub(super) fn spelled(span: Duration) -> String {
    if span.subsec_millis() > 0 {
        return format!("{}ms", span.as_millis());
    }
    match span.as_secs() {
        seconds if seconds > 0 && seconds.is_multiple_of(3600) => format!("{}h", seconds / 3600),
        seconds if seconds > 0 && seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

/// A number of bytes with its unit: `512KiB`, `64MiB`, `1GiB`. A bare number is bytes.
pub(super) fn size(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let bytes = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(bytes)
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let end = text
        .find(|char: char| !char.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at_checked(end)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

pub(super) fn log_format(text: &str) -> Option<LogFormat> {
    Some(match text.to_ascii_lowercase().as_str() {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        "journald" => LogFormat::Journald,
        _ => return None,
    })
}

pub(super) fn handover(text: &str) -> Option<Mode> {
    Some(match text.to_ascii_lowercase().as_str() {
        "auto" => Mode::Auto,
        "plain" => Mode::Plain,
        "off" => Mode::Off,
        _ => return None,
    })
}

pub(super) fn memory_limit(text: &str) -> Option<MemoryLimit> {
    const LEAST: u64 = 64 << 20;
    if text.eq_ignore_ascii_case("off") {
        return Some(MemoryLimit::Off);
    }
    Some(match text.strip_suffix('%') {
        Some(percent) => {
            let percent = percent.trim_end().parse().ok()?;
            (1..=100)
                .contains(&percent)
                .then_some(MemoryLimit::Percent(percent))?
        }
        None => MemoryLimit::Bytes(size(text).filter(|bytes| *bytes >= LEAST)?),
    })
}

pub(super) fn unsure(text: &str) -> Option<Unsure> {
    Some(match text.to_ascii_lowercase().as_str() {
        "settle" => Unsure::Settle,
        "return" => Unsure::Return,
        _ => return None,
    })
}

pub(super) fn protocols(text: &str) -> Option<Protocols> {
    Some(match text.to_ascii_lowercase().as_str() {
        "both" => Protocols::Both,
        "grpc" => Protocols::Grpc,
        "rest" => Protocols::Rest,
        _ => return None,
    })
}

/// Addresses, and DNS names of letters, digits, dots and hyphens. The installer's prefixes `IP:`
/// and `DNS:` are taken too.
pub fn subject_names(text: &str) -> Option<Vec<String>> {
    text.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let bare = name
                .strip_prefix("IP:")
                .or_else(|| name.strip_prefix("DNS:"))
                .unwrap_or(name);
            let is_name = bare.len() <= 253
                && !bare.is_empty()
                && bare
                    .chars()
                    .all(|char| char.is_ascii_alphanumeric() || "-._*".contains(char));
            match address(bare) {
                Some(address) => Some(address.to_string()),
                None => is_name.then(|| bare.to_owned()),
            }
        })
        .collect()
}
