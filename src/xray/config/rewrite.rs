//! The changes that the node makes to a panel's configuration, one function each.
//!
//! They follow what panels rely on (`docs/panel-protocol.md`, "What the node changes in a config")
//! and touch nothing else: a key that is not named here passes through as it is.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{API_INBOUND, API_RULE_TAG, API_TAG, Error, LogFiles};

/// Keys of the configuration that the node looks at.
pub(super) const TOP_LEVEL: [&str; 11] = [
    "log",
    "api",
    "metrics",
    "stats",
    "policy",
    "inbounds",
    "outbounds",
    "routing",
    "observatory",
    "burstObservatory",
    "dns",
];

/// The parts that measure outbounds.
pub(super) const OBSERVATORIES: [&str; 2] = ["observatory", "burstObservatory"];

/// Whether inbounds are counted.
pub(super) const INBOUND_COUNTERS: [&str; 2] = ["statsInboundUplink", "statsInboundDownlink"];

pub(super) const GUARD_TAG: &str = "PG_NODE_MALFORMED_DOMAIN_GUARD";

const PRIVATE_NAME: &str = "geoip:private";

/// What `geoip:private` stands for, written out so that no geo file is needed for it.
const PRIVATE: [&str; 15] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "::/128",
    "::1/128",
    "fc00::/7",
    "fe80::/10",
];

/// Gives keys the spelling used here. Xray reads keys in any case, so `"Inbounds"` is its inbounds;
/// of several spellings it takes the last.
pub(super) fn canonical_keys(map: &mut Map<String, Value>, keys: &[&str]) {
    let canonical = |key: &String| keys.iter().find(|known| known.eq_ignore_ascii_case(key));
    if map
        .keys()
        .all(|key| canonical(key).is_none_or(|known| known == key))
    {
        return;
    }
    *map = std::mem::take(map)
        .into_iter()
        .map(|(key, value)| match canonical(&key) {
            Some(known) => ((*known).to_owned(), value),
            None => (key, value),
        })
        .collect();
}

pub(super) fn shape(what: &str, expected: &'static str) -> Error {
    Error::Shape {
        what: what.to_owned(),
        expected,
    }
}

/// Takes a list out and leaves `null` to mark its place.
pub(super) fn take_list(
    map: &mut Map<String, Value>,
    key: &'static str,
) -> Result<Vec<Value>, Error> {
    match map.insert(key.to_owned(), Value::Null) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => Err(shape(key, "a list")),
    }
}

fn object<'a>(
    map: &'a mut Map<String, Value>,
    key: &'static str,
) -> Result<&'a mut Map<String, Value>, Error> {
    let value = map.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut().ok_or_else(|| shape(key, "an object"))
}

/// Drops an API inbound that an earlier node left in the panel's configuration.
pub(super) fn drop_injected_inbounds(inbounds: &mut Vec<Value>) {
    inbounds.retain(|inbound| inbound.get("tag").and_then(Value::as_str) != Some(API_INBOUND));
}

/// The API is written for each core anew, counters are always on, and nothing else may open a
/// control port: Xray's metrics show its profiler and every counter to whoever can connect.
pub(super) fn api_parts(root: &mut Map<String, Value>) {
    root.shift_remove("api");
    root.shift_remove("metrics");
    root.insert("stats".to_owned(), json!({}));
}

/// Counts traffic and online addresses for every level that a user may have; a level without an
/// entry would count nothing.
pub(super) fn policy(root: &mut Map<String, Value>, inbounds: &[Value]) -> Result<(), Error> {
    let policy = object(root, "policy")?;
    canonical_keys(policy, &["levels", "system"]);
    let levels = object(policy, "levels")?;
    let used: BTreeSet<u64> = inbounds.iter().flat_map(user_levels).chain([0]).collect();
    for level in used {
        levels.entry(level.to_string()).or_insert_with(|| json!({}));
    }
    let counters = ["statsUserUplink", "statsUserDownlink", "statsUserOnline"];
    for level in levels.values_mut().filter(|level| level.is_null()) {
        *level = json!({});
    }
    for level in levels.values_mut().filter_map(Value::as_object_mut) {
        canonical_keys(level, &counters);
        for counter in counters {
            level.insert(counter.to_owned(), Value::Bool(true));
        }
    }
    let system = object(policy, "system")?;
    let outbound = ["statsOutboundUplink", "statsOutboundDownlink"];
    canonical_keys(system, &[outbound, INBOUND_COUNTERS].concat());
    for counter in outbound {
        system.insert(counter.to_owned(), Value::Bool(true));
    }
    for counter in INBOUND_COUNTERS {
        system.entry(counter).or_insert(Value::Bool(true));
    }
    Ok(())
}

