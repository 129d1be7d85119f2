use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use super::*;

fn settings(values: &[(&str, &str)]) -> Result<Settings, Mistakes> {
    let values: HashMap<String, String> = values
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    Settings::from_source(&move |name: &str| values.get(name).cloned())
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let settings = settings(&[]).unwrap();
    assert_eq!(settings.listen, "0.0.0.0:62050".parse().unwrap());
    assert_eq!(settings.maintenance, Some("0.0.0.0:62051".parse().unwrap()));
    assert_eq!(settings.api_key, None);
    assert_eq!(settings.protocols, Protocols::Both);
    let parts = settings.core.parts();
    assert_eq!(parts.binary, Path::new("/usr/local/bin/xray"));
    assert_eq!(
        (
            settings.core.memory_limit,
            settings.core.hysteria_idle_timeout
        ),
        (MemoryLimit::Off, None)
    );
    assert_eq!(settings.handover.mode, handover::Mode::Auto);
    assert_eq!(settings.handover.drain_timeout, Duration::from_secs(3600));
    assert_eq!(parts.assets, Path::new("/usr/local/share/xray"));
    assert_eq!(
        settings.certificate,
        Path::new("/var/lib/raynode/certs/ssl_cert.pem")
    );
    assert_eq!(settings.runtime_dir, Path::new("/run/raynode"));
    assert_eq!(
        (settings.log_buffer, settings.startup_log_tail),
        (10_000, 200)
    );
    assert_eq!(settings.debug_config, None);
    assert_eq!(settings.metrics, Some("127.0.0.1:62052".parse().unwrap()));
    assert_eq!(settings.log_format, LogFormat::Text);
}

#[test]
fn metrics_are_for_this_machine_unless_somebody_says_otherwise() {
    for (text, address) in [
        ("off", None),
        ("Off", None),
        ("9000", Some("127.0.0.1:9000")),
        ("0.0.0.0:9000", Some("0.0.0.0:9000")),
        ("[::1]:9000", Some("[::1]:9000")),
    ] {
        let metrics = settings(&[("METRICS_LISTEN", text)]).unwrap().metrics;
        assert_eq!(
            metrics,
            address.map(|address| address.parse().unwrap()),
            "{text}"
        );
    }
    for text in [
        "0",
        "65536",
        "127.0.0.1",
        "127.0.0.1:0",
        "localhost:9000",
        "on",
        "-1",
    ] {
        let mistakes = settings(&[("METRICS_LISTEN", text)])
            .unwrap_err()
            .to_string();
        assert!(mistakes.starts_with("METRICS_LISTEN is"), "{mistakes}");
    }
}

#[test]
fn limits_have_units_and_bounds() {
    let limits = settings(&[]).unwrap().limits;
    assert_eq!(
        (
            limits.message,
            limits.connections,
            limits.connections_per_address,
            limits.streams
        ),
        (64 << 20, 1024, 128, 256)
    );
    assert_eq!(limits.handshake_timeout, Duration::from_secs(10));
    assert_eq!(limits.idle_timeout, Duration::from_secs(3600));
    for (text, message) in [
        ("1MiB", 1 << 20),
        ("2097152", 2 << 20),
        ("1 GiB", 1 << 30),
        ("100m", 100 << 20),
    ] {
        assert_eq!(
            settings(&[("MAX_MESSAGE_SIZE", text)])
                .unwrap()
                .limits
                .message,
            message,
            "{text}"
        );
    }
    for (text, seconds) in [
        ("5", 5),
        ("5s", 5),
        ("2m", 120),
        ("1h", 3600),
        ("1500ms", 1),
    ] {
        let limits = settings(&[("BODY_TIMEOUT", text)]).unwrap().limits;
        assert_eq!(limits.body_timeout.as_secs(), seconds, "{text}");
    }
    for (name, text) in [
        ("MAX_MESSAGE_SIZE", "1023KiB"),
        ("MAX_MESSAGE_SIZE", "2GiB"),
        ("MAX_MESSAGE_SIZE", "64MB"),
        ("MAX_HEADER_SIZE", "99999999999999999999GiB"),
        ("MAX_CONNECTIONS", "0"),
        ("MAX_STREAMS", "-1"),
        ("BODY_TIMEOUT", "0"),
        ("BODY_TIMEOUT", "1 fortnight"),
        ("IDLE_TIMEOUT", "25h"),
    ] {
        let mistakes = settings(&[(name, text)]).unwrap_err().to_string();
        assert!(
            mistakes.starts_with(&format!("{name} is {text:?}: must be ")),
            "{mistakes}"
        );
    }
}

