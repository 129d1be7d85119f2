# shellcheck shell=bash disable=SC2034,SC2154
# A node in a container: what it says, what its processes may do, and configurations for it. Sourced; $container is it.

inspect() {
  docker inspect --format "$2" "$1"
}

raynode() {
  docker exec "$container" raynode "$@"
}

log() {
  docker logs "$container" 2>&1
}

logged() { (($(log | grep -cF -- "$1") >= ${2:-1})); }
is_healthy() { [[ $(inspect "$1" '{{.State.Health.Status}}') == healthy ]]; }
answers() { raynode status --quiet 2>/dev/null; }

# processes PATTERN: their numbers on this machine.
processes() {
  docker top "$container" -eo pid,args | awk -v pattern="$1" '$0 ~ pattern { print $1 }' | xargs
}

the_daemon() { processes 'raynode run'; }
the_cores() { processes '/xray run -c'; }

# may PROCESS SET CAPABILITIES: this set of a process is exactly that, as capability.h numbers them.
may() {
  grep -qP "^Cap$2:\\t$3\$" "/proc/$1/status" || fail "$1 has another set of capabilities: $(grep -P '^Cap' "/proc/$1/status" | xargs), and not $2 $3"
}

# NET_BIND_SERVICE is 10, NET_ADMIN 12, SYS_PTRACE 19.
bind=0000000000000400 bind_admin=0000000000001400
all_of_compose=0000000000081400
none=0000000000000000

# start_with CONFIGURATION USERS: the body of a Start.
start_with() {
  python3 -c 'import json, sys; print(json.dumps({"config": sys.argv[1], "users": json.loads(sys.argv[2])}))' "$1" "$2"
}

direct='{"tag":"direct","protocol":"freedom","settings":{"finalRules":[{"action":"allow"}]}}'
# door PORT TARGET [ADDRESS]: all that comes goes there.
door() {
  echo '{"tag":"door-'"$1"'","protocol":"dokodemo-door","listen":"127.0.0.1","port":'"$1"',
    "settings":{"address":"'"${3:-127.0.0.1}"'","port":'"$2"',"network":"tcp"}}'
}
