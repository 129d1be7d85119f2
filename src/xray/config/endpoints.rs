//! Where the inbounds of a configuration listen, and how the connections on them travel: what a second
//! core beside the first one has to know. What Xray alone can tell stays unknown here.

use std::ops::RangeInclusive;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::Skeleton;

/// One inbound, as somebody sees it who connects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The inbound's tag; empty where it has none, and then the API can't reach it.
    pub tag: String,
    /// Where it listens.
    pub place: Place,
    /// How connections travel.
    pub transport: Transport,
}

/// Where an inbound listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// On these ports; none where only Xray knows them.
    Ports(Vec<RangeInclusive<u16>>),
    /// On a socket in the file system.
    Path(PathBuf),
    /// On a socket with a name and no file.
    Abstract(String),
    /// Nowhere (a TUN device).
    Nowhere,
}

/// How connections travel, as far as that decides what they can live through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Each one is a TCP connection of its own, which lives on when its listener is closed.
    Stream,
    /// Streams of one HTTP/2 connection, which ends together with its listener.
    Grpc,
    /// A download and many short uploads, which have to reach the same process.
    PacketUp,
    /// Datagrams: a session belongs to the process whose socket gets them.
    Datagrams(&'static str),
    /// TCP connections and datagrams on one port.
    Both,
}

impl Skeleton {
    /// What each inbound listens on.
    pub fn endpoints(&self) -> impl Iterator<Item = Endpoint> {
        self.inbounds
            .iter()
            .filter_map(Value::as_object)
            .map(endpoint)
    }
}

fn endpoint(inbound: &Map<String, Value>) -> Endpoint {
    Endpoint {
        tag: text(inbound, "tag").to_owned(),
        place: place(inbound),
        transport: transport(inbound),
    }
}

fn place(inbound: &Map<String, Value>) -> Place {
    let listen = text(inbound, "listen");
    if listen.starts_with('/') {
        return Place::Path(PathBuf::from(socket_path(listen)));
    }
    if let Some(name) = listen.strip_prefix('@') {
        return Place::Abstract(name.to_owned());
    }
    if protocol(inbound) == "tun" {
        return Place::Nowhere;
    }
    Place::Ports(ports(get(inbound, "port")).unwrap_or_default())
}

/// The path of a unix socket, without the mode that may stand behind it.
pub(super) fn socket_path(listen: &str) -> &str {
    listen.split(',').next().unwrap_or(listen)
}

/// A number, or a list such as `"443,8000-8010"`; `None` for a form that only Xray can read.
fn ports(value: Option<&Value>) -> Option<Vec<RangeInclusive<u16>>> {
    match value? {
        Value::Number(number) => {
            // Xray takes what is left of a number that is too large.
            let port = u16::try_from(number.as_u64()? & 0xffff).ok()?;
            Some(vec![port..=port])
        }
        Value::String(text) => text
            .split(',')
            .map(|part| {
                let (from, to) = part.split_once('-').unwrap_or((part, part));
                Some(from.trim().parse().ok()?..=to.trim().parse().ok()?)
            })
            .collect(),
        _ => None,
    }
}

fn transport(inbound: &Map<String, Value>) -> Transport {
    let nothing = Map::new();
    let part = |map: &'_ Map<String, Value>, key: &str| {
        get(map, key)
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    };
    let stream = part(inbound, "streamSettings");
    let settings = part(inbound, "settings");
    let datagrams = |name| Transport::Datagrams(name);
    match protocol(inbound).as_str() {
        "hysteria" => return datagrams("hysteria"),
        "wireguard" => return datagrams("wireguard"),
        "socks" | "mixed" if get(&settings, "udp").and_then(Value::as_bool) == Some(true) => {
            return Transport::Both;
        }
        "dokodemo-door" | "tunnel" | "shadowsocks" => {
            let networks = text_or_list(&settings, "network");
            match (networks.contains("tcp"), networks.contains("udp")) {
                (true, true) => return Transport::Both,
                (false, true) => return datagrams("UDP"),
                _ => {}
            }
        }
        _ => {}
    }
    match text(&stream, "network").to_ascii_lowercase().as_str() {
        "grpc" => Transport::Grpc,
        "kcp" | "mkcp" => datagrams("mKCP"),
        "hysteria" => datagrams("hysteria"),
        "xhttp" | "splithttp" => {
            let tls = part(&stream, "tlsSettings");
            if text_or_list(&tls, "alpn") == "h3" {
                return datagrams("xhttp over HTTP/3");
            }
            let xhttp = ["xhttpSettings", "splithttpSettings"]
                .iter()
                .find_map(|key| get(&stream, key)?.as_object())
                .unwrap_or(&nothing);
            let reality = text(&stream, "security").eq_ignore_ascii_case("reality");
            match text(xhttp, "mode").to_ascii_lowercase().as_str() {
                "stream-up" | "stream-one" => Transport::Stream,
                "" | "auto" if reality => Transport::Stream,
                _ => Transport::PacketUp,
            }
        }
        _ => Transport::Stream,
    }
}

