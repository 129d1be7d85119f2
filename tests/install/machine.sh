# shellcheck shell=bash disable=SC2034,SC2154 # what the tests that source this set and use
# What the tests that source this do with a machine with a real systemd. They set raynode and xray; what they put
# into $share is in /share there.

work=$(mktemp -d)
share=$work/share
mkdir "$share"

# shellcheck source=tests/systemd/machine.sh
source tests/systemd/machine.sh

finish() {
  local status=$?
  kill_machine
  if ((status)) && [[ -s $work/console ]]; then
    echo "--- the console:"
    tail -n 30 "$work/console"
  fi
  rm -rf "$work"
}
trap finish EXIT

case $(uname -m) in
x86_64) arch=amd64 ;;
aarch64) arch=arm64 ;;
esac

boot() {
  start_machine --bind-ro="$share:/share" --bind-ro="$xray:/usr/local/bin/xray"
  inside ip link set lo up
}

fail() {
  inside journalctl --no-pager --lines 40 --unit raynode || true
  [[ ! -s $work/said ]] || { echo "--- what was said last:" && tail -n 30 "$work/said"; }
  echo "FAILED: $*"
  exit 1
}

ok() {
  echo "ok: $*"
}

says() {
  grep -qF -- "$1" "$work/said" || fail "does not say: $1"
}

key=6f1d2f0e-3c6a-4a53-9d4e-0b1a6c6f2b11
start='{"config":"{\"inbounds\":[{\"tag\":\"in\",\"protocol\":\"vless\",\"listen\":\"127.0.0.1\",\"port\":8443,\"settings\":{\"clients\":[],\"decryption\":\"none\"}}],\"outbounds\":[{\"protocol\":\"freedom\"}]}","users":[{"email":"1","proxies":{"vless":{"id":"'$key'"}},"inbounds":["in"]}]}'

call() {
  inside curl --silent --show-error --max-time 20 --insecure --retry 20 --retry-delay 0 --retry-max-time 15 --retry-connrefused \
    -H "x-api-key: $key" -H 'content-type: application/json' -H 'accept: application/json' "$@"
}

# A panel starts a core with one user; its pid is in $core.
panel_starts_a_core() {
  call -X POST -d "$start" https://127.0.0.1:62050/start | grep -q '"started":true' || fail "the panel can't start a core"
  core=$(cores)
  [[ $(wc -w <<<"$core") == 1 ]] || fail "not one core: $core"
}

# Not those that are only asked for their version.
cores() {
  inside pgrep -f '^[^ ]*/xray run' || true
}

serves_with() {
  call https://127.0.0.1:62050/stats/backend | grep -q num_goroutine || fail "control does not answer"
  [[ $(cores) == "$1" ]] || fail "the core is $(cores) and not $1"
}

# What was served last is served again, by a core of which nobody has told it.
serves_again() {
  local i
  for ((i = 0; i < 100; i++)); do
    [[ -z $(cores) ]] || return 0
    sleep 0.1
  done
  fail "what was served last is not served again"
}

daemon() {
  inside systemctl show raynode -p MainPID --value
}

is_active() {
  local i
  for ((i = 0; i < 50; i++)); do
    ! inside systemctl is-active --quiet raynode || return 0
    sleep 0.1
  done
  fail "the service is not active"
}

owner_is() {
  local found
  found=$(inside stat -c '%U:%G %a' "$2") || fail "$2 is not there"
  [[ $found == "$1" ]] || fail "$2 belongs to $found and not to $1"
}

# Names, kinds and modes of everything that outlives a reboot, but what every package and every log leaves: the
# database of dpkg, backups of passwd, caches and the journal.
files() {
  inside find / -xdev \( -path /var/lib/dpkg -o -path /var/log -o -path /var/cache -o -path /tmp -o -path /var/tmp \
    -o -path /run -o -path /share -o -path /proc -o -path /sys -o -path /dev -o -path /var/lib/systemd \) -prune \
    -o ! -name '*-' ! -name .pwd.lock -printf '%p %y %m\n' | LC_ALL=C sort
}

has_only() {
  [[ $(files) == "$1" ]] || fail "something is left or missing: $(diff <(echo "$1") <(files))"
  ! inside id -u raynode >/dev/null 2>&1 || fail "the user is left"
  for folder in /run/raynode /var/log/raynode; do
    ! inside test -e "$folder" || fail "$folder is left"
  done
}
