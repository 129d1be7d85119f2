//! Writing a skeleton out for one core.

use std::borrow::Cow;
use std::io;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::{API_INBOUND, API_RULE_TAG, API_TAG, Inbound, PLACEHOLDER, Skeleton};
use super::{endpoints, rewrite};
use crate::xray::account::{Account, Client, Protocol};
use crate::xray::core::InboundSocket;
use crate::xray::version::Version;

/// How one core lets the node in: its API on a unix socket that nobody else can open.
#[derive(Clone, Copy, Debug)]
pub struct Door<'a> {
    /// The socket; a fresh path for each core, in a folder that only the node's user can enter.
    pub socket: &'a Path,
    /// The core's version, which decides the form.
    pub version: Version,
    /// Random bytes for the key of the [`PLACEHOLDER`], so that nobody can be him.
    pub placeholder_key: [u8; 32],
    /// The sockets that this core opens in the place of those that clients know.
    pub inbound_sockets: &'a [InboundSocket],
    /// How long hysteria inbounds keep a session from which nothing comes, where the configuration says
    /// nothing of it.
    pub quic_idle_timeout: Option<Duration>,
}

impl Door<'_> {
    /// An inbound with what this core has in another way than the next one.
    fn for_this_core<'v>(&self, inbound: &'v Value) -> Cow<'v, Value> {
        let mut inbound = Cow::Borrowed(inbound);
        let listen = inbound.get("listen").and_then(Value::as_str);
        if let Some(listen) = listen.and_then(|listen| self.own_socket(listen)) {
            inbound.to_mut()["listen"] = Value::from(listen);
        }
        let protocol = inbound.get("protocol").and_then(Value::as_str);
        if let Some(timeout) = self.quic_idle_timeout
            && protocol.is_some_and(|protocol| protocol.eq_ignore_ascii_case("hysteria"))
        {
            rewrite::quic_idle_timeout(inbound.to_mut(), timeout);
        }
        inbound
    }

    /// The core's own socket with the mode of the one that clients know.
    fn own_socket(&self, listen: &str) -> Option<String> {
        let known = endpoints::socket_path(listen);
        let mut sockets = self.inbound_sockets.iter();
        let socket = sockets.find(|socket| socket.known == Path::new(known))?;
        let mode = listen.strip_prefix(known).unwrap_or_default();
        Some(format!("{}{mode}", socket.own.display()))
    }
}

/// Who has an account on which inbound.
pub trait Accounts {
    /// E-mail and account of everybody on this inbound.
    fn on(&self, inbound: &Inbound) -> impl Iterator<Item = (&str, &Account)>;
}

/// Accounts of nobody.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Accounts for Nobody {
    fn on(&self, _: &Inbound) -> impl Iterator<Item = (&str, &Account)> {
        std::iter::empty()
    }
}

/// All rules of one core, as `xray api adrules` reads them.
#[must_use]
pub(in crate::xray) fn rules(skeleton: &Skeleton, version: Version) -> Value {
    let door = (!version.listens_on_unix_socket()).then(api_rule);
    let rules: Vec<Value> = door.into_iter().chain(skeleton.rules().to_vec()).collect();
    Value::from(rules)
}

impl Skeleton {
    /// Writes the configuration that one core reads, with the users that have `accounts`.
    ///
    /// # Errors
    /// Only those of `out`.
    pub fn render(
        &self,
        door: Door<'_>,
        accounts: &impl Accounts,
        out: impl io::Write,
    ) -> io::Result<()> {
        let mut root = self.root.clone();
        root.insert("api".to_owned(), self.api(door));
        if self.gives_up_inbound_counters(door.version) {
            count_no_inbounds(&mut root);
        }
        let behind_a_door = !door.version.listens_on_unix_socket();
        if behind_a_door
            && let Some(Value::Array(rules)) = root
                .get_mut("routing")
                .and_then(|routing| routing.get_mut("rules"))
        {
            rules.insert(0, api_rule());
        }
        let inbounds = Inbounds {
            door: behind_a_door.then(|| api_inbound(door.socket)),
            skeleton: self,
            on: door,
            accounts,
        };
        let config = Replacing {
            map: &root,
            key: "inbounds",
            with: &inbounds,
        };
        serde_json::to_writer(out, &config).map_err(io::Error::from)
    }

    /// Whether inbounds stay uncounted on a core of this version, so that users are counted.
    #[must_use]
    pub fn gives_up_inbound_counters(&self, version: Version) -> bool {
        self.has_hysteria() && !version.counts_hysteria_users_beside_inbounds()
    }

