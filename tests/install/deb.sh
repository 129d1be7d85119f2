#!/usr/bin/env bash
# The Debian package in a throw-away machine with a real systemd: install, upgrade, remove, purge.
# Needs root, mmdebstrap, systemd-nspawn, dpkg-deb and cargo-deb. Usage: deb.sh RAYNODE XRAY
set -euo pipefail
cd "$(dirname "$0")/../.."

raynode=$(realpath "$1") xray=$(realpath "$2")
# shellcheck source=tests/install/machine.sh
source tests/install/machine.sh
# shellcheck source=tests/install/documents.sh
source tests/install/documents.sh

strip -o "$work/1.0.0" "$raynode"
{ cat "$work/1.0.0" && echo 1.0.1; } >"$work/1.0.1"
for version in 1.0.0 1.0.1; do
  package=$(scripts/deb.sh --fast --version "$version-1" --out "$work/$version.deb" "$arch" "$work/$version")
  cp "$package" "$share/$version.deb"
done
cp "$work/1.0.1" "$share/new"

if command -v lintian >/dev/null; then
  # Everything is an error, but what has its reason in deploy/debian/raynode.lintian-overrides.
  lintian --allow-root --fail-on error,warning "$share/1.0.0.deb" || fail "lintian"
  ok "lintian"
else
  echo "SKIPPED, because there is no lintian: the package is not looked at"
fi

dpkg() {
  inside env DEBIAN_FRONTEND=noninteractive dpkg "$@" >"$work/said" 2>&1 </dev/null
}

dpkg-deb -x "$share/1.0.0.deb" "$work/unpacked"
has_its_pages "$work/unpacked/usr/share/doc/raynode"
ok "README.md and every page that it leads to"

boot
before=$(files)

dpkg -i /share/1.0.0.deb || fail "dpkg -i"
is_active
inside systemctl is-enabled --quiet raynode || fail "not enabled"
inside id -u raynode >/dev/null || fail "no user"
owner_is "root:raynode 640" /etc/raynode/raynode.env
inside test -d /var/lib/raynode || fail "no state"
user=$(sed -n 's/^User=//p' deploy/systemd/raynode.service)
[[ $(inside ps -o user= -p "$(daemon)") == "${user:-root}" ]] || fail "runs as another user"
ok "dpkg -i: it runs, with its user and its settings"

inside sh -c "echo API_KEY=$key >>/etc/raynode/raynode.env && systemctl restart raynode"
panel_starts_a_core
first=$(daemon)
dpkg -i /share/1.0.1.deb || fail "the upgrade fails"
is_active
serves_with "$core"
[[ $(daemon) != "$first" ]] || fail "the old daemon runs on"
inside cmp /usr/bin/raynode /share/new || fail "not the new program"
inside cmp "/proc/$(daemon)/exe" /share/new || fail "the new program does not run"
owner_is "root:raynode 640" /etc/raynode/raynode.env
ok "upgrade: a new daemon, the same core, the same settings"

dpkg -i /share/1.0.0.deb || fail "the downgrade fails"
serves_with "$core"
ok "downgrade: the same core"

dpkg -r raynode || fail "dpkg -r"
[[ -z $(cores) ]] || fail "dpkg -r leaves a core"
! inside systemctl is-active --quiet raynode || fail "dpkg -r leaves the service"
! inside test -e /usr/bin/raynode || fail "dpkg -r leaves the program"
inside grep -qx "API_KEY=$key" /etc/raynode/raynode.env || fail "dpkg -r takes the settings"
inside test -e /var/lib/raynode/certs/ssl_key.pem || fail "dpkg -r takes the state"
ok "dpkg -r: node and core are gone, settings and state are there"

dpkg -i /share/1.0.1.deb || fail "dpkg -i after dpkg -r"
is_active
serves_again
ok "installed again: it serves what it served"

# Killed, and removed before systemd starts it again: nobody is there who could stop the core.
inside sh -c 'mkdir -p /etc/systemd/system/raynode.service.d &&
  printf "[Service]\nRestartSec=60\n" >/etc/systemd/system/raynode.service.d/slow.conf && systemctl daemon-reload &&
  systemctl kill --kill-whom=main --signal=KILL raynode'
[[ -n $(cores) ]] || fail "the core did not outlive its daemon"
dpkg -r raynode || fail "dpkg -r"
for ((i = 0; i < 50; i++)); do
  [[ -n $(cores) ]] || break
  sleep 0.1
done
[[ -z $(cores) ]] || fail "dpkg -r leaves a core that nobody looks after"
ok "dpkg -r: a core without a daemon is gone, too"

dpkg -P raynode || fail "dpkg -P"
has_only "$before"
ok "dpkg -P: nothing is left"

dpkg -i /share/1.0.0.deb || fail "dpkg -i"
is_active
dpkg -P raynode || fail "dpkg -P"
has_only "$before"
ok "dpkg -P of one that runs: nothing is left"

# Its user may be the one of a second node, too.
dpkg -i /share/1.0.0.deb || fail "dpkg -i"
inside sh -c 'sed "s/raynode\.env/two.env/; s/Directory=raynode\$/Directory=raynode-two/" /usr/lib/systemd/system/raynode.service \
  >/etc/systemd/system/raynode-two.service && cp /etc/raynode/raynode.env /etc/raynode/two.env'
dpkg -P raynode || fail "dpkg -P"
inside test -e /etc/raynode/two.env || fail "dpkg -P takes the settings of a second node"
inside id -u raynode >/dev/null || fail "dpkg -P takes the user of a second node"
says "the user raynode stays: /etc/systemd/system/raynode-two.service has it"
inside sh -c 'rm -r /etc/systemd/system/raynode-two.service /etc/raynode && userdel raynode'
has_only "$before"
ok "dpkg -P: what a second node has stays"

inside sh -c 'touch /usr/local/bin/raynode && cp /usr/lib/systemd/system/dbus.service /etc/systemd/system/raynode.service'
! dpkg -i /share/1.0.0.deb || fail "installs over install.sh's"
says "install.sh uninstall"
ok "what install.sh has installed is in the way"

stop_machine
echo "all passed"
