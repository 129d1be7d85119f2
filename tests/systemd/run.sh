#!/usr/bin/env bash
# A real systemd, as process 1 of a throw-away tree, runs the daemon by deploy/systemd/raynode.service as it is: as
# its user, in its sandbox. A restart, an upgrade, a crash and a hang leave the core serving, while streams go
# through it and new connections come; a stop and a power-off take it along.
# Needs root, mmdebstrap, systemd-nspawn and Python. Usage: run.sh RAYNODE XRAY
set -euo pipefail
cd "$(dirname "$0")/../.."

raynode=$(realpath "$1") xray=$(realpath "$2")
work=$(mktemp -d)
streams='' client=''

# shellcheck source=tests/systemd/machine.sh
source tests/systemd/machine.sh

finish() {
  local status=$?
  for process in $streams $client; do
    kill "$process" 2>/dev/null || true
  done
  kill_machine
  if ((status)); then
    echo "--- the console:"
    tail -n 30 "$work/console" || true
    echo "--- the streams:"
    tail -n 10 "$work/streams.log" 2>/dev/null || true
  fi
  rm -rf "$work"
}
trap finish EXIT

unit=deploy/systemd/raynode.service
settings=/etc/raynode/raynode.env
cores=/var/lib/raynode/cores
drop_in=/run/systemd/system/raynode.service.d

call() {
  inside curl --silent --show-error --max-time 20 --insecure --retry 20 --retry-delay 0 --retry-max-time 15 --retry-connrefused \
    -H "x-api-key: $key" -H 'content-type: application/json' -H 'accept: application/json' "$@"
}

property() {
  inside systemctl show raynode --value -p "$1"
}

# The core that serves, by the line of systemctl status.
serving() {
  property StatusText | sed -n 's/^Xray .* serves (pid \([0-9]*\));.*/\1/p'
}

# Every core, but those that are only asked something.
cores() {
  inside pgrep -f '/xray run -c' | tr '\n' ' ' || true
}

log() {
  inside journalctl --no-pager --unit raynode
}

fail() {
  log || true
  inside systemctl status --no-pager raynode || true
  echo "FAILED: $*"
  exit 1
}

# until_so WHAT COMMAND...: within ten seconds.
until_so() {
  local what=$1 i
  shift
  for ((i = 0; i < 100; i++)); do
    "$@" && return
    sleep 0.1
  done
  fail "$what"
}

is() { [[ $(property "$1") == "$2" ]]; }
is_another_daemon() { [[ $(property MainPID) != "$daemon" ]] && is ActiveState active; }
says() { [[ $(property StatusText) == *"$1"* ]]; }
logged() { (($(log | grep -cF -- "$1") >= $2)); }
no_core() { [[ -z $(cores) ]]; }
has_ended() { is ActiveState inactive || is ActiveState failed; }
has_the_port() { nsenter -t "$leader" -n ss -Hltn 'sport = :62050' | grep -q LISTEN; }
has_been_tried() { (($(property NRestarts) >= $1)); }
is_restored() { [[ -n $(serving) ]]; }

# Control answers, the same core serves, and of the streams and connections nothing is lost.
unharmed() {
  is ActiveState active || fail "$1: the unit is $(property ActiveState)"
  call https://127.0.0.1:62050/stats/backend | grep -q num_goroutine || fail "$1: control does not answer"
  until_so "$1: the core is '$(property StatusText)' and not $core" says "serves (pid $core); "
  nobody_is_cut "$1"
  daemon=$(property MainPID)
  echo "ok: $1"
}

nobody_is_cut() {
  local held ended connections failed before
  read -r held ended connections failed <"$work/count"
  before=$connections
  # Some that are certainly of now.
  while ((connections < before + 5)); do
    sleep 0.05
    read -r held ended connections failed <"$work/count"
  done
  ((held == 20 && ended == 0 && failed == 0)) ||
    fail "$1: $held streams, $ended ended; $connections new connections, $failed failed"
}

key=6f1d2f0e-3c6a-4a53-9d4e-0b1a6c6f2b11
user='{"email":"somebody","proxies":{"vless":{"id":"'$key'"}},"inbounds":["in"]}'
managed='{"tag":"in","protocol":"vless","listen":"127.0.0.1","port":8443,"settings":{"clients":[],"decryption":"none"}}'
# A port under 1024 and a mark need the capabilities.
config='{"inbounds":['$managed',
  {"tag":"door","protocol":"dokodemo-door","listen":"127.0.0.1","port":443,"settings":{"address":"127.0.0.1","port":9001,"network":"tcp"}}],
  "outbounds":[{"protocol":"freedom","streamSettings":{"sockopt":{"mark":255}}}]}'
