#!/bin/sh
# Installs raynode on a machine with systemd, updates it and removes it; install.sh --help says how.
# Needs sh, coreutils, tar with gzip, and curl or wget.
#
# Everything is a function until the last line: a copy of this file that was cut off does nothing.
set -eu
umask 022

usage() {
  cat <<'END'
usage: install.sh install|update|uninstall [options]

  install      puts raynode, its unit, its user and its settings in place and starts it; where all of
               that is there already, nothing changes
  update       replaces the program and the unit, keeps the settings, and restarts a node that runs:
               connections live on
  uninstall    stops the node and removes it; settings and state stay, unless --purge is given

  --version V      this release instead of the newest one
  --from-url BASE  where releases are: BASE/download/v1.0.0/FILE and BASE/latest/download/FILE
                   (also RAYNODE_RELEASE_URL; default https://github.com/raynode/raynode/releases).
                   Plain http is for this machine only, or wants --sha256
  --offline FILE   a release archive that is here; SHA256SUMS lies beside it, or --sha256 is given
  --sha256 HEX     what the archive has to have, whatever SHA256SUMS says
  --core FILE      an archive of an Xray release that is here, for a machine that has no Xray
  --migrate DIR    takes over a pg-node: DIR is the folder with its .env. Without this option the one
                   in /opt/pg-node is found
  --no-migrate     leaves a pg-node alone
  --root DIR       puts everything below DIR; no user, service or container of this machine is touched
  --purge          with uninstall: settings, state and user as well
  --yes            answers every question with yes

A download from which nothing comes for 30 seconds (RAYNODE_DOWNLOAD_STALL) is tried twice more and then given up;
one that is slow, after half an hour.
END
}

say() {
  printf '%s\n' "$*"
}

warn() {
  printf 'warning: %s\n' "$*" >&2
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

have() {
  command -v "$1" >/dev/null 2>&1
}

# What is done for the operator is said, and whether anything was done is remembered.
did() {
  changed=yes
  say "$*"
}

# Without a terminal only --yes is a yes.
agrees() {
  [ -z "$yes" ] || return 0
  printf '%s [y/N] ' "$1" >&2
  answer=
  if [ -t 0 ]; then
    read -r answer || :
  elif (: </dev/tty) 2>/dev/null; then
    read -r answer </dev/tty || :
  else
    printf 'nobody can be asked, so: no (--yes answers yes)\n' >&2
  fi
  case $answer in
  [yY] | [yY][eE][sS]) return 0 ;;
  esac
  return 1
}

# --- The command line ---

parse_arguments() {
  command='' version='' offline='' sum='' core='' migrate='' no_migrate='' root='' purge='' yes=''
  url=${RAYNODE_RELEASE_URL:-https://github.com/raynode/raynode/releases}
  stall=${RAYNODE_DOWNLOAD_STALL:-30}
  while [ $# -gt 0 ]; do
    case $1 in
    --version | --offline | --sha256 | --core | --from-url | --root | --migrate)
      if [ $# -lt 2 ] || [ -z "$2" ]; then
        misused "$1 needs a value"
      fi
      ;;
    esac
    case $1 in
    install | update | uninstall)
      [ -z "$command" ] || misused "$command and $1 can't be done at once"
      command=$1
      ;;
    --version) version=${2#v} && shift ;;
    --offline) offline=$2 && shift ;;
    --sha256) sum=$2 && shift ;;
    --core) core=$2 && shift ;;
    --from-url) url=$2 && shift ;;
    --root) root=$2 && shift ;;
    --migrate) migrate=$2 && shift ;;
    --no-migrate) no_migrate=yes ;;
    --purge) purge=yes ;;
    --yes | -y) yes=yes ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) misused "$1 is not known here" ;;
    esac
    shift
  done
  [ -n "$command" ] || misused "say what to do"
  [ -z "$purge" ] || [ "$command" = uninstall ] || misused "--purge belongs to uninstall"
  [ -z "$migrate" ] || [ "$command" = install ] || misused "--migrate belongs to install"
  [ -z "$migrate" ] || [ -z "$no_migrate" ] || misused "--migrate and --no-migrate exclude each other"
  [ -z "$offline" ] || [ -z "$version" ] || misused "--offline names a file, which has its version: leave --version out"
  case $version in
  *[!0-9A-Za-z.+~-]*) misused "--version is not one: $version" ;;
  esac
  case $stall in
  0* | *[!0-9]*) misused "RAYNODE_DOWNLOAD_STALL is no number of seconds: $stall" ;;
  esac
  url=${url%/}
  # The sums come from there, too: who could change one on the way could change both.
  case $url in
  https://* | http://127.0.0.1[:/]* | http://localhost[:/]* | 'http://[::1]'[:/]*) ;;
  http://*) [ -n "$sum" ] || [ -n "$offline" ] || misused "plain http can be changed on the way: use https, or give --sha256" ;;
  *) misused "not the address of releases: $url" ;;
  esac
}

misused() {
  printf 'error: %s\n\n' "$1" >&2
  usage >&2
  exit 2
}

# --- Before anything else ---

