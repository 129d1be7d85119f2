//! Everything that can be found to be wrong.

use super::Verdict::{self, Fail, Warn};

/// Something that can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symptom {
    /// Its name, the same in every version.
    pub id: &'static str,
    /// What was looked at.
    pub about: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// What it means for the node and its users.
    pub means: &'static str,
    /// The command, or the words, that mend it.
    pub mend: &'static str,
}

macro_rules! symptoms {
    ($($name:ident: $verdict:ident $about:literal, $means:literal, $mend:literal;)*) => {
        $(pub(super) const $name: Symptom = Symptom {
            id: stringify!($name),
            about: $about,
            verdict: $verdict,
            means: $means,
            mend: $mend,
        };)*

        /// All of them, in the order in which they are looked for.
        pub const ALL: &[Symptom] = &[$($name),*];
    };
}

symptoms! {
    SETTING_IS_WRONG: Fail "settings",
        "The daemon does not start with it.",
        "correct it in the environment, in .env or in /etc/raynode/raynode.env; docs/settings.md has all of them";
    SETTING_IS_UNKNOWN: Warn "settings",
        "Nobody reads it: it is misspelt, or of another program. What it was meant for has its default.",
        "raynode config show has every name; correct it, or remove the line";
    SETTINGS_ARE_ANOTHER_NODES: Warn "settings",
        "What is said of ports, folders and Xray goes by the wrong settings.",
        "RAYNODE_SETTINGS={} raynode doctor";
    SETTING_IS_NOT_IN_FORCE: Warn "settings",
        "It was changed in the file, and the daemon still runs with what it read before.",
        "raynode reload where docs/settings.md says that a reload takes it over; else raynode restart";

    DAEMON_IS_DOWN: Fail "daemon",
        "Nobody answers the panel. A core that serves goes on serving, and nobody looks after it.",
        "systemctl start raynode (its log: journalctl -u raynode)";
    DAEMON_HANGS: Fail "daemon",
        "A daemon is there and does not answer: nobody answers the panel either. The core serves on.",
        "systemctl restart raynode; without systemd: kill -9 its process, and start it again";
    DAEMON_FAILS: Fail "daemon",
        "A daemon is there and answers with an error; it may be of another version than this command.",
        "raynode restart; its log: journalctl -u raynode";
    DAEMON_MAY_NOT_BE_ASKED: Fail "daemon",
        "Only root and the node's own user may ask it, so much of what follows is guessed.",
        "sudo raynode doctor";
    DAEMON_IS_SLOW: Warn "daemon",
        "Panels wait for their answers: the machine is overloaded, or its disk is slow.",
        "raynode status; top; iostat -x 1";
    CORE_GAVE_UP: Fail "daemon",
        "The core died so often that it is not started again by itself: nobody can connect.",
        "raynode logs --tail 50 has its last words; where another Xray was installed lately: raynode core rollback; else mend the configuration in the panel, and start the node there";
    CORE_IS_DOWN: Fail "daemon",
        "The core died and is started again after a pause that grows with every death.",
        "raynode logs --tail 50";
    CORE_IS_SILENT: Warn "daemon",
        "The core's API does not answer, so users can't be changed or counted. One that stays silent is replaced after a minute.",
        "raynode logs --tail 50; raynode restart --core does not wait";
    ANOTHER_CORE_SERVES: Warn "daemon",
        "The one that is to serve could not take over, died and was left, or waits because HANDOVER is off.",
        "raynode reload tries the other one (again); raynode core rollback stays with the one that serves, where XRAY_EXECUTABLE_PATH does not name one";
    RENEWAL_WAS_REFUSED: Warn "daemon",
        "Another core was to take over, by the settings or by what is installed, and the one of before serves on.",
        "correct what the reason names, then raynode reload; or raynode core rollback";
    CHANGE_WAS_REFUSED: Warn "daemon",
        "What the panel wanted last is not what is served: what was served before goes on.",
        "raynode logs --tail 50; raynode config check FILE tries a configuration without changing anything";
    CORE_WAS_RESTARTED: Warn "daemon",
        "At least once every connection was closed for a change, because no second core could stand beside the first.",
        "journalctl -u raynode | grep 'started anew' names the reason; docs/handover.md has what is needed";
    HANDOVER_WAS_PLAIN: Warn "daemon",
        "Cores make way without steering: connections that are being opened at that moment may fail.",
        "sysctl -w net.ipv4.tcp_migrate_req=1; docs/handover.md names what steering needs";
    USAGE_IS_NOT_COLLECTED: Warn "daemon",
        "The panel has not collected usage for long. It is kept for USAGE_RETENTION and then dropped.",
        "look at the node in the panel: is it enabled, and does it connect?";

    NOT_LOOKED_AT: Warn "folders",
        "Only root and the node's own user may look there, so nothing is known of it.",
        "sudo raynode doctor";
    FOLDER_IS_MISSING: Warn "folders",
        "The daemon makes it when it starts.",
        "raynode run (or: systemctl start raynode)";
    FOLDER_IS_SOMEBODY_ELSES: Fail "folders",
        "The daemon does not start: what it keeps there would not be its own.",
        "chown -R raynode: {}";
    FOLDER_IS_OPEN: Fail "folders",
        "Others can read the secrets of all users there, and the daemon does not start.",
        "chmod 700 {}";
    FILE_IS_OPEN: Warn "folders",
        "A file with secrets can be read by others who get into the folder.",
        "chmod 600 {}";
    DISK_IS_FULL: Fail "disk",
        "The ledger can't be written: usage stays in memory, and is lost with the daemon and the core together.",
        "df -h {}; du -xh {} | sort -h | tail";
    DISK_IS_NEARLY_FULL: Warn "disk",
        "There is little room left for the ledger.",
        "df -h {}; du -xh {} | sort -h | tail";

    KEY_IS_UNREADABLE: Fail "key",
        "No panel can connect, and the daemon does not start.",
        "mend or remove {}; without it another key is made, which the panel needs then";
    CERTIFICATE_IS_MISSING: Warn "certificate",
        "The daemon makes one when it starts.",
        "raynode run (or: systemctl start raynode)";
    CERTIFICATE_IS_UNUSABLE: Fail "certificate",
        "The daemon does not start, or serves the one of before.",
        "raynode cert import CERTIFICATE KEY, or remove {} and its key to have a pair made";
    CERTIFICATE_HAS_ENDED: Fail "certificate",
        "Panels refuse it.",
        "raynode cert renew, and give the panel the new one";
    CERTIFICATE_ENDS_SOON: Warn "certificate",
        "Panels will refuse it then.",
        "raynode cert renew, and give the panel the new one";
    CERTIFICATE_DOES_NOT_NAME_US: Warn "certificate",
        "A panel that connects to an address that the certificate does not name refuses it.",
        "raynode cert renew --name {}, and give the panel the new one; or connect the panel to an address that it names";

    PORT_IS_TAKEN: Fail "ports",
        "The daemon does not start: somebody else listens there.",
        "ss -ltnp 'sport = :{}' names who; stop that, or set another port";
    PORT_NEEDS_A_CAPABILITY: Fail "ports",
        "Ports below 1024 need CAP_NET_BIND_SERVICE.",
        "take a port above 1023, or run the service as it is packaged";
    PORT_DOES_NOT_ANSWER: Fail "ports",
        "The daemon runs and its port does not answer with TLS: no panel gets through.",
        "journalctl -u raynode; ss -ltn 'sport = :{}'";
    METRICS_ARE_NOT_SERVED: Warn "ports",
        "Prometheus gets nothing from METRICS_LISTEN; the node serves all the same.",
        "ss -ltnp 'sport = :{}' names who has the port; set another METRICS_LISTEN, or raynode restart once it is free";
    FIREWALL_IS_CLOSED: Warn "ports",
        "A firewall runs on this machine and does not name the port: the panel may not get through.",
        "ufw allow {}/tcp";

    XRAY_IS_MISSING: Fail "xray",
        "The panel's Start fails: there is no core to start.",
        "raynode core install latest";
    XRAY_DOES_NOT_RUN: Fail "xray",
        "The panel's Start fails: the core can't be started.",
        "raynode core install latest (is {} for this machine's architecture?)";
    XRAY_LACKS_A_FEATURE: Warn "xray",
        "It works, with less.",
        "raynode core install latest";
    ASSETS_ARE_MISSING: Warn "assets",
        "A configuration with geoip: or geosite: rules is refused.",
        "raynode core geo iran (or russia, or china)";
    ASSETS_ARE_OLD: Warn "assets",
        "Rules by country and by site work on old lists.",
        "raynode core geo iran (or russia, or china)";

    CLOCK_IS_WRONG: Fail "clock",
        "Certificates seem to be not valid yet, and VMess refuses everybody.",
        "timedatectl set-ntp true";
    CLOCK_IS_NOT_KEPT: Warn "clock",
        "Nobody keeps the clock right. VMess needs it within 2 minutes of its clients.",
        "timedatectl set-ntp true";
    FEW_OPEN_FILES: Warn "limits",
        "Every connection of a user takes two files of the core: more than that many are refused.",
        "LimitNOFILE=1048576 in the unit (the packaged one has it), or ulimit -n in the shell";
    NO_BBR: Warn "kernel",
        "Long and lossy ways are slower than they have to be.",
        "printf 'net.core.default_qdisc=fq\\nnet.ipv4.tcp_congestion_control=bbr\\n' > /etc/sysctl.d/90-bbr.conf && sysctl --system";
    KERNEL_IS_OLD: Warn "kernel",
        "New connections can't be steered from one core to the next.",
        "a kernel of 5.6 or newer";
    NO_SOCK_DESTROY: Warn "kernel",
        "Connections of removed users in a core that drains can't be ended one by one.",
        "a kernel with CONFIG_INET_DIAG_DESTROY, as distributions have";
    NO_NET_ADMIN: Warn "capabilities",
        "Connections of removed users in a core that drains can't be ended one by one.",
        "AmbientCapabilities=CAP_NET_ADMIN in the unit (the packaged one has it); cap_add in docker-compose.yml";
    NO_BIND_SERVICE: Warn "capabilities",
        "The core can't listen on ports below 1024, such as 443.",
        "AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit (the packaged one has it); cap_add in docker-compose.yml";
    YAMA_FORBIDS: Warn "capabilities",
        "After a restart of the daemon the first hand-over is plain: connections that are being opened may fail.",
        "sysctl -w kernel.yama.ptrace_scope=0, or net.ipv4.tcp_migrate_req=1";
}

