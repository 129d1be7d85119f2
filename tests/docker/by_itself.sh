# shellcheck shell=bash disable=SC2034,SC2154
# With fewer and with more capabilities, in networks of their own. Sourced.

# alone NAME OPTION...: in a network of its own, whose ports are guarded as those of a machine are.
alone() {
  container=$project-$1
  shift
  containers+=("$container")
  docker run --detach --name "$container" --network none --sysctl net.ipv4.ip_unprivileged_port_start=1024 \
    --read-only --tmpfs /run/raynode:uid=10001,gid=10001,mode=0700 --env API_KEY="$first" "$@" "$project" >/dev/null
  until_so "it does not answer" answers
  init=$(inspect "$container" '{{.State.Pid}}')
  daemon=$(the_daemon)
}

# starts CONFIGURATION: whether the node starts with it.
starts() {
  nsenter --target "$init" --net curl --silent --show-error --max-time 60 --insecure -H "x-api-key: $first" \
    -H 'content-type: application/json' -H 'accept: application/json' -X POST -d "$(start_with "$1" '[]')" https://127.0.0.1:62050/start |
    tee "$work/said" | grep -q '"started":true'
}

# with_level LEVEL DOOR...
with_level() {
  local level=$1 IFS=,
  shift
  echo '{"log":{"loglevel":"'"$level"'"},"inbounds":['"$*"'],"outbounds":['"$direct"']}'
}

# How new connections were led to the other core.
form() {
  log | sed -n 's/.*form="\([a-z ]*\)".*/\1/p' | tail -n 1
}

alone usual
may "$daemon" Eff "$bind"
starts "$(with_level warning "$(door 443 9001)")" || fail "a port under 1024: $(<"$work/said")"
may "$(the_cores)" Eff "$bind"
starts "$(with_level error "$(door 443 9001)")" || fail "another log level: $(<"$work/said")"
[[ $(form) == plain ]] || fail "docker run without options: the hand-over was $(form), docs/docker.md says plain"
echo "ok: docker run without options: ports under 1024, a plain hand-over"

alone least --cap-drop ALL --security-opt no-new-privileges
may "$daemon" Eff "$none"
starts "$(with_level warning "$(door 443 9001)")" && fail "a port under 1024 without the capability"
starts "$(with_level warning "$(door 1443 9001)")" || fail "no capabilities and no core: $(<"$work/said")"
may "$(the_cores)" Eff "$none"
starts "$(with_level error "$(door 1443 9001)")" || fail "another log level: $(<"$work/said")"
[[ $(form) == plain ]] || fail "no new privileges: the hand-over was $(form), docs/docker.md says plain"
echo "ok: no capabilities and no new privileges: ports from 1024 on, a plain hand-over"

# From a door into a tunnel, whose other end is the same core, and from there to the echo. The keys are of no other use.
wireguard() {
  echo '{"inbounds":['"$(door 9002 9001 192.0.2.10)"',
    {"tag":"far","protocol":"wireguard","listen":"127.0.0.1","port":51820,"settings":{
      "secretKey":"eLE2wtyCe8mugjwgS/sXOyg29ND1kS8goJPLDiReZ2U=","address":["10.77.0.1/32"],
      "peers":[{"publicKey":"FSerzhilUu/cM0JqEcryYgeAgsQZgFpSWjakseJzlUI=","allowedIPs":["10.77.0.2/32"]}]}}'"${1:-}"'],
    "outbounds":[{"tag":"echo","protocol":"freedom","settings":{"redirect":"127.0.0.1:9001","finalRules":[{"action":"allow"}]}},
    {"tag":"near","protocol":"wireguard","settings":{
      "secretKey":"ABTyvxnDkQEtDYb3f7l21HoGlzvdULSPActIM+aYnWE=","address":["10.77.0.2/32"],
      "peers":[{"publicKey":"+FZErRSm611X43CRomnCs2EK3ukmzeeDRjF0p4xmhis=","endpoint":"127.0.0.1:51820","allowedIPs":["0.0.0.0/0"]}]}}],
    "routing":{"rules":[{"inboundTag":["door-9002"],"outboundTag":"near"},{"inboundTag":["far"],"outboundTag":"echo"}]}}'
}

# flows PORT: through this port of its network and back.
flows() {
  # Those of other containers go on.
  local i file=$work/flows-$init
  nsenter --target "$init" --net python3 tests/systemd/streams.py "$1" 9001 1 "$file" >"$file.log" 2>&1 &
  started+=($!)
  for ((i = 0; i < 100; i++)); do
    sleep 0.2
    [[ ! -s $file || $(cut -d' ' -f1 "$file") != 1 ]] || return 0
  done
  return 1
}

as_in_compose=(--cap-drop ALL --cap-add NET_BIND_SERVICE --cap-add NET_ADMIN --cap-add SYS_PTRACE)
alone compose "${as_in_compose[@]}"
starts "$(wireguard)" || fail "WireGuard does not start: $(<"$work/said")"
flows 9002 || fail "nothing comes through WireGuard"
grep -q 'wg0:' "/proc/$init/net/dev" && fail "WireGuard has a device, so this shows nothing"
echo "ok: WireGuard without a device, as compose has it"

if [[ -c /dev/net/tun ]]; then
  # As udev makes it.
  mknod --mode=666 "$work/tun" c 10 200
  alone more "${as_in_compose[@]}" --device "$work/tun:/dev/net/tun" --security-opt systempaths=unconfined
  transparent=',{"tag":"transparent","protocol":"dokodemo-door","listen":"127.0.0.1","port":9004,"settings":{"network":"tcp","followRedirect":true},"streamSettings":{"sockopt":{"tproxy":"tproxy"}}}'
  starts "$(wireguard "$transparent")" || fail "WireGuard and a transparent inbound do not start: $(<"$work/said")"
  may "$(the_cores)" Eff "$bind_admin"
  flows 9002 || fail "nothing comes through WireGuard"
  grep -q 'wg0:' "/proc/$init/net/dev" || fail "WireGuard has no device"
  echo "ok: WireGuard with a device of the kernel's and a transparent inbound, as compose.net-admin.yml has it"
else
  echo "NOT SHOWN, for there is no /dev/net/tun here: WireGuard with a device of the kernel's"
fi
