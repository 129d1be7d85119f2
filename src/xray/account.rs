//! What a user proves himself with, in the form that each inbound protocol wants it.
//!
//! A panel sends one set of [`Credentials`] per user. An inbound takes what its [`Protocol`] needs
//! and makes an [`Account`] of it: the same account is written into the core's configuration at
//! start and sent over its API afterwards.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use prost::Message;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::proto::xray;

/// The only flow that a VLESS server knows.
pub const VISION: &str = "xtls-rprx-vision";

/// How an inbound knows its users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// VLESS.
    Vless {
        /// Whether the transport can carry XTLS Vision; where not, a user's flow is cleared.
        vision: bool,
        /// Whether users without a flow of their own get Vision (`settings.flow`).
        vision_by_default: bool,
    },
    /// VMess.
    Vmess,
    /// Trojan.
    Trojan,
    /// Shadowsocks with an AEAD cipher per user.
    Shadowsocks {
        /// The inbound's own method, for users who name none.
        default: Cipher,
    },
    /// Shadowsocks 2022 with several users.
    Shadowsocks2022 {
        /// Length of the method's key.
        key_bytes: usize,
    },
    /// Hysteria 2.
    Hysteria,
}

/// The ciphers of Shadowsocks before the 2022 edition, with Xray's own numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Cipher {
    /// `aes-128-gcm`
    Aes128Gcm = 5,
    /// `aes-256-gcm`
    Aes256Gcm = 6,
    /// `chacha20-ietf-poly1305`
    Chacha20Poly1305 = 7,
    /// `xchacha20-ietf-poly1305`
    Xchacha20Poly1305 = 8,
    /// `none`
    None = 9,
}

impl Cipher {
    /// The cipher called `method`; the names are those that Xray accepts.
    #[must_use]
    pub fn from_method(method: &str) -> Option<Self> {
        Some(match method.to_ascii_lowercase().as_str() {
            "aes-128-gcm" | "aead_aes_128_gcm" => Self::Aes128Gcm,
            "aes-256-gcm" | "aead_aes_256_gcm" => Self::Aes256Gcm,
            "chacha20-poly1305" | "chacha20-ietf-poly1305" | "aead_chacha20_poly1305" => {
                Self::Chacha20Poly1305
            }
            "xchacha20-poly1305" | "xchacha20-ietf-poly1305" | "aead_xchacha20_poly1305" => {
                Self::Xchacha20Poly1305
            }
            "none" | "plain" => Self::None,
            _ => return None,
        })
    }

    fn method(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "aes-128-gcm",
            Self::Aes256Gcm => "aes-256-gcm",
            Self::Chacha20Poly1305 => "chacha20-ietf-poly1305",
            Self::Xchacha20Poly1305 => "xchacha20-ietf-poly1305",
            Self::None => "none",
        }
    }
}

/// What a panel sends for one user. An absent or empty secret means that the user has no account
/// of that protocol: an account that opens without a secret would let anybody in.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// VMess id.
    pub vmess: Option<Box<str>>,
    /// VLESS id.
    pub vless: Option<Box<str>>,
    /// VLESS flow; empty for none.
    pub flow: Box<str>,
    /// Trojan password.
    pub trojan: Option<Box<str>>,
    /// Shadowsocks password, of both editions.
    pub shadowsocks: Option<Box<str>>,
    /// Shadowsocks method; the 2022 edition takes the inbound's.
    pub shadowsocks_method: Box<str>,
    /// Hysteria auth.
    pub hysteria: Option<Box<str>>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials(hidden)")
    }
}

/// Why credentials can't become an account. Names no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The VLESS id is not a UUID.
    #[error("the vless id is not a UUID")]
    VlessId,
    /// The VMess id is not a UUID.
    #[error("the vmess id is not a UUID")]
    VmessId,
    /// The VLESS flow is not one that a server knows.
    #[error("the vless flow is neither empty nor xtls-rprx-vision")]
    Flow,
    /// The Shadowsocks method is not one that Xray knows.
    #[error("the shadowsocks method is unknown")]
    Method,
}

/// One user's account on one inbound.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Account {
    /// VLESS.
    Vless {
        /// The user's id.
        id: Uuid,
        /// Whether the user speaks XTLS Vision.
        vision: bool,
    },
    /// VMess.
    Vmess {
        /// The user's id.
        id: Uuid,
    },
    /// Trojan.
    Trojan {
        /// The user's password.
        password: Box<str>,
    },
    /// Shadowsocks, AEAD.
    Shadowsocks {
        /// The user's password.
        password: Box<str>,
        /// The user's cipher.
        cipher: Cipher,
    },
    /// Shadowsocks 2022.
    Shadowsocks2022 {
        /// The user's key, base64.
        key: Box<str>,
    },
    /// Hysteria 2.
    Hysteria {
        /// The user's auth text.
        auth: Box<str>,
    },
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())?;
        f.write_str("(hidden)")
    }
}