# From a door into a tunnel, whose other end is the same core, and from there to the echo. With NET_ADMIN, Xray
# makes a device for the near end. The keys are of no other use.
through_wireguard='{"inbounds":['$managed',
  {"tag":"far","protocol":"wireguard","listen":"127.0.0.1","port":51820,"settings":{
    "secretKey":"eLE2wtyCe8mugjwgS/sXOyg29ND1kS8goJPLDiReZ2U=","address":["10.77.0.1/32"],
    "peers":[{"publicKey":"FSerzhilUu/cM0JqEcryYgeAgsQZgFpSWjakseJzlUI=","allowedIPs":["10.77.0.2/32"]}]}},
  {"tag":"transparent","protocol":"dokodemo-door","listen":"127.0.0.1","port":9004,
    "settings":{"network":"tcp","followRedirect":true},"streamSettings":{"sockopt":{"tproxy":"tproxy"}}},
  {"tag":"door","protocol":"dokodemo-door","listen":"127.0.0.1","port":9002,"settings":{"address":"192.0.2.10","port":9001,"network":"tcp"}}],
  "outbounds":[{"tag":"echo","protocol":"freedom","settings":{"redirect":"127.0.0.1:9001"}},
  {"tag":"near","protocol":"wireguard","settings":{
    "secretKey":"ABTyvxnDkQEtDYb3f7l21HoGlzvdULSPActIM+aYnWE=","address":["10.77.0.2/32"],
    "peers":[{"publicKey":"+FZErRSm611X43CRomnCs2EK3ukmzeeDRjF0p4xmhis=","endpoint":"127.0.0.1:51820","allowedIPs":["0.0.0.0/0"]}]}}],
  "routing":{"rules":[{"inboundTag":["door"],"outboundTag":"near"},{"inboundTag":["far"],"outboundTag":"echo"}]}}'
# A user's client. He comes from another address than 127.0.0.1, of which the core does not say who is online.
of_the_user='{"inbounds":[{"protocol":"dokodemo-door","listen":"127.0.0.1","port":9003,"settings":{"address":"127.0.0.1","port":9001,"network":"tcp"}}],
  "outbounds":[{"protocol":"vless","sendThrough":"127.0.0.5","settings":{"vnext":[
    {"address":"127.0.0.1","port":8443,"users":[{"id":"'$key'","encryption":"none"}]}]}}]}'

start_with() {
  local config
  config=$(tr -d '\n' <<<"$1")
  echo "{\"config\":\"${config//\"/\\\"}\",\"users\":[$user]}"
}

# A word through this port, to the echo and back.
echo_through() {
  nsenter -t "$leader" -n timeout 5 bash -c "exec 3<>/dev/tcp/127.0.0.1/$1; echo hello >&3; head -n 1 <&3" 2>/dev/null || true
}

start_machine \
  --bind-ro="$raynode:/usr/lib/raynode.built" --bind-ro="$xray:/usr/lib/xray.built" \
  --bind-ro="$PWD/$unit:/etc/systemd/system/raynode.service" \
  --bind-ro="$PWD/deploy/systemd/raynode.sysusers:/usr/lib/sysusers.d/raynode.conf" \
  --bind-ro="$PWD/deploy/systemd/raynode.tmpfiles:/usr/lib/tmpfiles.d/raynode.conf"
inside sh -eu -s <<SETUP
cp /usr/lib/raynode.built /usr/bin/raynode
systemd-sysusers
printf 'API_KEY=$key\n' >/tmp/settings
mkdir -p /etc/raynode
mv /tmp/settings $settings
systemd-tmpfiles --create /usr/lib/tmpfiles.d/raynode.conf
# As where the daemon has installed them.
for core in one two; do
  install -D -o raynode -g raynode /usr/lib/xray.built $cores/\$core/xray
done
chown -R raynode: /var/lib/raynode
# One that takes its time to say its version, so that the daemon takes its time to be ready.
printf '#!/bin/sh\n[ "\$1" = version ] && sleep 2.5\nexec $cores/one/xray "\$@"\n' >/usr/local/bin/slow-xray
chmod +x /usr/local/bin/slow-xray
SETUP
set_core() {
  inside sh -c "sed -i '/^XRAY_EXECUTABLE_PATH=/d' $settings && echo XRAY_EXECUTABLE_PATH=$1 >>$settings"
}