/// Levels named in an inbound's settings: those of the users that an excluded one keeps, of peers and
/// accounts, and the one of a whole inbound.
fn user_levels(inbound: &Value) -> Vec<u64> {
    let level = |user: &Value| {
        let named = user.as_object()?.iter().find(|(key, _)| is_level(key))?;
        named.1.as_u64()
    };
    let Some(settings) = inbound.get("settings").and_then(Value::as_object) else {
        return Vec::new();
    };
    let lists = settings
        .values()
        .filter_map(Value::as_array)
        .flatten()
        .filter_map(level);
    let own = settings
        .iter()
        .filter(|(key, _)| is_level(key))
        .filter_map(|(_, value)| value.as_u64());
    lists.chain(own).collect()
}

fn is_level(key: &str) -> bool {
    key.eq_ignore_ascii_case("level") || key.eq_ignore_ascii_case("userLevel")
}

/// Tags of the outbounds that lead nowhere, in alphabetical order.
pub(super) fn silent_outbounds(root: &Map<String, Value>) -> Vec<String> {
    tags_of(root, &["blackhole", "dns", "loopback"])
}

fn tags_of(root: &Map<String, Value>, protocols: &[&str]) -> Vec<String> {
    let outbounds = root
        .get("outbounds")
        .and_then(Value::as_array)
        .map_or(&[][..], Vec::as_slice);
    let mut tags: Vec<String> = outbounds
        .iter()
        .filter(|outbound| {
            let protocol = outbound
                .get("protocol")
                .and_then(Value::as_str)
                .unwrap_or_default();
            protocols
                .iter()
                .any(|wanted| wanted.eq_ignore_ascii_case(protocol))
        })
        .filter_map(|outbound| outbound.get("tag").and_then(Value::as_str))
        .filter(|tag| !tag.is_empty())
        .map(str::to_owned)
        .collect();
    tags.sort();
    tags
}

/// `routing` always exists, or the core would refuse rules at run time. Rules of an earlier node go,
/// and names that no resolver could answer are stopped before they reach one.
pub(super) fn routing(root: &mut Map<String, Value>) -> Result<(), Error> {
    let blackhole = tags_of(root, &["blackhole"]).into_iter().next();
    let outbounds = outbound_tags(root);
    let routing = object(root, "routing")?;
    canonical_keys(routing, &["rules", "balancers", "script"]);
    let mut rules = take_list(routing, "rules")?;
    rules.iter_mut().for_each(rule);
    rules.retain(|rule| {
        let names = |key: &str, value: &str| rule.get(key).and_then(Value::as_str) == Some(value);
        !names("outboundTag", API_TAG)
            && !names("ruleTag", GUARD_TAG)
            && !names("ruleTag", API_RULE_TAG)
    });
    if let Some(Value::Array(balancers)) = routing.get_mut("balancers") {
        for balancer in balancers.iter_mut().filter_map(Value::as_object_mut) {
            leave_the_api_out(balancer, &outbounds)?;
        }
    }
    if let Some(blackhole) = blackhole {
        rules.insert(0, malformed_domain_guard(&blackhole));
    }
    routing.insert("rules".to_owned(), Value::Array(rules));
    Ok(())
}

/// On older cores the API is an outbound like any other, and a selector takes every tag that begins like
/// it: a balancer that selects `""` would lead users of the proxy to the API.
fn leave_the_api_out(balancer: &mut Map<String, Value>, outbounds: &[String]) -> Result<(), Error> {
    canonical_keys(balancer, &["selector", "fallbackTag"]);
    if balancer.get("fallbackTag").and_then(Value::as_str) == Some(API_TAG) {
        return Err(shape(
            "routing.balancers",
            "a list of balancers whose fallbackTag is an outbound of the config",
        ));
    }
    let Some(Value::Array(selector)) = balancer.get_mut("selector") else {
        return Ok(());
    };
    let takes_the_api = |text: &Value| text.as_str().is_some_and(|text| API_TAG.starts_with(text));
    while let Some(place) = selector.iter().position(takes_the_api) {
        let wide = selector.remove(place);
        let wide = wide.as_str().unwrap_or_default();
        // An outbound whose tag is itself such a beginning can't be selected alone.
        let named = outbounds
            .iter()
            .filter(|tag| tag.starts_with(wide) && !API_TAG.starts_with(tag.as_str()));
        selector.splice(place..place, named.map(|tag| Value::from(tag.as_str())));
    }
    Ok(())
}

