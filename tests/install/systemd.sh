#!/usr/bin/env bash
# install.sh on a machine of its own with a real systemd: user, service, restart, migration, removal.
# Needs root, mmdebstrap, systemd-nspawn, openssl and python3. Usage: systemd.sh RAYNODE XRAY
set -euo pipefail
cd "$(dirname "$0")/../.."

raynode=$(realpath "$1") xray=$(realpath "$2")
# shellcheck source=tests/install/machine.sh
source tests/install/machine.sh
# shellcheck source=tests/install/pg-node.sh
source tests/install/pg-node.sh

strip -o "$work/1.0.0" "$raynode"
{ cat "$work/1.0.0" && echo 1.0.1; } >"$work/1.0.1"
# Says that it would run, and does not; and one that refuses what the others take.
cat >"$work/fails.c" <<'END'
#include <stdio.h>
#include <string.h>
int main(int count, char **words) {
  if (count > 1 && (!strcmp(words[1], "--version") || !strcmp(words[count - 1], "--check"))) {
    if (!strcmp(words[1], "run") && REFUSES) {
      fprintf(stderr, "raynode: the settings are wrong: SERVICE_PORT is too old\n");
      return 2;
    }
    printf("raynode 2.0.0\n");
    return 0;
  }
  fprintf(stderr, "raynode: out of order\n");
  return 1;
}
END
cc -static -DREFUSES=0 -o "$work/2.0.0" "$work/fails.c"
cc -static -DREFUSES=1 -o "$work/2.0.1" "$work/fails.c"
for version in 1.0.0 1.0.1 2.0.0 2.0.1; do
  scripts/release.sh --fast --version "$version" --out "$share" "$arch" "$work/$version" >/dev/null
done
cp install.sh "$work/1.0.1" "$share/"
root=$share/old
pg_node pg-node
rm "$data/xray-core/xray"
# What install.sh asks of docker is written down: no container can run in this machine.
cat >"$share/docker" <<'END'
#!/bin/sh
echo "$*" >>/root/docker.said
case "$*" in
*" ps -q") [ -e /root/docker.down ] || echo 0123456789ab ;;
*" down") touch /root/docker.down ;;
esac
END
chmod 0755 "$share/docker"

run() {
  local command=$1 version=$2
  shift 2
  local offline=()
  [[ -z $version ]] || offline=(--offline "/share/raynode-$version-linux-$arch.tar.gz")
  inside setsid --wait sh /share/install.sh "$command" "${offline[@]}" "$@" >"$work/said" 2>&1 </dev/null
}

boot
before=$(files)

run install 1.0.0 || fail "install: exit $?"
is_active
says "started raynode"
inside systemctl is-enabled --quiet raynode || fail "not enabled"
user=$(sed -n 's/^User=//p' deploy/systemd/raynode.service)
owner_is "root:raynode 640" /etc/raynode/raynode.env
owner_is "${user:-root}:${user:-root} 700" /var/lib/raynode
owner_is "root:root 755" /usr/local/bin/raynode
[[ $(inside ps -o user= -p "$(daemon)") == "${user:-root}" ]] || fail "runs as another user"
ok "install: it runs, with its user and its settings"

first=$(daemon) installed=$(files)
run install 1.0.0 || fail "install: exit $?"
says "nothing changed"
[[ $(daemon) == "$first" && $(files) == "$installed" ]] || fail "a second install changes something"
ok "a second install changes nothing"

inside sh -c "echo API_KEY=$key >>/etc/raynode/raynode.env && systemctl restart raynode"
panel_starts_a_core
first=$(daemon)
run update 1.0.1 || fail "update: exit $?"
is_active
serves_with "$core"
[[ $(daemon) != "$first" ]] || fail "the old daemon runs on"
inside cmp "/proc/$(daemon)/exe" /share/1.0.1 || fail "the new program does not run"
owner_is "root:raynode 640" /etc/raynode/raynode.env
first=$(daemon)
run update 1.0.1 || fail "update: exit $?"
says "nothing changed"
[[ $(daemon) == "$first" ]] || fail "a second update restarts the node"
ok "update: a new daemon, the same core, the same settings"