#[test]
fn blanks_and_quotes_around_a_value_do_not_count() {
    let settings = settings(&[
        ("SERVICE_PORT", " 443 "),
        ("NODE_HOST", "\"[::]\""),
        ("STATE_DIR", " '/srv/ray node' "),
        ("API_KEY", ""),
        ("DEBUG", "True"),
    ])
    .unwrap();
    assert_eq!(settings.listen, "[::]:443".parse().unwrap());
    assert_eq!(
        settings.certificate_key,
        Path::new("/srv/ray node/certs/ssl_key.pem")
    );
    assert_eq!(
        settings.debug_config.unwrap(),
        Path::new("/srv/ray node/generated")
    );
}

#[test]
fn every_mistake_is_named_in_one_run_and_no_secret_is_shown() {
    let long = format!("/run/{}", "x".repeat(100));
    let mistakes = settings(&[
        ("SERVICE_PORT", "70000"),
        ("NODE_HOST", "localhost"),
        ("API_KEY", "hunter2"),
        ("SERVICE_PROTOCOL", "soap"),
        ("DEBUG", "maybe"),
        ("LOG_BUFFER_SIZE", "0"),
        ("STARTUP_LOG_TAIL_SIZE", "-1"),
        ("LOG_LEVEL", "loud"),
        ("LOG_FORMAT", "xml"),
        ("CERT_SAN", "good.example, not good"),
        ("RUNTIME_DIR", &long),
    ])
    .unwrap_err();
    let text = mistakes.to_string();
    assert_eq!(mistakes.0.len(), 11, "{text}");
    assert!(
        text.contains("SERVICE_PORT is \"70000\": must be a port from 1 to 65535"),
        "{text}"
    );
    assert!(
        text.contains("API_KEY is (hidden): must be a UUID"),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn the_nil_uuid_is_no_key() {
    assert!(settings(&[("API_KEY", "00000000-0000-0000-0000-000000000000")]).is_err());
}

#[test]
fn an_api_key_may_have_any_form_of_a_uuid() {
    for text in [
        "0b0e1b9a-2d0d-4a0c-9a4b-6f3c1f0f2d11",
        "{0B0E1B9A-2D0D-4A0C-9A4B-6F3C1F0F2D11}",
        "urn:uuid:0b0e1b9a-2d0d-4a0c-9a4b-6f3c1f0f2d11",
        "0b0e1b9a2d0d4a0c9a4b6f3c1f0f2d11",
    ] {
        assert!(
            settings(&[("API_KEY", text)]).unwrap().api_key.is_some(),
            "{text}"
        );
    }
}

#[test]
fn names_for_the_certificate_may_carry_the_installers_prefixes() {
    let settings = settings(&[(
        "CERT_SAN",
        "DNS:node.example, IP:203.0.113.7,[2001:db8::1],*.example",
    )])
    .unwrap();
    assert_eq!(
        settings.certificate_names,
        ["node.example", "203.0.113.7", "2001:db8::1", "*.example"]
    );
}

#[test]
fn an_env_file_is_read_line_by_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(".env");
    std::fs::write(
        &path,
        "# a comment\nSERVICE_PORT= 443\n\nAPI_KEY=\"quoted\"\nNODE_HOST = '::'\nexport DEBUG=true\nthis is no line\n",
    )
    .unwrap();
    let mut mistakes = Vec::new();
    let values = source::env_file(&path, &mut mistakes);
    let value = |name: &str| values.get(name).map(String::as_str);
    assert_eq!(value("SERVICE_PORT").map(str::trim), Some("443"));
    assert_eq!(value("API_KEY"), Some("quoted"));
    assert_eq!(value("NODE_HOST"), Some("::"));
    assert_eq!(value("DEBUG"), Some("true"));
    assert_eq!(mistakes.len(), 1);
    assert!(
        mistakes[0].to_string().contains("line 7"),
        "{}",
        mistakes[0]
    );
}

#[test]
fn a_missing_env_file_is_no_mistake() {
    let mut mistakes = Vec::new();
    assert!(source::env_file(Path::new("/nonexistent/.env"), &mut mistakes).is_empty());
    assert!(mistakes.is_empty());
}

#[test]
fn certificate_and_key_are_set_together() {
    let text = settings(&[("SSL_KEY_FILE", "/key.pem")])
        .unwrap_err()
        .to_string();
    assert_eq!(
        text,
        "SSL_CERT_FILE is not set: SSL_KEY_FILE is, and they belong together"
    );
    let settings =
        settings(&[("SSL_KEY_FILE", "/key.pem"), ("SSL_CERT_FILE", "/cert.pem")]).unwrap();
    assert_eq!(settings.certificate, Path::new("/cert.pem"));
}

#[test]
fn the_environment_wins_but_for_openssls_ssl_cert_file() {
    let place = |values: &'static [(&str, &str)]| {
        move |name: &str| {
            values
                .iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| (*value).to_owned())
        }
    };
    let layered = |environment, file| {
        Settings::from_source(&source::layered(&place(environment), &place(file))).unwrap()
    };
    let settings = layered(
        &[
            ("SERVICE_PORT", "1"),
            ("SSL_CERT_FILE", "/etc/ssl/bundle.crt"),
        ],
        &[
            ("SERVICE_PORT", "2"),
            ("SSL_CERT_FILE", "/cert.pem"),
            ("SSL_KEY_FILE", "/key.pem"),
        ],
    );
    assert_eq!(settings.listen.port(), 1);
    assert_eq!(settings.certificate, Path::new("/cert.pem"));
    let settings = layered(&[("SSL_CERT_FILE", "/etc/ssl/bundle.crt")], &[]);
    assert_eq!(
        settings.certificate,
        Path::new("/var/lib/raynode/certs/ssl_cert.pem")
    );
    let settings = layered(
        &[("SSL_CERT_FILE", "/own.pem"), ("SSL_KEY_FILE", "/own.key")],
        &[],
    );
    assert_eq!(settings.certificate, Path::new("/own.pem"));
}