impl Symptom {
    /// Its name as it is printed: `certificate-ends-soon`.
    #[must_use]
    pub fn name(&self) -> String {
        self.id.to_ascii_lowercase().replace('_', "-")
    }
}

/// The catalogue, as a page of the documentation.
#[must_use]
pub fn page() -> String {
    let rows = ALL.iter().map(|symptom| {
        let mend = symptom.mend.replace('|', "\\|").replace("{}", "…");
        format!(
            "| {} | `{}` | {} | {} | {mend} |\n",
            symptom.about,
            symptom.name(),
            symptom.verdict.name(),
            symptom.means,
        )
    });
    std::iter::once(INTRODUCTION.to_owned())
        .chain(rows)
        .collect()
}

const INTRODUCTION: &str = "\
# Troubleshooting

`raynode doctor` looks at the settings, the daemon, its files, the ports, Xray and the machine, and says of each what it
found, what that means and what mends it. It works with the daemon down; as root it sees most. Its exit code is 0 where
nothing fails, 1 where something does. `--json` gives the same to programs.

| about | name | | what it means | what mends it |
| --- | --- | --- | --- | --- |
";

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE=1 cargo test --lib doctor` writes the page.
    #[test]
    fn the_page_is_the_catalogue() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/troubleshooting.md");
        let page = page();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        assert!(
            std::fs::read_to_string(&path).unwrap() == page,
            "the page is another one: UPDATE=1 writes it"
        );
    }
}
