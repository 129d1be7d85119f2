//! Every setting with its default and what it means: the one table behind `docs/settings.md` and
//! `raynode config show`.

/// A setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// What counts where it is not set; empty for nothing.
    pub default: &'static str,
    /// What it is for, in Markdown.
    pub meaning: &'static str,
    /// Whether `raynode reload` takes a change over; otherwise a restart does.
    pub live: bool,
    /// Whether its value is never shown.
    pub secret: bool,
}

/// Settings that belong together.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// What they are about.
    pub title: &'static str,
    /// They.
    pub settings: &'static [Setting],
}

const fn with_restart(name: &'static str, default: &'static str, meaning: &'static str) -> Setting {
    Setting {
        name,
        default,
        meaning,
        live: false,
        secret: false,
    }
}

const fn live(name: &'static str, default: &'static str, meaning: &'static str) -> Setting {
    Setting {
        live: true,
        ..with_restart(name, default, meaning)
    }
}

/// Every setting that there is.
pub const GROUPS: [Group; 6] = [
    Group {
        title: "What panels connect to",
        settings: &[
            with_restart(
                "NODE_HOST",
                "0.0.0.0",
                "address to listen on, IPv4 or IPv6 (`[::]` for both)",
            ),
            with_restart("SERVICE_PORT", "62050", "port to listen on"),
            with_restart(
                "API_PORT",
                "62051",
                "port for the panel's buttons, 0 for none",
            ),
            with_restart(
                "SERVICE_PROTOCOL",
                "both",
                "the transports that panels may use on `SERVICE_PORT`: `both`, `grpc` or `rest`",
            ),
        ],
    },
    Group {
        title: "Keys and certificates",
        settings: &[
            Setting {
                secret: true,
                ..with_restart(
                    "API_KEY",
                    "made at the first start, in `STATE_DIR/identity`",
                    "what the panel presents, a UUID; the nil UUID is refused",
                )
            },
            with_restart(
                "API_KEYS_FILE",
                "STATE_DIR/keys",
                "more keys, so that one can be replaced without a gap: a line each of name, blank, key; `#` begins a comment. `raynode key` adds and revokes them. Read again when it changes and on a reload; one that is named here has to exist and hold a key",
            ),
            with_restart(
                "SSL_CERT_FILE",
                "STATE_DIR/certs/ssl_cert.pem",
                "certificate, PEM. Where neither it nor its key exists, a self-signed pair is made for 10 years. A new pair is taken over when the files change or on a reload; connections live on. Set it together with `SSL_KEY_FILE` or not at all; in the environment an `SSL_CERT_FILE` alone is not read, because OpenSSL uses that name for something else",
            ),
            with_restart(
                "SSL_KEY_FILE",
                "STATE_DIR/certs/ssl_key.pem",
                "its key, PEM, without passphrase",
            ),
            with_restart(
                "CERT_SAN",
                "",
                "more names and addresses for a pair that the node makes, with commas between them; the addresses of this machine are in it anyway",
            ),
            with_restart(
                "SSL_CLIENT_CERT_FILE",
                "",
                "certificates of panels, PEM: one of them opens a session without a key, as old panels want it",
            ),
            with_restart(
                "REQUIRE_CLIENT_CERT",
                "false",
                "demands such a certificate of everybody, beside the key",
            ),
        ],
    },
    Group {
        title: "The core",
        settings: &[
            live(
                "XRAY_EXECUTABLE_PATH",
                "the one that `raynode core` has installed, else `/usr/local/bin/xray`",
                "the Xray binary. Where it is set, nothing that is installed is used",
            ),
            live(
                "XRAY_ASSETS_PATH",
                "the one that `raynode core geo` has installed, else `/usr/local/share/xray`",
                "directory of `geoip.dat` and `geosite.dat`. Where it is set, nothing that is installed is used",
            ),
            with_restart(
                "XRAY_RELEASE_URL",
                "https://github.com/XTLS/Xray-core/releases",
                "where releases of Xray come from: this, or a mirror with the same layout. What comes has to have the SHA-256 that stands beside it, and a mirror without TLS needs one that is given",
            ),
            with_restart(
                "GEO_FILES_URL",
                "",
                "a folder of a server with `geoip.dat`, `geosite.dat` and their `.sha256sum`, instead of those who are known for each region; `{region}` in it becomes `iran`, `russia` or `china`",
            ),
            live(
                "HANDOVER",
                "auto",
                "how a core makes way for another one when more than users changes: `auto`, `plain` or `off`; see [handover.md](handover.md)",
            ),
            live(
                "DRAIN_TIMEOUT",
                "1h",
                "how long a core that has made way keeps its connections at most",
            ),
            live(
                "STOP_GRACE",
                "30s",
                "how long the core serves on after the panel's Stop, in case it comes back; `0` for not at all",
            ),
            live(
                "CORE_MEMORY_LIMIT",
                "off",
                "above so much memory (bytes, or a share such as `60%`) the core makes way for a fresh one",
            ),
            live(
                "HYSTERIA_IDLE_TIMEOUT",
                "",
                "after how long hysteria clients notice that their core has made way: `4s` to `120s`; Xray's own is 30 s",
            ),
            with_restart(
                "RESTORE_ON_BOOT",
                "true",
                "serves what it served last when it is started and no panel is there yet",
            ),
        ],
    },
    Group {
        title: "Usage",
        settings: &[
            with_restart(
                "HARVEST_INTERVAL",
                "2s",
                "how often the counters of those who are online are read; less often where that costs more than 2 % of one processor",
            ),
            with_restart(
                "USAGE_RETENTION",
                "31d",
                "how long usage is kept for a panel that does not collect it",
            ),
            with_restart(
                "USAGE_UNSURE",
                "settle",
                "what becomes of a report of which nobody can know whether it arrived: `settle` or `return`; see [usage.md](usage.md)",
            ),
        ],
    },
    Group {
        title: "What panels and strangers may take",
        settings: &[
            with_restart(
                "MAX_MESSAGE_SIZE",
                "64MiB",
                "the largest message in each direction; a Start with 100,000 users is about 30 MiB",
            ),
            with_restart("MAX_HEADER_SIZE", "64KiB", "the largest head of a request"),
            with_restart("MAX_CONNECTIONS", "1024", "connections at a time"),
            with_restart(
                "MAX_CONNECTIONS_PER_ADDRESS",
                "128",
                "how many of them from one address (IPv6: from one /64)",
            ),
            with_restart("MAX_STREAMS", "256", "calls on one connection at a time"),
            with_restart("HANDSHAKE_TIMEOUT", "10s", "for the TLS handshake"),
            with_restart(
                "ADMISSION_TIMEOUT",
                "30s",
                "for somebody on a new connection to show a key",
            ),
            with_restart(
                "HEADER_TIMEOUT",
                "75s",
                "for the head of a request over HTTP/1.1, and between two of them",
            ),
            with_restart(
                "BODY_TIMEOUT",
                "2m",
                "for the body of a request over HTTP/1.1",
            ),
            with_restart("IDLE_TIMEOUT", "1h", "for a connection without a call"),
        ],
    },
    Group {
        title: "Logs and files",
        settings: &[
            live(
                "LOG_LEVEL",
                "info",
                "the node's own log, on stderr: `off`, `error`, `warn`, `info`, `debug`, `trace`",
            ),
            with_restart(
                "LOG_FORMAT",
                "text",
                "`text`, `json`, or `journald`: to the journal with every field, or as text where there is no journal",
            ),
            with_restart(
                "METRICS_LISTEN",
                "127.0.0.1:62052",
                "where Prometheus finds `/metrics`: address and port, a port alone for the loopback address, or `off`; see [metrics.md](metrics.md)",
            ),
            with_restart(
                "LOG_BUFFER_SIZE",
                "10000",
                "lines of the core's log that are remembered for viewers, 1 to 1,000,000 and at most 4 MiB",
            ),
            with_restart(
                "STARTUP_LOG_TAIL_SIZE",
                "200",
                "lines of the core's log in the error of a failed start, 1 to 10,000 and at most 4 KiB",
            ),
            with_restart(
                "DEBUG",
                "false",
                "writes the configuration that the core is started with to a file, with the secrets of all users, and repeats the core's lines in the node's log",
            ),
            with_restart(
                "GENERATED_CONFIG_PATH",
                "STATE_DIR/generated",
                "where `DEBUG` writes `xray.json`",
            ),
            with_restart(
                "STATE_DIR",
                "/var/lib/raynode",
                "what has to outlive a restart of the machine: API key, certificate, ledger, and what was served last, with the secrets of all users (mode 0600). Nobody else may enter it: mode 0700, or empty",
            ),
            with_restart(
                "RUNTIME_DIR",
                "/run/raynode",
                "what has to outlive the daemon only: the running core's record, socket and output, the session, and the control socket of `raynode` the command. At most 67 bytes, no comma, for one node only. Mode as above",
            ),
        ],
    },
];