/// The tags of all outbounds.
pub(super) fn outbound_tags(root: &Map<String, Value>) -> Vec<String> {
    let outbounds = root.get("outbounds").and_then(Value::as_array);
    outbounds
        .into_iter()
        .flatten()
        .filter_map(|outbound| outbound.get("tag")?.as_str())
        .map(str::to_owned)
        .collect()
}

/// One rule of the panel's.
pub(super) fn rule(rule: &mut Value) {
    let Value::Object(rule) = rule else {
        return;
    };
    canonical_keys(
        rule,
        &["ip", "source", "sourceIP", "outboundTag", "ruleTag"],
    );
    for key in ["ip", "source", "sourceIP"] {
        match rule.get_mut(key) {
            Some(Value::Array(addresses)) => spell_out_private(addresses),
            // Xray takes one text for a list of one, with commas between several.
            Some(Value::String(text)) if text.to_ascii_lowercase().contains(PRIVATE_NAME) => {
                let mut addresses = text.split(',').map(|one| Value::from(one.trim())).collect();
                spell_out_private(&mut addresses);
                rule.insert(key.to_owned(), Value::Array(addresses));
            }
            _ => {}
        }
    }
}

fn spell_out_private(addresses: &mut Vec<Value>) {
    let is_private = |value: &Value| {
        value
            .as_str()
            .is_some_and(|text| text.eq_ignore_ascii_case(PRIVATE_NAME))
    };
    if let Some(place) = addresses.iter().position(is_private) {
        addresses.splice(place..=place, PRIVATE.map(Value::from));
        addresses.retain(|value| !is_private(value));
    }
}

/// RFC 1035: a name has at most 253 characters as text, a label at most 63.
fn malformed_domain_guard(blackhole: &str) -> Value {
    json!({
        "type": "field",
        "ruleTag": GUARD_TAG,
        "domain": ["regexp:^.{254,}$", "regexp:(^|\\.)[^.]{64,}(\\.|$)"],
        "outboundTag": blackhole,
    })
}

/// Outbounds that lead nowhere would only ever be reported dead.
pub(super) fn observatories(root: &mut Map<String, Value>, silent: &[String]) {
    for key in OBSERVATORIES {
        let Some(Value::Object(observatory)) = root.get_mut(key) else {
            continue;
        };
        canonical_keys(observatory, &["subjectSelector"]);
        if let Some(Value::Array(selector)) = observatory.get_mut("subjectSelector") {
            selector.retain(|tag| {
                !tag.as_str()
                    .is_some_and(|tag| silent.iter().any(|silent| silent == tag))
            });
        }
    }
}

/// How long a hysteria inbound keeps a session from which nothing comes; what the configuration says of it
/// stays. (`maxIdleTimeout` of `hysteriaSettings` does nothing.)
pub(super) fn quic_idle_timeout(inbound: &mut Value, timeout: Duration) {
    let mut part = inbound;
    for key in ["streamSettings", "finalmask", "quicParams"] {
        let Value::Object(map) = part else {
            return;
        };
        canonical_keys(map, &[key]);
        part = map.entry(key).or_insert_with(|| json!({}));
    }
    if let Value::Object(quic) = part {
        canonical_keys(quic, &["maxIdleTimeout"]);
        quic.entry("maxIdleTimeout")
            .or_insert_with(|| Value::from(timeout.as_secs()));
    }
}

/// Everything goes to the standard output, where the node reads it; `none` stays none.
pub(super) fn log(root: &mut Map<String, Value>) -> Result<LogFiles, Error> {
    if root.get("log").is_none_or(Value::is_null) {
        root.insert("log".to_owned(), json!({ "loglevel": "info" }));
    }
    let log = object(root, "log")?;
    canonical_keys(log, &["access", "error", "loglevel"]);
    let mut redirect = |key: &str| {
        let path = log.get(key).and_then(Value::as_str)?.to_owned();
        if path.is_empty() || path == "none" {
            return None;
        }
        log.insert(key.to_owned(), Value::from(""));
        Some(PathBuf::from(path))
    };
    Ok(LogFiles {
        access: redirect("access"),
        error: redirect("error"),
    })
}
