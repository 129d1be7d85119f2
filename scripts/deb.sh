#!/usr/bin/env bash
# deb.sh [--fast] [--version V] [--out DIR] amd64|arm64 [BINARY]: the Debian package and its line in SHA256SUMS, in
# target/dist. Without a binary the static one is built. --fast compresses less. Needs cargo-deb, which is
# installed if it is missing.
set -euo pipefail

here=$PWD
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

version=$(cargo_version)-1 out=target/dist options=()
while (($#)); do
  case $1 in
  --version) version=$2 && shift ;;
  --out) out=$(cd "$here" && realpath -m "$2") && shift ;;
  --fast) options+=(--fast) ;;
  -*) die "unknown: $1" ;;
  *) break ;;
  esac
  shift
done
if [[ $version == "$(cargo_version)-1" ]] && ! head -n 1 deploy/debian/changelog | grep -qF "($version)"; then
  die "deploy/debian/changelog does not begin with $version"
fi
(($# == 1 || $# == 2)) || die "usage: deb.sh [--fast] [--version V] [--out DIR] amd64|arm64 [BINARY]"
arch=$1
triple=$(release_triple "$arch")
need_cargo
have dpkg-deb || die "dpkg-deb is missing (apt-get install dpkg)"
cargo deb --version >/dev/null 2>&1 || cargo install cargo-deb --locked >&2
if (($# == 2)); then
  binary=$(cd "$here" && realpath "$2")
else
  binary=$(build_static "$arch")
fi
need_made_for "$arch" "$binary"

# cargo-deb takes what is at the place of a release build: here one that is only for it.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
built=$work/$triple/release
mkdir -p "$built/completions" "$out"
install -m 0755 "$binary" "$built/raynode"
variant=(--variant completions)
for shell in bash zsh fish; do
  # A binary for another machine does not run here: then the package has none.
  "$built/raynode" completions "$shell" >"$built/completions/$shell" 2>/dev/null || variant=()
done
((${#variant[@]})) || say "this binary prints no completions, so the package has none"

SOURCE_DATE_EPOCH=$(release_time) CARGO_TARGET_DIR=$work cargo deb --quiet --no-build --no-strip --target "$triple" \
  --deb-version "$version" "${variant[@]}" "${options[@]}" --output "$work/raynode.deb" >/dev/null
name=raynode_${version}_$arch.deb
install -m 0644 "$work/raynode.deb" "$out/$name"
add_sum "$out" "$name"
echo "$out/$name"