complaints=$(inside systemd-analyze verify --recursive-errors=no --man=no /etc/systemd/system/raynode.service 2>&1) || fail "systemd-analyze verify: $complaints"
[[ -z $complaints ]] || fail "systemd-analyze verify: $complaints"
score=$(inside systemd-analyze security --no-pager --offline=true --threshold=30 /etc/systemd/system/raynode.service | tail -n 1) ||
  fail "systemd-analyze security: $score"
echo "ok: verify is clean; $(grep -o 'Overall.*: [0-9.]*' <<<"$score")"

set_core /usr/local/bin/slow-xray
inside systemctl start --no-block raynode
sleep 1
is ActiveState activating || fail "it is $(property ActiveState) before it is ready"
until_so "it does not get ready" is ActiveState active
logged 'serving panels' 1 || fail "it is active and does not serve"
says 'no core runs; Xray' || fail "no line of what it does, but '$(property StatusText)'"
echo "ok: it is active when it is ready"

set_core $cores/one/xray
inside systemctl reload raynode
until_so "a reload does not read the settings" logged 'read LOG_LEVEL' 1
call -X POST -d "$(start_with "$config")" https://127.0.0.1:62050/start | grep -q '"started":true' || fail "the node does not start"
until_so "the line does not say what serves, but '$(property StatusText)'" says 'a panel has control'
core=$(serving) daemon=$(property MainPID)
[[ $(cores) == "$core " ]] || fail "not one core $core: $(cores)"
[[ $(inside readlink "/proc/$core/exe") == "$cores/one/xray" ]] || fail "the core is another one"
for process in "$daemon" "$core"; do
  status=$(inside cat "/proc/$process/status")
  grep -qP "^Uid:\t$(inside id -u raynode)\t" <<<"$status" || fail "$process is not of the user raynode"
  # NET_BIND_SERVICE and NET_ADMIN, and nothing else.
  grep -qP '^CapEff:\t0000000000001400$' <<<"$status" || fail "$process has other capabilities: $status"
  grep -qP '^NoNewPrivs:\t1$' <<<"$status" || fail "$process may get new privileges"
  grep -qP '^Seccomp:\t2$' <<<"$status" || fail "$process may make all system calls"
done

nsenter -t "$leader" -n python3 tests/systemd/streams.py 443 9001 20 "$work/count" >"$work/streams.log" 2>&1 &
streams=$!
are_open() { [[ -s $work/count && $(cut -d' ' -f1 "$work/count") == 20 ]]; }
until_so "streams do not get through" are_open
unharmed "it serves as raynode in its sandbox"

# handed_over CORE FORMS: to the core of this name; so many hand-overs were steered by then.
handed_over() {
  local old=$core
  set_core "$cores/$1/xray"
  inside systemctl reload raynode
  until_so "the old core does not drain, but '$(property StatusText)'" says "an older core drains (pid $old)"
  core=$(serving)
  [[ $(inside readlink "/proc/$core/exe") == "$cores/$1/xray" ]] || fail "the core is not made of $1"
  logged 'form="steered"' "$2" || fail "the hand-over was not steered"
}
# A user with a connection, which stays open until the core ends it.
nsenter -t "$leader" -n "$xray" run -c stdin: <<<"$of_the_user" >/dev/null 2>&1 &
client=$!
gets_through() { [[ $(echo_through 9003) == hello ]]; }
until_so "the user does not get through" gets_through
nsenter -t "$leader" -n bash -c 'exec 3<>/dev/tcp/127.0.0.1/9003; echo hello >&3; read -r _ <&3; read -r _ <&3' &
# So that the core's view of who is online has him.
sleep 1
handed_over two 1
unharmed "systemctl reload with another core: a steered hand-over"
call -X PUT -d "${user/\"in\"/}" https://127.0.0.1:62050/user/sync >/dev/null
until_so "the connection of a removed user is not ended" logged 'users=1 connections=1' 1
echo "ok: the connection of a removed user is ended in the core that drains"
kill "$client"
client=''
# The settings of a reload are looked at first.
inside sh -c "echo STOP_GRACE=soon >>$settings"
inside systemctl reload raynode 2>/dev/null && fail "a reload takes wrong settings"
# As is a start's, which is not tried again; users don't notice.
inside systemctl restart raynode 2>/dev/null && fail "a start takes wrong settings"
is ActiveState failed || fail "wrong settings are tried again"
[[ $(cores) == *"$core "* ]] || fail "wrong settings end the core"
nobody_is_cut "wrong settings"
inside sed -i '/^STOP_GRACE=/d' $settings
inside systemctl start raynode
unharmed "wrong settings, and right ones again"