    fn has_hysteria(&self) -> bool {
        self.inbounds.iter().any(|inbound| {
            let protocol = inbound.get("protocol").and_then(Value::as_str);
            protocol.is_some_and(|protocol| protocol.eq_ignore_ascii_case("hysteria"))
        })
    }

    fn api(&self, door: Door<'_>) -> Value {
        let mut services = vec![
            "HandlerService",
            "StatsService",
            "RoutingService",
            "LoggerService",
        ];
        if self.has_observatory() {
            // Xray refuses to start with this one where there is nothing to observe.
            services.push("ObservatoryService");
        }
        let mut api = Map::new();
        api.insert("tag".to_owned(), Value::from(API_TAG));
        api.insert("services".to_owned(), Value::from(services));
        if door.version.listens_on_unix_socket() {
            api.insert("listen".to_owned(), Value::from(listen(door.socket)));
        }
        Value::Object(api)
    }
}

/// What a panel bills by is worth more than what an inbound carried.
fn count_no_inbounds(root: &mut Map<String, Value>) {
    let policy = root.get_mut("policy").and_then(Value::as_object_mut);
    if let Some(Value::Object(system)) = policy.and_then(|policy| policy.get_mut("system")) {
        for counter in rewrite::INBOUND_COUNTERS {
            system.insert(counter.to_owned(), Value::Bool(false));
        }
    }
}

/// Xray reads an octal mode behind a socket's path.
fn listen(socket: &Path) -> String {
    format!("{},0600", socket.display())
}

/// Nothing is dialled at the address and port, but some versions crash without them.
fn api_inbound(socket: &Path) -> Value {
    json!({
        "tag": API_INBOUND,
        "listen": listen(socket),
        "protocol": "dokodemo-door",
        "settings": { "network": "unix", "address": "127.0.0.1", "port": 1 },
    })
}

fn api_rule() -> Value {
    json!({
        "type": "field",
        "ruleTag": API_RULE_TAG,
        "inboundTag": [API_INBOUND],
        "outboundTag": API_TAG,
    })
}

/// A JSON object with one value exchanged while it is written, so that a list of users is never
/// built as JSON values first.
struct Replacing<'a, With> {
    map: &'a Map<String, Value>,
    key: &'static str,
    with: &'a With,
}

impl<With: Serialize> Serialize for Replacing<'_, With> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.map.len()))?;
        for (key, value) in self.map {
            if key == self.key {
                map.serialize_entry(key, self.with)?;
            } else {
                map.serialize_entry(key, value)?;
            }
        }
        map.end()
    }
}

struct Inbounds<'a, A> {
    door: Option<Value>,
    skeleton: &'a Skeleton,
    on: Door<'a>,
    accounts: &'a A,
}

impl<A: Accounts> Serialize for Inbounds<'_, A> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        if let Some(door) = &self.door {
            list.serialize_element(door)?;
        }
        for (inbound, managed) in self.skeleton.inbounds.iter().zip(&self.skeleton.managed) {
            let inbound = self.on.for_this_core(inbound);
            match (&*inbound, inbound.get("settings"), managed) {
                (Value::Object(map), Some(Value::Object(settings)), Some(managed)) => {
                    let clients = Clients {
                        inbound: managed,
                        placeholder_key: &self.on.placeholder_key,
                        accounts: self.accounts,
                    };
                    let settings = Replacing {
                        map: settings,
                        key: "clients",
                        with: &clients,
                    };
                    list.serialize_element(&Replacing {
                        map,
                        key: "settings",
                        with: &settings,
                    })?;
                }
                _ => list.serialize_element(&*inbound)?,
            }
        }
        list.end()
    }
}

struct Clients<'a, A> {
    inbound: &'a Inbound,
    placeholder_key: &'a [u8; 32],
    accounts: &'a A,
}

impl<A: Accounts> Serialize for Clients<'_, A> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        let mut empty = true;
        for (email, account) in self.accounts.on(self.inbound) {
            list.serialize_element(&Client { email, account })?;
            empty = false;
        }
        if let (true, Protocol::Shadowsocks2022 { key_bytes }) = (empty, self.inbound.protocol) {
            // Without any user Xray would open it for a single one, and refuse more later.
            let key: Vec<u8> = self
                .placeholder_key
                .iter()
                .copied()
                .take(key_bytes)
                .collect();
            let key = BASE64.encode(key);
            let account = Account::Shadowsocks2022 { key: key.into() };
            list.serialize_element(&Client {
                email: PLACEHOLDER,
                account: &account,
            })?;
        }
        list.end()
    }
}
