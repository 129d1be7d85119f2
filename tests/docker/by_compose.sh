# shellcheck shell=bash disable=SC2034,SC2154
# By docker-compose.yml as it is: a panel starts it, users' traffic goes through it, and it lives through what containers
# live through. Sourced.

mkdir "$work/node" "$work/archives"
cp docker-compose.yml "$work/node/"
read -r service api inbound client_port second_port echo_port low < <(
  python3 - <<'PORTS'
import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(6)]
def is_free(port):
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
print(*(one.getsockname()[1] for one in held), next(filter(is_free, range(600, 1024))))
PORTS
)
cat >"$work/node/.env" <<SETTINGS
# As somebody has it who comes from another node.
NODE_HOST=127.0.0.1
SERVICE_PORT=$service
API_PORT=$api
METRICS_LISTEN=off
CERT_SAN=127.0.0.1
SETTINGS
# For the archive of a core, somebody mounts a folder.
cat >"$work/node/archives.yml" <<MOUNT
services:
  raynode:
    volumes:
      - $work/archives:/archives:ro
MOUNT

composed() {
  (cd "$work/node" && RAYNODE_IMAGE=$project "${compose[@]}" --project-name "$project" \
    --file docker-compose.yml --file archives.yml "$@")
}

up() {
  composed up --detach --no-build >"$work/compose.log" 2>&1 || { cat "$work/compose.log" && fail "compose does not bring it up"; }
  container=$(composed ps --quiet raynode)
  init=$(inspect "$container" '{{.State.Pid}}')
}

up
until_so "it does not get healthy" is_healthy "$container"
[[ $(raynode status) == *'waiting for a panel'* ]] || fail "raynode status: $(raynode status)"
# As operators do it.
composed exec -T raynode raynode status >"$work/said" 2>&1 || fail "compose exec: $(<"$work/said")"
raynode doctor >"$work/said" 2>&1 || fail "raynode doctor: $(<"$work/said")"
grep -q 'CAP_' "$work/said" && fail "raynode doctor: $(<"$work/said")"
[[ $(raynode --version) == "raynode $(cargo_version)" ]] || fail "it is $(raynode --version)"
daemon=$(the_daemon)
for one in "$init" "$daemon"; do
  [[ $(awk '/^[UG]id:/ { print $2, $3, $4, $5 }' "/proc/$one/status" | sort -u) == "10001 10001 10001 10001" ]] ||
    fail "$one is not of the user 10001"
  may "$one" Bnd "$all_of_compose"
done
may "$daemon" Eff "$bind_admin"
root=/proc/$init/root
for place in usr/local/bin/xray etc/passwd new; do
  (: >>"$root/$place") 2>/dev/null && fail "/$place can be written"
done
[[ $(stat --format '%u:%g %a' "$root/var/lib/raynode" "$root/run/raynode" | sort -u) == "10001:10001 700" ]] ||
  fail "the folders belong to somebody else: $(stat --format '%n %u:%g %a' "$root/var/lib/raynode" "$root/run/raynode")"
echo "ok: it is healthy, as 10001, and its root can't be written"

# --- A panel and its users ---

pairing() {
  raynode pair --json | python3 -c "import json, sys; print(json.load(sys.stdin)['$1'])"
}

key=$(pairing api_key)
raynode pair --certificate >"$work/certificate"

# call PATH OPTION...: as the panel does, who knows the certificate.
call() {
  local path=$1
  shift
  curl --silent --show-error --max-time 60 --cacert "$work/certificate" --retry 20 --retry-delay 0 --retry-max-time 15 \
    --retry-connrefused -H "x-api-key: $key" -H 'content-type: application/json' -H 'accept: application/json' "$@" "https://127.0.0.1:$service/$path"
}

first=6f1d2f0e-3c6a-4a53-9d4e-0b1a6c6f2b11 second=6f1d2f0e-3c6a-4a53-9d4e-0b1a6c6f2b22
user() {
  echo '{"email":"'"$1"'","proxies":{"vless":{"id":"'"$2"'"}},"inbounds":['"$3"']}'
}
vless='{"tag":"in","protocol":"vless","listen":"127.0.0.1","port":'$inbound',"settings":{"clients":[],"decryption":"none"}}'
config='{"log":{"loglevel":"warning"},"inbounds":['$vless,$(door "$low" "$echo_port")'],"outbounds":['$direct']}'
users="[$(user first $first '"in"'),$(user second $second '"in"')]"

