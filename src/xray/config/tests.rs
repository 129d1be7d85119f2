use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::xray::account::{Account, Cipher, Protocol};
use crate::xray::version::Version;

const OLD: Version = Version::new(26, 3, 27);
const NEW: Version = Version::new(26, 10, 10);

/// Users of a test, by tag.
#[derive(Default)]
struct Fixed(Vec<(&'static str, &'static str, Account)>);

impl Accounts for Fixed {
    fn on(&self, inbound: &Inbound) -> impl Iterator<Item = (&str, &Account)> {
        let tag = std::sync::Arc::clone(&inbound.tag);
        self.0
            .iter()
            .filter(move |(on, ..)| *on == &*tag)
            .map(|(_, email, account)| (*email, account))
    }
}

fn parse(config: &Value) -> Skeleton {
    Skeleton::parse(&config.to_string(), &[]).unwrap()
}

fn render_with(skeleton: &Skeleton, version: Version, users: &Fixed) -> Value {
    let door = Door {
        socket: Path::new("/run/r/core.sock"),
        version,
        placeholder_key: [7; 32],
        inbound_sockets: &[],
        quic_idle_timeout: None,
    };
    let mut bytes = Vec::new();
    skeleton.render(door, users, &mut bytes).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn render(config: &Value) -> Value {
    render_with(&parse(config), OLD, &Fixed::default())
}

fn everything() -> Value {
    json!({
        "future": { "kept": [1, 2, 3] },
        "log": { "access": "/var/log/xray/access.log", "error": "none", "loglevel": "debug", "dnsLog": true },
        "api": { "tag": "mine", "services": ["ReflectionService"], "listen": "127.0.0.1:8080" },
        "metrics": { "tag": "m", "listen": "0.0.0.0:9090" },
        "dns": { "servers": ["1.1.1.1"] },
        "policy": {
            "levels": { "0": { "connIdle": 120, "statsUserOnline": false }, "3": { "handshake": 9 } },
            "system": { "statsInboundUplink": false }
        },
        "routing": {
            "domainStrategy": "IPIfNonMatch",
            "rules": [
                { "type": "field", "inboundTag": ["API_INBOUND"], "outboundTag": "API" },
                { "ruleTag": "PG_NODE_MALFORMED_DOMAIN_GUARD", "outboundTag": "block", "domain": ["x"] },
                { "ip": ["GeoIP:Private", "8.8.8.8"], "outboundTag": "block", "webhook": { "url": "kept" } }
            ],
            "balancers": [{ "tag": "b", "selector": ["d"] }]
        },
        "inbounds": [
            { "tag": "API_INBOUND", "listen": "127.0.0.1", "port": 1, "protocol": "dokodemo-door" },
            {
                "tag": "vless", "port": 443, "protocol": "vless", "allocate": { "strategy": "always" },
                "settings": { "decryption": "none", "clients": [{ "id": "leftover" }], "users": [], "fallbacks": [{ "dest": 80 }] },
                "streamSettings": { "network": "tcp", "security": "tls", "sockopt": { "mark": 1 } }
            },
            { "tag": "ss", "port": 8388, "protocol": "shadowsocks", "settings": { "method": "2022-blake3-aes-128-gcm", "password": "AAAAAAAAAAAAAAAAAAAAAA==" } },
            { "tag": "socks", "port": 1080, "protocol": "socks", "settings": { "accounts": [{ "user": "a", "pass": "b" }] } }
        ],
        "outbounds": [
            { "tag": "direct", "protocol": "freedom", "unknown": true },
            { "tag": "block", "protocol": "Blackhole" },
            { "tag": "resolve", "protocol": "dns" }
        ],
        "observatory": { "subjectSelector": ["direct", "block", "resolve"], "probeInterval": "1m" }
    })
}

fn everyone() -> Fixed {
    let id = uuid::Uuid::from_u128(7);
    Fixed(vec![("vless", "7", Account::Vless { id, vision: true })])
}

#[test]
fn what_an_old_core_reads() {
    let config = render_with(&parse(&everything()), OLD, &everyone());
    insta::assert_snapshot!(format!("{config:#}"));
}

#[test]
fn what_a_new_core_reads() {
    let config = render_with(&parse(&everything()), NEW, &everyone());
    insta::assert_snapshot!(format!("{config:#}"));
}

#[test]
fn an_empty_config_gets_what_the_node_needs() {
    insta::assert_snapshot!(format!("{:#}", render(&json!({}))));
}

#[test]
fn rewriting_again_changes_nothing() {
    for version in [OLD, NEW] {
        let once = render_with(&parse(&everything()), version, &Fixed::default());
        let twice = render_with(&parse(&once), version, &Fixed::default());
        assert_eq!(format!("{once:#}"), format!("{twice:#}"));
    }
}

#[test]
fn what_is_not_an_object_is_refused() {
    for text in ["", "{", "null", "[]", "7", "\"{}\""] {
        assert!(Skeleton::parse(text, &[]).is_err(), "{text:?}");
    }
    for config in [
        json!({ "inbounds": {} }),
        json!({ "inbounds": [7] }),
        json!({ "inbounds": [{ "protocol": "vless", "settings": [] }] }),
        json!({ "routing": [] }),
        json!({ "routing": { "rules": {} } }),
        json!({ "policy": 1 }),
        json!({ "log": "info" }),
    ] {
        assert!(
            Skeleton::parse(&config.to_string(), &[]).is_err(),
            "{config}"
        );
    }
}

#[test]
fn an_excluded_inbound_keeps_its_users() {
    let config = json!({ "inbounds": [
        { "tag": "a", "protocol": "vless", "settings": { "clients": [{ "id": "x", "level": 5 }] } },
        { "tag": "b", "protocol": "vless", "settings": { "clients": [{ "id": "x" }] } },
    ]});
    let skeleton = Skeleton::parse(&config.to_string(), &["a".to_owned()]).unwrap();
    assert_eq!(
        skeleton
            .inbounds()
            .map(|inbound| &*inbound.tag)
            .collect::<Vec<_>>(),
        ["b"]
    );
    let rendered = render_with(&skeleton, NEW, &Fixed::default());
    assert_eq!(
        rendered.pointer("/inbounds/0/settings/clients/0/id"),
        Some(&json!("x"))
    );
    assert_eq!(
        rendered.pointer("/inbounds/1/settings/clients"),
        Some(&json!([]))
    );
    let level = rendered.pointer("/policy/levels/5").unwrap();
    assert_eq!(level["statsUserOnline"], json!(true));
}

#[test]
fn every_level_that_is_named_is_counted() {
    let config = json!({ "inbounds": [
        { "tag": "a", "protocol": "shadowsocks", "settings": { "level": 4, "password": "x" } },
        { "tag": "b", "protocol": "vless", "settings": { "Clients": [{ "Level": 6 }] } },
        { "tag": "c", "protocol": "wireguard", "settings": { "peers": [{ "level": 7 }] } },
        { "tag": "d", "protocol": "socks", "settings": { "userLevel": 8 } },
    ]});
    let exclude = ["a", "b"].map(str::to_owned);
    let skeleton = Skeleton::parse(&config.to_string(), &exclude).unwrap();
    let rendered = render_with(&skeleton, NEW, &Fixed::default());
    for level in ["0", "4", "6", "7", "8"] {
        assert_eq!(
            rendered["policy"]["levels"][level]["statsUserUplink"],
            json!(true),
            "{level}"
        );
    }
}

#[test]
fn private_addresses_are_spelled_out_in_every_form_of_a_rule() {
    for rule in [
        json!({ "IP": ["geoip:private"] }),
        json!({ "sourceIP": ["GEOIP:private", "8.8.8.8"] }),
        json!({ "source": "geoip:private,8.8.8.8" }),
        json!({ "ip": "geoip:private" }),
    ] {
        let text = render(&json!({ "routing": { "rules": [rule] } })).to_string();
        assert!(
            text.contains("\"fc00::/7\"") && !text.to_lowercase().contains("geoip"),
            "{text}"
        );
    }
}

#[test]
fn nothing_shows_what_is_in_a_config() {
    let shown = format!("{:?}", parse(&everything()));
    assert!(
        shown.contains("routing") && !shown.contains("AAAAAAAA"),
        "{shown}"
    );
}

#[test]
fn keys_count_in_any_case_as_they_do_for_xray() {
    let config = json!({
        "Inbounds": [{ "Tag": "in", "Protocol": "VLESS", "Settings": { "Clients": [{ "id": "leftover" }] } }],
        "API": { "listen": "0.0.0.0:1" },
        "METRICS": { "listen": "0.0.0.0:2" },
    });
    let text = render(&config).to_string();
    assert!(
        !text.contains("leftover") && !text.contains("0.0.0.0"),
        "{text}"
    );
    assert_eq!(parse(&config).inbounds().count(), 1);
}

#[test]
fn users_go_by_protocol() {
    let inbound = |protocol: &str, settings: Value| json!({ "tag": "t", "protocol": protocol, "settings": settings });
    let protocol = |inbound: Value| {
        parse(&json!({ "inbounds": [inbound] }))
            .inbounds()
            .next()
            .map(|inbound| inbound.protocol)
    };
    assert_eq!(protocol(inbound("vmess", json!({}))), Some(Protocol::Vmess));
    assert_eq!(
        protocol(inbound("trojan", json!(null))),
        Some(Protocol::Trojan)
    );
    assert_eq!(
        protocol(inbound("hysteria", json!({}))),
        Some(Protocol::Hysteria)
    );
    assert_eq!(
        protocol(inbound("shadowsocks", json!({ "method": "aes-256-gcm" }))),
        Some(Protocol::Shadowsocks {
            default: Cipher::Aes256Gcm
        })
    );
    assert_eq!(
        protocol(inbound(
            "shadowsocks",
            json!({ "method": "2022-blake3-aes-256-gcm" })
        )),
        Some(Protocol::Shadowsocks2022 { key_bytes: 32 })
    );
    assert_eq!(
        protocol(inbound(
            "shadowsocks",
            json!({ "method": "2022-blake3-chacha20-poly1305" })
        )),
        None
    );
    assert_eq!(protocol(inbound("socks", json!({}))), None);
    assert_eq!(protocol(inbound("wireguard", json!({ "peers": [] }))), None);
}

#[test]
fn vision_is_for_transports_that_can_carry_it() {
    let vision = |stream: Value, settings: Value| {
        let config = json!({ "inbounds": [{ "tag": "t", "protocol": "vless", "settings": settings, "streamSettings": stream }] });
        match parse(&config).inbounds().next().unwrap().protocol {
            Protocol::Vless { vision, .. } => vision,
            other => panic!("{other:?}"),
        }
    };
    let none = || json!({ "decryption": "none" });
    assert!(vision(
        json!({ "network": "tcp", "security": "tls" }),
        none()
    ));
    assert!(vision(
        json!({ "network": "raw", "security": "reality" }),
        none()
    ));
    assert!(vision(json!({ "security": "tls" }), none()));
    assert!(vision(
        json!({ "network": "kcp", "security": "tls" }),
        none()
    ));
    assert!(!vision(json!({ "network": "tcp" }), none()));
    assert!(!vision(
        json!({ "network": "ws", "security": "tls" }),
        none()
    ));
    assert!(!vision(
        json!({ "network": "tcp", "security": "tls", "tcpSettings": { "header": { "type": "http" } } }),
        none()
    ));
    assert!(vision(
        json!({ "network": "ws" }),
        json!({ "decryption": "mlkem768x25519plus.native.600s.x" })
    ));
    assert!(!vision(json!(null), none()));
}

#[test]
fn skeletons_are_equal_when_xray_would_run_the_same() {
    let base = parse(&everything());
    let mut users = everything();
    users["inbounds"][1]["settings"]["clients"] = json!([{ "id": "other" }]);
    assert_eq!(base, parse(&users), "users are no part of it");
    let mut rule = everything();
    rule["routing"]["domainStrategy"] = json!("AsIs");
    let rule = parse(&rule);
    assert_ne!(base, rule);
    assert_eq!(base.differences(&rule), ["routing"]);
    assert_ne!(
        base,
        Skeleton::parse(&everything().to_string(), &["vless".to_owned()]).unwrap()
    );
}

#[test]
fn log_files_are_the_nodes_to_write() {
    let skeleton = parse(&everything());
    assert_eq!(
        skeleton.log_files().access.as_deref(),
        Some(Path::new("/var/log/xray/access.log"))
    );
    assert_eq!(skeleton.log_files().error, None);
}

#[test]
fn an_empty_2022_inbound_stays_open_for_more_users() {
    let config = json!({ "inbounds": [{ "tag": "ss", "protocol": "shadowsocks", "settings": { "method": "2022-blake3-aes-256-gcm" } }] });
    let clients = |users: &Fixed| {
        render_with(&parse(&config), NEW, users)
            .pointer("/inbounds/0/settings/clients")
            .cloned()
            .unwrap()
    };
    let placeholder = clients(&Fixed::default());
    assert_eq!(placeholder[0]["email"], json!(PLACEHOLDER));
    assert_eq!(
        placeholder[0]["password"],
        json!("BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=")
    );
    let key = Account::Shadowsocks2022 { key: "k".into() };
    assert_eq!(
        clients(&Fixed(vec![("ss", "7", key)]))
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

#[test]
fn hysteria_users_are_counted_rather_than_inbounds_where_a_core_can_not_do_both() {
    let config = json!({ "inbounds": [{ "tag": "h", "protocol": "hysteria", "settings": { "version": 2 } }] });
    let counted = |version| {
        let rendered = render_with(&parse(&config), version, &Fixed::default());
        rendered
            .pointer("/policy/system/statsInboundUplink")
            .cloned()
            .unwrap()
    };
    assert_eq!((counted(OLD), counted(NEW)), (json!(false), json!(true)));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-zA-Z:>,/ ]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-zA-Z]{1,8}", inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn unknown_keys_are_kept_whatever_they_hold(extra in any_json(), inner in any_json()) {
        let mut config = everything();
        config["extraPart"] = extra.clone();
        config["inbounds"][1]["streamSettings"]["extraPart"] = inner.clone();
        config["outbounds"][0]["settings"] = inner.clone();
        let rendered = render(&config);
        prop_assert_eq!(&rendered["extraPart"], &extra);
        prop_assert_eq!(&rendered["inbounds"][1]["streamSettings"]["extraPart"], &inner);
        prop_assert_eq!(&rendered["outbounds"][0]["settings"], &inner);
    }

    #[test]
    fn no_part_of_any_shape_makes_it_panic(key in prop::sample::select(&rewrite::TOP_LEVEL[..]), value in any_json()) {
        let mut config = everything();
        config[key] = value;
        if let Ok(skeleton) = Skeleton::parse(&config.to_string(), &[]) {
            let once = render_with(&skeleton, OLD, &Fixed::default());
            let twice = render_with(&parse(&once), OLD, &Fixed::default());
            prop_assert_eq!(once, twice);
        }
    }
}

