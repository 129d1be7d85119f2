# shellcheck shell=bash disable=SC2154
# An engine for containers, and the images that the Dockerfile begins with. Sourced; wants $work, a folder of its own,
# and skip, which says what is missing and ends.
#
# Where one answers already (the machine's, or DOCKER_HOST) it is used, and with it what it has of those images. Else one
# is started that nobody else can see: all that it has is in $work, and it leaves the machine's networks alone.

engine='' made=()

start_engine() {
  command -v docker >/dev/null || skip "docker is missing (apt-get install docker.io)"
  if docker info >/dev/null 2>&1; then
    echo "==> the engine that runs here: $(docker version --format '{{.Server.Version}}')"
    return
  fi
  ((EUID == 0)) || skip "no engine answers, and only root can start one"
  command -v dockerd >/dev/null || skip "no engine answers, and dockerd is missing (apt-get install docker.io)"
  # Layers of compilers, and what they make.
  (($(df --output=avail --block-size=1G "$work" | tail -n 1) >= 10)) || skip "an engine of our own needs 10 GB in $work"
  mkdir "$work/engine"
  export DOCKER_HOST=unix://$work/engine/socket
  dockerd --host "$DOCKER_HOST" --data-root "$work/engine/data" --exec-root "$work/engine/exec" \
    --pidfile "$work/engine/pid" --bridge=none --iptables=false --ip6tables=false >"$work/engine/log" 2>&1 &
  engine=$!
  local i
  for ((i = 0; i < 150; i++)); do
    docker info >/dev/null 2>&1 && break
    kill -0 "$engine" 2>/dev/null || break
    sleep 0.2
  done
  if ! docker info >/dev/null 2>&1; then
    tail -n 5 "$work/engine/log"
    skip "no engine can run here"
  fi
  local driver
  driver=$(docker info --format '{{.Driver}}')
  # That one copies everything for every step.
  [[ $driver != vfs ]] || skip "this file system has no layers: $(findmnt --noheadings --output FSTYPE --target "$work") under $work"
  echo "==> an engine of our own: $(docker version --format '{{.Server.Version}}'), $driver"
}

stop_engine() {
  [[ -n $engine ]] || return 0
  kill "$engine" 2>/dev/null || true
  wait "$engine" 2>/dev/null || true
  engine=''
  # What it does not unmount itself: the network that it began in, and what a container that was killed had.
  local mounted
  while read -r _ mounted _; do
    [[ $mounted != "$work"/* ]] || umount --lazy "$mounted" || true
  done </proc/mounts
}

# the_image ARG: the name that the Dockerfile has for it.
the_image() {
  sed -n "s/^ARG $1=//p" Dockerfile
}

# find_image ARG: what to build with, in the variable of this name: what the Dockerfile says where the engine has it or
# gets it, else one that is made here of Debian and what this machine builds with.
find_image() {
  local name
  name=$(the_image "$1")
  # Whose engine it is decides where that gets its images from; ours has none.
  if ! docker image inspect "$name" >/dev/null 2>&1 &&
    { [[ -n $engine ]] || ! timeout 600 docker pull --quiet "$name" >/dev/null 2>&1; }; then
    name=raynode-test-${1,,}:$$
    "make_$1" "$name"
    made+=("$name")
  fi
  printf -v "$1" %s "$name"
}

tree=$PWD/.local/docker-tree

# Debian with a compiler, and with the authorities that this machine trusts.
make_debian() {
  [[ -e $tree/complete ]] && return
  command -v mmdebstrap >/dev/null ||
    skip "the engine has no $(the_image RUST_IMAGE), and mmdebstrap is missing, which makes one in its place (apt-get install mmdebstrap)"
  echo "==> making a Debian with a compiler in .local (once, about half a minute)"
  rm -rf "$tree"
  mkdir -p "$(dirname "$tree")"
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,gcc,libc6-dev \
    --customize-hook="copy-in /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs" \
    bookworm "$tree" /etc/apt/sources.list.d/debian.sources
  touch "$tree/complete"
}

# import_with NAME FOLDER PLACE CHANGE...: Debian, and what is in that folder of ours in that place.
import_with() {
  local name=$1 folder=$2 place=$3 changes=() entries
  mapfile -t entries < <(ls "$folder")
  shift 3
  local change
  for change; do
    changes+=(--change "$change")
  done
  # Debian's names begin with a dot, and ours do not. No folder may be there twice.
  tar --create --numeric-owner --directory "$tree" . \
    --exclude=share/doc --transform "s,^[^.],$place/&,S" --directory "$folder" "${entries[@]}" |
    docker import "${changes[@]}" - "$name" >/dev/null
}

make_GO_IMAGE() {
  make_debian
  echo "==> $1 in the place of $(the_image GO_IMAGE)"
  import_with "$1" "$(cd deploy/xray && go env GOROOT)" usr/local/go \
    "ENV GOPATH=/go GOTOOLCHAIN=local GOPROXY=$(go env GOPROXY) GOSUMDB=$(go env GOSUMDB) PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

# As the usual image has it: rustup with one toolchain.
make_RUST_IMAGE() {
  local toolchain target proxy rust=$work/rust
  command -v rustup >/dev/null || skip "the engine has no $(the_image RUST_IMAGE), and rustup is missing"
  make_debian
  echo "==> $1 in the place of $(the_image RUST_IMAGE)"
  toolchain=$(rustc --print sysroot)
  case $(uname -m) in
  x86_64) target=x86_64-unknown-linux-musl ;;
  aarch64) target=aarch64-unknown-linux-musl ;;
  esac
  rustup target list --installed | grep -qx "$target" || rustup target add "$target"
  mkdir -p "$rust/cargo/bin" "$rust/rustup/toolchains"
  cp "$(command -v rustup)" "$rust/cargo/bin/rustup"
  for proxy in cargo rustc; do
    ln -s rustup "$rust/cargo/bin/$proxy"
  done
  printf 'version = "12"\nprofile = "minimal"\ndefault_toolchain = "%s"\n' "$(basename "$toolchain")" >"$rust/rustup/settings.toml"
  link_or_copy "$toolchain" "$rust/rustup/toolchains/$(basename "$toolchain")"
  import_with "$1" "$rust" usr/local \
    'ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
}

link_or_copy() {
  cp -rl "$1" "$2" 2>/dev/null || { rm -rf "$2" && cp -r "$1" "$2"; }
}
