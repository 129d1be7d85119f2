#!/usr/bin/env bash
# install.sh below a scratch root, against a file server on loopback that stands for the release host.
# Needs python3, curl, openssl and, for what it is named for, wget. Usage: run.sh RAYNODE XRAY [PART OF A TEST'S NAME]
set -euo pipefail
cd "$(dirname "$0")/../.."

raynode=$(realpath "$1") xray=$(realpath "$2")
work=$(mktemp -d)
www=$work/www
server='' node=''
# What install.sh may not find: nobody answers on this port.
export XRAY_RELEASE_URL=http://127.0.0.1:9/none TMPDIR=$work/tmp
unset RAYNODE_RELEASE_URL XRAY_EXECUTABLE_PATH

finish() {
  local status=$?
  [[ -z $node ]] || kill "$node" 2>/dev/null || true
  [[ -z $server ]] || kill "$server" 2>/dev/null || true
  if ((status)) && [[ -s $work/said ]]; then
    echo "--- what install.sh said last:"
    tail -n 20 "$work/said"
  fi
  rm -rf "$work"
}
trap finish EXIT

fail() {
  echo "FAILED: $test: $*"
  exit 1
}

# What can't be tested here is said, and counted at the end.
skip() {
  ((${#skipped[@]} > known)) || skipped+=("$test: $1")
}

# --- The releases ---

case $(uname -m) in
x86_64) arch=amd64 other=arm64 other_machine='\xb7' ;;
aarch64) arch=arm64 other=amd64 other_machine='\x3e' ;;
esac

# release VERSION BINARY: where the host has it.
release() {
  scripts/release.sh --fast --version "$1" --out "$www/download/v$1" "$arch" "$2" >/dev/null
}

newest() {
  rm -rf "$www/latest"
  mkdir -p "$www/latest"
  cp -r "$www/download/v$1" "$www/latest/download"
}

# One of the host's archives is another one, and its sum with it.
publish() {
  cp "$1" "$www/download/v$2/raynode-$2-linux-$arch.tar.gz"
  (cd "$www/download/v$2" && sha256sum -- *.tar.gz >SHA256SUMS)
}

mkdir -p "$TMPDIR" "$www"
test="releases"
strip -o "$work/1.0.0" "$raynode"
# Another program that does the same: what follows an ELF file is not read.
{ cat "$work/1.0.0" && echo 1.0.1; } >"$work/1.0.1"
chmod 0755 "$work/1.0.1"
release 1.0.0 "$work/1.0.0"
release 1.0.1 "$work/1.0.1"
newest 1.0.0
python3 tests/install/serve.py "$www" >"$work/port" &
server=$!
for ((i = 0; i < 100; i++)); do
  [[ ! -s $work/port ]] || break
  sleep 0.05
done
url=http://127.0.0.1:$(<"$work/port")

# --- What the tests are made of ---

# A root such as a machine has, with a file of somebody else's in it.
new_root() {
  root=$work/root.$test
  mkdir -p "$root"/{etc/systemd/system,usr/local/bin,usr/share/bash-completion,var/lib,run,opt}
  echo mine >"$root/usr/local/bin/other"
}

# Without a terminal, so that nothing waits for an answer.
run() {
  setsid --wait sh install.sh "$@" --root "$root" >"$work/said" 2>&1 </dev/null
}

installs() {
  run "$@" --from-url "$url" || fail "exit $?: $*"
}

# refuses WORDS ARGUMENTS...: fails, says these words, and changes nothing.
refuses() {
  local words=$1 before status=0
  shift
  before=$(listing)
  run "$@" || status=$?
  ((status == 1)) || fail "exit $status and not 1: $*"
  says "$words"
  is_as "$before"
}

says() {
  grep -qF -- "$1" "$work/said" || fail "does not say: $1"
}

# Everything below the root: names, kinds, modes, owners, times and content.
listing() {
  (
    cd "$root"
    # An installation of a core that fails leaves its lock, with its own number.
    find . -mindepth 1 ! -path '*/raynode/cores' ! -path '*/cores/lock' -printf '%p %y %m %U:%G %T@ %l\n' | LC_ALL=C sort
    find . -type f ! -path '*/cores/lock' -print0 | LC_ALL=C sort -z | xargs -0 -r sha256sum
  )
}

is_as() {
  local now
  now=$(listing)
  [[ $now == "$1" ]] || fail "not as it was: $(diff <(echo "$1") <(echo "$now"))"
  leaves_no_temp
}

leaves_no_temp() {
  [[ -z $(ls -A "$TMPDIR") ]] || fail "left behind: $(ls -A "$TMPDIR")"
}

has_binary() {
  cmp -s "$root/usr/local/bin/raynode" "$work/$1" || fail "not the program of $1"
}

mode_is() {
  [[ $(stat -c %a "$root$2") == "$1" ]] || fail "$2 has mode $(stat -c %a "$root$2") and not $1"
}

# --- The tests ---

test_installs_everything() {
  new_root
  installs install
  has_binary 1.0.0
  mode_is 755 /usr/local/bin/raynode
  mode_is 640 /etc/raynode/raynode.env
  mode_is 700 /var/lib/raynode
  mode_is 644 /etc/systemd/system/raynode.service
  cmp -s "$root/etc/raynode/raynode.env" .env.example || fail "other settings than the template"
  grep -q '^ExecStart=/usr/local/bin/raynode run' "$root/etc/systemd/system/raynode.service" || fail "the unit starts another program"
  ! grep -q '/usr/bin/raynode' "$root/etc/systemd/system/raynode.service" || fail "the unit names another program"
  # The unit differs from the package's in nothing but the places.
  diff <(sed 's|/usr/bin/raynode|/usr/local/bin/raynode|; s|/usr/share/doc/|/usr/local/share/doc/|' deploy/systemd/raynode.service) \
    <(tail -n +2 "$root/etc/systemd/system/raynode.service") || fail "another unit"
  leaves_no_temp
}

test_the_documentation_is_installed_with_its_pages() {
  new_root
  installs install
  has_its_pages "$root/usr/local/share/doc/raynode"
  mkdir "$root/unpacked"
  tar -xzf "$www/download/v1.0.0/raynode-1.0.0-linux-$arch.tar.gz" -C "$root/unpacked"
  has_its_pages "$root/unpacked/raynode-1.0.0-linux-$arch"
}

test_completions_are_installed_for_the_shells_that_are_there() {
  new_root
  installs install
  if ! "$work/1.0.0" completions bash >"$work/completion" 2>/dev/null; then
    skip "this raynode prints no completions"
    return
  fi
  cmp "$work/completion" "$root/usr/local/share/bash-completion/completions/raynode" || fail "another completion"
  [[ ! -e $root/usr/local/share/zsh ]] || fail "a completion for a shell that is not there"
}

test_a_second_install_changes_nothing() {
  new_root
  installs install
  before=$(listing)
  installs install
  is_as "$before"
  says "nothing changed"
  installs update
  is_as "$before"
  says "nothing changed"
}

test_what_is_missing_or_changed_is_repaired() {
  new_root
  installs install
  before=$(listing)
  chmod 0700 "$root/usr/local/bin/raynode"
  echo >>"$root/etc/systemd/system/raynode.service"
  installs install
  mode_is 755 /usr/local/bin/raynode
  [[ $(listing | grep -v ' [df] ') == $(grep -v ' [df] ' <<<"$before") ]] || fail "not repaired"
}

test_an_update_keeps_settings_and_state() {
  new_root
  installs install
  echo LOG_LEVEL=debug >"$root/etc/raynode/raynode.env"
  echo usage >"$root/var/lib/raynode/ledger"
  newest 1.0.1
  installs update
  newest 1.0.0
  has_binary 1.0.1
  [[ $(<"$root/etc/raynode/raynode.env") == LOG_LEVEL=debug ]] || fail "the settings were replaced"
  [[ $(<"$root/var/lib/raynode/ledger") == usage ]] || fail "the state was replaced"
  # And back, by name.
  installs update --version v1.0.0
  has_binary 1.0.0
}

test_an_update_that_would_not_take_the_settings_changes_nothing() {
  new_root
  installs install
  echo LOG_BUFFER_SIZE=lots >>"$root/etc/raynode/raynode.env"
  refuses "would not run" update --version 1.0.1 --from-url "$url"
  says "LOG_BUFFER_SIZE"
  refuses "would not run" install --version 1.0.1 --from-url "$url"
  has_binary 1.0.0
  sed -i '/^LOG_BUFFER_SIZE/d' "$root/etc/raynode/raynode.env"
  installs update --version 1.0.1
  has_binary 1.0.1
}

test_an_update_of_nothing_is_refused() {
  new_root
  refuses "not installed here" update --from-url "$url"
}

test_a_wrong_sum_changes_nothing_and_names_both() {
  new_root
  installs install
  cp "$www/download/v1.0.1/SHA256SUMS" "$work/sums"
  right=$(sha256sum <"$www/download/v1.0.1/raynode-1.0.1-linux-$arch.tar.gz" | cut -c 1-64)
  wrong=$(printf '%064d' 7)
  sed "s/$right/$wrong/" "$work/sums" >"$www/download/v1.0.1/SHA256SUMS"
  refuses "$wrong" update --version 1.0.1 --from-url "$url"
  says "$right"
  echo "nonsense  raynode-1.0.1-linux-$arch.tar.gz" >"$www/download/v1.0.1/SHA256SUMS"
  refuses "no SHA-256" update --version 1.0.1 --from-url "$url"
  echo "$right  something-else" >"$www/download/v1.0.1/SHA256SUMS"
  refuses "does not name" update --version 1.0.1 --from-url "$url"
  rm "$www/download/v1.0.1/SHA256SUMS"
  refuses "can't be downloaded" update --version 1.0.1 --from-url "$url"
  cp "$work/sums" "$www/download/v1.0.1/SHA256SUMS"
  # What the operator says counts more than what the host says.
  refuses "$wrong" update --version 1.0.1 --sha256 "$wrong" --from-url "$url"
  installs update --version 1.0.1 --sha256 "$right"
}

test_what_is_not_there_changes_nothing() {
  new_root
  refuses "can't be downloaded" install --version 9.9.9 --from-url "$url"
  mkdir -p "$www/download/v2.0.0"
  echo "$(printf '%064d' 7)  raynode-2.0.0-linux-$arch.tar.gz" >"$www/download/v2.0.0/SHA256SUMS"
  refuses "can't be downloaded" install --version 2.0.0 --from-url "$url"
  refuses "can't be downloaded" install --from-url http://127.0.0.1:9
}

# publishes_broken ARCHIVE: as 3.0.0, with the sum that it has.
publishes_broken() {
  mkdir -p "$www/download/v3.0.0"
  publish "$1" 3.0.0
}

test_a_broken_archive_changes_nothing() {
  new_root
  installs install
  archive=$www/download/v1.0.1/raynode-1.0.1-linux-$arch.tar.gz
  # Cut off after its sum was taken, and before.
  mkdir -p "$www/download/v3.0.0"
  publish "$archive" 3.0.0
  head -c 1000000 "$archive" >"$www/download/v3.0.0/raynode-3.0.0-linux-$arch.tar.gz"
  refuses "is not what it should be" update --version 3.0.0 --from-url "$url"
  head -c 1000000 "$archive" >"$work/half"
  publishes_broken "$work/half"
  refuses "can't be unpacked" update --version 3.0.0 --from-url "$url"
  tar -C docs -czf "$work/docs.tar.gz" usage.md
  publishes_broken "$work/docs.tar.gz"
  refuses "not a release" update --version 3.0.0 --from-url "$url"
}

test_a_program_for_another_machine_changes_nothing() {
  new_root
  installs install
  cp "$work/1.0.1" "$work/foreign"
  # shellcheck disable=SC2059 # one byte
  printf "$other_machine" | dd of="$work/foreign" bs=1 seek=18 conv=notrunc status=none
  scripts/release.sh --fast --version 3.0.0 --out "$work/foreign-release" "$other" "$work/foreign" >/dev/null
  publishes_broken "$work/foreign-release/raynode-3.0.0-linux-$other.tar.gz"
  refuses "is for $other, and this machine is $arch" update --version 3.0.0 --from-url "$url"
}

test_a_program_that_does_not_run_changes_nothing() {
  new_root
  installs install
  head -c 100000 "$work/1.0.1" >"$work/torn"
  scripts/release.sh --fast --version 3.0.0 --out "$work/torn-release" "$arch" "$work/torn" >/dev/null
  publishes_broken "$work/torn-release/raynode-3.0.0-linux-$arch.tar.gz"
  refuses "does not run here" update --version 3.0.0 --from-url "$url"
}

test_offline_takes_a_file_that_is_here() {
  new_root
  archive=$www/download/v1.0.0/raynode-1.0.0-linux-$arch.tar.gz
  run install --offline "$archive" || fail "exit $?"
  has_binary 1.0.0
  says "--core FILE"
  cp "$www/download/v1.0.1/raynode-1.0.1-linux-$arch.tar.gz" "$work/alone.tar.gz"
  refuses "nothing says what alone.tar.gz should be" update --offline "$work/alone.tar.gz"
  refuses "is not what it should be" update --offline "$work/alone.tar.gz" --sha256 "$(printf '%064d' 7)"
  sum=$(sha256sum <"$work/alone.tar.gz" | cut -c 1-64)
  run update --offline "$work/alone.tar.gz" --sha256 "${sum^^}" || fail "exit $?"
  has_binary 1.0.1
  refuses "is not there" update --offline "$work/nowhere.tar.gz"
}

test_offline_takes_an_xray_that_is_here() {
  new_root
  if ! "$work/1.0.0" core --help >/dev/null 2>&1; then
    skip "this raynode installs no cores"
    return
  fi
  python3 -c 'import sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w") as archive:
    archive.write(sys.argv[2], "xray")' "$work/xray.zip" "$xray"
  echo "SHA2-256= $(sha256sum <"$work/xray.zip" | cut -c 1-64)" >"$work/xray.zip.dgst"
  run install --offline "$www/download/v1.0.0/raynode-1.0.0-linux-$arch.tar.gz" --core "$work/xray.zip" || fail "exit $?"
  cmp -s "$root/var/lib/raynode/cores/current/xray" "$xray" || fail "no Xray was installed"
}

test_without_an_xray_it_is_installed_all_the_same() {
  new_root
  installs install
  says "raynode core install latest"
  has_binary 1.0.0
}

test_an_xray_that_is_there_is_left_alone() {
  new_root
  printf '#!/bin/sh\n' >"$root/usr/local/bin/xray"
  chmod 0755 "$root/usr/local/bin/xray"
  installs install
  ! grep -q Xray "$work/said" || fail "speaks of Xray: $(grep Xray "$work/said")"
}

# interrupts SIGNAL: in the middle of a download. Whoever runs these tests may ignore the signal (nohup does), and
# then so would install.sh: it would go on until the download is given up.
interrupts() {
  local installer i
  env --default-signal setsid sh install.sh update --version 1.0.1 --from-url "$url" --root "$root" >"$work/said" 2>&1 </dev/null &
  installer=$!
  for ((i = 0; i < 200; i++)); do
    [[ -z $(find "$TMPDIR" -name "raynode-1.0.1-*" -size +10k) ]] || break
    sleep 0.05
  done
  ((i < 200)) || fail "the download does not begin"
  [[ -L $root/.raynode-install.lock ]] || fail "no lock"
  kill -s "$1" "$installer"
  local status=0
  # Bash says of each what has killed it.
  {
    for ((i = 0; i < 200; i++)); do
      kill -0 "$installer" || break
      sleep 0.05
    done
    ((i == 200)) || wait "$installer" || status=$?
  } 2>/dev/null
  ((i < 200)) || fail "goes on after SIG$1"
  ((status == 128 + $(kill -l "$1"))) || fail "exit $status after SIG$1"
}

# SIGINT needs a terminal: what a script starts in the background never gets it.
test_an_interrupted_download_leaves_the_old_one() {
  new_root
  installs install
  before=$(listing)
  archive=$www/download/v1.0.1/raynode-1.0.1-linux-$arch.tar.gz
  touch "$archive.stalls"
  for signal in TERM HUP; do
    interrupts "$signal"
    is_as "$before"
  done
  # Nobody can tidy up after this one; what is installed is as it was, and the next one goes on.
  interrupts KILL
  rm -rf "${TMPDIR:?}"/*
  rm -f "$archive.stalls"
  installs update --version 1.0.1
  has_binary 1.0.1
  leaves_no_temp
}

# stalls COMMAND...: has given up in time.
stalls() {
  local begun=$SECONDS
  RAYNODE_DOWNLOAD_STALL=1 "$@"
  ((SECONDS - begun < 30)) || fail "gives up after $((SECONDS - begun)) s"
}

test_a_download_from_which_nothing_comes_is_given_up() {
  new_root
  installs install
  archive=$www/download/v1.0.1/raynode-1.0.1-linux-$arch.tar.gz
  touch "$archive.stalls"
  stalls refuses "can't be downloaded" update --version 1.0.1 --from-url "$url"
  if command -v wget >/dev/null; then
    without_curl
    PATH=$work/no-curl stalls refuses "can't be downloaded" update --version 1.0.1 --from-url "$url"
  else
    skip "there is no wget"
  fi
  rm -f "$archive.stalls"
}

# However slowly it comes.
test_a_download_that_takes_too_long_is_given_up() {
  new_root
  installs install
  archive=$www/download/v1.0.1/raynode-1.0.1-linux-$arch.tar.gz
  touch "$archive.stalls"
  mkdir -p "$work/hasty"
  printf '#!/bin/sh\nshift\nexec %s 2 "$@"\n' "$(command -v timeout)" >"$work/hasty/timeout"
  chmod 0755 "$work/hasty/timeout"
  PATH=$work/hasty:$PATH refuses "did not come within 1800 seconds" update --version 1.0.1 --from-url "$url"
  rm -f "$archive.stalls"
}

test_a_ctrl_c_leaves_the_old_one() {
  new_root
  installs install
  before=$(listing)
  archive=$www/download/v1.0.1/raynode-1.0.1-linux-$arch.tar.gz
  touch "$archive.stalls"
  local status=0
  python3 tests/install/terminal.py ctrl-c "$TMPDIR" sh install.sh update --version 1.0.1 --from-url "$url" --root "$root" \
    >"$work/said" 2>&1 || status=$?
  rm -f "$archive.stalls"
  ((status == 130)) || fail "exit $status and not 130"
  is_as "$before"
}

test_what_is_asked_is_answered_at_the_terminal() {
  new_root
  installs install
  before=$(listing)
  local status=0
  python3 tests/install/terminal.py answer n sh install.sh uninstall --purge --root "$root" >"$work/said" 2>&1 || status=$?
  ((status == 1)) || fail "exit $status and not 1"
  is_as "$before"
  # The way in which most people run it: the script itself comes through the standard input.
  # shellcheck disable=SC2016 # for the inner shell
  python3 tests/install/terminal.py answer yes sh -c 'sh -s uninstall --purge --root "$1" <install.sh' sh "$root" \
    >"$work/said" 2>&1 || fail "exit $?"
  [[ ! -e $root/etc/raynode ]] || fail "not removed"
}

test_two_at_once_are_refused() {
  new_root
  installs install
  ln -s "$$" "$root/.raynode-install.lock"
  refuses "another install.sh is at work (process $$)" install --from-url "$url"
  rm "$root/.raynode-install.lock"
  # One that died without a word holds nobody up.
  sh -c 'ln -s "$$" "$1"' sh "$root/.raynode-install.lock"
  installs install
}

test_an_uninstall_keeps_settings_and_state() {
  new_root
  before=$(listing | sed 's/ [0-9.]* $//')
  installs install
  echo usage >"$root/var/lib/raynode/ledger"
  run uninstall || fail "exit $?"
  says "$root/var/lib/raynode"
  left=$(listing | grep -v '^[0-9a-f]\{64\}' | cut -d ' ' -f 1 | grep -v -x -f <(cut -d ' ' -f 1 <<<"$before")) || true
  wanted="./etc/raynode
./etc/raynode/installed
./etc/raynode/raynode.env
./var/lib/raynode
./var/lib/raynode/ledger"
  [[ $left == "$wanted" ]] || fail "left: $left"
  again=$(listing)
  run uninstall || fail "exit $?"
  says "nothing changed"
  is_as "$again"
  refuses "nothing was removed" uninstall --purge
  run uninstall --purge --yes || fail "exit $?"
  [[ $(listing | sed 's/ [0-9.]* $//') == "$before" ]] || fail "something is left: $(diff <(echo "$before") <(listing))"
}

test_a_purge_leaves_nothing() {
  root=$work/root.$test
  # Nothing at all is there: every folder is install.sh's own.
  mkdir "$root"
  installs install
  installs update --version 1.0.1
  run uninstall --purge --yes || fail "exit $?"
  [[ -z $(ls -A "$root") ]] || fail "left: $(listing)"
  leaves_no_temp
}

# ends_with SIGNAL NUMBER ARGUMENTS...: install.sh, which gets the signal with so many removals; fails when there are
# fewer.
ends_with() {
  local signal=$1 number=$2 status=0 tool
  shift 2
  mkdir -p "$work/ends"
  for tool in rm rmdir; do
    cat >"$work/ends/$tool" <<END
#!/bin/sh
echo >>"$work/removals"
[ "\$(wc -l <"$work/removals")" -ne $number ] || kill -s $signal "\$PPID"
exec $(command -v "$tool") "\$@"
END
    chmod 0755 "$work/ends/$tool"
  done
  rm -f "$work/removals"
  PATH=$work/ends:$PATH env --default-signal setsid --wait sh install.sh "$@" --root "$root" >"$work/said" 2>&1 </dev/null || status=$?
  [[ $(wc -l <"$work/removals") -ge $number ]] || return 1
  leaves_no_temp
  [[ ! -L $root/.raynode-install.lock ]] || fail "leaves its lock"
}

# finishes_a_removal ARGUMENTS...: however far the one before has come.
finishes_a_removal() {
  local installed=$root wanted now number=1
  root=$installed.whole
  cp -a "$installed" "$root"
  run uninstall "$@" || fail "exit $?"
  wanted=$(listing | sed 's/ [0-9.]* $//')
  while :; do
    rm -rf "$root"
    cp -a "$installed" "$root"
    ends_with TERM "$number" uninstall "$@" || break
    run uninstall "$@" || fail "exit $? after one that ended with removal $number"
    now=$(listing | sed 's/ [0-9.]* $//')
    [[ $now == "$wanted" ]] || fail "ended with removal $number, another one leaves: $(diff <(echo "$wanted") <(echo "$now"))"
    number=$((number + 4))
  done
  ((number > 40)) || fail "only $number removals"
  rm -rf "$root"
  root=$installed
}

test_a_removal_that_was_interrupted_is_finished_by_another() {
  root=$work/root.$test
  # Nothing at all is there: every folder is install.sh's own.
  mkdir "$root"
  installs install
  finishes_a_removal
  finishes_a_removal --purge --yes
}

# As with "| head".
test_nobody_reads_what_a_removal_says() {
  new_root
  installs install
  local status=0 shell pipe
  mkfifo "$work/pipe"
  for shell in sh bash "busybox sh"; do
    command -v "${shell% *}" >/dev/null || continue
    # A pipe that nobody reads any more.
    exec {pipe}<>"$work/pipe"
    exec 9>"$work/pipe" {pipe}>&-
    status=0
    # shellcheck disable=SC2086 # several words
    env --default-signal setsid --wait $shell install.sh uninstall --root "$root" >&9 2>"$work/said" </dev/null || status=$?
    exec 9>&-
    ((status == 141)) || fail "$shell: exit $status and not 141"
    leaves_no_temp
    [[ ! -L $root/.raynode-install.lock ]] || fail "$shell: leaves its lock"
  done
  run uninstall || fail "exit $?"
  says "removed"
  [[ ! -e $root/usr/local/share/doc/raynode ]] || fail "not finished"
}

test_folders_of_others_stay() {
  root=$work/root.$test
  mkdir "$root"
  installs install
  echo mine >"$root/usr/local/bin/other"
  run uninstall --purge --yes || fail "exit $?"
  [[ $(cd "$root" && find . -type f) == ./usr/local/bin/other ]] || fail "left: $(listing)"
}

# As docs/install.md makes it.
second_node() {
  sed 's/raynode\.env/two.env/; s/Directory=raynode$/Directory=raynode-two/' "$root/etc/systemd/system/raynode.service" \
    >"$root/etc/systemd/system/raynode-two.service"
  cp "$root/usr/local/share/doc/raynode/raynode.env.example" "$root/etc/raynode/two.env"
  mkdir -p "$root/var/lib/raynode-two"
  echo two >"$root/var/lib/raynode-two/identity"
}

test_a_second_node_keeps_what_it_needs() {
  new_root
  before=$(listing | sed 's/ [0-9.]* $//')
  installs install
  second_node
  two=$(cd "$root" && sha256sum etc/systemd/system/raynode-two.service etc/raynode/two.env var/lib/raynode-two/identity)
  program=$(cd "$root" && find usr/local -type f | LC_ALL=C sort)
  run uninstall || fail "exit $?"
  says "left $root/usr/local/bin/raynode"
  says "$root/etc/systemd/system/raynode-two.service"
  [[ $(cd "$root" && find usr/local -type f | LC_ALL=C sort) == "$program" ]] || fail "takes the program of the second node"
  run uninstall --purge --yes || fail "exit $?"
  says "left $root/etc/raynode/two.env"
  [[ $(cd "$root" && sha256sum etc/systemd/system/raynode-two.service etc/raynode/two.env var/lib/raynode-two/identity) == "$two" ]] ||
    fail "the second node was changed"
  [[ ! -e $root/etc/raynode/raynode.env && ! -e $root/var/lib/raynode && ! -e $root/etc/systemd/system/raynode.service ]] ||
    fail "the first node is left"
  # Without it the rest goes, too.
  rm -r "$root/etc/systemd/system/raynode-two.service" "$root/etc/raynode/two.env" "$root/var/lib/raynode-two"
  run uninstall --purge --yes || fail "exit $?"
  [[ $(listing | sed 's/ [0-9.]* $//') == "$before" ]] || fail "something is left: $(diff <(echo "$before") <(listing))"
}

test_a_purge_says_what_it_leaves() {
  new_root
  installs install
  echo mine >"$root/etc/raynode/notes"
  mkdir "$root/srv"
  echo STATE_DIR=/srv >>"$root/etc/raynode/raynode.env"
  run uninstall --purge --yes || fail "exit $?"
  says "left $root/etc/raynode/notes"
  says "left $root/srv: STATE_DIR named it"
  [[ $(<"$root/etc/raynode/notes") == mine && -d $root/srv ]] || fail "takes what is not its own"
  [[ $(ls -A "$root/etc/raynode") == notes ]] || fail "left: $(ls -A "$root/etc/raynode")"
}

test_a_debian_package_is_in_the_way() {
  new_root
  mkdir -p "$root/usr/bin" "$root/var/lib/dpkg/info"
  touch "$root/usr/bin/raynode" "$root/var/lib/dpkg/info/raynode.list"
  refuses "Debian package" install --from-url "$url"
}

test_the_command_line_is_read_with_care() {
  new_root
  local status
  for wrong in "" "frob" "install --purge" "update --migrate x" "install --version" "install uninstall" "install --version ../x" \
    "install --offline x --version 1" "install --from-url http://192.0.2.1" "install --from-url http://127.0.0.1.example" \
    "install --from-url file:///"; do
    status=0
    # shellcheck disable=SC2086 # several words
    setsid --wait sh install.sh $wrong >"$work/said" 2>&1 </dev/null || status=$?
    ((status == 2)) || fail "exit $status and not 2: $wrong"
  done
  sh install.sh --help | grep -q uninstall || fail "no help"
  if ((EUID == 0)); then
    status=0
    setsid --wait setpriv --reuid 65534 --clear-groups sh -s install <install.sh >"$work/said" 2>&1 || status=$?
    ((status == 1)) || fail "exit $status without root"
  else
    setsid --wait sh install.sh install >"$work/said" 2>&1 </dev/null && fail "needs no root"
  fi
  says "needs root"
}

test_a_script_that_was_cut_off_does_nothing() {
  new_root
  before=$(listing)
  for size in 2000 10000 25000; do
    head -c "$size" install.sh | setsid --wait sh -s install --root "$root" --from-url "$url" >"$work/said" 2>&1 || true
  done
  is_as "$before"
}

# A PATH with everything but curl, in $work/no-curl.
without_curl() {
  mkdir -p "$work/no-curl"
  local folder
  for folder in /usr/local/bin /usr/bin /bin /usr/sbin /sbin; do
    ln -sf "$folder"/* "$work/no-curl/" 2>/dev/null || true
  done
  rm -f "$work/no-curl/curl"
}

test_wget_does_as_well() {
  new_root
  if ! command -v wget >/dev/null; then
    skip "there is no wget"
    return
  fi
  without_curl
  PATH=$work/no-curl installs install
  has_binary 1.0.0
  PATH=$work/no-curl refuses "can't be downloaded" update --version 9.9.9 --from-url "$url"
}

test_other_shells_do_as_well() {
  local shell
  for shell in bash busybox; do
    root=$work/root.$test.$shell
    mkdir "$root"
    if ! command -v "$shell" >/dev/null; then
      skip "there is no $shell"
      continue
    fi
    # busybox has a shell of that name.
    local command=("$shell")
    [[ $shell != busybox ]] || command=(busybox sh)
    setsid --wait "${command[@]}" install.sh install --root "$root" --from-url "$url" >"$work/said" 2>&1 </dev/null ||
      fail "$shell: exit $?"
    has_binary 1.0.0
  done
}

# shellcheck source=tests/install/documents.sh
source tests/install/documents.sh
# shellcheck source=tests/install/migration.sh
source tests/install/migration.sh

mapfile -t tests < <(compgen -A function test_ | sed 's/^test_//' | grep -e "${3:-}")
skipped=() known=0
for test in "${tests[@]}"; do
  start=$SECONDS
  rm -f "$work/said"
  "test_$test"
  rm -rf "$work"/root.*
  if ((${#skipped[@]} > known)); then
    echo "SKIPPED: ${skipped[-1]}"
    known=${#skipped[@]}
  else
    echo "ok: $test ($((SECONDS - start)) s)"
  fi
done
echo "$((${#tests[@]} - ${#skipped[@]})) passed, ${#skipped[@]} skipped"