# of_user ID PORT ADDRESS: his client, behind this port; he comes from this address, for 127.0.0.1 is told of nobody.
of_user() {
  echo '{"log":{"loglevel":"warning"},"inbounds":['"$(door "$2" "$echo_port")"'],
    "outbounds":[{"protocol":"vless","sendThrough":"'"$3"'","settings":{"vnext":[
      {"address":"127.0.0.1","port":'"$inbound"',"users":[{"id":"'"$1"'","encryption":"none"}]}]}}]}'
}

# A word through this port, to the echo and back.
echo_through() {
  [[ $(timeout 5 bash -c "exec 3<>/dev/tcp/127.0.0.1/$1; echo hello >&3; head -n 1 <&3" 2>/dev/null) == hello ]]
}

call start -X POST -d "$(start_with "$config" "$users")" | grep -q '"started":true' || fail "the node does not start"
"$xray" run -c stdin: <<<"$(of_user $first "$client_port" 127.0.0.6)" >"$work/client.log" 2>&1 &
started+=($!)
hold_streams() {
  rm -f "$work/count"
  python3 tests/systemd/streams.py "$client_port" "$echo_port" 20 "$work/count" >"$work/streams.log" 2>&1 &
  streams=$!
  started+=("$streams")
  until_so "streams of a user do not get through" are_open
}
are_open() { [[ -s $work/count && $(cut -d' ' -f1 "$work/count") == 20 ]]; }
hold_streams
core=$(the_cores)
may "$core" Eff "$bind"
may "$core" Bnd "$all_of_compose"
until_so "a port under 1024 leads nowhere" echo_through "$low"

# unharmed WHAT: control answers, and nothing is lost.
unharmed() {
  call stats/backend | grep -q num_goroutine || fail "$1: control does not answer"
  nothing_lost "$1"
}

# nothing_lost WHAT: this core serves, and of the streams and new connections none failed.
nothing_lost() {
  local held ended connections failed before
  [[ " $(the_cores) " == *" $core "* ]] || fail "$1: the core is not $core but $(the_cores)"
  read -r held ended connections failed <"$work/count"
  before=$connections
  # Some that are certainly of now.
  while ((connections < before + 5)); do
    sleep 0.05
    read -r held ended connections failed <"$work/count"
  done
  ((held == 20 && ended == 0 && failed == 0)) ||
    fail "$1: $held streams, $ended ended; $connections new connections, $failed failed"
  echo "ok: $1"
}
unharmed "a panel starts it, and a user's traffic flows; a port under 1024, too"

used() {
  raynode users show first --json | python3 -c 'import json, sys; used = json.load(sys.stdin)["lifetime"]; sys.exit(not (int(used["uplink"]) > 4000 and int(used["downlink"]) > 4000))'
}
until_so "what he uses is not counted" used
echo "ok: it is counted"

# --- Another core ---

version=$("$other" version | awk 'NR == 1 { print $2 }')
python3 - "$other" "$work/archives/Xray.zip" <<'ARCHIVE'
import sys, zipfile
with zipfile.ZipFile(sys.argv[2], "w", zipfile.ZIP_DEFLATED) as archive:
    archive.write(sys.argv[1], "xray")
ARCHIVE
sum=$(sha256sum <"$work/archives/Xray.zip" | cut -d' ' -f1)
# One who is removed afterwards has a connection, which stays open until a core ends it.
"$xray" run -c stdin: <<<"$(of_user $second "$second_port" 127.0.0.5)" >"$work/second.log" 2>&1 &
started+=($!)
until_so "the second user does not get through" echo_through "$second_port"
bash -c "exec 3<>/dev/tcp/127.0.0.1/$second_port; echo hello >&3; read -r _ <&3; read -r _ <&3" &
started+=($!)
# So that the core's view of who is online has him.
sleep 2

# handed_over FORM TIMES: so many hand-overs took this form by now, and another core serves.
handed_over() {
  local old=$core
  until_so "not $2 hand-overs in the form $1" logged "form=\"$1\"" "$2"
  core=$(the_cores | tr ' ' '\n' | grep -vx "$old" | tail -n 1)
  [[ -n $core ]] || fail "no core but $old is there"
  may "$core" Eff "$bind"
}