fn protocol(inbound: &Map<String, Value>) -> String {
    text(inbound, "protocol").to_ascii_lowercase()
}

/// Xray reads keys in any case.
fn get<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).or_else(|| {
        let mut same = map
            .iter()
            .filter(|(other, _)| other.eq_ignore_ascii_case(key));
        same.next_back().map(|(_, value)| value)
    })
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> &'a str {
    get(map, key).and_then(Value::as_str).unwrap_or_default()
}

/// Xray takes a text with commas where it takes a list.
fn text_or_list(map: &Map<String, Value>, key: &str) -> String {
    match get(map, key) {
        Some(Value::String(text)) => text.to_ascii_lowercase(),
        Some(Value::Array(list)) => {
            let texts: Vec<&str> = list.iter().filter_map(Value::as_str).collect();
            texts.join(",").to_ascii_lowercase()
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn only(inbound: &Value) -> Endpoint {
        let config = json!({ "inbounds": [inbound] }).to_string();
        let skeleton = Skeleton::parse(&config, &[]).unwrap();
        let mut endpoints = skeleton.endpoints();
        endpoints.next().unwrap()
    }

    #[test]
    fn ports_are_numbers_ranges_and_lists() {
        let on =
            |port: Value| only(&json!({ "tag": "a", "protocol": "vless", "port": port })).place;
        assert_eq!(on(json!(443)), Place::Ports(vec![443..=443]));
        assert_eq!(on(json!("443")), Place::Ports(vec![443..=443]));
        assert_eq!(
            on(json!("443, 8000-8010")),
            Place::Ports(vec![443..=443, 8000..=8010])
        );
        assert_eq!(on(json!(70000)), Place::Ports(vec![4464..=4464]));
        for unknown in [json!("env:PORT"), json!(null), json!([1])] {
            assert_eq!(on(unknown.clone()), Place::Ports(vec![]), "{unknown}");
        }
    }

    #[test]
    fn users_of_an_inbounds_own_are_known_by_name() {
        let config = json!({ "inbounds": [{
            "tag": "s", "protocol": "socks", "port": 1,
            "settings": { "accounts": [{ "user": "Me", "pass": "x" }] },
        }]});
        let skeleton = Skeleton::parse(&config.to_string(), &[]).unwrap();
        assert!(skeleton.names("me"));
        assert!(!skeleton.names("you"));
    }

    #[test]
    fn sockets_have_a_path_or_a_name() {
        let on = |listen: &str| only(&json!({ "protocol": "vless", "listen": listen })).place;
        assert_eq!(on("/run/a.sock,0666"), Place::Path("/run/a.sock".into()));
        assert_eq!(on("@a"), Place::Abstract("a".to_owned()));
    }

    #[test]
    fn the_transport_says_what_a_connection_can_live_through() {
        let over = |stream: Value| {
            only(&json!({ "protocol": "vless", "port": 1, "StreamSettings": stream })).transport
        };
        assert_eq!(over(json!({})), Transport::Stream);
        assert_eq!(over(json!({ "network": "ws" })), Transport::Stream);
        assert_eq!(over(json!({ "network": "gRPC" })), Transport::Grpc);
        assert_eq!(
            over(json!({ "network": "kcp" })),
            Transport::Datagrams("mKCP")
        );
        assert_eq!(over(json!({ "network": "xhttp" })), Transport::PacketUp);
        for (mode, security, travels) in [
            ("auto", "reality", Transport::Stream),
            ("auto", "tls", Transport::PacketUp),
            ("packet-up", "reality", Transport::PacketUp),
            ("stream-one", "tls", Transport::Stream),
        ] {
            let stream = json!({
                "network": "xhttp", "security": security, "xhttpSettings": { "mode": mode },
            });
            assert_eq!(over(stream), travels, "{mode} over {security}");
        }
        let h3 = json!({ "network": "xhttp", "tlsSettings": { "alpn": ["h3"] } });
        assert!(matches!(over(h3), Transport::Datagrams(_)));
        let by = |protocol: &str, settings: Value| {
            only(&json!({ "protocol": protocol, "port": 1, "settings": settings })).transport
        };
        assert!(matches!(
            by("hysteria", json!({})),
            Transport::Datagrams("hysteria")
        ));
        assert_eq!(by("shadowsocks", json!({})), Transport::Stream);
        let both = json!({ "network": "tcp,udp" });
        assert_eq!(by("shadowsocks", both.clone()), Transport::Both);
        assert_eq!(by("dokodemo-door", both), Transport::Both);
        assert_eq!(by("socks", json!({ "udp": true })), Transport::Both);
    }
}