/// Each of them, whatever its group.
pub fn all() -> impl Iterator<Item = &'static Setting> {
    GROUPS.iter().flat_map(|group| group.settings)
}

/// The reference, as a page of the documentation.
#[must_use]
pub fn page() -> String {
    let mut lines = vec![INTRODUCTION.to_owned()];
    for group in GROUPS {
        lines.push(format!("\n## {}\n\n{HEADER}", group.title));
        lines.extend(group.settings.iter().map(row));
    }
    lines.concat()
}

fn row(setting: &Setting) -> String {
    let default = match setting.default {
        "" => String::new(),
        text if text.contains(' ') => text.to_owned(),
        text => format!("`{text}`"),
    };
    let by = if setting.live { "reload" } else { "restart" };
    let Setting { name, meaning, .. } = setting;
    format!("| `{name}` | {default} | {meaning} | {by} |\n")
}

const HEADER: &str = "\
| variable | default | meaning | taken over by |
| --- | --- | --- | --- |
";

const INTRODUCTION: &str = "\
# Settings

Environment variables, or lines `NAME=value` in a file; the environment wins. The daemon reads `.env` in its working
directory; under systemd its settings are in `/etc/raynode/raynode.env`. The names are those of the PasarGuard node, so
its `.env` works.

A value that is wrong is never replaced by the default: every mistake is named in one run, and nothing starts.
`raynode config show` prints what is in force and where each value comes from, and what of the file is not in force yet.

Spans of time: a number with `ms`, `s`, `m`, `h` or `d`; a bare number is seconds. Sizes: a number with `KiB`, `MiB` or
`GiB`; a bare number is bytes.

*Reload* is `raynode reload`, `systemctl reload raynode` or SIGHUP. *Restart* is `raynode restart`, which closes no
connection of a user where only these settings differ, or `systemctl restart raynode`.

This page is made of the program's own table; a test fails when they differ.
";