raynode core install "$version" --from /archives/Xray.zip --sha256 "$sum" >"$work/said" 2>&1 || fail "$(<"$work/said")"
handed_over steered 1
[[ $(readlink "/proc/$core/exe") == "/var/lib/raynode/cores/$version/xray" ]] || fail "the core is $(readlink "/proc/$core/exe")"
until_so "a port under 1024 leads nowhere with an installed core" echo_through "$low"
unharmed "raynode core install: a steered hand-over to Xray $version"
call user/sync -X PUT -d "$(user second $second '')" >/dev/null
until_so "the connection of a removed user is not ended" logged 'users=1 connections=1'
echo "ok: the connection of a removed user is ended in the core that drains"

# --- What containers live through ---

is_another_daemon() { [[ -n $(the_daemon) && $(the_daemon) != "$daemon" ]] && answers; }
# checked_since MOMENT: it was looked at after that, and was well.
checked_since() {
  inspect "$container" '{{range .State.Health.Log}}{{.Start.Unix}} {{.ExitCode}}{{println}}{{end}}' |
    awk -v since="$1" '$1 > since && $2 == 0 { found = 1 } END { exit !found }'
}

killed=$(date +%s)
kill -KILL "$daemon"
until_so "the daemon is not started again" is_another_daemon
daemon=$(the_daemon)
may "$daemon" Eff "$bind_admin"
until_so "it does not get healthy again" checked_since "$killed"
is_healthy "$container" || fail "it is $(inspect "$container" '{{.State.Health.Status}}')"
[[ $(inspect "$container" '{{.State.Pid}} {{.RestartCount}}') == "$init 0" ]] || fail "the container was started again"
unharmed "kill -9 of the daemon"

raynode restart >"$work/said" 2>&1 || fail "raynode restart: $(<"$work/said")"
until_so "it does not make way for the binary on disk" logged 'serving panels' 3
until_so "it does not answer again" answers
unharmed "raynode restart"
docker kill --signal HUP "$container" >/dev/null
until_so "SIGHUP does not reach the daemon" logged 'read LOG_LEVEL'

config=${config/warning/error}
call start -X POST -d "$(start_with "$config" "[$(user first $first '"in"')]")" | grep -q '"started":true' ||
  fail "the node does not start with another log level"
yama=$(cat /proc/sys/kernel/yama/ptrace_scope 2>/dev/null || echo 0)
if ((yama == 0)); then
  handed_over steered 2
  unharmed "a steered hand-over from a core of an earlier daemon"
else
  handed_over plain 1
  echo "NOT SHOWN, for Yama forbids it here: a steered hand-over from a core of an earlier daemon"
fi

kill "$streams"
cores=$(the_cores)
before=$SECONDS
docker stop --time 45 "$container" >/dev/null
took=$((SECONDS - before))
((took < 30)) || fail "it takes $took s to stop"
[[ $(inspect "$container" '{{.State.ExitCode}}') == 0 ]] || fail "it ends with exit code $(inspect "$container" '{{.State.ExitCode}}')"
for one in $cores; do
  [[ ! -e /proc/$one ]] || fail "the core $one is left"
done
# The daemon did that, and not the kernel after the end of process 1.
logged "core stopped" "$(wc -w <<<"$cores")" || fail "the daemon did not stop its cores: $cores"
echo "ok: docker stop, after $took s with exit code 0"

composed down >"$work/compose.log" 2>&1 || fail "$(<"$work/compose.log")"
up
until_so "it does not answer" answers
[[ $(pairing api_key) == "$key" ]] || fail "it has another API key"
raynode pair --certificate | cmp --quiet - "$work/certificate" || fail "it has another certificate"
is_restored() { [[ -n $(the_cores) ]]; }
until_so "what was served last is not served again" is_restored
hold_streams
core=$(the_cores)
[[ $(readlink "/proc/$core/exe") == "/var/lib/raynode/cores/$version/xray" ]] || fail "the core is $(readlink "/proc/$core/exe")"
used || fail "what he used is forgotten"
nothing_lost "compose down and up: key, certificate, core, users and usage are those of before, without a panel"
call start -X POST -d "$(start_with "$config" "[$(user first $first '"in"')]")" | grep -q '"started":true' ||
  fail "the panel is back, and the node does not start"
logged 'the node runs exactly this already' || fail "the panel is back, and another core was started"
unharmed "the panel is back"
composed down --volumes >"$work/compose.log" 2>&1 || fail "$(<"$work/compose.log")"
container=''
