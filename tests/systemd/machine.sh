# shellcheck shell=bash disable=SC2154
# A machine with a real systemd as process 1: a tree of Debian that is made once, started so that it forgets
# every change. Sourced; wants $work, a folder for its console.

tree=$PWD/.local/systemd-tree
nspawn='' leader=''
# Two machines in one control group would take each other's services for their own.
group=$(findmnt --noheadings --first-only --types cgroup2 --output TARGET || true)
group=${group:+$group/raynode-test-$$}

make_tree() {
  local packages=systemd-sysv,dbus,procps,iproute2,curl,ca-certificates
  # One with other packages is of an earlier time.
  [[ -e $tree/complete && $(<"$tree/complete") == "$packages" ]] && return
  echo "==> making a tree with systemd in .local (once, about half a minute)"
  rm -rf "$tree"
  mkdir -p "$(dirname "$tree")"
  mmdebstrap --quiet --variant=minbase --include="$packages" \
    bookworm "$tree" /etc/apt/sources.list.d/debian.sources
  echo "$packages" >"$tree/complete"
}

# start_machine OPTION...: of systemd-nspawn, such as what of ours is in it.
start_machine() {
  make_tree
  (
    if [[ -n $group ]] && mkdir "$group"; then
      echo "$BASHPID" >"$group/cgroup.procs"
    fi
    SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1 exec systemd-nspawn --quiet --keep-unit --register=no \
      --machine="raynode-test-$$" --drop-capability=CAP_SYS_RESOURCE --console=pipe \
      --directory="$tree" --volatile=overlay --private-network --system-call-filter=pidfd_getfd "$@" --boot
  ) </dev/null >"$work/console" 2>&1 &
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

inside() {
  nsenter -t "$leader" -m -p -u -i -n -C -r "$@"
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
  leave_group
}

leave_group() {
  [[ -z $group || ! -d $group ]] || find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
}

kill_machine() {
  if [[ -n $nspawn ]]; then
    kill -KILL "$leader" 2>/dev/null || true
    wait "$nspawn" 2>/dev/null || true
    nspawn=
  fi
  leave_group
}