prepare() {
  [ "$(uname -s)" = Linux ] || die "raynode runs on Linux, and this is $(uname -s)"
  case $(uname -m) in
  x86_64 | amd64) arch=amd64 ;;
  aarch64 | arm64) arch=arm64 ;;
  *) die "there is no raynode for $(uname -m): only for x86_64 and aarch64" ;;
  esac
  if [ -n "$root" ]; then
    root=$(cd "$root" 2>/dev/null && pwd) || die "--root has to be a folder that is there"
    [ "$root" != / ] || die "--root / is this machine itself: leave the option out"
  elif [ "$(id -u)" -ne 0 ]; then
    die "this needs root: sudo sh install.sh $command (or, to look at what it does, --root DIR)"
  fi
  for tool in tar gzip sha256sum od mktemp stat readlink timeout; do
    have "$tool" || die "$tool is missing, which this script needs"
  done
  for file in "$offline" "$core"; do
    [ -z "$file" ] || [ -f "$file" ] || die "$file is not there"
  done
  if [ "$command" != uninstall ] && [ -z "$offline" ]; then
    have curl || have wget || die "curl or wget is needed to download a release; --offline takes one that is here"
  fi

  binary=$root/usr/local/bin/raynode
  unit=$root/etc/systemd/system/raynode.service
  own=$root/etc/raynode
  settings=$own/raynode.env
  # Folders, files and users that this script made, so that it can remove exactly those.
  record=$own/installed
  state=$root/var/lib/raynode
  logs=$root/var/log/raynode
  docs=$root/usr/local/share/doc/raynode
  bash_completion=$root/usr/local/share/bash-completion/completions/raynode
  zsh_completion=$root/usr/local/share/zsh/site-functions/_raynode
  fish_completion=$root/usr/local/share/fish/vendor_completions.d/raynode.fish

  if [ "$command" != uninstall ] && [ -e "$root/usr/bin/raynode" ] && [ -e "$root/var/lib/dpkg/info/raynode.list" ]; then
    die "raynode is installed here as a Debian package: use apt or dpkg for it, or remove that first (apt remove raynode)"
  fi
  temp='' lock='' child='' half='' changed='' replaced=0
  trap finish EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 141' PIPE
  trap 'exit 143' TERM
  take_lock
  make_temp
}

finish() {
  status=$?
  trap - EXIT
  # Tidying up is not interrupted.
  trap '' HUP INT PIPE TERM
  [ -z "$child" ] || kill "$child" 2>/dev/null || :
  [ -z "$half" ] || rm -f "$half"
  [ -z "$temp" ] || rm -rf "$temp"
  [ -z "$lock" ] || rm -f "$lock"
  exit "$status"
}

# A link is made at once or not at all, and says whose it is.
take_lock() {
  wanted_lock=$root/run/raynode-install.lock
  [ -z "$root" ] || wanted_lock=$root/.raynode-install.lock
  if ! ln -s "$$" "$wanted_lock" 2>/dev/null; then
    holder=$(readlink "$wanted_lock") || die "$wanted_lock can't be made"
    [ ! -d "/proc/$holder" ] ||
      die "another install.sh is at work (process $holder); when that is not one, remove $wanted_lock"
    rm -f "$wanted_lock"
    ln -s "$$" "$wanted_lock" || die "$wanted_lock can't be made"
  fi
  lock=$wanted_lock
}

# Everything that is downloaded and unpacked goes there. Programs have to run in it.
make_temp() {
  for place in "${TMPDIR:-/tmp}" /var/tmp; do
    temp=$(mktemp -d "$place/raynode-install.XXXXXX" 2>/dev/null) || continue
    printf '#!/bin/sh\n' >"$temp/runs"
    chmod 0755 "$temp/runs"
    # Others may pass through to what they are shown by name.
    chmod 0711 "$temp"
    if "$temp/runs" 2>/dev/null; then
      return
    fi
    rm -rf "$temp"
  done
  temp=
  die "neither ${TMPDIR:-/tmp} nor /var/tmp is a folder in which programs may run: set TMPDIR to one"
}

# --- The release ---

# download URL FILE KIB SECONDS: at most so much of it, and in that time. One that stalls is given up sooner.
download() {
  (
    # In blocks of 512 bytes.
    ulimit -f "$(($3 * 2))" 2>/dev/null || :
    if have curl; then
      # What begins encrypted is not led astray.
      schemes='=http,https'
      case $1 in
      https:*) schemes='=https' ;;
      esac
      exec timeout "$4" curl --proto "$schemes" --fail --silent --show-error --location --connect-timeout "$stall" \
        --speed-limit 1000 --speed-time "$stall" --retry 2 --output "$2" "$1"
    fi
    exec timeout "$4" wget -q -t 3 -T "$stall" -O "$2" "$1"
  ) &
  # In the background, so that a signal does not have to wait for its end.
  child=$!
  outcome=0
  wait "$child" || outcome=$?
  child=
  [ "$outcome" -ne 124 ] || die "$1 did not come within $4 seconds; nothing was changed"
  [ "$outcome" -eq 0 ] || die "$1 can't be downloaded; nothing was changed"
}

sum_of() {
  sha256sum <"$1" | cut -c 1-64
}

# The sum of the file $2 in the list $1.
listed_sum() {
  while read -r a_sum a_name; do
    if [ "${a_name#\*}" = "$2" ]; then
      printf '%s\n' "$a_sum"
      return
    fi
  done <"$1"
}

