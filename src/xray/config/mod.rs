//! From the panel's JSON to what Xray reads.
//!
//! [`Skeleton::parse`] takes the panel's configuration apart: users out, everything that the node
//! answers for put right, every other key kept in its place. [`Skeleton::render`] writes it out
//! for one core, with that core's API and the users of the moment. Both are pure.

mod endpoints;
mod inbound;
mod render;
mod rewrite;
mod rule;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::endpoints::{Endpoint, Place, Transport};
pub use self::inbound::Inbound;
pub(in crate::xray) use self::render::rules;
pub use self::render::{Accounts, Door, Nobody};
pub use self::rule::{Rule, RuleError, RuleSteps, refuse_own_tag};

/// Tag of the inbound that leads to the API on cores whose `api.listen` takes no unix socket.
pub const API_INBOUND: &str = "API_INBOUND";
/// Tag of the API, and so of the virtual outbound that answers it.
pub const API_TAG: &str = "API";
/// Tag of the rule that leads from the one to the other.
pub const API_RULE_TAG: &str = "raynode-api";
/// E-mail of the user that keeps an otherwise empty Shadowsocks 2022 inbound open for more.
pub const PLACEHOLDER: &str = "raynode-placeholder";

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not JSON.
    #[error("the config is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The JSON is not an object.
    #[error("the config is not a JSON object")]
    NotAnObject,
    /// A part that the node has to look into has another shape than Xray knows.
    #[error("the config's {what} is not {expected}")]
    Shape {
        /// Where in the configuration.
        what: String,
        /// What belongs there.
        expected: &'static str,
    },
}

/// The operator's log files. Xray itself logs to its standard output, so that viewers and files
/// both get every line; the node writes the files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogFiles {
    /// Where accepted and rejected connections go.
    pub access: Option<PathBuf>,
    /// Where every other line goes.
    pub error: Option<PathBuf>,
}

/// A configuration without its users.
#[derive(Clone, Serialize, Deserialize)]
pub struct Skeleton {
    /// Everything; `inbounds` stays here only as the place where they belong.
    root: Map<String, Value>,
    inbounds: Vec<Value>,
    /// The inbounds whose users the panel manages, by their place in `inbounds`.
    managed: Vec<Option<Inbound>>,
    log_files: LogFiles,
    silent_outbounds: Vec<String>,
}

impl std::fmt::Debug for Skeleton {
    /// Shows no value: there are private keys among them.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<&String> = self.root.keys().collect();
        f.debug_struct("Skeleton")
            .field("parts", &parts)
            .finish_non_exhaustive()
    }
}

impl PartialEq for Skeleton {
    /// Two skeletons are equal when Xray would run the same from both; the order of keys is not a
    /// difference, the order of inbounds, outbounds and rules is.
    fn eq(&self, other: &Self) -> bool {
        self.root == other.root
            && self.inbounds == other.inbounds
            && self.managed == other.managed
            && self.log_files == other.log_files
    }
}

impl Skeleton {
    /// Takes a panel's configuration apart. Inbounds whose tag is in `exclude` keep the users that
    /// the configuration gives them and are never touched by a user sync.
    ///
    /// # Errors
    /// When the text is not a JSON object, or a part that has to be changed is not of the kind that
    /// Xray knows. What only Xray can judge is left to Xray.
    pub fn parse(config: &str, exclude: &[String]) -> Result<Self, Error> {
        let Value::Object(mut root) = serde_json::from_str(config)? else {
            return Err(Error::NotAnObject);
        };
        rewrite::canonical_keys(&mut root, &rewrite::TOP_LEVEL);
        let mut inbounds = rewrite::take_list(&mut root, "inbounds")?;
        rewrite::drop_injected_inbounds(&mut inbounds);
        let managed = inbounds
            .iter_mut()
            .map(|inbound| inbound::separate_users(inbound, exclude))
            .collect::<Result<_, _>>()?;

        rewrite::api_parts(&mut root);
        rewrite::policy(&mut root, &inbounds)?;
        let silent_outbounds = rewrite::silent_outbounds(&root);
        rewrite::routing(&mut root)?;
        rewrite::observatories(&mut root, &silent_outbounds);
        let log_files = rewrite::log(&mut root)?;
        Ok(Self {
            root,
            inbounds,
            managed,
            log_files,
            silent_outbounds,
        })
    }

    /// The inbounds whose users the panel manages.
    pub fn inbounds(&self) -> impl Iterator<Item = &Inbound> {
        self.managed.iter().flatten()
    }

    /// The unix sockets that inbounds listen on, without the mode that may stand behind the path.
    pub fn unix_sockets(&self) -> impl Iterator<Item = &Path> {
        self.inbounds
            .iter()
            .filter_map(|inbound| inbound.get("listen")?.as_str())
            .filter(|listen| listen.starts_with('/'))
            .map(|listen| Path::new(endpoints::socket_path(listen)))
    }

    /// Whether an inbound's own part of the configuration has this text: a user whom no panel manages.
    #[must_use]
    pub fn names(&self, user: &str) -> bool {
        fn has(value: &Value, user: &str) -> bool {
            match value {
                Value::String(text) => text.eq_ignore_ascii_case(user),
                Value::Array(list) => list.iter().any(|value| has(value, user)),
                Value::Object(map) => map.values().any(|value| has(value, user)),
                _ => false,
            }
        }
        self.inbounds.iter().any(|inbound| has(inbound, user))
    }

    /// The files that the operator wants log lines in.
    #[must_use]
    pub fn log_files(&self) -> &LogFiles {
        &self.log_files
    }

    /// Whether Xray measures its outbounds.
    #[must_use]
    pub fn has_observatory(&self) -> bool {
        rewrite::OBSERVATORIES
            .iter()
            .any(|key| self.root.get(*key).is_some_and(Value::is_object))
    }

    /// Tag of the outbound that takes what no rule matches: the first one.
    #[must_use]
    pub fn default_outbound(&self) -> &str {
        self.root
            .get("outbounds")
            .and_then(|outbounds| outbounds.get(0)?.get("tag")?.as_str())
            .unwrap_or_default()
    }

    /// Whether the configuration has an outbound of this tag.
    #[must_use]
    pub fn has_outbound(&self, tag: &str) -> bool {
        rewrite::outbound_tags(&self.root)
            .iter()
            .any(|known| known == tag)
    }

    /// Whether an outbound leads nowhere that could be measured (blackhole, dns, loopback).
    #[must_use]
    pub fn is_silent_outbound(&self, tag: &str) -> bool {
        self.silent_outbounds.iter().any(|silent| silent == tag)
    }

    /// The top-level parts in which two skeletons differ, for the log line that says why more than
    /// users had to change.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut parts: Vec<String> = self
            .root
            .keys()
            .chain(
                other
                    .root
                    .keys()
                    .filter(|key| !self.root.contains_key(*key)),
            )
            .filter(|key| self.root.get(*key) != other.root.get(*key))
            .cloned()
            .collect();
        if self.inbounds != other.inbounds || self.managed != other.managed {
            parts.push("inbounds".to_owned());
        }
        if self.log_files != other.log_files {
            parts.push("log files".to_owned());
        }
        parts
    }
}

#[cfg(test)]
mod tests;