installed=$(files)
! run update 2.0.1 || fail "takes a program that refuses the settings"
says "SERVICE_PORT is too old"
says "nothing was changed"
[[ $(daemon) == "$first" && $(files) == "$installed" ]] || fail "a program that refuses the settings changes something"
inside sh -c 'cp /etc/raynode/raynode.env /root/ && echo LOG_BUFFER_SIZE=lots >>/etc/raynode/raynode.env'
! run update 1.0.0 || fail "takes settings that are wrong"
says "LOG_BUFFER_SIZE"
[[ $(daemon) == "$first" ]] || fail "a node with wrong settings is restarted"
inside sh -c 'cat /root/raynode.env >/etc/raynode/raynode.env && rm /root/raynode.env'
# What the unit sets wins over the file, also then.
inside sh -c 'echo LOG_BUFFER_SIZE=lots >>/etc/raynode/raynode.env && mkdir -p /etc/systemd/system/raynode.service.d &&
  printf "[Service]\nEnvironment=LOG_BUFFER_SIZE=99\n" >/etc/systemd/system/raynode.service.d/mine.conf &&
  systemctl daemon-reload && systemctl restart raynode'
serves_with "$core"
run update 1.0.0 || fail "does not see the environment of the node: exit $?"
run update 1.0.1 || fail "update: exit $?"
inside sh -c 'sed -i /^LOG_BUFFER_SIZE/d /etc/raynode/raynode.env && rm -r /etc/systemd/system/raynode.service.d &&
  systemctl daemon-reload && systemctl restart raynode'
serves_with "$core"
first=$(daemon)
ok "update: a program that would not run with the settings does not come in the place of one that does"

! run update 2.0.0 || fail "a program that does not run is no failure"
says "out of order"
says "raynode 2.0.0 did not come up"
says "was put back, and runs"
is_active
serves_with "$core"
inside cmp "/proc/$(daemon)/exe" /share/1.0.1 || fail "the old program does not run"
inside cmp /usr/local/bin/raynode /share/1.0.1 || fail "the old program is not put back"
[[ $(files) == "$installed" ]] || fail "something is left or missing: $(diff <(echo "$installed") <(files))"
ok "update: a program that does not come up makes way for the old one, and the core serves on"

inside systemctl stop raynode
run update 1.0.0 || fail "update: exit $?"
! inside systemctl is-active --quiet raynode || fail "an update starts what was stopped"
inside systemctl start raynode
serves_again
ok "an update does not start what somebody stopped"

run uninstall "" || fail "uninstall: exit $?"
[[ -z $(cores) ]] || fail "uninstall leaves a core"
inside test ! -e /usr/local/bin/raynode || fail "uninstall leaves the program"
inside test ! -e /etc/systemd/system/raynode.service || fail "uninstall leaves the unit"
inside grep -qx "API_KEY=$key" /etc/raynode/raynode.env || fail "uninstall takes the settings"
says "/var/lib/raynode"
ok "uninstall: node and core are gone, settings and state are there"

run install 1.0.1 || fail "install: exit $?"
serves_again
ok "installed again: it serves what it served"

# Killed, and removed before systemd starts it again: nobody is there who could stop the core.
inside sh -c 'mkdir -p /etc/systemd/system/raynode.service.d &&
  printf "[Service]\nRestartSec=60\n" >/etc/systemd/system/raynode.service.d/slow.conf && systemctl daemon-reload &&
  systemctl kill --kill-whom=main --signal=KILL raynode'
[[ -n $(cores) ]] || fail "the core did not outlive its daemon"
run uninstall "" --purge --yes || fail "uninstall --purge: exit $?"
for ((i = 0; i < 50; i++)); do
  [[ -n $(cores) ]] || break
  sleep 0.1
done
[[ -z $(cores) ]] || fail "uninstall leaves a core that nobody looks after"
has_only "$before"
ok "uninstall --purge: nothing is left, also no core whose daemon was killed"

inside useradd --system --user-group raynode
run install 1.0.0 || fail "install: exit $?"
is_active
run uninstall "" --purge --yes || fail "uninstall --purge: exit $?"
inside id -u raynode >/dev/null || fail "a user that was there before is gone"
inside userdel raynode
has_only "$before"
ok "a user that was there before stays"

# A process of the user holds it.
run install 1.0.0 || fail "install: exit $?"
inside setsid setpriv --reuid raynode --clear-groups sleep 600 2>/dev/null &
for ((i = 0; i < 50; i++)); do
  ! inside pgrep -u raynode sleep >/dev/null || break
  sleep 0.1
done
! run uninstall "" --purge --yes || fail "a user that stays is no failure"
says "the user raynode stays (userdel: "
! grep -q "removed the user" "$work/said" || fail "says that the user was removed"
inside id -u raynode >/dev/null || fail "the user is gone, so this shows nothing"
inside pkill -u raynode sleep
run uninstall "" --purge --yes || fail "uninstall --purge: exit $?"
says "removed the user raynode"
has_only "$before"
ok "a user that can't be removed is said to stay, and goes the next time"

