use super::*;

const ID: &str = "3f0e1b9a-2d0d-4a0c-9a4b-6f3c1f0f2d11";
const VLESS: Protocol = Protocol::Vless {
    vision: true,
    vision_by_default: false,
};

fn credentials() -> Credentials {
    Credentials {
        vmess: Some(ID.into()),
        vless: Some(ID.into()),
        flow: VISION.into(),
        trojan: Some("word".into()),
        shadowsocks: Some("hello".into()),
        shadowsocks_method: "aes-256-gcm".into(),
        hysteria: Some("auth".into()),
    }
}

fn account(protocol: Protocol) -> Account {
    Account::new(protocol, &credentials()).unwrap().unwrap()
}

fn key(password: &str, key_bytes: usize) -> String {
    derive_key(password, key_bytes).into()
}

#[test]
fn a_2022_key_is_taken_as_it_is_only_when_it_is_one() {
    // 16 and 32 bytes in padded base64.
    let (short, long) = (
        "AAECAwQFBgcICQoLDA0ODw==",
        "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    );
    assert_eq!(key(short, 16), short);
    assert_eq!(key(long, 32), long);
    // Of the wrong length, or unpadded, it is a password like any other.
    assert_ne!(key(short, 32), short);
    assert_ne!(
        key(short.trim_end_matches('='), 16),
        short.trim_end_matches('=')
    );
    assert_eq!(BASE64.decode(key(short, 32)).unwrap().len(), 32);
}

#[test]
fn other_2022_passwords_are_hashed() {
    // First 16 bytes, and all 32, of the SHA-256 of "hello".
    assert_eq!(key("hello", 16), "LPJNul+wow4m6Dsqxbning==");
    assert_eq!(
        key("hello", 32),
        "LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="
    );
}

#[test]
fn a_flow_is_cleared_where_xray_would_refuse_it() {
    let plain = Protocol::Vless {
        vision: false,
        vision_by_default: false,
    };
    let has_vision = |protocol, flow: &str| {
        let credentials = Credentials {
            flow: flow.into(),
            ..credentials()
        };
        match Account::new(protocol, &credentials).unwrap().unwrap() {
            Account::Vless { vision, .. } => vision,
            other => panic!("{other:?}"),
        }
    };
    assert!(has_vision(VLESS, VISION));
    assert!(!has_vision(VLESS, ""));
    assert!(has_vision(
        Protocol::Vless {
            vision: true,
            vision_by_default: true
        },
        ""
    ));
    assert!(!has_vision(plain, VISION));
    let odd = Credentials {
        flow: "xtls-rprx-direct".into(),
        ..credentials()
    };
    assert_eq!(Account::new(VLESS, &odd), Err(Error::Flow));
}

#[test]
fn without_a_secret_there_is_no_account() {
    let empty = Credentials {
        vmess: Some("".into()),
        vless: Some("".into()),
        trojan: Some("".into()),
        shadowsocks: Some("".into()),
        hysteria: Some("".into()),
        ..Credentials::default()
    };
    for protocol in [
        VLESS,
        Protocol::Vmess,
        Protocol::Trojan,
        Protocol::Shadowsocks {
            default: Cipher::None,
        },
        Protocol::Shadowsocks2022 { key_bytes: 16 },
        Protocol::Hysteria,
    ] {
        assert_eq!(Account::new(protocol, &empty), Ok(None), "{protocol:?}");
        assert_eq!(
            Account::new(protocol, &Credentials::default()),
            Ok(None),
            "{protocol:?}"
        );
        assert!(account(protocol).fits(protocol), "{protocol:?}");
    }
    assert!(!account(Protocol::Trojan).fits(Protocol::Vmess));
}

#[test]
fn ids_that_are_no_uuids_are_refused() {
    let bad = Credentials {
        vmess: Some("x".into()),
        vless: Some("x".into()),
        ..credentials()
    };
    assert_eq!(Account::new(VLESS, &bad), Err(Error::VlessId));
    assert_eq!(Account::new(Protocol::Vmess, &bad), Err(Error::VmessId));
}

#[test]
fn the_route_bytes_of_a_vless_id_do_not_make_another_user() {
    let with = |id: &str| {
        let credentials = Credentials {
            vless: Some(id.into()),
            vmess: Some(id.into()),
            ..credentials()
        };
        move |protocol| {
            Account::new(protocol, &credentials)
                .unwrap()
                .unwrap()
                .secret()
        }
    };
    let (a, b) = (
        with("3f0e1b9a-2d0d-4a0c-9a4b-6f3c1f0f2d11"),
        with("3f0e1b9a-2d0d-ffff-9a4b-6f3c1f0f2d11"),
    );
    assert_eq!(a(VLESS), b(VLESS));
    assert_ne!(a(Protocol::Vmess), b(Protocol::Vmess));
}

#[test]
fn the_config_lists_users_as_xray_reads_them() {
    let client = |protocol| {
        serde_json::to_string(&Client {
            email: "7",
            account: &account(protocol),
        })
        .unwrap()
    };
    assert_eq!(
        client(VLESS),
        format!(r#"{{"email":"7","level":0,"id":"{ID}","flow":"{VISION}"}}"#)
    );
    assert_eq!(
        client(Protocol::Vmess),
        format!(r#"{{"email":"7","level":0,"id":"{ID}"}}"#)
    );
    assert_eq!(
        client(Protocol::Trojan),
        r#"{"email":"7","level":0,"password":"word"}"#
    );
    assert_eq!(
        client(Protocol::Shadowsocks {
            default: Cipher::None
        }),
        r#"{"email":"7","level":0,"password":"hello","method":"aes-256-gcm"}"#
    );
    assert_eq!(
        client(Protocol::Shadowsocks2022 { key_bytes: 16 }),
        r#"{"email":"7","level":0,"password":"LPJNul+wow4m6Dsqxbning=="}"#
    );
    assert_eq!(
        client(Protocol::Hysteria),
        r#"{"email":"7","level":0,"auth":"auth"}"#
    );
}

#[test]
fn nothing_shows_a_secret() {
    let text = format!("{:?} {:?}", credentials(), account(Protocol::Trojan));
    assert!(!text.contains("word") && !text.contains(ID), "{text}");
}
