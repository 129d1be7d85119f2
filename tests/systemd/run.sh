#!/usr/bin/env bash
# A real systemd, as process 1 of a throw-away tree, runs the daemon by deploy/systemd/raynode.service:
# a restart, an upgrade and a crash leave the core serving; a stop and a power-off take it along.
# Needs root, mmdebstrap and systemd-nspawn. Usage: run.sh RAYNODE XRAY
set -euo pipefail
cd "$(dirname "$0")/../.."

raynode=$(realpath "$1") xray=$(realpath "$2")
tree=$PWD/.local/systemd-tree
work=$(mktemp -d)
nspawn=

finish() {
  local status=$?
  if [[ -n $nspawn ]]; then
    kill -KILL "$leader" 2>/dev/null || true
    wait "$nspawn" 2>/dev/null || true
  fi
  if ((status)); then
    echo "--- the console:"
    tail -n 30 "$work/console" || true
  fi
  rm -rf "$work"
}
trap finish EXIT

if [[ ! -e $tree/complete ]]; then
  echo "==> making a tree with systemd in .local (once, about half a minute)"
  rm -rf "$tree"
  mkdir -p "$(dirname "$tree")"
  mmdebstrap --quiet --variant=minbase --include=systemd-sysv,dbus,procps,curl,ca-certificates \
    bookworm "$tree" /etc/apt/sources.list.d/debian.sources
  touch "$tree/complete"
fi

start_machine() {
  SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 systemd-nspawn --quiet --keep-unit --register=no \
    --machine="raynode-test-$$" --drop-capability=CAP_SYS_RESOURCE --console=pipe \
    --directory="$tree" --volatile=overlay --private-network \
    --bind-ro="$raynode:/usr/bin/raynode.built" --bind-ro="$xray:/usr/local/bin/xray" \
    --bind-ro="$PWD/deploy/systemd/raynode.service:/etc/systemd/system/raynode.service" \
    --boot </dev/null >"$work/console" 2>&1 &
  nspawn=$!
  local i
  for ((i = 0; i < 100; i++)); do
    leader=$(pgrep -P "$nspawn" | head -n 1) || true
    [[ -n $leader ]] && inside systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded' && return
    sleep 0.1
  done
  echo "systemd does not come up"
  return 1
}

# With a deadline: a service that does not stop would hold the power-off back.
stop_machine() {
  kill -s SIGRTMIN+4 "$leader"
  local i
  for ((i = 0; i < 300; i++)); do
    kill -0 "$nspawn" 2>/dev/null || break
    sleep 0.1
  done
  kill -0 "$nspawn" 2>/dev/null && fail "the machine does not power off"
  nspawn=
}

inside() {
  nsenter -t "$leader" -m -p -u -i -n -C -r "$@"
}

call() {
  inside curl --silent --show-error --max-time 20 --insecure --retry 20 --retry-delay 0 --retry-max-time 15 --retry-connrefused \
    -H "x-api-key: $key" -H 'content-type: application/json' -H 'accept: application/json' "$@"
}

# Not the one that is only asked for its version.
core() {
  inside pgrep -f '^/usr/local/bin/xray run' || true
}

log() {
  inside journalctl --no-pager --unit raynode
}

fail() {
  log || true
  echo "FAILED: $*"
  exit 1
}

key=6f1d2f0e-3c6a-4a53-9d4e-0b1a6c6f2b11
start='{"config":"{\"inbounds\":[{\"tag\":\"in\",\"protocol\":\"vless\",\"listen\":\"127.0.0.1\",\"port\":8443,\"settings\":{\"clients\":[],\"decryption\":\"none\"}}],\"outbounds\":[{\"protocol\":\"freedom\"}]}","users":[{"email":"1","proxies":{"vless":{"id":"'$key'"}},"inbounds":["in"]}]}'

start_machine
inside ip link set lo up 2>/dev/null || true
inside sh -c "cp /usr/bin/raynode.built /usr/bin/raynode && mkdir -p /etc/raynode && echo API_KEY=$key >/etc/raynode/raynode.env"
inside systemctl start raynode
call -X POST -d "$start" https://127.0.0.1:62050/start | grep -q '"started":true' || fail "the node does not start"
first=$(core)
[[ $(wc -w <<<"$first") == 1 ]] || fail "not one core: $first"
serves() {
  call https://127.0.0.1:62050/stats/backend | grep -q num_goroutine || fail "$1: control does not answer"
  [[ $(core) == "$first" ]] || fail "$1: the core is $(core) and not $first"
  echo "ok: $1"
}

inside systemctl restart raynode
serves "systemctl restart"
# As a package manager does it: another file, then a restart.
inside sh -c 'cp /usr/bin/raynode.built /usr/bin/raynode.new && mv /usr/bin/raynode.new /usr/bin/raynode && systemctl try-restart raynode'
serves "upgrade"
inside systemctl kill --kill-whom=main --signal=KILL raynode
sleep 2
serves "kill -9"
inside systemctl reload raynode
sleep 0.3
serves "systemctl reload"
inside systemctl kill --kill-whom=main --signal=USR2 raynode
sleep 1
serves "SIGUSR2"

inside systemctl stop raynode
[[ -z $(core) ]] || fail "systemctl stop leaves the core"
echo "ok: systemctl stop"
inside systemctl start raynode
for ((i = 0; i < 50; i++)); do
  [[ -n $(core) ]] && break
  sleep 0.1
done
[[ -n $(core) ]] || fail "what was served last is not served again"
echo "ok: started again, and it serves without its panel"

stop_machine
grep -qi 'failed' "$work/console" && fail "the power-off was not clean"
echo "ok: power-off"
echo "all passed"