# The release in the list $1 that is for this machine.
listed_version() {
  while read -r a_sum a_name; do
    case ${a_name#\*} in
    raynode-*-linux-"$arch".tar.gz)
      a_name=${a_name#\*}
      a_name=${a_name#raynode-}
      printf '%s\n' "${a_name%-linux-"$arch".tar.gz}"
      return
      ;;
    esac
  done <"$1"
}

# Leaves the unpacked release in $new.
get_release() {
  if [ -n "$offline" ]; then
    sums=$(dirname "$offline")/SHA256SUMS
    name=$(basename "$offline")
    archive=$temp/$name
    # What is looked at is what is used.
    cp "$offline" "$archive"
    if [ -z "$sum" ]; then
      [ -f "$sums" ] || die "nothing says what $name should be: put SHA256SUMS of its release beside it, or give --sha256"
      sum=$(listed_sum "$sums" "$name")
    fi
  else
    from=$url/latest/download
    [ -z "$version" ] || from=$url/download/v$version
    sums=$temp/SHA256SUMS
    download "$from/SHA256SUMS" "$sums" 1024 300
    [ -n "$version" ] || version=$(listed_version "$sums")
    case $version in
    '' | *[!0-9A-Za-z.+~-]*) die "$from/SHA256SUMS names no release for linux-$arch; nothing was changed" ;;
    esac
    name=raynode-$version-linux-$arch.tar.gz
    [ -n "$sum" ] || sum=$(listed_sum "$sums" "$name")
    archive=$temp/$name
    [ -n "$sum" ] || die "$from/SHA256SUMS does not name $name; nothing was changed"
    say "downloading $name"
    # What is newest may be another release a moment later.
    download "$url/download/v$version/$name" "$archive" 204800 1800
  fi
  sum=$(printf '%s' "$sum" | tr 'A-F' 'a-f')
  case $sum in
  *[!0-9a-f]*) sum= ;;
  esac
  [ ${#sum} -eq 64 ] || die "there is no SHA-256 for $name (64 hexadecimal digits); nothing was changed"
  found=$(sum_of "$archive")
  if [ "$found" != "$sum" ]; then
    die "$name is not what it should be; nothing was changed
  SHA-256 expected: $sum
  SHA-256 found:    $found"
  fi
  mkdir "$temp/unpacked"
  tar -xzof "$archive" -C "$temp/unpacked" || die "$name can't be unpacked; nothing was changed"
  new=
  for folder in "$temp"/unpacked/raynode-*/; do
    new=${folder%/}
  done
  for file in raynode raynode.service .env.example; do
    [ -f "$new/$file" ] || die "$name has no $file: it is not a release of raynode; nothing was changed"
  done
  check_program
}

# An archive with the right sum may still be for another machine.
check_program() {
  case $(od -An -tu1 -j18 -N1 "$new/raynode" | tr -d ' ') in
  62) made_for=amd64 ;;
  183) made_for=arm64 ;;
  *) made_for="another machine" ;;
  esac
  [ "$made_for" = "$arch" ] || die "the raynode in $name is for $made_for, and this machine is $arch; nothing was changed"
  chmod 0755 "$new/raynode"
  runs=$(timeout 30 "$new/raynode" --version 2>&1) || die "the raynode in $name does not run here; nothing was changed: $runs"
  case $runs in
  "raynode "*) ;;
  *) die "the raynode in $name does not say what it is; nothing was changed" ;;
  esac
}

# --- Files ---

# Makes a folder and those above it, and notes which were not there.
make_folder() {
  [ ! -d "$1" ] || return 0
  make_folder "$(dirname "$1")"
  mkdir "$1"
  made="${made:-}folder ${1#"$root"}
"
  note_made
}

# note_made [LINE]: as soon as there is a place for it.
note_made() {
  made="${made:-}${1:+$1
}"
  if [ -d "$own" ] && [ -n "$made" ]; then
    printf '%s' "$made" >>"$record"
    made=
  fi
}

is_recorded() {
  [ -f "$record" ] || return 1
  while IFS= read -r line; do
    [ "$line" != "$1" ] || return 0
  done <"$record"
  return 1
}

# stage SOURCE DESTINATION MODE [GROUP]: a copy beside the place where it will be, in $half.
stage() {
  make_folder "$(dirname "$2")"
  half=$2.new
  (umask 077 && cat "$1" >"$half")
  [ -n "$root" ] || chown "root:${4:-root}" "$half"
  chmod "$3" "$half"
}

# put SOURCE DESTINATION MODE [GROUP]: at once or not at all, and only where something differs.
put() {
  if [ -f "$2" ] && [ ! -L "$2" ] && [ "$(stat -c %a "$2")" = "$3" ] && [ "$(sum_of "$1")" = "$(sum_of "$2")" ]; then
    return 0
  fi
  set_aside "$2"
  stage "$@"
  mv -f "$half" "$2"
  half=
  did "installed $2"
}

# put_own SOURCE DESTINATION: what a removal takes along.
put_own() {
  put "$1" "$2" "${3:-644}"
  is_recorded "file ${2#"$root"}" || note_made "file ${2#"$root"}"
}

# What is replaced is kept until the node runs with what replaces it.
set_aside() {
  [ -e "$1" ] || return 0
  replaced=$((replaced + 1))
  cp -pP "$1" "$temp/replaced.$replaced"
  printf '%s\n' "$1" >>"$temp/replaced"
}

# Fails when nothing was replaced.
put_back() {
  [ -f "$temp/replaced" ] || return 1
  number=0
  while IFS= read -r place; do
    number=$((number + 1))
    half=$place.new
    cp -pP "$temp/replaced.$number" "$half"
    mv -f "$half" "$place"
    half=
  done <"$temp/replaced"
}

# replace TEXT OLD NEW: every one of them; leaves it in $result.
replace() {
  result='' rest=$1
  while :; do
    case $rest in
    *"$2"*)
      result=$result${rest%%"$2"*}$3
      rest=${rest#*"$2"}
      ;;
    *) break ;;
    esac
  done
  result=$result$rest
}

# The unit of the release is the one of the Debian package.
write_unit() {
  say '# install.sh replaces this file with each update: what you change belongs into "systemctl edit raynode".'
  while IFS= read -r line || [ -n "$line" ]; do
    replace "$line" /usr/bin/raynode /usr/local/bin/raynode
    replace "$result" /usr/share/doc/raynode /usr/local/share/doc/raynode
    printf '%s\n' "$result"
  done <"$new/raynode.service"
}

put_program() {
  try_program
  put_own "$new/raynode" "$binary" 755
  write_unit >"$temp/raynode.service"
  put_own "$temp/raynode.service" "$unit"
  program_changed=$changed
  put_own "$new/.env.example" "$docs/raynode.env.example"
  put_documents
  put_completion bash "$root/usr/share/bash-completion" "$bash_completion"
  put_completion zsh "$root/usr/share/zsh" "$zsh_completion"
  put_completion fish "$root/usr/share/fish" "$fish_completion"
}

# Where the old program is, and by the node's user: what can't run there or does not take the settings is no
# successor.
try_program() {
  [ -e "$binary" ] && [ -f "$settings" ] || return 0
  [ "$(sum_of "$new/raynode")" != "$(sum_of "$binary")" ] || return 0
  # The node's user may not get to the temporary folder.
  [ -n "$root" ] || stage "$new/raynode" "$binary" 755
  if ! would_run "${half:-"$new/raynode"}"; then
    cat "$temp/why" >&2
    die "with the settings in $settings $runs would not run (its words are above), so it does not replace the raynode that is here; nothing was changed"
  fi
  [ -z "$half" ] || rm -f "$half"
  half=
}