/// The file that operators copy names every setting, with its default.
#[test]
fn the_example_has_every_setting_with_its_default() {
    let example: HashMap<String, String> = include_str!("../../.env.example")
        .lines()
        .filter_map(|line| line.trim_start_matches('#').split_once('='))
        .filter(|(name, _)| {
            name.chars()
                .all(|char| char.is_ascii_uppercase() || char == '_')
        })
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let asked = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let shown = Settings::from_source(&|name: &str| {
        asked.borrow_mut().insert(name.to_owned());
        // Alone these two mean another thing than their default.
        (!name.starts_with("SSL_")).then(|| example.get(name).cloned())?
    });
    assert_eq!(
        format!("{:?}", shown.unwrap()),
        format!("{:?}", settings(&[]).unwrap())
    );
    let named: std::collections::BTreeSet<String> = example.into_keys().collect();
    assert_eq!(named, asked.into_inner());
}

#[test]
fn cores_have_limits_and_a_way_to_make_way() {
    let limit = |text| settings(&[("CORE_MEMORY_LIMIT", text)]).map(|all| all.core.memory_limit);
    assert_eq!(limit("off").unwrap(), MemoryLimit::Off);
    assert_eq!(limit("1GiB").unwrap(), MemoryLimit::Bytes(1 << 30));
    assert_eq!(limit("50%").unwrap(), MemoryLimit::Percent(50));
    for wrong in ["63MiB", "0%", "101%", "much"] {
        let mistakes = limit(wrong).unwrap_err().to_string();
        assert!(mistakes.starts_with("CORE_MEMORY_LIMIT"), "{mistakes}");
    }
    for (text, mode) in [
        ("auto", handover::Mode::Auto),
        ("Plain", handover::Mode::Plain),
        ("off", handover::Mode::Off),
    ] {
        let settings = settings(&[("HANDOVER", text)]).unwrap();
        assert_eq!(settings.handover.mode, mode);
    }
    for (name, wrong) in [
        ("HANDOVER", "yes"),
        ("DRAIN_TIMEOUT", "0"),
        ("HYSTERIA_IDLE_TIMEOUT", "3s"),
    ] {
        assert!(settings(&[(name, wrong)]).is_err(), "{name}");
    }
}