run install 1.0.0 || fail "install: exit $?"
inside sh -c 'sed "s/raynode\.env/two.env/; s/Directory=raynode\$/Directory=raynode-two/" /etc/systemd/system/raynode.service \
    >/etc/systemd/system/raynode-two.service &&
  cp /usr/local/share/doc/raynode/raynode.env.example /etc/raynode/two.env &&
  chown root:raynode /etc/raynode/two.env && chmod 0640 /etc/raynode/two.env &&
  printf "%s\n" SERVICE_PORT=62060 API_PORT=62061 STATE_DIR=/var/lib/raynode-two RUNTIME_DIR=/run/raynode-two >>/etc/raynode/two.env &&
  systemctl daemon-reload && systemctl start raynode-two'
two=$(inside systemctl show raynode-two -p MainPID --value)
run uninstall "" --purge --yes || fail "uninstall --purge: exit $?"
says "left the user raynode: it is the one of /etc/systemd/system/raynode-two.service"
[[ $(inside systemctl show raynode-two -p MainPID --value) == "$two" ]] || fail "the second node was touched"
inside systemctl restart raynode-two || fail "the second node does not start any more"
inside sh -c 'systemctl stop raynode-two && rm -r /etc/systemd/system/raynode-two.service /etc/raynode/two.env /var/lib/raynode-two \
  /run/raynode-two /var/log/raynode-two && systemctl daemon-reload'
run uninstall "" --purge --yes || fail "uninstall --purge: exit $?"
has_only "$before"
ok "a second node runs on, and what it needs goes with it"

inside sh -c 'mkdir -p /etc/raynode && echo SERVICE_PORT=nonsense >/etc/raynode/raynode.env'
! run install 1.0.0 || fail "a node that does not run is no failure"
says "does not run"
says "SERVICE_PORT"
run uninstall "" --purge --yes || fail "uninstall --purge: exit $?"
inside rm -rf /etc/raynode
has_only "$before"
ok "a node that does not start is a failure, and says why"

inside sh -c 'cp -r /share/old/opt/pg-node /opt/ && cp -r /share/old/var/lib/pg-node /var/lib/ &&
  cp /share/docker /usr/local/bin/docker &&
  printf "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n" >/etc/systemd/system/pg-node-service.service &&
  systemctl enable --quiet --now pg-node-service'
with_old=$(files)
old_serves() {
  inside systemctl is-active --quiet pg-node-service && inside systemctl is-enabled --quiet pg-node-service &&
    inside test ! -e /root/docker.down
}
run install 1.0.0 || fail "install: exit $?"
says "goes on and has the ports"
old_serves || fail "the old node was stopped without a question"
! inside systemctl is-active --quiet raynode || fail "both run"
! inside systemctl is-enabled --quiet raynode || fail "both would start with the machine"
ok "migration: without an answer the old node goes on"

# A certificate with which the node does not start is found while the old one serves.
inside mv /var/lib/raynode/certs/ssl_key.pem /root/
run install 1.0.0 --yes || fail "install: exit $?"
says "does not start"
old_serves || fail "the old node was stopped for one that does not start"
inside mv /root/ssl_key.pem /var/lib/raynode/certs/
ok "migration: the old node is not stopped for one that would not start"

run install 1.0.0 --yes || fail "install: exit $?"
is_active
! inside systemctl is-active --quiet pg-node-service || fail "the side service runs on"
! inside systemctl is-enabled --quiet pg-node-service || fail "the side service comes back with the machine"
inside grep -qx "compose -f /opt/pg-node/docker-compose.yml -p pg-node down" /root/docker.said || fail "the container was not stopped"
for wanted in "200 $key $port /info" "403 ${key/6f/7f} $port /info" "200 $key $api_port /"; do
  read -r code a_key a_port path <<<"$wanted"
  [[ $(inside curl --silent --max-time 10 --cacert /var/lib/pg-node/certs/ssl_cert.pem --output /dev/null --write-out '%{http_code}' \
    -H "x-api-key: $a_key" "https://127.0.0.1:$a_port$path") == "$code" ]] || fail "the panel does not get $code from $path"
done
owner_is "${user:-root}:${user:-root} 600" /var/lib/raynode/certs/ssl_key.pem
run install 1.0.0 --yes || fail "install: exit $?"
says "nothing changed"
ok "migration: raynode stands in the place of the old node, and the panel sees no difference"

run uninstall "" --purge --yes || fail "uninstall --purge: exit $?"
inside rm -f /root/docker.down /root/docker.said
# The side service was disabled, and nothing else.
[[ $(files) == "$(grep -v 'multi-user.target.wants/pg-node-service.service' <<<"$with_old")" ]] ||
  fail "the old node was changed: $(diff <(echo "$with_old") <(files))"
ok "migration: the old node is there to go back to"

stop_machine
echo "all passed"