mod rules {
    use super::*;

    fn with(rules: &Value) -> Skeleton {
        parse(&json!({
            "outbounds": [{ "tag": "direct", "protocol": "freedom" }, { "tag": "block", "protocol": "blackhole" }],
            "routing": { "domainStrategy": "AsIs", "balancers": [{ "tag": "b", "selector": ["block"] }], "rules": rules },
        }))
    }

    fn rule(tag: &str, domain: &str) -> Value {
        json!({ "ruleTag": tag, "domain": [domain], "outboundTag": "block" })
    }

    fn untagged(domain: &str) -> Value {
        json!({ "domain": [domain], "outboundTag": "block" })
    }

    fn added(rule: &Value) -> Rule {
        Rule::parse(&rule.to_string()).unwrap()
    }

    #[test]
    fn a_rule_goes_behind_all_others_and_is_there_once() {
        let before = with(&json!([rule("a", "a.example")]));
        let after = before
            .with_rule(&added(&rule("b", "b.example")))
            .unwrap()
            .unwrap();
        assert_eq!(
            after,
            with(&json!([rule("a", "a.example"), rule("b", "b.example")]))
        );
        assert!(
            after
                .with_rule(&added(&rule("b", "b.example")))
                .unwrap()
                .is_none()
        );
        let error = after
            .with_rule(&added(&rule("b", "c.example")))
            .unwrap_err();
        assert!(matches!(error, RuleError::Duplicate(tag) if tag == "b"));
        assert_eq!(after.without_rule("b"), before);
        assert_eq!(after.without_rule("nosuch"), after);
    }