/// What Xray looks a user up by. Two users of one inbound must not share it: the second would take
/// it over, and removing either would remove it for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Secret([u8; 16]);

impl Account {
    /// The account that an inbound of `protocol` gives to the holder of `credentials`; `None` where
    /// the credentials hold nothing for it.
    ///
    /// # Errors
    /// When the credentials are there but Xray would refuse them.
    pub fn new(protocol: Protocol, credentials: &Credentials) -> Result<Option<Self>, Error> {
        Ok(match protocol {
            Protocol::Vless {
                vision,
                vision_by_default,
            } => {
                let Some(id) = given(credentials.vless.as_deref()) else {
                    return Ok(None);
                };
                let id = Uuid::try_parse(id).map_err(|_| Error::VlessId)?;
                let wants_vision = match &*credentials.flow {
                    "" => vision_by_default,
                    VISION => true,
                    _ => return Err(Error::Flow),
                };
                Some(Self::Vless {
                    id,
                    vision: vision && wants_vision,
                })
            }
            Protocol::Vmess => {
                let Some(id) = given(credentials.vmess.as_deref()) else {
                    return Ok(None);
                };
                Some(Self::Vmess {
                    id: Uuid::try_parse(id).map_err(|_| Error::VmessId)?,
                })
            }
            Protocol::Trojan => given(credentials.trojan.as_deref()).map(|password| Self::Trojan {
                password: password.into(),
            }),
            Protocol::Shadowsocks { default } => {
                let Some(password) = given(credentials.shadowsocks.as_deref()) else {
                    return Ok(None);
                };
                let cipher = match &*credentials.shadowsocks_method {
                    "" => default,
                    method => Cipher::from_method(method).ok_or(Error::Method)?,
                };
                Some(Self::Shadowsocks {
                    password: password.into(),
                    cipher,
                })
            }
            Protocol::Shadowsocks2022 { key_bytes } => given(credentials.shadowsocks.as_deref())
                .map(|password| Self::Shadowsocks2022 {
                    key: derive_key(password, key_bytes),
                }),
            Protocol::Hysteria => given(credentials.hysteria.as_deref())
                .map(|auth| Self::Hysteria { auth: auth.into() }),
        })
    }

    /// Whether an inbound of `protocol` understands this account. Sending one that it does not
    /// understand ends the whole core.
    #[must_use]
    pub fn fits(&self, protocol: Protocol) -> bool {
        matches!(
            (self, protocol),
            (Self::Vless { .. }, Protocol::Vless { .. })
                | (Self::Vmess { .. }, Protocol::Vmess)
                | (Self::Trojan { .. }, Protocol::Trojan)
                | (Self::Shadowsocks { .. }, Protocol::Shadowsocks { .. })
                | (
                    Self::Shadowsocks2022 { .. },
                    Protocol::Shadowsocks2022 { .. }
                )
                | (Self::Hysteria { .. }, Protocol::Hysteria)
        )
    }

    /// What the core looks the user up by.
    #[must_use]
    pub fn secret(&self) -> Secret {
        match self {
            Self::Vless { id, .. } => Secret(without_route(*id)),
            Self::Vmess { id } => Secret(*id.as_bytes()),
            Self::Trojan { password } => digest(&[password]),
            Self::Shadowsocks { password, cipher } => digest(&[cipher.method(), password]),
            Self::Shadowsocks2022 { key } => digest(&[key]),
            Self::Hysteria { auth } => Uuid::try_parse(auth)
                .map_or_else(|_| digest(&[auth]), |id| Secret(without_route(id))),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Vless { .. } => "vless",
            Self::Vmess { .. } => "vmess",
            Self::Trojan { .. } => "trojan",
            Self::Shadowsocks { .. } => "shadowsocks",
            Self::Shadowsocks2022 { .. } => "shadowsocks-2022",
            Self::Hysteria { .. } => "hysteria",
        }
    }

