//! One inbound: which protocol it speaks, and its users taken out of the configuration.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Error, rewrite};
use crate::xray::account::{Cipher, Protocol, VISION};

/// An inbound whose users the panel manages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inbound {
    /// The inbound's tag, which is its name in the API.
    pub tag: Arc<str>,
    /// How it knows its users.
    pub protocol: Protocol,
}

const KEYS: [&str; 5] = ["tag", "listen", "protocol", "settings", "streamSettings"];
const SETTINGS: [&str; 6] = [
    "clients",
    "users",
    "flow",
    "method",
    "decryption",
    "password",
];

/// Empties the user list of an inbound that takes users from the panel, and says which it is.
///
/// `clients` stays behind as an empty list: it marks the place where the users of the moment are
/// written. Its newer name `users` goes, because cores before 26.5.9 ignore it.
pub(super) fn separate_users(
    inbound: &mut Value,
    exclude: &[String],
) -> Result<Option<Inbound>, Error> {
    let Value::Object(inbound) = inbound else {
        return Err(rewrite::shape("inbound", "an object"));
    };
    rewrite::canonical_keys(inbound, &KEYS);
    let tag = text(inbound, "tag").to_owned();
    if exclude.contains(&tag) {
        return Ok(None);
    }
    if let Some(Value::Object(settings)) = inbound.get_mut("settings") {
        rewrite::canonical_keys(settings, &SETTINGS);
    }
    let Some(protocol) = protocol(inbound) else {
        return Ok(None);
    };

    let settings = inbound
        .entry("settings")
        .or_insert_with(|| Value::Object(Map::new()));
    if settings.is_null() {
        *settings = Value::Object(Map::new());
    }
    let Value::Object(settings) = settings else {
        return Err(rewrite::shape(
            &format!("settings of inbound {tag:?}"),
            "an object",
        ));
    };
    settings.shift_remove("users");
    settings.insert("clients".to_owned(), Value::Array(Vec::new()));
    if matches!(protocol, Protocol::Vless { vision: false, .. }) {
        // Xray gives it to every user without a flow, and would then refuse them all.
        settings.shift_remove("flow");
    }
    // Without a tag the API can't reach the inbound and no user can name it: it serves nobody.
    Ok((!tag.is_empty()).then(|| Inbound {
        tag: tag.into(),
        protocol,
    }))
}

/// `None` for protocols that know no users, or none that a panel could manage.
fn protocol(inbound: &Map<String, Value>) -> Option<Protocol> {
    let empty = Map::new();
    let settings = inbound
        .get("settings")
        .and_then(Value::as_object)
        .unwrap_or(&empty);
    Some(
        match text(inbound, "protocol").to_ascii_lowercase().as_str() {
            "vless" => Protocol::Vless {
                vision: carries_vision(inbound, settings),
                vision_by_default: text(settings, "flow") == VISION,
            },
            "vmess" => Protocol::Vmess,
            "trojan" => Protocol::Trojan,
            "shadowsocks" => return shadowsocks(text(settings, "method")),
            "hysteria" => Protocol::Hysteria,
            _ => return None,
        },
    )
}

fn shadowsocks(method: &str) -> Option<Protocol> {
    let Some(edition_2022) = method.strip_prefix("2022-blake3-") else {
        let default = Cipher::from_method(method).unwrap_or(Cipher::None);
        return Some(Protocol::Shadowsocks { default });
    };
    match edition_2022 {
        "aes-128-gcm" => Some(Protocol::Shadowsocks2022 { key_bytes: 16 }),
        "aes-256-gcm" => Some(Protocol::Shadowsocks2022 { key_bytes: 32 }),
        // Xray serves several users with the AES methods only.
        _ => None,
    }
}

/// Vision splices TLS records, so it wants raw TCP below TLS or REALITY, or VLESS's own encryption.
fn carries_vision(inbound: &Map<String, Value>, settings: &Map<String, Value>) -> bool {
    if !matches!(text(settings, "decryption"), "" | "none") {
        return true;
    }
    let Some(stream) = inbound.get("streamSettings").and_then(Value::as_object) else {
        return false;
    };
    let raw = matches!(
        text(stream, "network").to_ascii_lowercase().as_str(),
        "" | "raw" | "tcp" | "kcp" | "mkcp"
    );
    let secured = matches!(
        text(stream, "security").to_ascii_lowercase().as_str(),
        "tls" | "reality"
    );
    let disguised = ["rawSettings", "tcpSettings"].iter().any(|key| {
        stream
            .get(*key)
            .and_then(|raw| raw.pointer("/header/type"))
            .and_then(Value::as_str)
            == Some("http")
    });
    raw && secured && !disguised
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    map.get(key).and_then(Value::as_str).unwrap_or_default()
}