    #[test]
    fn a_rule_is_put_right_like_those_of_a_config() {
        let text = r#"{"ruletag":"p","IP":"geoip:private","outboundtag":"block"}"#;
        let skeleton = with(&json!([])).with_rule(&Rule::parse(text).unwrap());
        let config = with(&json!([serde_json::from_str::<Value>(text).unwrap()]));
        assert_eq!(skeleton.unwrap().unwrap(), config);
    }

    #[test]
    fn what_belongs_to_the_node_is_refused() {
        for (text, told) in [
            (r#"{"domain":["a"],"outboundTag":"API"}"#, "API"),
            (r#"{"domain":["a"],"OUTBOUNDTAG":"API"}"#, "API"),
            (
                r#"{"ruleTag":"raynode-api","port":1,"outboundTag":"block"}"#,
                "raynode-api",
            ),
            ("7", "object"),
            ("{", "JSON"),
        ] {
            let error = Rule::parse(text).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn a_reset_keeps_the_node_s_own_rule_and_no_balancer() {
        let only =
            with(&json!([rule("a", "a.example")])).with_only_rule(&added(&rule("b", "b.example")));
        let tags: Vec<&str> = only
            .rules()
            .iter()
            .map(|rule| rule["ruleTag"].as_str().unwrap())
            .collect();
        assert_eq!(tags, ["PG_NODE_MALFORMED_DOMAIN_GUARD", "b"]);
        assert_eq!(only.root["routing"].get("balancers"), None);
        assert_eq!(only.root["routing"]["domainStrategy"], json!("AsIs"));
    }

    #[test]
    fn rules_change_in_steps_where_a_running_core_can_make_them() {
        let (a, b, c) = (
            rule("a", "a.example"),
            rule("b", "b.example"),
            rule("c", "c.example"),
        );
        let steps = |from: Value, to: Value| {
            let steps = with(&from).rule_steps(&with(&to))?;
            Some((steps.append, steps.remove))
        };
        let none = Vec::<Value>::new;
        assert_eq!(
            steps(json!([a, b]), json!([a])),
            Some((none(), vec!["b".to_owned()]))
        );
        assert_eq!(
            steps(json!([a, b, c]), json!([a, c])),
            Some((none(), vec!["b".to_owned()]))
        );
        assert_eq!(
            steps(json!([a, b]), json!([b, c])),
            Some((vec![c.clone()], vec!["a".to_owned()]))
        );
        let last = untagged("z.example");
        assert_eq!(
            steps(json!([a]), json!([a, last])),
            Some((vec![last.clone()], vec![]))
        );
        // Order, a tag that changes its rule, and what has no tag: only another core has it.
        assert_eq!(steps(json!([a, b]), json!([b, a])), None);
        assert_eq!(steps(json!([a]), json!([rule("a", "other.example")])), None);
        assert_eq!(steps(json!([last, a]), json!([a])), None);
    }

    #[test]
    fn other_differences_are_no_steps() {
        let before = with(&json!([rule("a", "a.example")]));
        let mut config = json!({
            "outbounds": [{ "tag": "direct", "protocol": "freedom" }, { "tag": "block", "protocol": "blackhole" }],
            "routing": { "domainStrategy": "IPIfNonMatch", "balancers": [{ "tag": "b", "selector": ["block"] }] },
        });
        assert_eq!(before.rule_steps(&parse(&config)), None);
        config["routing"]["domainStrategy"] = json!("AsIs");
        assert!(before.rule_steps(&parse(&config)).is_some());
        config["routing"]["script"] = json!("/route.lua");
        let script = parse(&config);
        assert_eq!(script.rule_steps(&before), None);
        assert!(script.routes_by_script());
    }

    proptest! {
        /// Whatever the two lists are: the steps, made as Xray makes them, lead to the second one.
        #[test]
        fn steps_lead_where_they_should(
            from in proptest::collection::vec(0..6_u8, 0..6),
            to in proptest::collection::vec(0..6_u8, 0..6),
        ) {
            let list = |numbers: &[u8]| {
                let mut seen = std::collections::HashSet::new();
                let rules: Vec<Value> = numbers
                    .iter()
                    .filter(|number| **number == 5 || seen.insert(**number))
                    .map(|number| match number {
                        5 => untagged("u.example"),
                        number => rule(&number.to_string(), "x.example"),
                    })
                    .collect();
                rules
            };
            let (from, to) = (with(&json!(list(&from))), with(&json!(list(&to))));
            let Some(steps) = from.rule_steps(&to) else { return Ok(()); };
            let mut rules = from.rules().to_vec();
            for rule in steps.append {
                let tag = rule["ruleTag"].as_str().unwrap_or_default();
                prop_assert!(tag.is_empty() || rules.iter().all(|other| other["ruleTag"] != rule["ruleTag"]), "duplicate");
                rules.push(rule);
            }
            for tag in steps.remove {
                rules.retain(|rule| rule["ruleTag"].as_str() != Some(&tag));
            }
            prop_assert_eq!(rules.as_slice(), to.rules());
        }
    }
}
