//! Geo files as Xray reads them.

use prost::Message;

#[derive(Clone, PartialEq, Message)]
struct List {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    code: String,
    #[prost(message, repeated, tag = "2")]
    networks: Vec<Network>,
}

#[derive(Clone, PartialEq, Message)]
struct Network {
    #[prost(bytes = "vec", tag = "1")]
    address: Vec<u8>,
    #[prost(uint32, tag = "2")]
    prefix: u32,
}

#[derive(Clone, PartialEq, Message)]
struct SiteList {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<SiteEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct SiteEntry {
    #[prost(string, tag = "1")]
    code: String,
    #[prost(message, repeated, tag = "2")]
    domains: Vec<Domain>,
}

#[derive(Clone, PartialEq, Message)]
struct Domain {
    #[prost(int32, tag = "1")]
    kind: i32,
    #[prost(string, tag = "2")]
    value: String,
}

/// A `geoip.dat` with these codes.
pub(crate) fn ip(codes: &[&str]) -> Vec<u8> {
    let entry = |code: &&str| Entry {
        code: (*code).to_owned(),
        networks: vec![Network {
            address: vec![192, 0, 2, 0],
            prefix: 24,
        }],
    };
    let entries = codes.iter().map(entry).collect();
    List { entries }.encode_to_vec()
}

/// A `geosite.dat` with these codes.
pub(crate) fn site(codes: &[&str]) -> Vec<u8> {
    let entry = |code: &&str| SiteEntry {
        code: (*code).to_owned(),
        domains: vec![Domain {
            kind: 2,
            value: "site.example".to_owned(),
        }],
    };
    let entries = codes.iter().map(entry).collect();
    SiteList { entries }.encode_to_vec()
}