inside systemctl restart raynode
inside systemctl restart raynode
unharmed "systemctl restart, twice"
# As a package manager does it: another file, then a restart.
inside sh -c 'cp /usr/lib/raynode.built /usr/bin/raynode.new && mv /usr/bin/raynode.new /usr/bin/raynode && systemctl try-restart raynode'
unharmed "upgrade"
inside systemctl kill --kill-whom=main --signal=KILL raynode
until_so "it is not started again" is_another_daemon
unharmed "kill -9"
ready=$(log | grep -c 'serving panels')
inside systemctl kill --kill-whom=main --signal=USR2 raynode
until_so "it does not make way for the binary on disk" logged 'serving panels' $((ready + 1))
until_so "it does not get ready again" is ActiveState active
is MainPID "$daemon" || fail "SIGUSR2 makes another process"
unharmed "SIGUSR2"
scope=$(inside cat /proc/sys/kernel/yama/ptrace_scope 2>/dev/null || echo 0)
if ((scope == 0)); then
  handed_over one 2
  unharmed "a steered hand-over from a core of an earlier daemon"
else
  echo "NOT SHOWN, for Yama forbids it here: a steered hand-over from a core of an earlier daemon"
fi

# Shorter than in the unit, or this would take long.
inside mkdir -p $drop_in
inside sh -c "printf '[Service]\nWatchdogSec=2\n' >$drop_in/short.conf"
inside systemctl daemon-reload
inside systemctl restart raynode
restarts=$(property NRestarts) daemon=$(property MainPID)
sleep 3
is MainPID "$daemon" || fail "the watchdog kills a daemon that lives"
inside systemctl kill --kill-whom=main --signal=STOP raynode
until_so "a daemon that hangs is not started again" is_another_daemon
((restarts + 1 == $(property NRestarts))) || fail "$(property NRestarts) restarts"
logged 'Watchdog timeout' 1 || fail "the log does not say why"
unharmed "a daemon that hangs"

inside rm -r $drop_in
inside systemctl daemon-reload

# It waits for its core, which does not stop, and is killed meanwhile.
inside kill -s STOP "$core"
stops=$(log | grep -c 'SIGTERM: stopping') || true
inside systemctl stop --no-block raynode
until_so "it does not stop" logged 'SIGTERM: stopping' $((stops + 1))
inside kill -s KILL "$(property MainPID)"
until_so "systemctl stop leaves $(cores)" no_core
logged 'the daemon did not stop its core' 1 || fail "the core ended in another way"
echo "ok: systemctl stop of a daemon that can't stop its core"
until_so "it does not end" has_ended
inside systemctl start raynode
until_so "what was served last is not served again" is_restored
echo "ok: started again, and it serves without its panel"

if inside test -c /dev/net/tun; then
  # As udev makes it.
  inside chmod 666 /dev/net/tun
  call -X POST -d "$(start_with "$through_wireguard")" https://127.0.0.1:62050/start | grep -q '"started":true' ||
    fail "WireGuard and a transparent inbound do not start"
  [[ $(echo_through 9002) == hello ]] || fail "nothing comes through WireGuard"
  grep -q 'wg0:' "/proc/$leader/net/dev" || fail "WireGuard has no device, so this shows nothing"
  echo "ok: WireGuard with a device of the kernel's, and a transparent inbound"
else
  echo "NOT SHOWN, for there is no /dev/net/tun here: WireGuard with a device of the kernel's"
fi
inside systemctl stop raynode
no_core || fail "systemctl stop leaves $(cores)"
is ActiveState inactive || fail "systemctl stop leaves the unit $(property ActiveState)"
echo "ok: systemctl stop"

# Another program has the port when the machine starts, and gives it up: unlike wrong settings, that passes.
nsenter -t "$leader" -n python3 -c 'import socket, time
with socket.create_server(("0.0.0.0", 62050)):
    time.sleep(600)' &
client=$!
until_so "nobody has the port" has_the_port
inside systemctl start --no-block raynode
until_so "a port that is taken is not tried again" has_been_tried 2
kill "$client"
client=''
until_so "it does not start when its port is free" is ActiveState active
echo "ok: a port that is taken is tried again"
until_so "what was served last is not served again" is_restored
stop_machine
grep -qi 'failed' "$work/console" && fail "the power-off was not clean"
echo "ok: power-off"
echo "all passed"