    /// Whether the core means this account by what its API shows.
    #[must_use]
    pub fn is_shown_as(&self, shown: &xray::common::serial::TypedMessage) -> bool {
        use xray::proxy;
        fn read<M: Message + Default>(bytes: &[u8]) -> M {
            M::decode(bytes).unwrap_or_default()
        }
        if shown.r#type != self.to_typed_message().r#type {
            return false;
        }
        let value = &*shown.value;
        match self {
            Self::Vless { id, vision } => {
                let shown: proxy::vless::Account = read(value);
                shown.id.parse() == Ok(*id) && (shown.flow == VISION) == *vision
            }
            Self::Vmess { id } => read::<proxy::vmess::Account>(value).id.parse() == Ok(*id),
            Self::Trojan { password } => {
                *read::<proxy::trojan::Account>(value).password == **password
            }
            Self::Shadowsocks { password, cipher } => {
                let shown: proxy::shadowsocks::Account = read(value);
                *shown.password == **password && shown.cipher_type == *cipher as i32
            }
            Self::Shadowsocks2022 { key } => {
                *read::<proxy::shadowsocks_2022::Account>(value).key == **key
            }
            Self::Hysteria { auth } => {
                *read::<proxy::hysteria::account::Account>(value).auth == **auth
            }
        }
    }

    /// The account as Xray's API takes it.
    #[must_use]
    pub fn to_typed_message(&self) -> xray::common::serial::TypedMessage {
        use xray::proxy;
        let (r#type, value) = match self {
            Self::Vless { id, vision } => (
                "xray.proxy.vless.Account",
                proxy::vless::Account {
                    id: id.to_string(),
                    flow: if *vision {
                        VISION.to_owned()
                    } else {
                        String::new()
                    },
                }
                .encode_to_vec(),
            ),
            Self::Vmess { id } => (
                "xray.proxy.vmess.Account",
                proxy::vmess::Account { id: id.to_string() }.encode_to_vec(),
            ),
            Self::Trojan { password } => (
                "xray.proxy.trojan.Account",
                proxy::trojan::Account {
                    password: password.to_string(),
                }
                .encode_to_vec(),
            ),
            Self::Shadowsocks { password, cipher } => (
                "xray.proxy.shadowsocks.Account",
                proxy::shadowsocks::Account {
                    password: password.to_string(),
                    cipher_type: *cipher as i32,
                    iv_check: false,
                }
                .encode_to_vec(),
            ),
            Self::Shadowsocks2022 { key } => (
                "xray.proxy.shadowsocks_2022.Account",
                proxy::shadowsocks_2022::Account {
                    key: key.to_string(),
                }
                .encode_to_vec(),
            ),
            Self::Hysteria { auth } => (
                "xray.proxy.hysteria.account.Account",
                proxy::hysteria::account::Account {
                    auth: auth.to_string(),
                }
                .encode_to_vec(),
            ),
        };
        xray::common::serial::TypedMessage {
            r#type: r#type.to_owned(),
            value,
        }
    }
}

/// A user as Xray's configuration lists him below an inbound's `settings.clients`.
#[derive(Debug)]
pub struct Client<'a> {
    /// The user's e-mail.
    pub email: &'a str,
    /// The user's account on that inbound.
    pub account: &'a Account,
}

impl Serialize for Client<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("email", self.email)?;
        map.serialize_entry("level", &0)?;
        let mut buffer = Uuid::encode_buffer();
        match self.account {
            Account::Vless { id, vision } => {
                map.serialize_entry("id", &*id.hyphenated().encode_lower(&mut buffer))?;
                map.serialize_entry("flow", if *vision { VISION } else { "" })?;
            }
            Account::Vmess { id } => {
                map.serialize_entry("id", &*id.hyphenated().encode_lower(&mut buffer))?;
            }
            Account::Trojan { password } => map.serialize_entry("password", password)?,
            Account::Shadowsocks { password, cipher } => {
                map.serialize_entry("password", password)?;
                map.serialize_entry("method", cipher.method())?;
            }
            Account::Shadowsocks2022 { key } => map.serialize_entry("password", key)?,
            Account::Hysteria { auth } => map.serialize_entry("auth", auth)?,
        }
        map.end()
    }
}

/// The Shadowsocks 2022 key of a password: the password itself where it is a key of the right
/// length in padded base64, otherwise one derived from it, so that any password works.
fn derive_key(password: &str, key_bytes: usize) -> Box<str> {
    if BASE64
        .decode(password)
        .is_ok_and(|key| key.len() == key_bytes)
    {
        return password.into();
    }
    let mut key = Sha256::digest(password.as_bytes()).to_vec();
    key.truncate(key_bytes);
    BASE64.encode(key).into()
}

/// Xray lets a client choose bytes 7 and 8 of its UUID (the "VLESS route") and ignores them when it
/// looks the user up.
fn without_route(id: Uuid) -> [u8; 16] {
    let mut bytes = id.into_bytes();
    let [_, _, _, _, _, _, high, low, ..] = &mut bytes;
    (*high, *low) = (0, 0);
    bytes
}

fn digest(parts: &[&str]) -> Secret {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let mut secret = [0; 16];
    secret
        .iter_mut()
        .zip(hash.finalize())
        .for_each(|(to, from)| *to = from);
    Secret(secret)
}

fn given(secret: Option<&str>) -> Option<&str> {
    secret.filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests;
