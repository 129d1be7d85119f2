//! Users as a panel makes them: a set of credentials for every protocol.

use raynode::proto::service::{Hysteria, Proxy, Shadowsocks, Trojan, User, Vless, Vmess};
use uuid::Uuid;

pub const SHADOWSOCKS_METHOD: &str = "chacha20-ietf-poly1305";

/// The user's id on vless and vmess; bytes 7 and 8, which Xray ignores, are always zero.
pub fn id(email: &str) -> Uuid {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in email.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    Uuid::from_u64_pair(0x1234_5678_9abc_0000, hash)
}

pub fn password(email: &str) -> String {
    format!("password of {email}")
}

/// A user with credentials for every protocol, on these inbounds.
pub fn user(email: &str, inbounds: &[&str]) -> User {
    user_with(email, inbounds, "")
}

pub fn user_with(email: &str, inbounds: &[&str], flow: &str) -> User {
    let (id, password) = (id(email).to_string(), password(email));
    User {
        email: email.to_owned(),
        proxies: Some(Proxy {
            vmess: Some(Vmess { id: id.clone() }),
            vless: Some(Vless {
                id,
                flow: flow.to_owned(),
            }),
            trojan: Some(Trojan {
                password: password.clone(),
            }),
            shadowsocks: Some(Shadowsocks {
                password: password.clone(),
                method: SHADOWSOCKS_METHOD.to_owned(),
            }),
            hysteria: Some(Hysteria { auth: password }),
            ..Proxy::default()
        }),
        inbounds: inbounds.iter().map(|tag| (*tag).to_owned()).collect(),
    }
}

/// Numbered users, as panels name them.
pub fn numbered(numbers: std::ops::Range<usize>, inbounds: &[&str]) -> Vec<User> {
    numbers
        .map(|number| user(&number.to_string(), inbounds))
        .collect()
}
