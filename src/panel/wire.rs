//! The messages of `proto/service.proto` that carry user lists, decoded only so far that each user
//! is still in the form in which he came.
//!
//! Their fields are those of the messages of the same name. A user takes about ten times as much
//! memory decoded as encoded, and the node needs them one at a time.

use bytes::Bytes;
use prost::Message;

use crate::node::{Email, Malformed, User, Users};
use crate::proto::service;
use crate::xray::account::Credentials;

/// `service.Backend`
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct Backend {
    /// What kind of core; see `service.BackendType`.
    #[prost(enumeration = "service::BackendType", tag = "1")]
    pub r#type: i32,
    /// The core's configuration.
    #[prost(string, tag = "2")]
    pub config: String,
    /// Encoded `service.User`s.
    #[prost(bytes = "bytes", repeated, tag = "3")]
    pub users: Vec<Bytes>,
    /// Seconds without a call after which the session ends; 0 for never.
    #[prost(uint64, tag = "4")]
    pub keep_alive: u64,
    /// Tags of inbounds that keep the users of the configuration.
    #[prost(string, repeated, tag = "5")]
    pub exclude_inbounds: Vec<String>,
}

/// `service.Users`
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct UserList {
    /// Encoded `service.User`s.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub users: Vec<Bytes>,
}

/// `service.UsersChunk`
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct UsersChunk {
    /// Encoded `service.User`s.
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub users: Vec<Bytes>,
    /// The chunk's place in the whole, from 0.
    #[prost(uint64, tag = "2")]
    pub index: u64,
    /// Whether no chunk has a higher place.
    #[prost(bool, tag = "3")]
    pub last: bool,
}

/// No message shows what it holds: keys and users.
macro_rules! hidden {
    ($($message:ident),*) => {$(
        impl std::fmt::Debug for $message {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($message))
                    .field("users", &self.users.len())
                    .finish_non_exhaustive()
            }
        }
    )*};
}

hidden!(Backend, UserList, UsersChunk);

/// Decodes each user when his turn comes.
#[must_use]
pub fn users(encoded: Vec<Bytes>) -> Users {
    Box::new(encoded.into_iter().map(|bytes| {
        service::User::decode(bytes)
            .map(user)
            .map_err(|error| Malformed(error.to_string()))
    }))
}

/// A user of the wire as the node knows him.
#[must_use]
pub fn user(user: service::User) -> User {
    let mut credentials = Credentials::default();
    if let Some(proxies) = user.proxies {
        credentials.vmess = proxies.vmess.map(|vmess| vmess.id.into());
        if let Some(vless) = proxies.vless {
            credentials.vless = Some(vless.id.into());
            credentials.flow = vless.flow.into();
        }
        credentials.trojan = proxies.trojan.map(|trojan| trojan.password.into());
        if let Some(shadowsocks) = proxies.shadowsocks {
            credentials.shadowsocks = Some(shadowsocks.password.into());
            credentials.shadowsocks_method = shadowsocks.method.into();
        }
        credentials.hysteria = proxies.hysteria.map(|hysteria| hysteria.auth.into());
    }
    User {
        email: Email::from(user.email.as_str()),
        credentials,
        inbounds: user.inbounds.into_iter().map(Into::into).collect(),
    }
}

/// The same user encoded, for callers of the service.
#[must_use]
pub fn encode(user: &service::User) -> Bytes {
    user.encode_to_vec().into()
}