#[test]
fn the_reference_has_every_setting_that_is_read() {
    let read = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let source = |name: &str| {
        read.borrow_mut().insert(name.to_owned());
        None
    };
    Settings::from_source(&source).unwrap();
    let described: std::collections::BTreeSet<String> = reference::GROUPS
        .iter()
        .flat_map(|group| group.settings)
        .map(|setting| setting.name.to_owned())
        .collect();
    assert_eq!(described, *read.borrow());
}

/// `UPDATE=1 cargo test --lib settings` writes the page.
#[test]
fn the_page_of_settings_is_the_reference() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md");
    let page = reference::page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap() == page,
        "the page is another one: UPDATE=1 writes it"
    );
}

#[test]
fn what_is_in_force_is_shown_with_its_place_and_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("raynode.env");
    std::fs::write(
        &file,
        "API_KEY=7c1f4a0e-0000-4000-8000-000000000000\nSTOP_GRACE= 5s\n",
    )
    .unwrap();
    let (sources, mistakes) = Sources::read(&file);
    assert!(mistakes.is_empty());
    let all = Effective::all(&sources, Uuid::nil());
    let of = |name: &str| all.iter().find(|one| one.name == name).unwrap();
    assert_eq!(
        (
            of("API_KEY").value.as_str(),
            of("STOP_GRACE").value.as_str()
        ),
        ("(hidden)", "5s")
    );
    assert_eq!(of("STOP_GRACE").from, file.display().to_string());
    assert_eq!(
        (
            of("DRAIN_TIMEOUT").value.as_str(),
            of("DRAIN_TIMEOUT").from.as_str()
        ),
        ("1h", "default")
    );
}

#[test]
fn a_secret_that_was_changed_is_another_one_though_it_is_not_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("raynode.env");
    let of = |key: &str, salt: Uuid| {
        std::fs::write(&file, format!("API_KEY={key}\n")).unwrap();
        let (sources, _) = Sources::read(&file);
        let all = Effective::all(&sources, salt).into_iter();
        all.into_iter().find(|one| one.name == "API_KEY").unwrap()
    };
    let (salt, key) = (Uuid::new_v4(), Uuid::new_v4().to_string());
    let (before, same) = (of(&key, salt), of(&key, salt));
    let after = of(&Uuid::new_v4().to_string(), salt);
    assert_eq!(before, same);
    assert_eq!(before.value, after.value);
    assert_ne!(before.digest, after.digest);
    assert_ne!(before.digest, of(&key, Uuid::new_v4()).digest);
}

#[test]
fn a_url_is_shown_without_its_password() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("raynode.env");
    std::fs::write(
        &file,
        "XRAY_RELEASE_URL=https://me:secret@mirror.example/x\n",
    )
    .unwrap();
    let (sources, _) = Sources::read(&file);
    let all = Effective::all(&sources, Uuid::nil());
    let url = all
        .iter()
        .find(|one| one.name == "XRAY_RELEASE_URL")
        .unwrap();
    assert_eq!(url.value, "https://mirror.example/x");
}
