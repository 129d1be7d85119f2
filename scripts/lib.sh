# shellcheck shell=bash
# Shared by the scripts beside it: where things are, and how a missing tool is reported.
# Sourcing this file also changes to the root of the repository.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

local_dir=$PWD/.local
# The core that `make run` and the tests use, and the oldest and newest ones that the tests also run
# against. The versions are checked against what the built binaries say of themselves.
xray_version=26.3.27
xray_oldest_version=25.6.8
xray_newest_version=26.10.10

# One line, so that it is not lost in a build log.
die() {
  echo "error: $*" >&2
  exit 1
}

say() {
  echo "==> $*" >&2
}

have() {
  command -v "$1" >/dev/null 2>&1
}

# at_least 1.26 1.26.3: is the second version at least the first?
at_least() {
  [[ $(printf '%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]
}

need_cargo() {
  local wanted found
  wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
  have cargo || die "cargo is missing: install Rust >= $wanted (https://rustup.rs)"
  # A rustup shim without a toolchain is in PATH, yet cannot run.
  found=$(rustc --version 2>/dev/null | cut -d ' ' -f 2) || true
  [[ -n $found ]] || die "rustc does not run: install Rust >= $wanted (https://rustup.rs)"
  at_least "$wanted" "$found" || die "Rust $found is too old: install Rust >= $wanted (rustup update stable)"
  # Two dependencies bring C code, and rustc links through the C compiler.
  have cc || die "a C compiler is missing: install gcc or clang (Debian: apt-get install gcc libc6-dev)"
}

# need_go WAY_OUT: what else helps goes into the same line.
need_go() {
  local found ways="install Go >= 1.26 (https://go.dev/dl)${1:-}"
  have go || die "Go is missing, which builds Xray and test clients: $ways"
  # Asked beside go.mod, a Go that may fetch toolchains answers with the one that it would use there.
  found=$(cd deploy/xray && go env GOVERSION) || die "go does not run, which builds Xray: $ways"
  at_least 1.26 "${found#go}" || die "Go ${found#go} is too old to build Xray: $ways"
}

# Go is needed only where a core has to be built.
need_xray() {
  if [[ -n ${XRAY_EXECUTABLE_PATH:-} ]]; then
    type -P -- "$XRAY_EXECUTABLE_PATH" >/dev/null ||
      die "XRAY_EXECUTABLE_PATH names no program that can be run: $XRAY_EXECUTABLE_PATH"
  elif [[ ! -x $local_dir/xray/$xray_version/xray ]]; then
    need_go ", or set XRAY_EXECUTABLE_PATH to an Xray binary"
  fi
}

need_xray_oldest() {
  [[ -x $local_dir/xray/$xray_oldest_version/xray ]] || need_go
}

need_xray_newest() {
  if [[ ! -x $local_dir/xray/$xray_newest_version/xray ]]; then
    need_go
    need_python
  fi
}

# build_xray VERSION FOLDER: the core of the module in FOLDER, whose go.mod and go.sum pin it. Prints
# where it is; everything else goes to stderr.
build_xray() {
  local dir=$local_dir/xray/$1 work
  if [[ ! -x $dir/xray ]]; then
    say "building Xray $1 in .local (once, about a minute)"
    mkdir -p "$dir"
    work=$(mktemp -d "$dir/build.XXXXXX")
    # shellcheck disable=SC2064 # the folder of now
    trap "rm -rf '$work'" EXIT
    # The versions and hashes of every module are in go.mod and go.sum; readonly refuses any other.
    (cd "$2" && CGO_ENABLED=0 go build -mod=readonly -buildvcs=false -trimpath -ldflags '-s -w' \
      -o "$work/xray" github.com/xtls/xray-core/main) >&2
    [[ $("$work/xray" version) == "Xray $1 "* ]] ||
      die "the Xray that $2 builds is not $1: change its version in scripts/lib.sh with it"
    # The final name appears only when the file is whole.
    mv "$work/xray" "$dir/xray"
  fi
  echo "$dir/xray"
}

need_systemd() {
  ((EUID == 0)) || die "a throw-away machine with systemd needs root"
  have mmdebstrap || die "mmdebstrap is missing, which makes the tree (apt-get install mmdebstrap)"
  have systemd-nspawn || die "systemd-nspawn is missing, which boots it (apt-get install systemd-container)"
}

# Prints the first Python >= 3.12 that really runs and can make virtual environments with pip:
# pyenv's shims exist also for versions that are not chosen, and Debian splits venv off.
find_python() {
  local candidate
  for candidate in python3 python3.12 python3.13 python3.14 \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))
import venv, ensurepip' >/dev/null 2>&1; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

need_python() {
  find_python >/dev/null ||
    die "Python >= 3.12 with its venv module is missing: install it (Debian, Ubuntu: apt-get install python3 python3-venv; or pyenv install 3.13)"
}

# Releases. arm64 and amd64 are the names in the files that are published.
release_triple() {
  case $1 in
  amd64) echo x86_64-unknown-linux-musl ;;
  arm64) echo aarch64-unknown-linux-musl ;;
  *) die "releases are made for amd64 and arm64, and not for: $1" ;;
  esac
}

cargo_version() {
  sed -n '/^\[package\]/,/^\[/ s/^version = "\(.*\)"/\1/p' Cargo.toml
}

# The time that every file of a release has, so that the same commit gives the same release.
release_time() {
  echo "${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}"
}

# need_made_for amd64|arm64 BINARY
need_made_for() {
  local machine
  machine=$(od -An -tu1 -j18 -N1 "$2" | tr -d ' ')
  case $1-$machine in
  amd64-62 | arm64-183) ;;
  *) die "$2 is not made for $1" ;;
  esac
}

# build_static amd64|arm64: a binary that runs on every Linux of that kind. Prints where it is.
build_static() {
  local triple built
  triple=$(release_triple "$1")
  case $1 in
  amd64)
    have musl-gcc || die "musl-gcc is missing, which builds ring for $triple (apt-get install musl-tools)"
    export CC_x86_64_unknown_linux_musl=musl-gcc
    ;;
  arm64)
    # On another machine the linker comes with the compiler; what glibc's headers would add, musl has not.
    if have aarch64-linux-gnu-gcc; then
      export CC_aarch64_unknown_linux_musl=aarch64-linux-gnu-gcc CFLAGS_aarch64_unknown_linux_musl=-U_FORTIFY_SOURCE \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=aarch64-linux-gnu-gcc
    else
      have musl-gcc || die "a compiler for $triple is missing (apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross)"
      export CC_aarch64_unknown_linux_musl=musl-gcc
    fi
    ;;
  esac
  rustup target list --installed 2>/dev/null | grep -qx "$triple" || rustup target add "$triple" >&2
  cargo build --release --locked --target "$triple" >&2
  built=${CARGO_TARGET_DIR:-target}/$triple/release/raynode
  readelf -lW "$built" | grep -q INTERP && die "$built is not static"
  echo "$built"
}

# add_sum FOLDER FILE: its line in SHA256SUMS, which stays sorted.
add_sum() (
  cd "$1" || exit
  touch SHA256SUMS
  { grep -v "  $2\$" SHA256SUMS || true; sha256sum "$2"; } | LC_ALL=C sort -k 2 >SHA256SUMS.new
  mv SHA256SUMS.new SHA256SUMS
)