# With what their links lead to in its place.
put_documents() {
  for document in "$new"/*.md "$new"/LICENSE-* "$new"/.env.example "$new"/docs/*.md "$new"/docs/*/*.md \
    "$new"/deploy/*/* "$new"/proto/*.proto "$new"/proto/*/*/*.proto; do
    [ ! -f "$document" ] || put_own "$document" "$docs/${document#"$new"/}"
  done
}

# put_completion SHELL FOLDER FILE: where that shell is installed, which the folder tells.
put_completion() {
  [ -d "$2" ] || return 0
  if "$new/raynode" completions "$1" >"$temp/completion" 2>/dev/null && [ -s "$temp/completion" ]; then
    put_own "$temp/completion" "$3"
  fi
}

make_user() {
  [ -z "$root" ] || return 0
  ! id -u raynode >/dev/null 2>&1 || return 0
  have useradd || die "useradd is missing: make a system user and group raynode, and start again"
  useradd --system --user-group --home-dir /var/lib/raynode --no-create-home --shell /usr/sbin/nologin \
    --comment "raynode" raynode || die "the user raynode can't be made"
  did "made the user raynode"
  note_made user
}

# Its settings may hold keys, so nobody else looks into it.
make_own() {
  [ ! -d "$own" ] || return 0
  make_folder "$own"
  chmod 0750 "$own"
  [ -n "$root" ] || chown root:raynode "$own"
}

make_state() {
  [ ! -d "$state" ] || return 0
  make_folder "$(dirname "$state")"
  mkdir -m 0700 "$state"
  [ -n "$root" ] || chown raynode:raynode "$state"
  did "made $state"
}

put_settings() {
  if [ -e "$settings" ]; then
    return 0
  fi
  if [ -n "$old" ]; then
    migrate_settings
    put "$temp/raynode.env" "$settings" 640 raynode
    note_made "migrated $old"
  else
    put "$new/.env.example" "$settings" 640 raynode
  fi
}

# --- Settings ---

trim() {
  trimmed=${1#"${1%%[![:space:]]*}"}
  trimmed=${trimmed%"${trimmed##*[![:space:]]}"}
}

# each_setting FILE FUNCTION: calls it with name and value of every line such as "NAME= value". Nothing
# in the file is run.
each_setting() {
  while IFS= read -r line || [ -n "$line" ]; do
    trim "$line"
    case $trimmed in
    '#'*) continue ;;
    *=*) ;;
    *) continue ;;
    esac
    value=${trimmed#*=}
    trim "${trimmed%%=*}"
    trim "${trimmed#export }"
    name=$trimmed
    case $name in
    '' | [0-9]* | *[!A-Za-z0-9_]*) continue ;;
    esac
    trim "$value"
    case $trimmed in
    \"*\"*) value=${trimmed#\"} && value=${value%%\"*} ;;
    \'*\'*) value=${trimmed#\'} && value=${value%%\'*} ;;
    '#'*) value= ;;
    *)
      # A comment may follow.
      trim "${trimmed%%[[:space:]]#*}"
      value=$trimmed
      ;;
    esac
    trim "$value"
    "$2" "$name" "$trimmed"
  done <"$1"
}

as_node() {
  if [ -n "$root" ]; then
    "$@"
  else
    chroot --userspec=raynode:raynode --skip-chdir / "$@"
  fi
}

# The rest of this shell is where the node runs, and what it starts reads the node's settings. Below --root,
# its files are there.
enter_settings() {
  cd "$own"
  export RAYNODE_SETTINGS="$settings"
  if [ -n "$root" ]; then
    # Not below the root: a long path would not fit a socket's address.
    export STATE_DIR="$state" RUNTIME_DIR="$temp/run"
  fi
}

# node COMMAND...: a command of raynode, by its user and with its settings.
node() (
  enter_settings
  as_node "$binary" "$@"
)

# What is set in the environment of the daemon that runs wins over its settings.
enter_environment() {
  has_systemd || return 0
  daemon=$(systemctl show raynode --property MainPID --value 2>/dev/null) || return 0
  [ "${daemon:-0}" -ne 0 ] || return 0
  # The key of the node may be in it.
  (umask 077 && tr '\0' '\n' <"/proc/$daemon/environ" >"$temp/environment") 2>/dev/null || return 0
  read_known
  while IFS= read -r line; do
    case "$known RAYNODE_SETTINGS " in
    *" ${line%%=*} "*) export "${line?}" ;;
    esac
  done <"$temp/environment"
}

# would_run PROGRAM: whether a node would start with it and the settings that are there, but for the ports,
# which a node that runs has. Leaves its words in $temp/why.
would_run() {
  tried=0
  (
    enter_settings
    enter_environment
    [ -z "$root" ] || export STATE_DIR="$temp/tried"
    as_node timeout 30 "$1" run --check
  ) >/dev/null 2>"$temp/why" || tried=$?
  # 2: a setting is wrong. Below a root, files that settings name are somewhere else.
  if [ "$tried" -eq 2 ]; then
    return 1
  elif [ "$tried" -eq 0 ] || [ -n "$root" ]; then
    return 0
  fi
  for port in 62049 61049 52049; do
    if (
      enter_settings
      enter_environment
      export NODE_HOST=127.0.0.1 SERVICE_PORT=$port API_PORT=0
      as_node timeout 30 "$1" run --check
    ) >/dev/null 2>"$temp/why"; then
      return 0
    fi
  done
  return 1
}

# --- The core ---

note_core() {
  [ "$1" != XRAY_EXECUTABLE_PATH ] || named_core=$2
}

has_core() {
  named_core=
  [ ! -f "$settings" ] || each_setting "$settings" note_core
  if [ -n "$named_core" ]; then
    [ -x "$root$named_core" ]
  else
    [ -x "$state/cores/current/xray" ] || [ -x "$root/usr/local/bin/xray" ]
  fi
}

# A node without a core runs, and tells its panel so: that is no reason to fail.
provide_core() {
  if has_core; then
    [ -z "$core" ] || say "an Xray is here already; \"raynode core install --from FILE\" brings another one"
    return 0
  fi
  if [ -n "$named_core" ]; then
    warn "XRAY_EXECUTABLE_PATH in $settings is $named_core, where no program is"
    return 0
  elif [ -n "$core" ]; then
    mkdir -m 0755 "$temp/core"
    copy=$temp/core/$(basename "$core")
    cp "$core" "$copy"
    # What it must be stands beside it.
    [ ! -f "$core.dgst" ] || cp "$core.dgst" "$copy.dgst"
    chmod 0644 "$copy"*
    set -- core install --from "$copy"
  elif [ -n "$offline" ]; then
    warn "there is no Xray, and --offline downloads none; install.sh install --core FILE takes an archive of its release"
    return 0
  else
    say "installing Xray"
    set -- core install latest
  fi
  if node "$@" && has_core; then
    did "installed Xray"
    return 0
  fi
  warn "Xray was not installed. The node runs without it, and tells its panel so. What helps:
  raynode core install latest       downloads it
  raynode core install --from FILE  takes an archive of its release that is here
  or put the program at /usr/local/bin/xray"
}

# --- Taking over a pg-node ---

# Leaves its folder in $old, if there is one to take over or one that was taken over.
find_old() {
  old=
  [ -z "$no_migrate" ] || return 0
  if [ -n "$migrate" ]; then
    [ -f "$migrate/.env" ] || die "there is no $migrate/.env: --migrate wants the folder of a pg-node, such as /opt/pg-node"
    old=$(cd "$migrate" && pwd)
  elif [ -f "$root/opt/pg-node/.env" ]; then
    old=$root/opt/pg-node
  fi
  [ -n "$old" ] || return 0
  old_name=$(basename "$old")
  if [ -e "$settings" ] && ! is_recorded "migrated $old"; then
    [ -z "$migrate" ] ||
      die "$settings is there already and is never overwritten: move it away to take over $old; nothing was changed"
    say "$old is not taken over: $settings is there already"
    old=
  fi
}

collect() {
  case " $old_names " in
  *" $1 "*) ;;
  *) old_names="$old_names $1" ;;
  esac
  # The name has been looked at: letters, digits and underscores.
  eval "set_in_old_$1=\$2"
}

old_value() {
  eval "printf '%s' \"\${set_in_old_$1:-}\""
}

# Leaves lines of "path in the container, blank, path on this machine" in $volumes.
read_volumes() {
  volumes=
  if [ -f "$old/docker-compose.yml" ]; then
    while read -r dash mapping _; do
      mapping=${mapping#[\"\']}
      mapping=${mapping%[\"\']}
      case "$dash $mapping" in
      "- /"*:/*) outside=$root${mapping%%:*} ;;
      "- ."*:/*) outside=$old/${mapping%%:*} ;;
      *) continue ;;
      esac
      inside=${mapping#*:}
      inside=${inside%%:*}
      volumes="$volumes${inside%/} ${outside%/}
"
    done <"$old/docker-compose.yml"
  fi
  [ -n "$volumes" ] || volumes="/var/lib/$old_name $root/var/lib/$old_name
"
}

# Where a path of the old node is on this machine; nothing when it is not there. In the container the folder of
# the node is /app; one without a container reads relative paths from where its .env is.
host_path() {
  wanted=$1
  case $1 in
  '') return 0 ;;
  /*) ;;
  *) wanted=/app/${1#./} ;;
  esac
  found=$(printf '%s' "$volumes" | in_volumes "$wanted")
  if [ -z "$found" ] && [ "$wanted" != "$1" ]; then
    found=$old/${1#./}
  elif [ -z "$found" ] && [ ! -f "$old/docker-compose.yml" ]; then
    found=$root$1
  fi
  [ ! -e "$found" ] || printf '%s\n' "$found"
}

# Of volumes within each other, the innermost has it.
in_volumes() {
  innermost='' place=''
  while read -r inside outside; do
    case $1 in
    "$inside" | "$inside"/*)
      if [ ${#inside} -gt ${#innermost} ]; then
        innermost=$inside place=$outside${1#"$inside"}
      fi
      ;;
    esac
  done
  printf '%s\n' "$place"
}

# keep SOURCE PLACE MODE: a copy below the state folder. The node's user makes it: where it may write,
# root does not.
keep() {
  # shellcheck disable=SC2016 # for the inner shell
  as_node sh -c 'umask 077
    mkdir -p "$(dirname "$1")" && cat >"$1.new" && chmod "$2" "$1.new" && mv -f "$1.new" "$1"' \
    sh "$state/$2" "$3" <"$1" || die "$1 can't be copied to $state/$2"
}

note_known() {
  known="$known $1"
}

# Names of the template, also of lines that are commented out.
read_known() {
  known=
  while IFS= read -r line; do
    case $line in
    '#'[A-Z]*=*) printf '%s\n' "${line#\#}" ;;
    esac
  done <"$new/.env.example" >"$temp/known"
  each_setting "$temp/known" note_known
}

# The judge of a setting is the node that will read it.
is_accepted() {
  { [ ! -f "$trial/taken" ] || cat "$trial/taken"; printf '%s=%s\n' "$1" "$2"; } >"$trial/.env"
  outcome=0
  (cd "$trial" && env -i PATH="$PATH" STATE_DIR="$trial/state" RUNTIME_DIR="$trial/run" \
    "$new/raynode" run --check) >/dev/null 2>"$trial/why" || outcome=$?
  # 2: a setting is wrong; whether a port is free is another question.
  [ "$outcome" -ne 2 ]
}

# quote VALUE: as systemd and raynode read it; leaves it in $result.
quote() {
  case $1 in
  *\'* | *\\*) return 1 ;;
  *[!A-Za-z0-9_./:,@%+-]*) result="'$1'" ;;
  *) result=$1 ;;
  esac
}

leave() {
  left="$left  $1: $2
"
  printf '#%s=%s\n' "$1" "$(old_value "$1")" >>"$trial/left"
}

take() {
  if ! quote "$2"; then
    leave "$1" "set it by hand, because of its quotes"
  elif is_accepted "$1" "$result"; then
    printf '%s=%s\n' "$1" "$result" >>"$trial/taken"
    taken="$taken $1"
  else
    why=$(tail -n 1 "$trial/why")
    trim "$why"
    leave "$1" "${trimmed#"$1 "}"
  fi
}

# Reads everything first, and copies what the node needs into its state. Leaves the settings in
# $temp/raynode.env.
migrate_settings() {
  say "taking over $old"
  old_names='' taken='' left='' trial=$temp/trial
  (umask 077 && mkdir "$trial" && : >"$trial/left" && : >"$temp/raynode.env")
  each_setting "$old/.env" collect
  read_volumes
  read_known
  for name in $old_names; do
    value=$(old_value "$name")
    case $name in
    SSL_CERT_FILE | SSL_KEY_FILE | XRAY_EXECUTABLE_PATH | XRAY_ASSETS_PATH) ;;
    SSL_CLIENT_CERT_FILE) migrate_client_certificate "$value" ;;
    GENERATED_CONFIG_PATH | STATE_DIR | RUNTIME_DIR) leave "$name" "the node keeps its files in /var/lib/raynode" ;;
    *)
      case " $known " in
      *" $name "*) [ -z "$value" ] || take "$name" "$value" ;;
      *) leave "$name" "raynode does not know it" ;;
      esac
      ;;
    esac
  done
  migrate_certificate
  migrate_core
  migrate_assets
  write_settings >"$temp/raynode.env"
  say "  settings:$taken"
  if [ -n "$left" ]; then
    say "  not taken over, but kept in $settings, commented out:"
    printf '%s' "$left"
  fi
}

migrate_certificate() {
  looked_for=
  # Where a node looks that is told nothing, newest generation first.
  for folder in /var/lib/pg-node /var/lib/pasarguard /var/lib/gozargah-node; do
    certificate=$(old_value SSL_CERT_FILE)
    key=$(old_value SSL_KEY_FILE)
    certificate=${certificate:-$folder/certs/ssl_cert.pem}
    key=${key:-$folder/certs/ssl_key.pem}
    looked_for=${looked_for:-"$certificate, $key"}
    certificate=$(host_path "$certificate")
    key=$(host_path "$key")
    [ ! -f "$certificate" ] || [ ! -f "$key" ] || break
  done
  if [ ! -f "$certificate" ] || [ ! -f "$key" ]; then
    warn "the certificate of $old was not found ($looked_for): the panel has to be given the new one"
    return 0
  fi
  keep "$certificate" certs/ssl_cert.pem 0644
  keep "$key" certs/ssl_key.pem 0600
  say "  certificate: $certificate, now in $state/certs. What renews it has to put it there from now on"
}

migrate_client_certificate() {
  source=$(host_path "$1")
  if [ -f "$source" ]; then
    keep "$source" certs/ssl_client_cert.pem 0644
    take SSL_CLIENT_CERT_FILE /var/lib/raynode/certs/ssl_client_cert.pem
  else
    leave SSL_CLIENT_CERT_FILE "there is no such file"
  fi
}

# A core that the image did not bring. It is copied as an installed one, so that the panel can update it
# and nothing depends on the old folder.
migrate_core() {
  source=$(host_path "$(old_value XRAY_EXECUTABLE_PATH)")
  if [ ! -f "$source" ] || [ -e "$state/cores/current" ]; then
    return 0
  fi
  keep "$source" cores/.taken/xray 0755
  # By the node's user: what is in that folder is not run by root.
  says=$(as_node "$state/cores/.taken/xray" version 2>/dev/null) || says=
  core_version=${says#Xray }
  core_version=${core_version%%[!0-9.]*}
  if [ "$says" = "${says#Xray }" ] || [ -z "$core_version" ]; then
    as_node rm -rf "$state/cores/.taken"
    warn "$source does not run here, so it is not taken over"
    return 0
  fi
  if [ -e "$state/cores/$core_version" ]; then
    as_node rm -rf "$state/cores/.taken"
  else
    write_record "$core_version" "$source" "\"xray\": \"$(sum_of "$source")\"" >"$temp/record"
    keep "$temp/record" cores/.taken/core.json 0600
    as_node mv "$state/cores/.taken" "$state/cores/$core_version"
  fi
  as_node ln -s "$core_version" "$state/cores/current"
  say "  Xray $core_version: $source, now in $state/cores"
}

# What raynode itself writes beside what it installs, and lists.
write_record() {
  printf '{"format": 1, "version": "%s", "source": "%s", "installed": %s, "sha256": {%s}}\n' \
    "$1" "$(printf '%s' "$2" | tr -cd 'A-Za-z0-9_./-')" "$(date +%s)" "$3"
}

migrate_assets() {
  source=$(host_path "$(old_value XRAY_ASSETS_PATH)")
  if [ ! -d "$source" ] || [ -e "$state/assets/current" ]; then
    return 0
  fi
  if [ ! -f "$source/geoip.dat" ] || [ ! -f "$source/geosite.dat" ]; then
    warn "geoip.dat and geosite.dat are not both in $source, so they are not taken over"
    return 0
  fi
  for file in "$source"/*.dat; do
    [ ! -f "$file" ] || keep "$file" "assets/$old_name/$(basename "$file")" 0644
  done
  write_record "$old_name" "$source" \
    "\"geoip.dat\": \"$(sum_of "$source/geoip.dat")\", \"geosite.dat\": \"$(sum_of "$source/geosite.dat")\"" >"$temp/record"
  keep "$temp/record" "assets/$old_name/geo.json" 0600
  as_node ln -s "$old_name" "$state/assets/current"
  say "  geo files: $source, now in $state/assets"
}

# The template with what was taken over in its place, and what was not at the end.
write_settings() {
  [ -f "$trial/taken" ] || : >"$trial/taken"
  while IFS= read -r template_line || [ -n "$template_line" ]; do
    result=$template_line
    case $template_line in
    '#'[A-Z]*=*)
      wanted=${template_line#\#}
      wanted=${wanted%%=*}
      while IFS= read -r line; do
        [ "${line%%=*}" != "$wanted" ] || result=$line
      done <"$trial/taken"
      ;;
    esac
    printf '%s\n' "$result"
  done <"$new/.env.example"
  if [ -s "$trial/left" ]; then
    printf '\n# --- From %s/.env: what is not used here ---\n\n' "${old#"$root"}"
    cat "$trial/left"
  fi
}

compose() {
  if have docker && docker compose version >/dev/null 2>&1; then
    docker compose -f "$old/docker-compose.yml" -p "$old_name" "$@"
  elif have docker-compose; then
    docker-compose -f "$old/docker-compose.yml" -p "$old_name" "$@"
  else
    return 127
  fi
}

old_service_runs() {
  systemctl is-active --quiet "$old_name-service" || systemctl is-enabled --quiet "$old_name-service" 2>/dev/null
}

old_container_runs() {
  [ -f "$old/docker-compose.yml" ] && [ -n "$(compose ps -q 2>/dev/null)" ]
}

say_how_to_go_back() {
  say "$old is as it was. To go back to it:
  systemctl disable --now raynode
  docker compose -f $old/docker-compose.yml -p $old_name up -d
  systemctl enable --now $old_name-service   (where it was used)"
}

# Fails when raynode is not to be started, because the old node is to go on.
make_way() {
  [ -n "$old" ] || return 0
  if ! old_service_runs && ! old_container_runs; then
    return 0
  fi
  if ! would_run "$binary"; then
    cat "$temp/why" >&2
    warn "with these settings raynode does not start, so $old goes on: mend $settings, then: install.sh install"
    return 1
  fi
  if ! agrees "Stop $old_name now and start raynode in its place? Connections through it end once."; then
    warn "$old goes on and has the ports, so raynode is not started. Later: install.sh install --yes"
    return 1
  fi
  if old_service_runs; then
    systemctl disable --now "$old_name-service" || return 1
    did "stopped $old_name-service"
  fi
  if old_container_runs; then
    compose down || return 1
    did "stopped the container of $old"
  fi
}

# --- The service ---

has_systemd() {
  [ -z "$root" ] && [ -d /run/systemd/system ] && have systemctl
}

# A unit that starts and fails is seen within this time.
is_running() {
  for _ in 1 2 3 4 5; do
    sleep 0.4
    systemctl is-active --quiet raynode || return 1
  done
}

say_it_fails() {
  show_log
  [ -z "$old" ] || say_how_to_go_back
  die "raynode is installed, but does not run; its log is above"
}

show_log() {
  journalctl --no-pager --lines 20 --unit raynode >&2 || :
}

# systemctl waits until the node is ready.
comes_up() {
  systemctl restart raynode && is_running
}

# Of a node that runs. It is not left without a program that does.
restart_node() {
  if comes_up; then
    did "restarted raynode; connections live on"
    return 0
  fi
  show_log
  put_back || die "raynode does not run any more; its log is above"
  systemctl daemon-reload
  systemctl reset-failed raynode 2>/dev/null || :
  if comes_up; then
    die "$runs did not come up (its log is above), so what was here before ($was) was put back, and runs; connections live on"
  fi
  show_log
  die "$runs did not come up, and neither did what was here before ($was) and was put back; both logs are above"
}

start_service() {
  if ! has_systemd; then
    [ -n "$root" ] || warn "systemd does not run here: start \"raynode run\" with the settings in $settings as user raynode"
    return 0
  fi
  [ -z "$changed" ] || systemctl daemon-reload
  if systemctl is-active --quiet raynode; then
    if [ -n "$program_changed" ]; then
      restart_node
    fi
  else
    make_way || return 0
    enable_service
    systemctl reset-failed raynode 2>/dev/null || :
    systemctl start raynode || say_it_fails
    is_running || say_it_fails
    did "started raynode"
  fi
  enable_service
}

enable_service() {
  if ! systemctl is-enabled --quiet raynode; then
    systemctl enable --quiet raynode
    did "raynode starts with the machine from now on"
  fi
}

restart_service() {
  has_systemd && [ -n "$program_changed" ] || return 0
  systemctl daemon-reload
  if systemctl is-active --quiet raynode; then
    restart_node
  else
    say "raynode does not run, and was not started: systemctl start raynode"
  fi
}

say_what_the_panel_wants() {
  if has_systemd && systemctl is-active --quiet raynode && "$binary" pair --help >/dev/null 2>&1; then
    say ""
    node pair && return 0
  fi
  say "What the panel asks for: \"raynode pair\" prints it where the node runs; API key and certificate are in $state"
}

# --- The commands ---

do_install() {
  find_old
  look_what_is_here
  get_release
  make_user
  make_own
  make_state
  put_program
  put_settings
  provide_core
  start_service
  if [ -n "$changed" ]; then
    say "$runs is installed"
    [ -z "$old" ] || say_how_to_go_back
    say_what_the_panel_wants
  else
    say "nothing changed: $runs is installed already"
  fi
}

look_what_is_here() {
  was=$(timeout 30 "$binary" --version 2>/dev/null) || was="a raynode that does not run"
}

do_update() {
  [ -e "$binary" ] || die "raynode is not installed here, so there is nothing to update: install.sh install"
  look_what_is_here
  old=
  get_release
  put_program
  restart_service
  has_core || warn "there is no Xray: raynode core install latest"
  if [ -n "$changed" ]; then
    say "updated: $was, now $runs"
  else
    say "nothing changed: $runs is installed already"
  fi
}

do_uninstall() {
  recorded=
  [ ! -f "$record" ] || recorded=$(cat "$record")
  if ! is_here && { [ -z "$purge" ] || { [ ! -e "$own" ] && [ ! -e "$state" ]; }; }; then
    say "nothing changed: raynode is not installed here"
    [ ! -e "$state" ] || say "what it kept is in $own and $state; uninstall --purge removes that"
    return 0
  fi
  if [ -n "$purge" ] && ! agrees "Remove raynode with its settings, keys, certificate and usage that no panel has collected?"; then
    die "nothing was removed"
  fi
  runs_program=$(units_with "Exec*=*${binary#"$root"} *")
  runs_as_user=$(units_with "User=raynode *")
  failed=
  stop_service
  remove_file "$unit"
  remove_program
  if has_systemd; then
    systemctl daemon-reload
    systemctl reset-failed raynode 2>/dev/null || :
  fi
  rm -rf "$root/run/raynode"
  if [ -n "$purge" ]; then
    purge_node
  else
    remove_folders
    say "settings and state stay, in $own and $state; uninstall --purge removes them and the user raynode"
  fi
  [ -z "$failed" ] || die "not everything was removed: $failed"
}

# Also what a removal left that was interrupted.
is_here() {
  [ ! -e "$binary" ] && [ ! -e "$unit" ] || return 0
  while read -r kind place; do
    place=$root$place
    case $kind in
    file) [ ! -e "$place" ] && [ ! -L "$place" ] || return 0 ;;
    folder) [ ! -d "$place" ] || [ -n "$(ls -A "$place")" ] || return 0 ;;
    esac
  done <<END
$recorded
END
  return 1
}

# units_with PATTERN: the units beside our own, as of a second node, that have such a line.
units_with() {
  for other in "$root"/etc/systemd/system/*.service "$root"/etc/systemd/system/*.service.d/*.conf; do
    case $other in
    "$unit" | "$unit.d"/*) continue ;;
    esac
    [ -f "$other" ] || continue
    while IFS= read -r line || [ -n "$line" ]; do
      # shellcheck disable=SC2254 # it is one
      case "$line " in
      $1)
        printf '%s ' "$other"
        break
        ;;
      esac
    done <"$other"
  done
}

remove_file() {
  if [ -e "$1" ] || [ -L "$1" ]; then
    rm -f "$1"
    say "removed $1"
  fi
  # Of one that was killed.
  rm -f "$1.new"
}

# Program, documentation and completions: what every node of this machine uses.
remove_program() {
  if [ -n "$runs_program" ]; then
    say "left $binary, its documentation and its completions: they are used by ${runs_program% }"
    return 0
  fi
  for file in "$binary" "$bash_completion" "$zsh_completion" "$fish_completion"; do
    remove_file "$file"
  done
  while IFS= read -r line; do
    case $line in
    'file /'*) remove_file "$root${line#file }" ;;
    esac
  done <<END
$recorded
END
}

# Settings, state, and what was made for them; nobody else's.
purge_node() {
  outside=
  [ ! -f "$settings" ] || each_setting "$settings" note_outside
  for place in "$state" "$logs" "$unit.d"; do
    if [ -e "$place" ]; then
      rm -rf "$place"
      say "removed $place"
    fi
  done
  [ -z "$outside" ] || say "left $outside: STATE_DIR named it, and it is not install.sh's"
  remove_file "$settings"
  remove_user
  remove_folders
  if [ -n "$user_stays" ] || [ -n "$runs_program" ]; then
    [ ! -e "$record" ] || say "left $record: another uninstall --purge removes the rest"
  else
    # A signal waits for the end of this: without the record nobody knows whose the last folders are.
    (trap '' HUP INT PIPE TERM && rm -f "$record" && remove_folders)
  fi
  for file in "$own"/* "$own"/.[!.]*; do
    [ ! -e "$file" ] || [ "$file" = "$record" ] || say "left $file: install.sh did not make it"
  done
  was_made "folder ${own#"$root"}" || [ ! -d "$own" ] || say "left $own: it was here before"
}

note_outside() {
  if [ "$1" = STATE_DIR ] && [ -n "$2" ] && [ "$root$2" != "$state" ] && [ -e "$root$2" ]; then
    outside=$root$2
  fi
}

# A daemon that died leaves a core behind, which serves on: here it ends, too.
stop_service() {
  has_systemd || return 0
  if [ -e "$unit" ]; then
    systemctl disable --quiet --now raynode || die "the service can't be stopped; nothing was removed"
    systemctl kill raynode 2>/dev/null || :
    say "stopped raynode"
  fi
}

was_made() {
  case "
$recorded
" in
  *"
$1
"*) return 0 ;;
  esac
  return 1
}

remove_user() {
  user_stays=
  if [ -n "$root" ] || ! id -u raynode >/dev/null 2>&1; then
    return 0
  elif ! was_made user; then
    say "left the user raynode: install.sh did not make it"
  elif [ -n "$runs_as_user" ]; then
    user_stays=yes
    say "left the user raynode: it is the one of ${runs_as_user% }"
  elif why=$(userdel raynode 2>&1); then
    say "removed the user raynode"
    ! (have getent && getent group raynode >/dev/null) || say "left the group raynode: it has other members"
  else
    user_stays=yes
    failed="the user raynode stays ($why)"
  fi
}

# Those that this script made and that are empty now.
remove_folders() {
  backwards=
  while read -r kind folder; do
    [ "$kind" != folder ] || backwards="$folder
$backwards"
  done <<END
$recorded
END
  printf '%s' "$backwards" | while read -r folder; do
    rmdir "$root$folder" 2>/dev/null || :
  done
}

main() {
  parse_arguments "$@"
  prepare
  case $command in
  install) do_install ;;
  update) do_update ;;
  uninstall) do_uninstall ;;
  esac
}

main "$@"
